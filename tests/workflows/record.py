"""Write what the determinism guards compare with: ``make histories``.

Histories go to ``histories/<version>/`` of the version in pyproject.toml. Those of a released version are
never recorded again: they stand for runs that may be in flight when a newer program takes over.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from temporalio.client import WorkflowHandle
from temporalio.exceptions import ApplicationError

from domain.errors import Kind
from domain.guest import Fence
from domain.ids import CONTROL_QUEUE, OPERATOR_DESK
from runtime.temporal import ensure_desk
from tests.temporal_server import temporal_server
from tests.tree import PYPROJECT
from tests.workflows.fingerprints import write_fingerprints
from tests.workflows.stage import HeldRun, Run, Stage, staged
from tests.world import HOSTS, Script
from workflows.contract import HostRef, PurgeGuest, RetryBuild, WebhookRef
from workflows.reconcile import PurgeStaleGuest, Reconcile, SweepOperations, SyncHostNics
from workflows.webhooks import DeliverEvents, PruneEvents

HISTORIES = Path(__file__).parent / "histories"
Handle = WorkflowHandle[Any, Any]


async def _fails_once(run: Run) -> None:
    """As a host that cannot build the guest: only the first try of the first host."""
    if run.script.calls.count("spawn_guest") == 1:
        raise ApplicationError("disk on fire", type=Kind.UNAVAILABLE, non_retryable=True)


async def _always_fails() -> None:
    raise ApplicationError("disk on fire", type=Kind.UNAVAILABLE, non_retryable=True)


async def _operations(stage: Stage) -> AsyncIterator[tuple[str, Handle]]:
    for lifecycle in ("create", "delete", "reboot_hard", "stop"):
        yield lifecycle, (await Run(stage, lifecycle).play()).handle
    moved, failed = Run(stage, "create"), Run(stage, "create")
    moved.script.always["spawn_guest"] = lambda: _fails_once(moved)
    yield "create_placed_again", (await moved.play()).handle
    failed.script.always["spawn_guest"] = _always_fails
    yield "create_failed", (await failed.play()).handle
    broken = Run(stage, "stop")
    broken.script.always["change_power"] = _always_fails
    yield "stop_failed", (await broken.play()).handle
    cancelled = Run(stage, "create")
    cancelled.script.at, cancelled.script.then = 1, cancelled.handle.cancel
    yield "create_cancelled", (await cancelled.play()).handle
    held = HeldRun(stage, times=2)
    for number, verb in enumerate(("resume", "retry"), 1):
        await held.held(number)
        await held.say(verb)
    await held.playing
    yield "create_held", held.handle
    deleted = Run(stage, "create")
    deleted.script.at, deleted.script.then = 1, deleted.delete
    first = await _first_run(deleted)
    yield "create_deleted_meanwhile", first


async def _first_run(run: Run) -> Handle:
    """The run that delete interrupted; the newest of that workflow id is DeleteServer."""
    await run.play()
    async for execution in run.client.list_workflows(f"WorkflowId = '{run.handle.id}'"):
        if execution.workflow_type == "CreateServer":
            return run.client.get_workflow_handle(execution.id, run_id=execution.run_id)
    raise LookupError(run.handle.id)


async def _reconcilers(stage: Stage) -> AsyncIterator[tuple[str, Handle]]:
    purge = PurgeGuest(HOSTS[0], "gone", Fence(1, "purge"))
    stage.world.untold = 2
    for name, workflow, arguments in (
        ("sweep_operations", SweepOperations, []),
        ("reconcile", Reconcile, []),
        ("sync_host_nics", SyncHostNics, [HostRef(HOSTS[0])]),
        ("purge_stale_guest", PurgeStaleGuest, [purge]),
        ("deliver_events", DeliverEvents, [WebhookRef("gone-soon")]),
        ("prune_events", PruneEvents, []),
    ):
        stage.director.scripts[name] = Script()
        handle = await stage.client.start_workflow(
            workflow.__name__, args=arguments, id=name, task_queue=CONTROL_QUEUE
        )
        await handle.result()
        yield name, handle


async def _desk(stage: Stage) -> AsyncIterator[tuple[str, Handle]]:
    stage.director.scripts[OPERATOR_DESK] = Script()
    await ensure_desk(stage.client)
    desk = stage.client.get_workflow_handle(OPERATOR_DESK)
    await desk.execute_update("retry", RetryBuild("failed"))
    yield "operator_desk", desk


async def _record(address: str, folder: Path) -> None:
    async with staged(address) as stage:
        for source in (_operations(stage), _reconcilers(stage), _desk(stage)):
            async for name, handle in source:
                history = _placeless(json.loads((await handle.fetch_history()).to_json()))
                (folder / f"{name}.json").write_text(json.dumps(history, indent=1) + "\n")


def _placeless(node: Any) -> Any:
    """A history without what tells where it was recorded; none of it matters to a replay."""
    if isinstance(node, list):
        return [_placeless(item) for item in node]
    if not isinstance(node, dict):
        return node
    if node.get("kind") == "TASK_QUEUE_KIND_STICKY":
        node = {**node, "name": "sticky"}
    kept = {key: _placeless(value) for key, value in node.items() if key != "stackTrace"}
    return kept | ({"identity": "recorder"} if "identity" in kept else {})


def main() -> None:
    """Record every history and fingerprint of the version in hand."""
    folder = HISTORIES / PYPROJECT["project"]["version"]
    folder.mkdir(parents=True, exist_ok=True)
    logging.disable()  # the failures are on purpose
    with temporal_server() as address:
        asyncio.run(_record(address, folder))
    write_fingerprints()


if __name__ == "__main__":
    main()
