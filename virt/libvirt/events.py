"""The driver's own thread: passes changes on to listeners, and does the small recurring chores.

Libvirt's event thread must never wait, least of all for libvirt itself; it only rings here. Rings
that come while listeners are at work become one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import structlog

log = structlog.get_logger(__name__)


class ChangeFeed:
    """Calls its listeners after each ``ring`` and ``chore`` every ``every_s`` seconds, in one thread."""

    def __init__(self, chore: Callable[[], None], every_s: float) -> None:
        self._chore = chore
        self._every_s = every_s
        self._listeners: list[Callable[[], None]] = []
        self._rung = False
        self._stopping = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="virt-changes", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; returns when it has ended."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def listen(self, notify: Callable[[], None]) -> None:
        """Call this, without arguments and from this feed's thread, after every change."""
        self._listeners.append(notify)

    def ring(self) -> None:
        """Something changed. Returns at once; callable from anywhere."""
        with self._changed:
            self._rung = True
            self._changed.notify()

    def _run(self) -> None:
        due = time.monotonic() + self._every_s
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._rung or self._stopping, max(0.0, due - time.monotonic())
                )
                rung, self._rung = self._rung, False
                if self._stopping:
                    return
            if rung:
                for notify in list(self._listeners):
                    _guarded(notify)
            if time.monotonic() >= due:
                _guarded(self._chore)
                due = time.monotonic() + self._every_s


def _guarded(call: Callable[[], None]) -> None:
    """One listener's failure is not another's, and never the end of the thread."""
    try:
        call()
    except Exception:
        log.exception("change_listener_failed")
