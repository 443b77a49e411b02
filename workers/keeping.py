"""A Temporal worker that fails for good is replaced: a process must not live on, and report that it does,
while nobody takes its tasks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import structlog
from temporalio.worker import Worker

_CANCEL_S = 1.0
_log = structlog.get_logger(__name__)
PAUSE_S = 5.0
STOP_S = 25.0
"""For a worker to finish: more than its activities are given (``graceful_shutdown_timeout``), and less than
``up`` gives a host's process."""


@asynccontextmanager
async def kept(make: Callable[[], Worker]) -> AsyncIterator[None]:
    """Run a worker inside the block, and a new one a moment after one failed (the SDK itself waits for a
    server that is down; it gives up when it is refused). The block's end lets the last one finish, and leaves
    it behind when it does not in ``STOP_S``."""
    keeper = _Keeper(make)
    running = asyncio.create_task(keeper.run())
    try:
        yield
    finally:
        keeper.stop()
        await running


class _Keeper:
    def __init__(self, make: Callable[[], Worker]) -> None:
        self._make = make
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        while not self._stopping.is_set():
            worker = self._make()
            work = asyncio.create_task(worker.run())
            stopping = asyncio.create_task(self._stopping.wait())
            await asyncio.wait([work, stopping], return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            if not work.done():
                await self._finish(worker, work)
                return
            error = work.exception() or "it ended"  # the SDK has logged the rest
            _log.error("worker failed, starting another", queue=worker.task_queue, error=str(error))
            await self._pause()

    @staticmethod
    async def _finish(worker: Worker, work: asyncio.Task[None]) -> None:
        finishing = asyncio.create_task(worker.shutdown())
        # Not for the shutdown: the SDK waits there for ever when the worker's own end fails half-way.
        await asyncio.wait([work], timeout=STOP_S)
        if not work.done():
            _log.error("worker does not end, leaving it", queue=worker.task_queue)
            work.cancel()
        await asyncio.wait([finishing, work], timeout=_CANCEL_S)
        finishing.cancel()
        await asyncio.wait([finishing], timeout=_CANCEL_S)
        for task in (finishing, work):
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                _log.error("worker failed at its end", queue=worker.task_queue, error=str(error))

    def stop(self) -> None:
        self._stopping.set()

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(PAUSE_S):
                await self._stopping.wait()
        except TimeoutError:
            return
