"""The reconcilers: each makes one part of the record true again, by itself, on what it can prove."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import structlog
from sqlalchemy import Engine
from sqlmodel import Session
from temporalio.client import Client

from activities.control.audit import Auditor, Reach
from activities.control.sweep import Sweep
from db.hosts import is_up, signs_of_life
from db.reconcilers import findings_of, note_success
from db.repairs import (
    deleted_before,
    forget_deleted,
    lost_claims,
    lost_ports,
    release_ports,
    return_claims,
    settle_transitions,
    unowned_transitions,
)
from db.session import now, reading, transaction
from domain.audit import INVARIANTS
from domain.ids import CONTROL_QUEUE, host_queue, new_request_id
from runtime.metrics import HOST_TRANSITIONS
from runtime.queues import count_pollers
from runtime.settings import Settings
from workflows.contract import Audited, Reconciled, Swept

GRACE = timedelta(seconds=60)
"""A transition that nobody carries out is left alone for this long."""
REACH = Reach(back=timedelta(minutes=5), compared=50)
"""Of the audit that runs every minute."""
QUEUES_AT_ONCE = 200
"""Host queues that one run asks about; the others' turn comes with the next runs."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Repair:
    """A reconciler of the record (``db.repairs``)."""

    find: Callable[[Session], list[str]]
    """Reads which servers it is about; nobody waits for it meanwhile."""
    put_right: Callable[[Session, list[str]], list[str]]
    """Writes, in a transaction of its own and only if there are any. What was done, in sentences."""


class Reconcilers:
    """Everything that runs on the minute; safe to run anywhere, any number of times, at the same time."""

    def __init__(self, client: Client, engine: Engine, settings: Settings, sweep: Sweep) -> None:
        self._sweep = sweep
        self._client = client
        self._engine = engine
        self._settings = settings
        self._auditor = Auditor(client, engine, settings.host_silent_after_s, REACH)

    async def reconcile(self) -> Reconciled:
        """Run each reconciler. One that fails is logged, and its last success grows old; the others run."""
        repairs = self._repairs()
        runs: dict[str, Callable[[], Awaitable[int]]] = {
            name: partial(asyncio.to_thread, self._repair, name, repair)
            for name, repair in repairs.items()
        }
        runs |= {"hosts": partial(asyncio.to_thread, self._hosts), "queues": self._queues}
        fixes: dict[str, int] = {}
        failed = []
        for name, run in runs.items():
            try:
                fixes[name] = await run()
            except Exception:  # whatever it is: one broken reconciler must not stop the others
                _log.exception("reconciler failed", reconciler=name)
                failed.append(name)
        return Reconciled(fixes, tuple(failed))

    def _repairs(self) -> dict[str, Repair]:
        before, days = now() - GRACE, self._settings.deleted_retention_days
        kept_since = now() - timedelta(days=days)
        return {
            "transitions": Repair(
                lambda s: unowned_transitions(s, before),
                lambda s, found: settle_transitions(s, found, before, new_request_id()),
            ),
            "claims": Repair(lost_claims, return_claims),
            "ports": Repair(lost_ports, release_ports),
            "retention": Repair(
                lambda s: deleted_before(s, kept_since) if days > 0 else [],
                lambda s, found: forget_deleted(s, found, kept_since),
            ),
        }

    async def audit(self) -> Audited:
        """Look at everything; log each violation, and keep how many there are of each invariant."""
        findings = await self._auditor.run()
        for found in findings:
            for each in found.violations:
                _log.error(
                    "invariant violated",
                    invariant=found.invariant,
                    title=INVARIANTS[found.invariant].title,
                    subject=each.subject,
                    detail=each.detail,
                )
        counts = {f.invariant: len(f.violations) for f in findings}
        await asyncio.to_thread(self._note, "audit", 0, counts)
        return Audited(counts)

    async def sweep(self) -> Swept:
        """Start what was accepted but never started, close what ended without saying so."""
        swept = await self._sweep.run()
        fixes = len(swept.restarted) + len(swept.closed)
        await asyncio.to_thread(self._note, "sweep", fixes, None)
        return swept

    def _note(self, name: str, fixes: int, findings: dict[str, Any] | None) -> None:
        with transaction(self._engine) as session:
            note_success(session, name, now(), fixes, findings)

    def _repair(self, name: str, repair: Repair) -> int:
        with reading(self._engine) as session:
            found = repair.find(session)
        with transaction(self._engine) as session:
            done = repair.put_right(session, found) if found else []
            note_success(session, name, now(), len(done))
        for what in done:
            _log.warning("reconciled", reconciler=name, what=what)
        return len(done)

    def _hosts(self) -> int:
        """Say which hosts went silent or came back; what follows from it, their rows say anyway."""
        at = now()
        with reading(self._engine) as session:
            down = {h.name for h in signs_of_life(session) if not is_up(h, self._settings, at)}
        with transaction(self._engine) as session:
            before: dict[str, str] = findings_of(session, "hosts")
            findings = {name: before.get(name, at.isoformat()) for name in sorted(down)}
            note_success(session, "hosts", at, findings=findings)
        for name in sorted(down - before.keys()):
            _log.warning("host went silent", host=name)
            HOST_TRANSITIONS.labels(name, "down").inc()
        for name in sorted(before.keys() - down):
            _log.warning("host answers again", host=name, silent_since=before[name])
            HOST_TRANSITIONS.labels(name, "up").inc()
        return 0

    async def _queues(self) -> int:
        asked = await asyncio.to_thread(self._queues_to_ask)
        counts = await count_pollers(self._client, asked, now())
        await asyncio.to_thread(self._keep_pollers, counts)
        return 0

    def _queues_to_ask(self) -> list[str]:
        """The control queue, and the next of those hosts that are up, in turn."""
        known, up = self._pollers_and_hosts()
        hosts = sorted(up, key=lambda queue: (known.get(queue, {}).get("at", ""), queue))
        return [CONTROL_QUEUE, *hosts[:QUEUES_AT_ONCE]]

    def _pollers_and_hosts(self) -> tuple[dict[str, Any], list[str]]:
        with reading(self._engine) as session:
            at = now()
            up = [
                host_queue(h.name) for h in signs_of_life(session) if is_up(h, self._settings, at)
            ]
            return findings_of(session, "queues"), up

    def _keep_pollers(self, counts: dict[str, int]) -> None:
        known, up = self._pollers_and_hosts()
        at = now().isoformat()
        fresh = {queue: {"pollers": count, "at": at} for queue, count in counts.items()}
        kept = {
            q: known[q] for q in up if q in known
        }  # a host that is down has an alarm of its own
        self._note("queues", 0, kept | fresh)
