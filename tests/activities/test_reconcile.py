"""The reconcilers as they run on the minute, over a real cloud: what they see, count and survive."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, event
from sqlmodel import Session

from activities.control import audit, reconcile
from activities.control.reconcile import Reconcilers
from activities.control.records import Records
from activities.control.sweep import Sweep
from db.hosts import Host
from db.reconcilers import reconcilers
from db.servers import Server
from db.session import now, reading
from domain.states import VmState
from tests.record import RUNNING, Record
from tests.stack import Stack, running_stack
from tests.telemetry.test_metrics import samples, scraped, value
from tests.temporal_server import temporal_server
from workers.control import SCHEDULES, ensure_standing_work

pytestmark = pytest.mark.temporal
LONG_AGO = now() - timedelta(minutes=10)
AUDITED = "duranova_audit_last_run_seconds"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with temporal_server() as address:
        yield address


def runs(stack: Stack) -> Reconcilers:
    sweep = Sweep(stack.temporal, stack.engine, Records(stack.engine, stack.settings))
    return Reconcilers(stack.temporal, stack.engine, stack.settings, sweep)


async def test_schedules_run_every_reconciler_and_metrics_say_so(
    tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "LOOK_AGAIN_S", (0.1,))
    async with running_stack(tmp_path, address) as stack:
        stuck = Record(stack.engine).server(
            "host-1", task_state="powering-off", updated_at=LONG_AGO
        )
        await ensure_standing_work(stack.temporal)
        await ensure_standing_work(stack.temporal)  # each control worker does
        try:
            async with asyncio.timeout(60):
                while not samples(text := await scraped(stack), AUDITED):  # noqa: ASYNC110  # only polls
                    await asyncio.sleep(0.2)
        finally:
            for name in SCHEDULES:
                await stack.temporal.get_schedule_handle(name).delete()
        ran = {
            labels["reconciler"]
            for labels, _ in samples(text, "duranova_reconciler_last_success_seconds")
        }
        assert ran >= {"transitions", "claims", "ports", "retention", "hosts", "queues", "audit"}
        assert value(text, "duranova_reconciler_fixes_total", reconciler="transitions") == 1
        assert value(text, "duranova_queue_pollers", queue="control") == 1
        assert value(text, "duranova_queue_pollers", queue="host:host-1") == 1
        assert value(text, AUDITED) > LONG_AGO.timestamp()
        invariants = {
            labels["invariant"] for labels, _ in samples(text, "duranova_audit_violations")
        }
        assert invariants == {f"I{n}" for n in range(1, 9)}
        assert (await stack.show(stuck))["OS-EXT-STS:task_state"] is None


async def test_hosts_that_go_silent_and_come_back_are_counted_once_each(
    tmp_path: Path, address: str
) -> None:
    async with running_stack(tmp_path, address) as stack:
        record = Record(stack.engine)
        record.report("quiet")

        async def transitions(to: str) -> float:
            await runs(stack).reconcile()
            text = await scraped(stack)
            return value(text, "duranova_host_transitions_total", host="quiet", to=to)

        assert await transitions("down") == 0
        record.change(Host, "quiet", reported_at=LONG_AGO)
        assert await transitions("down") == 1
        assert await transitions("down") == 1
        assert value(await scraped(stack), "duranova_host_up", host="quiet") == 0
        record.report("quiet")
        assert await transitions("up") == 1
        assert await transitions("down") == 1


async def test_a_host_whose_queue_nobody_polls_is_seen(tmp_path: Path, address: str) -> None:
    async with running_stack(tmp_path, address) as stack:
        Record(stack.engine).report("deaf")
        await runs(stack).reconcile()
        assert value(await scraped(stack), "duranova_queue_pollers", queue="host:deaf") == 0
        with reading(stack.engine) as session:
            assert "host:deaf" in reconcilers(session)["queues"].findings


async def test_a_reconciler_that_fails_neither_stops_the_others_nor_looks_well(
    tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(session: Session, _found: list[str]) -> list[str]:
        session.add(Server(project_id="p", user_id="u", name="half", vm_state=VmState.ERROR))
        session.flush()
        raise RuntimeError("no")

    monkeypatch.setattr(reconcile, "return_claims", broken)
    async with running_stack(tmp_path, address) as stack:
        record = Record(stack.engine)
        record.bury(record.server("host-1"))
        done = await runs(stack).reconcile()
        assert done.failed == ("claims",)
        assert "queues" in done.fixes
        with reading(stack.engine) as session:
            assert "claims" not in reconcilers(session)
            assert session.get(Server, "half") is None


async def test_reconcilers_with_nothing_to_do_keep_nobody_waiting(
    tmp_path: Path, address: str
) -> None:
    async with running_stack(tmp_path, address, hosts=0) as stack:
        record = Record(stack.engine)
        record.host("one")
        server_id = record.server("one")
        record.report("one", [(server_id, RUNNING)])
        written = []

        def note(conn: Connection, _cursor: Any, statement: str, *_more: Any) -> None:
            if conn.get_execution_options().get("duranova_immediate", True):
                written.append(statement)

        event.listen(stack.engine, "before_cursor_execute", note)
        assert not (await runs(stack).reconcile()).failed
        assert not any((await runs(stack).audit()).violations.values())
        event.remove(stack.engine, "before_cursor_execute", note)
        tables = set(re.findall(r"(?:FROM|INTO|UPDATE|JOIN) (\w+)", " ".join(written)))
        assert tables == {"reconciler"}


async def test_nothing_is_forgotten_when_retention_is_for_ever(
    tmp_path: Path, address: str
) -> None:
    async with running_stack(tmp_path, address, deleted_retention_days=0) as stack:
        old = now() - timedelta(days=4000)
        Record(stack.engine).server(None, deleted_at=old, vm_state=VmState.DELETED)
        assert (await runs(stack).reconcile()).fixes["retention"] == 0
