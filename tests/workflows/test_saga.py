"""A workflow that leaves a worker's memory has not failed: nothing is undone."""

from __future__ import annotations

import asyncio

from workflows.contract import Begin, ControlActivities, Ref
from workflows.operation import Saga

REF = Ref("operation", "server", "project", "request", "create")


def test_an_evicted_workflow_undoes_nothing() -> None:
    async def story() -> None:
        async with Saga(REF) as saga:
            saga.on_failure(ControlActivities.release_claim, Begin(REF))  # type: ignore[arg-type]  # never called
            await asyncio.get_running_loop().create_future()

    async def evict() -> None:
        running = story()
        running.send(None)
        running.close()  # RuntimeError if it began to undo

    asyncio.run(evict())
