"""Load at a concurrency, the pace of polls, and clouds of others."""

from __future__ import annotations

import asyncio

import pytest

from bench.client import endpoints
from bench.measure import Pace, crowd, within


async def test_a_crowd_is_as_large_as_it_may_be_and_never_larger() -> None:
    running, most = 0, 0
    full = asyncio.Event()

    async def act(item: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == 3:
            full.set()
        await full.wait()
        await asyncio.sleep(0)
        running -= 1
        return item * 2

    assert await crowd(range(10), 3, act) == [n * 2 for n in range(10)]
    assert most == 3


async def test_a_slow_cloud_is_asked_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr("bench.measure.asyncio.sleep", sleep)
    pace = Pace(0.1, 10.0, 2.0)
    for answer_s in (0.001, 0.05, 3.0):
        await pace.pause(answer_s)
    assert slept == [0.1, 0.5, 2.0]
    assert pace.as_json()["asked"] == 3


async def test_what_takes_too_long_is_named() -> None:
    with pytest.raises(TimeoutError, match="the tea took more than 0 s"):
        async with within(0.01, "the tea"):
            await asyncio.Event().wait()


def test_the_catalog_says_where_services_are() -> None:
    def service(kind: str, *urls: tuple[str, str, str]) -> dict[str, object]:
        shown = [{"region": r, "interface": i, "url": u} for r, i, u in urls]
        return {"type": kind, "endpoints": shown}

    catalog = [
        service("compute", ("one", "internal", "http://i"), ("one", "public", "http://c/v2.1/")),
        service("image", ("one", "public", "http://g")),
        service("network", ("two", "public", "http://far"), ("one", "public", "http://n/v2.0")),
    ]
    near = {"compute": "http://c/v2.1", "image": "http://g/v2", "network": "http://n/v2.0"}
    assert endpoints(catalog, "one") == near
    assert endpoints(catalog, None) == near | {"network": "http://far/v2.0"}
    assert endpoints(catalog, "three") == {}
