"""The embedded Temporal server: one process, persisted to a file, for one machine."""

from __future__ import annotations

import asyncio
import shutil
import socket
import sys
from contextlib import suppress
from pathlib import Path

from temporalio.client import Client

from domain.errors import Unavailable
from runtime.temporal import SEARCH_ATTRIBUTES

READY_S = 60.0
_DYNAMIC_CONFIG = {
    # One tenant's hundred creates must not keep another's one waiting.
    "matching.enableFairness": "true",
    # How often in a second the tasks of a shard are looked for. The server's own 20 is meant for hundreds of
    # shards; here there is one, and each dispatch would wait 45 ms for its turn.
    "history.transferProcessorMaxPollRPS": "200",
    # Partitions spread a queue over machines. On one machine they only cost: 2 MB for each queue, and a
    # poll that waits at one partition while the task waits at another.
    "matching.numTaskqueueWritePartitions": "1",
}
_POLL_S = 0.1


def free_port() -> int:
    """A TCP port of the loopback interface that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def temporal_binary() -> str:
    """The Temporal CLI: one on PATH, else the one that came with our Python environment."""
    beside = Path(sys.executable).parent / "temporal"
    found = shutil.which("temporal") or (str(beside) if beside.is_file() else None)
    if found is None:
        raise Unavailable("no `temporal` command: run `make setup`, or give --temporal ADDRESS")
    return found


def command(
    port: int,
    db_file: Path | None,
    ui_port: int | None,
    log_level: str = "error",
    *,
    partitions: int = 1,
) -> list[str]:
    """The command line of an embedded server; ``db_file`` None keeps it in memory, ``ui_port`` None
    leaves the Web UI off. ``partitions`` of each queue are read, since tasks may be in them; new ones go
    to one alone."""
    line = [temporal_binary(), "server", "start-dev", "--ip", "127.0.0.1", "--port", str(port)]
    line += ["--headless"] if ui_port is None else ["--ui-port", str(ui_port)]
    line += ["--ui-disable-news-fetch"] if ui_port is not None else []
    line += ["--log-level", log_level]
    if db_file is not None:
        line += ["--db-filename", str(db_file)]
        line += ["--sqlite-pragma", "journal_mode=WAL", "--sqlite-pragma", "synchronous=NORMAL"]
    for key in SEARCH_ATTRIBUTES:
        line += ["--search-attribute", f"{key.name}=Keyword"]
    read = {"matching.numTaskqueueReadPartitions": str(partitions)}
    for name, value in (_DYNAMIC_CONFIG | read).items():
        line += ["--dynamic-config-value", f"{name}={value}"]
    return line


async def wait_ready(address: str, namespace: str = "default", within_s: float = READY_S) -> None:
    """Return when the server answers. Unavailable when it does not in time."""
    deadline = asyncio.get_running_loop().time() + within_s
    while asyncio.get_running_loop().time() < deadline:
        with suppress(RuntimeError):
            client = await Client.connect(address, namespace=namespace)
            if await client.service_client.check_health():
                return
        await asyncio.sleep(_POLL_S)
    raise Unavailable(f"Temporal at {address} did not answer within {within_s:.0f} s")
