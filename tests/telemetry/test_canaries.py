"""Secrets go in; they may come out of the database's own fields, and of nowhere else."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session

from db.flavors import Flavor
from domain.errors import GuestFailure
from domain.ids import server_workflow_id
from tests.stack import Stack, password
from tests.telemetry.conftest import Log, Spans

ADMIN_PASS = "canary-pass-5e1d"
USER_DATA = "#cloud-config canary-user-data-77b0"
ENCODED = base64.b64encode(USER_DATA.encode()).decode()
QUERY = "canary-query-20ac"


def payloads(history: str) -> Iterator[str]:
    """What a history's payloads hold: commands, results, headers, failures."""
    for data in re.findall(r'"data":\s*"([A-Za-z0-9+/=]+)"', history):
        yield base64.b64decode(data).decode(errors="replace")


async def _histories(stack: Stack, server_id: str) -> str:
    """Every run of the server's workflow, as stored and decoded."""
    texts: list[str] = []
    query = f'WorkflowId = "{server_workflow_id(server_id)}"'
    async for run in stack.temporal.list_workflows(query):
        handle = stack.temporal.get_workflow_handle(run.id, run_id=run.run_id)
        history = (await handle.fetch_history()).to_json()
        texts += [history, *payloads(history)]
    return "\n".join(texts)


def _files(directory: Path) -> dict[str, str]:
    """What lies in the data directory: the database, the hosts' files, the log."""
    return {
        str(path.relative_to(directory)): path.read_bytes().decode(errors="replace")
        for path in directory.rglob("*")
        if path.is_file()
    }


async def _live(stack: Stack) -> str:
    """Everything that handles these secrets: a build that fails on one host and succeeds on the other, a
    look at the server, refused requests that quote them, a delete. Returns the server's id."""
    stack.drivers["host-1"].faults.fail("config_drive", times=99, error=GuestFailure("broken"))
    stack.drivers["host-2"].faults.fail("define", times=1, error=GuestFailure("broken once"))
    secrets = {"adminPass": ADMIN_PASS, "user_data": ENCODED, "config_drive": True}
    answer = await stack.boot("canary", **secrets)
    assert answer.json()["server"]["adminPass"] == ADMIN_PASS
    server_id = str(answer.json()["server"]["id"])
    await stack.until(server_id, "ACTIVE")
    shown = await stack.show(server_id)
    assert shown["OS-EXT-SRV-ATTR:user_data"] == ENCODED
    headers, servers = await stack.headers("member"), "/compute/v2.1/servers"
    for wrong in ({"user_data": USER_DATA}, {"adminPass": [ADMIN_PASS]}, {ADMIN_PASS: USER_DATA}):
        body = {"server": {"name": "x", "flavorRef": "tiny", "networks": "none", **wrong}}
        refused = await stack.client.post(servers, json=body, headers=headers)
        assert refused.status_code == 400
    listed = await stack.client.get(servers, params={"name": QUERY}, headers=headers)
    assert listed.status_code == 200
    unknown = await stack.client.get(servers, headers={"X-Auth-Token": f"{ADMIN_PASS}x"})
    assert unknown.status_code == 401
    gone = await stack.client.delete(f"{servers}/{server_id}", headers=headers)
    assert gone.status_code == 204
    await stack.until(server_id, "DELETED")
    return server_id


@pytest.mark.temporal
async def test_no_secret_leaves_through_logs_traces_histories_metrics_or_files(
    log: Log, stack: Stack, spans: Spans, tmp_path: Path
) -> None:
    server_id = await _live(stack)

    seen = {
        "histories": await _histories(stack, server_id),
        "metrics": (await stack.client.get("/metrics")).text,
        "spans": "\n".join(span.to_json() for span in spans.all()),
        "log": log.text(),
        **_files(tmp_path),
    }
    for where in ("histories", "spans", "log"):  # they do tell the story
        assert server_id in seen[where]
        assert "broken" in seen[where]
    always = [ADMIN_PASS, QUERY, password("demo"), await stack.token("member")]
    for where, text in seen.items():
        kept_on_purpose = where.startswith("duranova.db")
        canaries = always if kept_on_purpose else [*always, USER_DATA, ENCODED]
        assert not [c for c in canaries if c in text], where
    for where in ("metrics", "spans", "log"):
        assert not re.findall(r"eyJ[\w-]+\.eyJ[\w.-]+", seen[where]), f"a signed token in {where}"


def test_a_database_error_shows_no_values(engine: Engine) -> None:
    with Session(engine) as session:
        for _ in range(2):
            session.add(Flavor(flavor_id="1", name=ADMIN_PASS, vcpus=1, ram_mb=1, disk_gb=1))
        with pytest.raises(IntegrityError) as raised:
            session.flush()
    assert ADMIN_PASS not in str(raised.value)
