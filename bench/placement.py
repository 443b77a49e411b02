"""Placement: one decision against more and more hosts, and many claims at once on a fleet that just fits.

The hosts are rows that nobody works for. A create is decided and claimed as on any other, and then waits for
its host in vain; so each round has a cloud of its own, which is thrown away before the first create gives up
(``workflows.policies.HOST_ANSWERS_WITHIN``).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Any

from bench.client import Answer, OpenStack, Refused
from bench.cloud import OwnCloud, Plan, Target, own_cloud
from bench.figures import percentile
from bench.measure import Pace, Results, crowd, say, within
from bench.seed import seed_hosts, seed_zone
from db.session import open_engine

SIZES = (10, 100, 1000, 10_000)
DECISIONS = 50
"""In each round, one at a time; fewer when the cloud is too slow for so many."""
CLAIMS, AT_ONCE, ROOM = 200, 50, 10
"""Servers for a fleet that just fits them; a host has room for ``ROOM``."""
SILENCE = {"DURANOVA_HOST_SILENT_AFTER_S": "1e9"}
"""Hosts that are only rows count as alive."""
_EVENT = "schedule_instances"
_WITHIN_S = 50.0
_REAL_HOST = "host-1"
_USED = "2.87"
"""The last microversion in which hypervisors say what is used."""


async def rounds(microversion: str, count: int, results: Results) -> None:
    """So many rounds of both, on clouds of our own."""
    found: list[dict[str, float]] = [{} for _ in range(count)]
    details: list[dict[str, Any]] = [{} for _ in range(count)]
    for size in SIZES:
        for number in range(count):
            say(f"placement, round {number + 1}: {DECISIONS} decisions on {size:,} hosts")
            async with _cloud(microversion) as target:
                await _inject(target, size)
                took = await _decisions(target)
            found[number][f"decision_p50_{size}"] = percentile(took, 50)
            found[number][f"decision_p99_{size}"] = percentile(took, 99)
            details[number][f"decisions_{size}_s"] = took
    for number in range(count):
        say(f"placement, round {number + 1}: {CLAIMS} claims, {AT_ONCE} at once")
        async with _cloud(microversion) as target:
            figures, details[number]["claims"] = await _crowd(target, "just")
        found[number] |= figures
    for figures, detail in zip(found, details, strict=True):
        results.add("placement", figures, detail)


async def _decisions(target: Target) -> list[float]:
    """Seconds of each, as many as there is time for before the first create gives its host up."""
    end = time.monotonic() + _WITHIN_S
    await _decide(target, "warm")  # the first one reads every host
    took: list[float] = []
    while len(took) < DECISIONS and time.monotonic() < end:
        took.append(await _decide(target, f"one-{len(took)}"))
    return took


def _cloud(microversion: str) -> AbstractAsyncContextManager[Target]:
    return own_cloud(Plan(("--driver", "fake", "--hosts", "1"), microversion, SILENCE))


def _own(target: Target) -> OwnCloud:
    assert target.own is not None
    return target.own


async def _inject(target: Target, size: int) -> None:
    """So many hosts, half of them in zones; the real one takes no servers."""
    engine = open_engine(f"sqlite:///{_own(target).database}")
    names = [f"rack-{n // 40:04d}-host-{n:05d}" for n in range(size)]
    await asyncio.to_thread(seed_hosts, engine, _REAL_HOST, names)
    for zone, hosts in (("east", names[::4]), ("west", names[1::4])):
        await asyncio.to_thread(seed_zone, engine, zone, hosts)
    engine.dispose()
    async with OpenStack(_own(target).credentials("duranova-admin")) as admin:
        await admin.log_in()
        services = (await admin.get("compute", f"/os-services?host={_REAL_HOST}")).json()
        path = f"/os-services/{services['services'][0]['id']}"
        await admin.ask("PUT", "compute", path, {"status": "disabled"})


async def _decide(target: Target, name: str) -> float:
    """Seconds that the decision on a new server took, as its event says: from the reading of the hosts to the
    choice of one, in the transaction that claims it."""
    made = await target.api.ask("POST", "compute", "/servers", target.body(name), (202,))
    server_id = made.json()["server"]["id"]
    request_id = made.headers["x-openstack-request-id"]
    path = f"/servers/{server_id}/os-instance-actions/{request_id}"
    pace = Pace(0.03, 1.0)
    async with within(_WITHIN_S, "a decision"):
        while True:
            answer = await target.api.get("compute", path)
            if (took := _event_s(answer)) is not None:
                return took
            await pace.pause(answer.took_s)


def _event_s(answer: Answer) -> float | None:
    for event in answer.json()["instanceAction"]["events"]:
        if event["event"] == _EVENT and event["finish_time"]:
            if event["result"] != "Success":
                raise Refused(f"the decision failed: {event}")
            began = datetime.fromisoformat(event["start_time"])
            return (datetime.fromisoformat(event["finish_time"]) - began).total_seconds()
    return None


async def _crowd(target: Target, zone: str) -> tuple[dict[str, float], dict[str, Any]]:
    """Fill a new zone to the brim."""
    hosts = [f"{zone}-{n}" for n in range(CLAIMS // ROOM)]
    engine = open_engine(f"sqlite:///{_own(target).database}")
    await asyncio.to_thread(lambda: seed_hosts(engine, _REAL_HOST, hosts, disk_gb=ROOM))
    await asyncio.to_thread(seed_zone, engine, zone, hosts)
    engine.dispose()
    refused: list[str] = []

    async def post(number: int) -> None:
        body = target.body(f"{zone}-{number}", availability_zone=zone)
        try:
            await target.api.ask("POST", "compute", "/servers", body, (202,))
        except Refused as error:
            refused.append(str(error))

    began = time.perf_counter()
    posting = asyncio.ensure_future(crowd(range(CLAIMS), AT_ONCE, post))
    placed, failed = await _placed(target, zone, refused)
    seconds = time.perf_counter() - began
    await posting
    over, used = await _overbooked(_own(target), hosts)
    figures = {
        "claims_rate": placed / seconds,
        "overbooked": over,
        "spurious": len(refused) + failed,
    }
    return figures, {"refused": refused, "seconds": seconds, "disk_used_gb": used}


async def _placed(target: Target, zone: str, refused: Sequence[str]) -> tuple[int, int]:
    """Servers that were on a host once, and servers in ERROR, when there are no others left."""
    pace = Pace(0.2, 5.0)
    placed: set[str] = set()
    failed: set[str] = set()
    async with within(_WITHIN_S, f"{CLAIMS} claims"):
        while len(placed | failed) + len(refused) < CLAIMS:
            answer = await target.api.get("compute", f"/servers/detail?name={zone}-&limit=1000")
            for server in answer.json()["servers"]:
                if server["status"] == "ERROR":
                    failed.add(server["id"])
                elif server["hostId"]:
                    placed.add(server["id"])
            await pace.pause(answer.took_s)
    return len(placed), len(failed)


async def _overbooked(cloud: OwnCloud, hosts: Sequence[str]) -> tuple[int, int]:
    """How many of these hosts have more disk promised than they have, and the GB promised in all."""
    async with OpenStack(cloud.credentials("duranova-admin"), _USED) as admin:
        await admin.log_in()
        answer = (await admin.get("compute", "/os-hypervisors/detail")).json()
    mine = [h for h in answer["hypervisors"] if h["service"]["host"] in hosts]
    over = [h for h in mine if h["local_gb_used"] > h["local_gb"]]
    return len(over), sum(h["local_gb_used"] for h in mine)
