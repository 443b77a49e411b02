"""What every part shares: where results go, progress on standard error, and load at a given concurrency."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from bench.figures import FIGURES

T = TypeVar("T")
R = TypeVar("R")


@dataclass(slots=True)
class Results:
    """Each round's figures and details, by part."""

    figures: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """part → figure → one value for each round"""
    details: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """part → what else is to be known of each round"""
    others_percent: dict[str, float] = field(default_factory=dict)
    """part → how much of the machine other programs used meanwhile"""

    def add(self, part: str, figures: dict[str, float], details: dict[str, Any]) -> None:
        """One round; KeyError for a figure that the table does not know."""
        for name, value in figures.items():
            _ = FIGURES[part][name]
            self.figures.setdefault(part, {}).setdefault(name, []).append(value)
        if details:
            self.details.setdefault(part, []).append(details)


def say(text: str) -> None:
    """Progress, on standard error."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


async def crowd(items: Iterable[T], at_once: int, act: Callable[[T], Awaitable[R]]) -> list[R]:
    """``act`` on every item, so many at a time, each next one as soon as one is done; results in the order
    of the items."""
    queue = list(enumerate(items))
    queue.reverse()
    results: dict[int, R] = {}

    async def worker() -> None:
        while queue:
            number, item = queue.pop()
            results[number] = await act(item)

    await asyncio.gather(*(worker() for _ in range(at_once)))
    return [results[n] for n in sorted(results)]


class Pace:
    """How often a cloud is asked whether something has happened: never sooner than ``at_least_s`` after the
    last answer, and not before ``share`` times as long as that answer took. So a slow cloud is asked less
    often, and asking takes the same small share of every cloud."""

    def __init__(self, at_least_s: float, share: float, at_most_s: float = 2.0) -> None:
        self.at_least_s, self.share, self.at_most_s = at_least_s, share, at_most_s
        self.asked = 0
        self.answers_s = 0.0

    async def pause(self, took_s: float) -> None:
        """Wait, after an answer that took so long."""
        self.asked += 1
        self.answers_s += took_s
        await asyncio.sleep(min(self.at_most_s, max(self.at_least_s, self.share * took_s)))

    def as_json(self) -> dict[str, float]:
        """What it was, and what it came to."""
        return {
            "pause_at_least_s": self.at_least_s,
            "pause_per_answer": self.share,
            "pause_at_most_s": self.at_most_s,
            "asked": self.asked,
            "answers_s": round(self.answers_s, 3),
        }


@asynccontextmanager
async def within(seconds: float, what: str) -> AsyncIterator[None]:
    """TimeoutError that says what was waited for."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise TimeoutError(f"{what} took more than {seconds:.0f} s") from None
