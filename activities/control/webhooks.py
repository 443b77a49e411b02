"""Hands events to webhooks, in the order of their ids, each until it is accepted."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import timedelta

import httpx
import structlog
from sqlalchemy import Engine
from standardwebhooks import Webhook
from temporalio import activity

from db.events import (
    EVERYTHING,
    Batch,
    Event,
    as_cloud_event,
    get_mark,
    newest_event,
    prune_events,
    pruned_up_to,
    read_events,
    set_mark,
    webhook_mark,
)
from db.session import now, reading, transaction
from domain.errors import Unavailable
from runtime.metrics import WEBHOOK_DELIVERIES
from runtime.settings import Settings, WebhookTarget
from workflows.contract import Turn

TURN_S = 300.0
"""How long one turn follows the outbox; then its workflow takes the next one, on whichever worker."""
LOOK_EVERY_S = 1.0
_ANSWER_WITHIN_S = 10.0
_BITE = 200
_BEAT_EVERY_S = 2.0
_log = structlog.get_logger(__name__)


class Webhooks:
    """The webhooks of the settings. How far each has come is in the database."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self._engine = engine
        self._settings = settings
        self._targets = {webhook.name: webhook for webhook in settings.webhooks}

    async def deliver(self, name: str) -> Turn:
        """Send what there is and what comes, for ``TURN_S`` seconds or until this worker stops.

        Unavailable when the first event is not accepted: when to try again is the retry policy's business.
        After a success the turn just ends, so that one that fails now and then is not waited for ever longer.
        """
        target = self._targets.get(name)
        if target is None:
            return Turn(configured=False)
        delivery = _Delivery(self._engine, target, f"{self._settings.public_url}/operations")
        beating = asyncio.create_task(_beat())
        try:
            await delivery.follow()
        except Unavailable as error:
            if not delivery.accepted:
                raise
            _log.warning("delivery interrupted", webhook=name, error=error.message)
        finally:
            beating.cancel()
        return Turn(configured=True, delivered=delivery.accepted)

    def prune(self, at_most: int) -> int:
        """Delete the oldest events if they are old enough; returns how many."""
        oldest = now() - timedelta(seconds=self._settings.event_retention_s)
        with transaction(self._engine) as session:
            return prune_events(session, oldest, at_most)


async def _beat() -> None:
    while True:
        activity.heartbeat()
        await asyncio.sleep(_BEAT_EVERY_S)


class _Delivery:
    """One turn of one webhook."""

    def __init__(self, engine: Engine, target: WebhookTarget, source: str) -> None:
        self._engine = engine
        self._target = target
        self._source = source
        self._key = Webhook(target.secret.get_secret_value())
        self._mark = webhook_mark(target.name)
        self.accepted = 0

    async def follow(self) -> None:
        """Unavailable as soon as an event is not accepted: a later one must not overtake it."""
        clock = asyncio.get_running_loop().time
        until = clock() + TURN_S
        await asyncio.to_thread(self._begin)
        async with httpx.AsyncClient(timeout=_ANSWER_WITHIN_S) as client:
            while clock() < until and not activity.is_worker_shutdown():
                if await self._bite(client) < _BITE:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(LOOK_EVERY_S):
                            await activity.wait_for_worker_shutdown()

    async def _bite(self, client: httpx.AsyncClient) -> int:
        batch = await asyncio.to_thread(self._read)
        for event in batch.events:
            if self._target.types is None or event.type in self._target.types:
                await self._send(client, event)
                self.accepted += 1
                await asyncio.to_thread(self._move, event.id or 0)
            if activity.is_worker_shutdown():
                return 0
        if batch.events:
            await asyncio.to_thread(self._move, batch.position)
        return len(batch.events)

    async def _send(self, client: httpx.AsyncClient, event: Event) -> None:
        text, at = as_cloud_event(event, self._source, for_admin=True), now()
        headers = {
            "content-type": "application/cloudevents+json",
            "webhook-id": event.uid,
            "webhook-timestamp": str(int(at.timestamp())),
            "webhook-signature": self._key.sign(event.uid, at, text),
        }
        url = str(self._target.url.get_secret_value())
        try:
            async with asyncio.timeout(_ANSWER_WITHIN_S):
                answer = await client.post(url, content=text.encode(), headers=headers)
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            # Without the error itself: it may quote the URL, which may hold a secret.
            raise self._failed("unreachable", event, type(error).__name__) from None
        if not answer.is_success:
            raise self._failed("refused", event, f"status {answer.status_code}")
        WEBHOOK_DELIVERIES.labels(self._target.name, "accepted").inc()

    def _failed(self, outcome: str, event: Event, reason: str) -> Unavailable:
        name = self._target.name
        WEBHOOK_DELIVERIES.labels(name, outcome).inc()
        return Unavailable(f"Webhook {name} did not accept event {event.id}: {reason}")

    def _begin(self) -> None:
        """A webhook that is new begins now; one that was away too long, with the oldest that is kept."""
        with transaction(self._engine) as session:
            mark, pruned = get_mark(session, self._mark), pruned_up_to(session)
            if mark is None:
                set_mark(session, self._mark, newest_event(session))
            elif mark < pruned:
                _log.error("events were lost", webhook=self._target.name, ids=[mark + 1, pruned])
                set_mark(session, self._mark, pruned)

    def _read(self) -> Batch:
        with reading(self._engine) as session:
            return read_events(session, get_mark(session, self._mark) or 0, EVERYTHING, _BITE)

    def _move(self, event_id: int) -> None:
        with transaction(self._engine) as session:
            set_mark(session, self._mark, event_id)
