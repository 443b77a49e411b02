"""One worker for each host at a time, whoever started it and whatever became of the one before."""

from __future__ import annotations

import asyncio
import fcntl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO

import structlog

_log = structlog.get_logger(__name__)
_LOOK_EVERY_S = 0.25


@asynccontextmanager
async def alone(state_dir: Path) -> AsyncIterator[None]:
    """Inside the block no other process works on this host's state; waits for one that does.

    A worker that was told to stop goes on with its calls for a while. A second one, started meanwhile,
    would repeat them beside it: the locks by which calls for one server wait for each other are a
    process's own.
    """
    await asyncio.to_thread(state_dir.mkdir, parents=True, exist_ok=True)
    with (state_dir / "worker.lock").open("ab") as lock:
        if not _taken(lock):
            _log.warning("waiting for the host's earlier worker to end", state=str(state_dir))
            while not _taken(lock):  # noqa: ASYNC110  # a file's lock can only be asked for
                await asyncio.sleep(_LOOK_EVERY_S)
        yield


def _taken(lock: IO[bytes]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
