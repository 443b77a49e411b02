"""One embedded Temporal server per test process."""

from __future__ import annotations

import asyncio
import gc
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import trace
from temporalio.contrib.opentelemetry import create_tracer_provider

from runtime.devserver import command, free_port, wait_ready
from runtime.temporal import connect, ensure_search_attributes

trace.set_tracer_provider(create_tracer_provider())  # what runtime.telemetry does in a process


async def _prepare(address: str) -> None:
    await wait_ready(address)
    await ensure_search_attributes(await connect(address, "default"))


@contextmanager
def temporal_server() -> Iterator[str]:
    """The address of a fresh in-memory server; it ends with the block."""
    # A collection that walks over all that earlier tests have left takes so long that a workflow which it
    # interrupts looks deadlocked.
    gc.collect()
    gc.freeze()
    port = free_port()
    process = subprocess.Popen(
        command(port, None, None), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        asyncio.run(_prepare(f"127.0.0.1:{port}"))
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=30)
        gc.unfreeze()
