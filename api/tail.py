"""Follows the outbox for every stream of this process: one query at a time, however many streams."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import structlog
from sqlalchemy import Engine

from db.events import EVERYTHING, Batch, Event, Wanted, newest_event, read_events
from db.session import reading

LOOK_EVERY_S = 0.5
_BITE = 500
_KEPT = 2000
"""Newest events that streams get from memory; who is further behind reads the database."""
_log = structlog.get_logger(__name__)


class Tail:
    """The newest events in memory. It looks only while somebody follows; all of it runs on one loop."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._recent: deque[Event] = deque()
        self._floor = 0
        """The event before the first in ``_recent``."""
        self._newest = 0
        self._followers = 0
        self._looking: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        self.closed = False

    @asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        """Look for news inside the block."""
        self._followers += 1
        if self._looking is None:
            self._looking = asyncio.create_task(self._look())
        try:
            yield
        finally:
            self._followers -= 1
            if not self._followers:
                self._looking.cancel()
                self._looking = None

    async def after(self, position: int, wanted: Wanted, within_s: float) -> Batch:
        """The wanted events behind ``position``: at once if there are newer ones, else as soon as there
        are, or none after so many seconds or at the end of this process."""
        if position >= self._newest:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), within_s)
        if position >= self._newest:
            return Batch([], position)
        if position < self._floor:
            return await asyncio.to_thread(self._read, position, wanted)
        found = [e for e in self._recent if (e.id or 0) > position and wanted.takes(e)]
        return Batch(found, self._newest)

    def close(self) -> None:
        """Let every stream end."""
        self.closed = True
        self._news.set()

    async def _look(self) -> None:
        known = False
        while not self.closed:
            full = False
            try:
                if known:
                    batch = await asyncio.to_thread(self._read, self._newest, EVERYTHING)
                    self._take(batch)
                    full = len(batch.events) == _BITE
                else:
                    self._begin(await asyncio.to_thread(self._read_newest))
                    known = True
            except (
                Exception
            ) as error:  # whatever it is, the streams of this process rest on this task
                _log.warning("events cannot be read", error=type(error).__name__)
            if not full:
                await asyncio.sleep(LOOK_EVERY_S)

    def _begin(self, newest: int) -> None:
        self._floor = self._newest = newest
        self._recent.clear()
        self._wake()

    def _take(self, batch: Batch) -> None:
        if not batch.events:
            return
        self._recent.extend(batch.events)
        self._newest = batch.position
        while len(self._recent) > _KEPT:
            self._floor = self._recent.popleft().id or 0
        self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    def _read(self, position: int, wanted: Wanted) -> Batch:
        with reading(self._engine) as session:
            return read_events(session, position, wanted, _BITE)

    def _read_newest(self) -> int:
        with reading(self._engine) as session:
            return newest_event(session)
