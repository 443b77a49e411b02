"""Reads: alone for latency, eight at once for requests per second and CPU each; and how lists grow."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Network
from typing import Any

from bench.client import Answer, OpenStack
from bench.cloud import Target
from bench.figures import percentile
from bench.lifecycle import Batch, Load
from bench.measure import Results, say, within
from bench.processes import cpu_now
from bench.seed import Seeder
from db.session import open_engine

AT_ONCE = 8
SERVERS = 500
"""In the project, for the reads, in our own cloud."""
SIZES = (500, 10_000, 100_000)
"""Servers in the project, for the lists, in our own cloud; a quarter as many again are in another."""
_ALONE, _ALONE_S = 20, 3.0
"""At least so many requests one after the other, and as many more as fit into the time."""
_CROWD_S = 4.0
_PAGES = 40
_IDLE_S = 60.0
_ROOM = IPv4Network("10.64.0.0/13")
Request = Callable[[], Awaitable[Answer]]


async def rounds(target: Target, count: int, results: Results, fill: int = 0) -> None:
    """Every read, so many rounds. In a cloud that is not ours ``fill`` servers (at most 1,000) are made for it,
    and deleted afterwards."""
    made = Batch(target, f"bench-{uuid.uuid4().hex[:6]}-", Load(batch=fill))
    if target.own is not None:
        seeder = await _seeder(target)
        say(f"reads: putting {SERVERS} servers into the database")
        await asyncio.to_thread(seeder.add, SERVERS - 4)
    elif fill:
        say(f"reads: making {fill} servers")
        await made.create()
    try:
        await _rounds(target, count, results)
    finally:
        if target.own is None and fill:
            await made.delete()


async def _rounds(target: Target, count: int, results: Results) -> None:
    requests, servers = await _requests(target)
    for number in range(1, count + 1):
        figures: dict[str, float] = {}
        details: dict[str, Any] = {"servers_listed": servers}
        for name, request in requests.items():
            say(f"reads, round {number}: {name}")
            alone = await _alone(request)
            figures[f"{name}_p50"] = percentile(alone, 50)
            if name == "detail":
                figures["detail_p95"] = percentile(alone, 95)
            details[name] = await _crowded(target, request)
            figures[f"{name}_rate"] = details[name]["rate"]
            figures[f"{name}_cpu"] = details[name]["cpu_each_s"]
        results.add("reads", figures, details)


async def _requests(target: Target) -> tuple[dict[str, Request], int]:
    """What is asked, and how many servers its lists show."""
    api = target.api
    listed = (await api.get("compute", "/servers?limit=100")).json()["servers"]
    if not listed:
        raise LookupError("the project has no servers to read")
    path = f"/servers/{listed[len(listed) // 2]['id']}"
    requests: dict[str, Request] = {
        "detail": lambda: api.get("compute", "/servers/detail?limit=100"),
        "names": lambda: api.get("compute", "/servers?limit=100"),
        "show": lambda: api.get("compute", path),
        "flavors": lambda: api.get("compute", "/flavors/detail"),
        "token": api.token,
    }
    return requests, len(listed)


async def _alone(request: Request, at_least: int = _ALONE, for_s: float = _ALONE_S) -> list[float]:
    took: list[float] = []
    end = time.perf_counter() + for_s
    await request()
    while len(took) < at_least or time.perf_counter() < end:
        took.append((await request()).took_s)
    return took


async def _crowded(target: Target, request: Request) -> dict[str, Any]:
    before = cpu_now(target.find)
    took: list[float] = []
    began = time.perf_counter()

    async def worker() -> None:
        while time.perf_counter() < began + _CROWD_S:
            took.append((await request()).took_s)

    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
    seconds = time.perf_counter() - began
    used = cpu_now(target.find).since(before)
    return {
        "requests": len(took),
        "rate": len(took) / seconds,
        "p50_s": percentile(took, 50),
        "p95_s": percentile(took, 95),
        "cpu_each_s": used.total / len(took),
        "cpu_by_process_s": used.each(len(took)),
        "cpu_of_client_s": used.client / len(took),
    }


# --- how lists grow


async def growth(target: Target, count: int, results: Results) -> None:
    """The first page and one in the middle, with more and more servers; of our own cloud."""
    assert target.own is not None
    mine, other = (
        await _seeder(target),
        await _seeder(target, "duranova-alt", IPv4Network("10.72.0.0/13")),
    )
    found: list[dict[str, float]] = [{} for _ in range(count)]
    details: list[dict[str, Any]] = [{} for _ in range(count)]
    for size in SIZES:
        say(f"lists: putting {size:,} servers into the database")
        await asyncio.to_thread(mine.add, size - len(mine.ids))
        await asyncio.to_thread(other.add, size // 4 - len(other.ids))
        pages = {"first": "", "deep": f"&marker={mine.ids[size // 2]}"}
        for number in range(count):
            say(f"lists, round {number + 1}: {size:,} servers")
            for place, query in pages.items():
                p50, details[number][f"{place}_{size}"] = await _pages(target, query)
                found[number][f"{place}_{size}"] = p50
    for figures, detail in zip(found, details, strict=True):
        cpu = {page: measured["cpu_each_s"] for page, measured in detail.items()}
        figures |= {"growth": _grown(figures), "growth_cpu": _grown(cpu)}
    say(f"lists: idle with {SIZES[-1]:,} servers")
    found[0][f"idle_cpu_{SIZES[-1]}"] = await _idle(target)
    for figures, detail in zip(found, details, strict=True):
        results.add("lists", figures, detail)


def _grown(pages: dict[str, float]) -> float:
    return max(pages.values()) / pages[f"first_{SIZES[0]}"]


async def _pages(target: Target, query: str) -> tuple[float, dict[str, float]]:
    path = f"/servers/detail?limit=100{query}"
    before = cpu_now(target.find)
    took = await _alone(lambda: target.api.get("compute", path), _PAGES, 1.0)
    used = cpu_now(target.find).since(before)
    cpu_each_s = used.total / (len(took) + 1)  # the first one only warms up
    return percentile(took, 50), {"p95_s": percentile(took, 95), "cpu_each_s": cpu_each_s}


async def _idle(target: Target) -> float:
    """Percent of a processor, over a time in which everything periodic happens."""
    before = cpu_now(target.find)
    await asyncio.sleep(_IDLE_S)
    return 100 * cpu_now(target.find).since(before).total / _IDLE_S


async def _seeder(target: Target, who: str = "duranova", room: IPv4Network = _ROOM) -> Seeder:
    """One that copies four servers of this user's, made through the API on a network with room."""
    assert target.own is not None
    engine = open_engine(f"sqlite:///{target.own.database}")
    credentials = target.own.credentials(who)
    async with OpenStack(credentials) as api:
        await api.log_in()
        network = await _network(api, room)
        templates = [await _template(target, api, network, n) for n in range(4)]
    return Seeder(engine, templates, room, who)


