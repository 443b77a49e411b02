"""The audit over a whole cloud: nothing wrong after real operations, and what Temporal says against the record."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from alembic import command as alembic
from rich.console import Console
from sqlmodel import select
from typer.testing import CliRunner

import cli.audit
from activities.control import audit
from activities.control.audit import Auditor, Reach
from cli.audit import AuditPlan
from cli.datadir import Running
from cli.main import app
from db import schema
from db.operations import Operation
from db.servers import Server
from db.session import now, reading, transaction
from domain.audit import INVARIANTS
from domain.ids import server_workflow_id
from domain.states import OperationState
from tests.record import Record
from tests.stack import Stack, running_stack
from tests.temporal_server import temporal_server
from tests.tree import ROOT
from workflows.contract import Ref

pytestmark = pytest.mark.temporal


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with temporal_server() as address:
        yield address


@pytest.fixture(autouse=True)
def no_lag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "_LAG", timedelta(0))
    monkeypatch.setattr(audit, "LOOK_AGAIN_S", (0.0, 0.2))


async def found(stack: Stack) -> dict[str, list[str]]:
    """Invariant → subjects of its violations; those that hold are left out."""
    auditor = Auditor(stack.temporal, stack.engine, 60.0, Reach(timedelta(hours=1), 1000))
    findings = await auditor.run()
    assert sum(f.checked for f in findings if f.invariant == "I7") > 0
    return {f.invariant: [v.subject for v in f.violations] for f in findings if f.violations}


async def lived(stack: Stack) -> str:
    """A server that was built and stopped; another one was deleted."""
    kept, gone = [(await stack.boot(name)).json()["server"]["id"] for name in ("kept", "gone")]
    for server_id in (kept, gone):
        await stack.until(server_id, "ACTIVE")
    headers = await stack.headers()
    path = f"/compute/v2.1/servers/{kept}"
    assert (
        await stack.client.post(f"{path}/action", json={"os-stop": None}, headers=headers)
    ).is_success
    assert (await stack.client.delete(f"/compute/v2.1/servers/{gone}", headers=headers)).is_success
    await stack.until(kept, "SHUTOFF")
    await stack.until(gone, "DELETED")
    return str(kept)


def operation_of(stack: Stack, server_id: str, lifecycle: str) -> str:
    with reading(stack.engine) as session:
        query = select(Operation.id).where(
            Operation.server_id == server_id, Operation.lifecycle == lifecycle
        )
        return session.exec(query).one()


def command(*options: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "cli.main", "audit", *options]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)


async def test_the_record_and_temporal_agree_until_one_of_them_is_changed(
    tmp_path: Path, address: str
) -> None:
    async with running_stack(tmp_path, address, hosts=2) as stack:
        server_id = await lived(stack)
        assert await found(stack) == {}

        # An operation whose workflow ended otherwise.
        stopped = operation_of(stack, server_id, "stop")
        record = Record(stack.engine)
        record.change(Operation, stopped, state=OperationState.FAILED)
        assert await found(stack) == {"I7": [f"operation {stopped} (stop of server {server_id})"]}
        record.change(Operation, stopped, state=OperationState.SUCCEEDED)

        # A live operation that no workflow carries out, younger and older than the sweep needs.
        lost = record.operation(server_id, "running", started_at=now())
        assert await found(stack) == {}
        record.change(Operation, lost, updated_at=now() - timedelta(minutes=5))
        assert await found(stack) == {"I6": [f"operation {lost}"]}

        # An ended operation that never had one.
        record.change(Operation, lost, state=OperationState.SUCCEEDED, finished_at=now())
        assert await found(stack) == {"I7": [f"operation {lost} (stop of server {server_id})"]}
        record.change(Operation, lost, state=OperationState.CANCELLED)

        # A workflow that runs for nobody.
        handle = await stack.temporal.start_workflow(
            "PowerServer",
            Ref("none", server_id, "p", "r", "stop"),
            id=server_workflow_id(server_id),
            task_queue="nobody-polls-this",
        )
        ours = f"workflow of server {server_id} (run {handle.result_run_id})"
        assert await until_found(stack) == {"I6": [ours]}
        await handle.terminate()
        assert await found(stack) == {}


async def until_found(stack: Stack) -> dict[str, list[str]]:
    """What is found, once visibility has heard of it."""
    for _ in range(100):
        if seen := await found(stack):
            return seen
    return {}


async def test_an_operation_that_delete_interrupted_is_no_violation(
    tmp_path: Path, address: str
) -> None:
    async with running_stack(tmp_path, address, hosts=1) as stack:
        held = stack.drivers["host-1"].faults.hold("disk")
        server_id = (await stack.boot("one")).json()["server"]["id"]
        await wait(held.reached)
        headers = await stack.headers()
        gone = await stack.client.delete(f"/compute/v2.1/servers/{server_id}", headers=headers)
        assert gone.is_success
        await stack.until(server_id, "DELETED")
        assert await found(stack) == {}


async def wait(event: Any) -> None:
    assert await asyncio.to_thread(event.wait, 30)


async def test_the_command_says_the_same_to_people_and_programs(
    tmp_path: Path, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with running_stack(tmp_path, address, hosts=1, report_interval_s=1.0) as stack:
        server_id = await lived(stack)
        stamp(stack)
        where = AuditPlan(None, stack.settings.database_url, address)
        capsys.readouterr()
        assert await cli.audit.audit(where, Console(), as_json=True) == 0
        said = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert said["ok"] is True
        assert [row["id"] for row in said["invariants"]] == [f"I{n}" for n in range(1, 9)]
        assert all(row["title"] and row["violations"] == [] for row in said["invariants"])
        guests = next(row for row in said["invariants"] if row["id"] == "I3")
        assert guests["checked"] == 1

        with transaction(stack.engine) as session:
            server = session.get_one(Server, server_id)
            server.vcpus += 1
            session.add(server)
        write_running(tmp_path, stack, address)
        told = StringIO()
        here = AuditPlan(tmp_path, None, None)
        assert await cli.audit.audit(here, Console(file=told), as_json=False) == 1
        assert f"server {server_id}" in told.getvalue()
        assert f"→ {INVARIANTS['I5'].advice[:20]}" in told.getvalue()


@pytest.mark.parametrize("code", [0, 1])
def test_the_commands_exit_code_is_the_verdict(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    async def verdict(*_: object, as_json: bool) -> int:
        return code if as_json else 99

    monkeypatch.setattr(cli.audit, "audit", verdict)
    assert CliRunner().invoke(app, ["audit", "--json"]).exit_code == code


def stamp(stack: Stack) -> None:
    alembic.stamp(schema.config(stack.settings.database_url), "head")


def write_running(directory: Path, stack: Stack, address: str) -> None:
    running = Running(
        pid=os.getpid(),
        database_url=stack.settings.database_url,
        temporal_address=address,
        temporal_namespace="default",
        public_url="",
    )
    (directory / "running.json").write_text(running.model_dump_json())


def test_nothing_to_look_at_is_said_in_one_line(tmp_path: Path) -> None:
    nobody = command("--data-dir", str(tmp_path))
    assert (nobody.returncode, nobody.stdout) == (2, "")
    assert "no duranova runs in" in nobody.stderr
    url = f"sqlite:///{tmp_path}/none/none.db"
    no_database = command("--database-url", url, "--temporal", "127.0.0.1:1")
    assert no_database.returncode == 2
    assert "Traceback" not in no_database.stderr
