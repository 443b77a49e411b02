"""What an idle cloud of one host costs, and how long it takes to start."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path

from bench.cloud import OwnCloud
from bench.measure import Results, say
from bench.processes import cpu_now, memory_now

IDLE_S = 20.0
MIB = 2**20


async def rounds(count: int, results: Results) -> None:
    """So many times: start in a new directory, idle, stop, start again."""
    for number in range(1, count + 1):
        say(f"footprint, round {number}")
        place = Path(tempfile.mkdtemp(prefix="duranova-bench-"))
        cloud = OwnCloud(place / "cloud", "--driver", "fake", "--hosts", "1")
        try:
            ready_new = await cloud.start()
            new_cpu = cpu_now(cloud.find).total
            await asyncio.sleep(IDLE_S)  # what a start leaves to be done is done
            before = cpu_now(cloud.find)
            await asyncio.sleep(IDLE_S)
            used = cpu_now(cloud.find).since(before)
            memory = memory_now(cloud.find)
            await cloud.stop()
            ready_again = await cloud.start()
            again_cpu = cpu_now(cloud.find).total
        finally:
            await cloud.stop()
            shutil.rmtree(place, ignore_errors=True)
        figures = {
            "rss": memory.rss.total() / MIB,
            "pss": memory.pss.total() / MIB,
            "processes": memory.processes,
            "idle_cpu": 100 * used.total / IDLE_S,
            "ready_new": ready_new,
            "ready_new_cpu": new_cpu,
            "ready_again": ready_again,
            "ready_again_cpu": again_cpu,
        }
        details = {
            "idle_s": IDLE_S,
            "rss_mib": {name: round(size / MIB, 1) for name, size in memory.rss.items()},
            "pss_mib": {name: round(size / MIB, 1) for name, size in memory.pss.items()},
            "idle_cpu_s": {name: round(used, 2) for name, used in used.by_name.items()},
        }
        results.add("footprint", figures, details)