async def _network(api: OpenStack, room: IPv4Network) -> str:
    body = {"network": {"name": f"bench {room}"}}
    made = (await api.ask("POST", "network", "/networks", body, (201,))).json()["network"]
    last = room.broadcast_address - 1
    subnet = {
        "network_id": made["id"],
        "cidr": str(room),
        "ip_version": 4,
        "allocation_pools": [{"start": str(last - 1000), "end": str(last)}],
    }
    await api.ask("POST", "network", "/subnets", {"subnet": subnet}, (201,))
    return str(made["id"])


async def _template(target: Target, api: OpenStack, network: str, number: int) -> str:
    """A server as people have them: some with tags, some with metadata and user data."""
    more: dict[str, Any] = {"networks": [{"uuid": network}]}
    if number % 2:
        more["tags"] = ["web", "production", f"team-{number}"]
    if number >= 2:
        more |= {"metadata": {"role": "web", "tier": "2"}, "user_data": "I2Nsb3VkLWNvbmZpZwo="}
    body = target.body(f"template-{number}", **more)
    server_id = (await api.ask("POST", "compute", "/servers", body, (202,))).json()["server"]["id"]
    async with within(120, "a template"):
        while True:
            shown = (await api.get("compute", f"/servers/{server_id}")).json()["server"]
            if shown["status"] == "ACTIVE":
                return str(server_id)
            await asyncio.sleep(0.1)
