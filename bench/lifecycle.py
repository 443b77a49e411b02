"""Servers made and deleted: one at a time for latency, many at once for throughput and for CPU per server.

One at a time, the server is asked for by id until it is ACTIVE or gone. Many at once, twenty requests are
always on their way until all are accepted, and one list call for the whole batch tells which servers have
arrived; its cost is in the CPU that is measured, the same for every cloud (``Pace``).
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from bench.client import Answer, Refused
from bench.cloud import Target
from bench.figures import percentile
from bench.measure import Pace, Results, crowd, say, within
from bench.processes import Cpu, cpu_now

_WITHIN_S = 900.0
_ERRORS_EVERY = 8
"""Lists between two looks for servers in ERROR."""
_RUN = uuid.uuid4().hex[:6]
"""In the names of our servers, since others may be there."""


@dataclass(frozen=True, slots=True)
class Load:
    """How much is asked of a cloud in a round."""

    alone: int = 20
    """Servers one at a time."""
    batch: int = 100
    at_once: int = 20
    settle_s: float = 2.0
    """After the last server of a batch has arrived: what its operation still does then is part of its cost."""


async def rounds(target: Target, count: int, results: Results, load: Load = Load()) -> None:
    """So many rounds; a server made and deleted beforehand has the image fetched."""
    say("lifecycle: warming up")
    await _alone(target, f"bench-{_RUN}-warm")
    for number in range(1, count + 1):
        say(f"lifecycle, round {number}: {load.alone} servers, one at a time")
        name = f"bench-{_RUN}-{number}"
        figures, pace = await _one_at_a_time(target, name, load.alone)
        say(f"lifecycle, round {number}: {load.batch} servers, {load.at_once} at once")
        batch = Batch(target, f"{name}-load-", load)
        figures |= await batch.create()
        figures |= await batch.delete()
        figures["errors"] = len(batch.errors)
        results.add("lifecycle", figures, {"one_at_a_time": pace.as_json(), **batch.details})


async def _one_at_a_time(target: Target, name: str, count: int) -> tuple[dict[str, float], Pace]:
    seen = [await _alone(target, f"{name}-{n}") for n in range(count)]
    posts, actives, gones, paces = zip(*seen, strict=True)
    figures = {
        "post_p50": percentile(posts, 50),
        "post_p95": percentile(posts, 95),
        "active_p50": percentile(actives, 50),
        "active_p95": percentile(actives, 95),
        "gone_p50": percentile(gones, 50),
        "gone_p95": percentile(gones, 95),
    }
    return figures, paces[0]


async def _alone(target: Target, name: str) -> tuple[float, float, float, Pace]:
    """Seconds of the POST, until ACTIVE, and from DELETE until 404."""
    pace = alone_pace()
    one = await create_one(target, name, pace)
    await asyncio.sleep(0.1)  # a delete right behind would find the create still closing
    return one.post_s, one.active_s, await delete_one(target, one.path, pace), pace


def alone_pace() -> Pace:
    """How one server is waited for."""
    return Pace(0.02, 1.0)


@dataclass(frozen=True, slots=True)
class One:
    """A server that is ACTIVE."""

    path: str
    """Of the compute service."""
    request_id: str
    post_s: float
    active_s: float
    """From sending the POST."""


async def create_one(target: Target, name: str, pace: Pace) -> One:
    """Make a server and wait until it is ACTIVE; Refused when it ends in ERROR."""
    began = time.perf_counter()
    made = await target.api.ask("POST", "compute", "/servers", target.body(name), (202,))
    path = f"/servers/{made.json()['server']['id']}"

    async def is_active() -> tuple[bool, float]:
        answer = await target.api.get("compute", path)
        shown = answer.json()["server"]
        if shown["status"] == "ERROR":
            raise Refused(f"{name} is in ERROR: {shown.get('fault')}")
        return shown["status"] == "ACTIVE", answer.took_s

    active_s = await _until(is_active, pace, began)
    return One(path, made.headers["x-openstack-request-id"], made.took_s, active_s)


async def delete_one(target: Target, path: str, pace: Pace) -> float:
    """Delete a server; returns the seconds until it was gone."""

    async def is_gone() -> tuple[bool, float]:
        answer = await target.api.get("compute", path, 200, 404)
        return answer.status == 404, answer.took_s

    began = time.perf_counter()
    await target.api.ask("DELETE", "compute", path, None, (204,))
    return await _until(is_gone, pace, began)


async def _until(
    happened: Callable[[], Awaitable[tuple[bool, float]]], pace: Pace, began: float
) -> float:
    async with within(_WITHIN_S, "one server"):
        while True:
            done, took_s = await happened()
            if done:
                return time.perf_counter() - began
            await pace.pause(took_s)


class Batch:
    """A batch of servers, made and then deleted under load."""

    def __init__(self, target: Target, prefix: str, load: Load) -> None:
        self._target = target
        self._prefix = prefix
        self._load = load
        self.errors: list[str] = []
        """Requests that were refused, and servers that ended in ERROR."""
        self.details: dict[str, Any] = {"errors": self.errors}
        self._made: list[str] = []

    async def create(self) -> dict[str, float]:
        """Make all; returns once they are ACTIVE or in ERROR."""
        names = [f"{self._prefix}{n}" for n in range(self._load.batch)]
        run = _Run()
        posts: list[float] = []

        async def post(name: str) -> None:
            began = time.perf_counter()
            body = self._target.body(name)
            if answer := await self._ask("POST", "/servers", body, 202):
                posts.append(answer.took_s)
                run.asked_at[answer.json()["server"]["id"]] = began

        async def arrivals(number: int) -> set[str]:
            if number % _ERRORS_EVERY == _ERRORS_EVERY - 1:
                failed = await self._names("&status=ERROR")
                self.errors += [f"server {i} is in ERROR" for i in sorted(failed - run.failed)]
                run.failed |= failed
            return await self._names("&status=ACTIVE") | run.failed

        used = await self._measured(run, crowd(names, self._load.at_once, post), arrivals)
        self._made = list(run.asked_at)
        took = self._arrived(run)
        self._tell("create", used, run)
        return {
            "creates_rate": len(took) / run.span_s,
            "create_cpu": used.total / len(took),
            "load_post_p50": percentile(posts, 50),
            "load_post_p95": percentile(posts, 95),
            "load_active_p50": percentile(took, 50),
            "load_active_p95": percentile(took, 95),
        }

    async def delete(self) -> dict[str, float]:
        """Delete all that were made; returns once they are gone."""
        run = _Run()

        async def delete(server_id: str) -> None:
            began = time.perf_counter()
            if await self._ask("DELETE", f"/servers/{server_id}", None, 204):
                run.asked_at[server_id] = began

        async def arrivals(_: int) -> set[str]:
            asked = set(run.asked_at)
            return asked - await self._names("")

        used = await self._measured(run, crowd(self._made, self._load.at_once, delete), arrivals)
        took = self._arrived(run)
        self._tell("delete", used, run)
        return {
            "deletes_rate": len(took) / run.span_s,
            "delete_cpu": used.total / len(took),
            "load_gone_p50": percentile(took, 50),
            "load_gone_p95": percentile(took, 95),
        }

    async def _measured(
        self,
        run: _Run,
        requests: Awaitable[object],
        arrivals: Callable[[int], Awaitable[set[str]]],
    ) -> Cpu:
        """Send the requests, and look who has arrived until all have; the CPU-seconds it all took."""
        before = cpu_now(self._target.find)
        sending = asyncio.ensure_future(requests)
        async with within(_WITHIN_S, f"{self._load.batch} servers"):
            while not sending.done() or run.asked_at.keys() - run.arrived_at.keys():
                began = time.perf_counter()
                there = await arrivals(run.pace.asked)
                answered = time.perf_counter()
                for server_id in there & run.asked_at.keys() - run.arrived_at.keys():
                    run.arrived_at[server_id] = answered
                if sending.done() and not run.asked_at.keys() - run.arrived_at.keys():
                    break
                await run.pace.pause(answered - began)
        await sending
        await asyncio.sleep(self._load.settle_s)
        return cpu_now(self._target.find).since(before)

    def _arrived(self, run: _Run) -> list[float]:
        if not (took := run.took()):
            raise Refused(f"no server of {self._load.batch} arrived: {self.errors[:1]}")
        return took

    def _tell(self, what: str, used: Cpu, run: _Run) -> None:
        self.details[what] = {
            "servers": len(run.took()),
            "seconds": round(run.span_s, 3),
            "cpu_s": round(used.total, 3),
            "cpu_each_s": used.each(max(1, len(run.took()))),
            "cpu_of_client_s": round(used.client, 3),
            "settle_s": self._load.settle_s,
            "polls": run.pace.as_json(),
        }

    async def _ask(self, method: str, path: str, body: Any, ok: int) -> Answer | None:
        try:
            return await self._target.api.ask(method, "compute", path, body, (ok,))
        except Refused as error:
            self.errors.append(str(error)[:300])
            return None

    async def _names(self, query: str) -> set[str]:
        path = f"/servers?name={self._prefix}&limit=1000{query}"
        listed = (await self._target.api.get("compute", path)).json()
        return {row["id"] for row in listed["servers"]}


@dataclass(slots=True)
class _Run:
    """One half of a batch: when each server (by id) was asked for, and when it was seen to have arrived."""

    asked_at: dict[str, float] = field(default_factory=dict)
    arrived_at: dict[str, float] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)
    pace: Pace = field(default_factory=lambda: Pace(0.1, 10.0))

    def took(self) -> list[float]:
        """Seconds of each that arrived well."""
        good = self.arrived_at.keys() - self.failed
        return [self.arrived_at[i] - self.asked_at[i] for i in good]

    @property
    def span_s(self) -> float:
        """From the first request to the last arrival."""
        return max(self.arrived_at.values()) - min(self.asked_at.values())
