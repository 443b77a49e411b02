"""Reports: what the host has and runs, every few seconds and at once after a guest changed."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence
from time import monotonic

import structlog

from activities.host.control_plane import ControlPlane
from domain.errors import DuranovaError
from domain.guest import GuestReport
from domain.states import PowerState
from runtime.metrics import GUESTS
from virt.driver import Driver

_log = structlog.get_logger(__name__)
OnPeers = Callable[[Sequence[str]], None]
"""Told the underlay addresses of the other hosts when they change."""
RESIDUE_EVERY_S = 60.0
"""How often the host is searched for what no guest owns: that is more work than listing its guests."""
_SOON_S = 1.0
"""After a failed report, and between the two that confirm a change."""
_SPREAD = (0.8, 1.0)
"""Parts of the wanted interval after which a host reports again."""


class Reporter:
    """Keeps the control plane informed; never stops because a report failed."""

    def __init__(
        self,
        driver: Driver,
        control: ControlPlane,
        zone: str | None,
        epoch: str,
        on_peers: OnPeers | None = None,
    ) -> None:
        self._driver = driver
        self._on_peers = on_peers
        self._peers: tuple[str, ...] = ()
        self._control = control
        self._zone = zone
        self._epoch = epoch
        self._changed = asyncio.Event()
        self._search_at = 0.0
        """When to search for residue again; ``time.monotonic``."""
        self.reported = asyncio.Event()
        """Set after the first report that was taken."""

    async def run(self) -> None:
        """Report until cancelled."""
        loop = asyncio.get_running_loop()

        def changed() -> None:
            loop.call_soon_threadsafe(self._changed.set)

        self._driver.on_change(changed)
        while True:
            self._changed.clear()
            wait_s = await asyncio.to_thread(self._report)
            if wait_s is not None:
                self.reported.set()
            # Spread, so that the hosts of a large cloud do not stay in step after they all were refused.
            spread = random.uniform(*_SPREAD)  # noqa: S311  # no secret
            soon_s = _SOON_S if wait_s is not None else _SOON_S / spread
            try:
                # Not faster than once a second, however lively the guests are.
                await asyncio.sleep(soon_s)
                async with asyncio.timeout(max(0.0, (wait_s or 0.0) * spread - soon_s)):
                    await self._changed.wait()
            except TimeoutError:
                pass

    def search(self) -> None:
        """Report at once, and search for residue: something was removed. Called in the loop's thread."""
        self._search_at = 0.0
        self._changed.set()

    def _residue(self, guests: Sequence[GuestReport]) -> list[str] | None:
        """What is here without a guest; None when it is not time to look."""
        if monotonic() < self._search_at:
            return None
        self._search_at = monotonic() + RESIDUE_EVERY_S
        found = sorted(self._driver.owners() - {guest.server_id for guest in guests})
        if found:
            self._search_at = 0.0  # it may just be on its way, so look again with the next report
        return found

    def _report(self) -> float | None:
        try:
            inventory, guests = self._driver.inventory(), self._driver.guests()
            _count(inventory.hypervisor_hostname, guests)
            residue = self._residue(guests)
            told = self._control.report(self._epoch, self._zone, inventory, guests, residue)
            if self._on_peers is not None and told.peers != self._peers:
                self._on_peers(told.peers)
                self._peers = told.peers
            return told.interval_s
        except DuranovaError as error:
            self._search_at = 0.0  # what was found was not heard
            _log.warning("report failed", error=error.message)
            return None


def _count(host: str, guests: Sequence[GuestReport]) -> None:
    counts = Counter(guest.power_state for guest in guests)
    for state in PowerState:
        GUESTS.labels(host, state.name.lower()).set(counts[state])
