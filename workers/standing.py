"""What has to stand in Temporal at all times, looked after by every control worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import structlog
from temporalio.client import Client
from temporalio.service import RPCError

from domain.errors import DuranovaError
from runtime.settings import Settings
from runtime.temporal import ensure_search_attributes
from workers.control import ensure_standing_work
from workers.webhooks import ensure_deliveries

LOOK_EVERY_S = 60.0
_log = structlog.get_logger(__name__)


@asynccontextmanager
async def standing_work(client: Client, settings: Settings) -> AsyncIterator[None]:
    """Make schedules, the operator's desk and deliveries, run the reconcilers now, and make again whatever
    is missing while the block lasts: Temporal's database may get lost, or be replaced by one from before."""
    await _ensure(client, settings, run_now=True)
    looking = asyncio.create_task(_look_after(client, settings))
    try:
        yield
    finally:
        looking.cancel()
        with suppress(asyncio.CancelledError):
            await looking


async def _look_after(client: Client, settings: Settings) -> None:
    while True:
        await asyncio.sleep(LOOK_EVERY_S)
        try:
            await _ensure(client, settings, run_now=False)
        except (DuranovaError, RPCError) as error:
            _log.warning("schedules could not be looked after", error=str(error))


async def _ensure(client: Client, settings: Settings, *, run_now: bool) -> None:
    await ensure_search_attributes(client)
    await ensure_standing_work(client, run_now=run_now)
    await ensure_deliveries(client, settings)
