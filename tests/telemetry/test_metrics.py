"""What Prometheus is told."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Engine

from api.context import Cloud
from db.events import Event, emit, set_mark, webhook_mark
from db.operations import Operation
from db.servers import Server
from db.session import now, transaction
from domain.errors import GuestRefused, Unavailable
from domain.states import OperationState, VmState
from runtime.metrics import listening
from runtime.settings import Settings
from tests.stack import Stack

Labels = dict[str, str]


def samples(text: str, name: str) -> list[tuple[Labels, float]]:
    """Every sample of this name."""
    families = text_string_to_metric_families(text)
    return [(s.labels, s.value) for f in families for s in f.samples if s.name == name]


def value(text: str, name: str, **labels: str) -> float:
    """The sum of the samples that have these labels."""
    return sum(v for found, v in samples(text, name) if labels.items() <= found.items())


async def scraped(stack: Stack) -> str:
    answer = await stack.client.get("/metrics")  # without a token
    assert answer.status_code == 200
    return answer.text


@pytest.mark.temporal
async def test_an_operation_is_counted_and_timed_when_it_ends(stack: Stack) -> None:
    before = await scraped(stack)
    answer = await stack.boot("one")
    await stack.until(answer.json()["server"]["id"], "ACTIVE")
    after = await scraped(stack)

    labels = {"lifecycle": "create", "outcome": "succeeded"}
    for name in ("duranova_operations_total", "duranova_operation_seconds_count"):
        assert value(after, name, **labels) - value(before, name, **labels) == 1
    assert value(after, "duranova_operation_seconds_sum", **labels) > 0
    for step in ("image", "disk", "config_drive", "nics", "define", "start"):
        name = "duranova_host_step_seconds_count"
        assert value(after, name, step=step) - value(before, name, step=step) == 1
    assert value(after, "duranova_servers", vm_state="active") == 1
    assert value(after, "duranova_host_servers") == 1
    assert value(after, "duranova_host_used", resource="vcpus") == 1
    assert value(after, "duranova_host_total", host="host-1", resource="vcpus") == 64
    assert value(after, "duranova_host_up", host="host-2") == 1


@pytest.mark.temporal
async def test_a_failed_build_counts_its_outcome_and_the_stage_it_failed_at(stack: Stack) -> None:
    before = await scraped(stack)
    stack.drivers["host-1"].faults.fail("nics", times=99, error=GuestRefused("no"))
    stack.drivers["host-2"].faults.fail("nics", times=99, error=GuestRefused("no"))
    answer = await stack.boot("one")
    await stack.until(answer.json()["server"]["id"], "ERROR")
    after = await scraped(stack)

    def grown(name: str, **labels: str) -> float:
        return value(after, name, **labels) - value(before, name, **labels)

    assert grown("duranova_operations_total", lifecycle="create", outcome="failed") == 1
    assert grown("duranova_host_driver_errors_total", activity="spawn_guest", step="nics") >= 1
    failed = {"activity": "spawn_guest", "outcome": "GuestFailure"}
    assert grown("duranova_activity_seconds_count", **failed) >= 1


def _operations(engine: Engine, states: Iterable[OperationState]) -> None:
    with transaction(engine) as session:
        for age_s, state in enumerate(states, 100):
            server = Server(
                name="s",
                hostname="s",
                project_id="p",
                user_id="u",
                vm_state=VmState.BUILDING,
                flavor={},
                image={},
            )
            session.add(server)
            session.flush()
            created = now() - timedelta(seconds=age_s)
            session.add(
                Operation(
                    request_id="req",
                    action="create",
                    lifecycle="create",
                    server_id=server.id,
                    project_id="p",
                    user_id="u",
                    state=state,
                    created_at=created,
                )
            )


def test_live_operations_are_read_from_the_record_at_each_scrape(
    client: TestClient, engine: Engine
) -> None:
    empty = client.get("/metrics").text
    assert value(empty, "duranova_operations_live") == 0
    assert value(empty, "duranova_operation_oldest_live_seconds") == 0
    live = (OperationState.ACCEPTED, OperationState.RUNNING, OperationState.RUNNING)
    _operations(engine, (*live, OperationState.SUCCEEDED))
    text = client.get("/metrics").text
    assert value(text, "duranova_operations_live", lifecycle="create", state="running") == 2
    assert value(text, "duranova_operations_live", lifecycle="create", state="accepted") == 1
    assert value(text, "duranova_operations_live") == 3
    assert 102 <= value(text, "duranova_operation_oldest_live_seconds") < 160
    ages = {s: value(text, "duranova_operation_oldest_seconds", state=s) for s in OperationState}
    assert 100 <= ages["accepted"] < 160
    assert 102 <= ages["running"] < 160
    assert ages["waiting_operator"] == 0


def test_labels_do_not_grow_with_what_clients_make_up(client: TestClient) -> None:
    for n in range(5):
        client.request(f"BREW{n}", f"/coffee{n}")
        client.get(f"/compute/v2.1/servers/{n}")
    text = client.get("/metrics").text
    seen = [labels for labels, _ in samples(text, "duranova_api_request_seconds_count")]
    assert {labels["service"] for labels in seen} <= {
        "compute", "identity", "image", "network", "operations", "internal", "other",
    }  # fmt: skip
    assert "OTHER" in {labels["method"] for labels in seen}
    assert not [labels for labels in seen if labels["method"].startswith("BREW")]


def test_metrics_are_served_on_a_port_of_their_own_while_the_block_lasts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    with listening(address):
        assert "duranova_host_step_seconds" in httpx.get(f"http://{address}/metrics").text
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://{address}/metrics")


@pytest.mark.parametrize("address", ["nowhere", "127.0.0.1:http", "127.0.0.1:99999"])
def test_an_address_that_cannot_be_had_is_said_in_one_sentence(address: str) -> None:
    with pytest.raises(Unavailable, match=f"cannot serve metrics on {address}"), listening(address):
        pass


def test_no_address_serves_nothing(tmp_path: Path) -> None:
    with listening(None), listening(""):
        pass


def test_how_far_each_webhook_is_behind_is_read_from_the_record(
    client: TestClient, cloud: Cloud, engine: Engine
) -> None:
    secret = "whsec_" + "QUFB" * 12
    hooks = [{"name": n, "url": "http://x/", "secret": secret} for n in ("slow", "well", "new")]
    settings = Settings(**(cloud.settings.model_dump() | {"webhooks": hooks}))
    object.__setattr__(cloud, "settings", settings)  # frozen
    text = client.get("/metrics").text
    assert [v for _, v in samples(text, "duranova_webhook_lag_events")] == [0, 0, 0]
    with transaction(engine) as session:
        set_mark(session, webhook_mark("slow"), 1)
        set_mark(session, webhook_mark("well"), 3)
        for age_s in (300, 200, 100):
            told = now() - timedelta(seconds=age_s)
            ids = {"operation_id": "o", "server_id": "s", "project_id": "p"}
            emit(session, Event(type="t", time=told, **ids))
    text = client.get("/metrics").text
    assert value(text, "duranova_webhook_lag_events", webhook="slow") == 2
    assert 200 <= value(text, "duranova_webhook_lag_seconds", webhook="slow") < 290
    for webhook in ("well", "new"):
        assert value(text, "duranova_webhook_lag_events", webhook=webhook) == 0
        assert value(text, "duranova_webhook_lag_seconds", webhook=webhook) == 0
