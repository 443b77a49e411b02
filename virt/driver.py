"""The seam: what Duranova asks of a hypervisor. Every method is idempotent and may block.

A driver object stands for exactly one hypervisor. Its methods are plain blocking calls, safe to call
from several threads for *different* servers; the host worker runs them in a bounded pool and never
calls two of them for one server at once. Errors: ``domain.errors.GuestFailure`` when trying again may
help, ``GuestRefused`` when it never will (a guest that does not run cannot be paused), ``Fenced`` for a
stale command, ``NotFound`` for a guest that is not on this host — except that ``destroy`` and
``apply_nics`` of such a guest succeed and ``power_state`` says ``NOSTATE``.
"""

from __future__ import annotations

import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from domain.guest import Fence, GuestReport, GuestSpec, Inventory, NicSpec
from domain.states import PowerState

_HOST_PATH = re.compile(r"(?<![\w:/])(?:/[\w.+@%-]+){2,}/?")


def without_paths(text: str) -> str:
    """A hypervisor's message as a user may read it: paths of the host are left out."""
    return _HOST_PATH.sub("<path>", text)


class Cancelled(Exception):
    """The caller asked to stop; the driver stopped between two steps and left what it had made."""


@dataclass(slots=True)
class Progress:
    """How a long call speaks with its caller, across threads.

    The driver calls ``step`` at each stage (``domain.guest.STAGES``); that reports the stage and raises ``Cancelled`` if the caller gave up. It also calls
    ``check`` inside loops (each chunk of a download).
    """

    cancelled: threading.Event = field(default_factory=threading.Event)
    on_step: Callable[[str], None] = lambda _step: None

    def check(self) -> None:
        """Raise Cancelled if the caller gave up."""
        if self.cancelled.is_set():
            raise Cancelled

    def step(self, name: str) -> None:
        """Enter a named stage."""
        self.check()
        self.on_step(name)


VOLATILE = ("nics",)
"""Stages whose effects a host may have lost since: made sure of again, without a word, when a build resumes."""

Effect = TypeVar("Effect")


def from_stage(
    stages: Sequence[tuple[str, Effect]], resume_at: str | None
) -> list[tuple[str, Effect, bool]]:
    """(name, effect, whether to announce it) of each stage still to be taken."""
    names = [name for name, _ in stages]
    first = names.index(resume_at) if resume_at in names else 0
    return [
        (name, effect, number >= first)
        for number, (name, effect) in enumerate(stages)
        if number >= first or name in VOLATILE
    ]


class Supplies(ABC):
    """What a driver fetches from the control plane; the host worker passes one that asks over HTTP."""

    @abstractmethod
    def image(self, image_id: str) -> Iterator[bytes]:
        """The stored bytes of an image, in chunks. GuestFailure if they cannot be had now."""

    @abstractmethod
    def config_drive(self, server_id: str) -> dict[str, bytes]:
        """The files of a server's config drive: path (``openstack/latest/…``) → content."""


class Driver(ABC):
    """One hypervisor."""

    # --- the host -------------------------------------------------------------------------------

    @abstractmethod
    def open(self) -> None:
        """Connect, prepare directories and networking, warm up. Called once, before anything else."""

    @abstractmethod
    def close(self) -> None:
        """Let go of every connection and thread. Guests go on running."""

    @abstractmethod
    def inventory(self) -> Inventory:
        """What the host has. Raises GuestFailure while the hypervisor does not answer."""

    @abstractmethod
    def guests(self) -> list[GuestReport]:
        """Every guest of ours on the host with its power state, running or not."""

    @abstractmethod
    def on_change(self, notify: Callable[[], None]) -> None:
        """Call ``notify`` (from any thread) when a guest changed state behind our back or the
        connection came back; the caller then reads ``guests`` anew."""

    # --- one guest ------------------------------------------------------------------------------

    @abstractmethod
    def spawn(
        self, spec: GuestSpec, fence: Fence, progress: Progress, resume_at: str | None = None
    ) -> PowerState:
        """Build and start the guest: image, disk, config drive, NICs, definition, start.

        A guest that already runs is left alone; half-made parts are completed. ``resume_at`` is the stage
        at which an earlier call with this fence stopped: what lasts of the stages before it is not made
        again. Raises Fenced when ``destroy`` was called with this epoch or a later one.
        """

    @abstractmethod
    def destroy(self, server_id: str, fence: Fence) -> None:
        """Remove the guest and all it left: domain, disks, taps, rules, DHCP entries, logs.

        Leaves a tombstone with the fence's epoch. A guest that never existed is a success. A guest of
        a *later* epoch than the fence's is left alone.
        """

    @abstractmethod
    def start(self, spec: GuestSpec) -> PowerState:
        """Power on an existing guest, rewiring its NICs first. No-op when it runs. NotFound if absent."""

    @abstractmethod
    def stop(self, server_id: str, timeout_s: float, progress: Progress) -> PowerState:
        """Ask the guest to shut down; after ``timeout_s`` pull the plug. 0 pulls at once."""

    @abstractmethod
    def reboot_soft(self, spec: GuestSpec, timeout_s: float, progress: Progress) -> PowerState:
        """Ask the guest to restart; falls back to ``reboot_hard`` when it does not react in time."""

    @abstractmethod
    def reboot_hard(self, spec: GuestSpec, progress: Progress) -> PowerState:
        """Pull the plug, define anew, wire and start. Works from every power state."""

    @abstractmethod
    def pause(self, server_id: str) -> PowerState:
        """Freeze the vCPUs; memory stays."""

    @abstractmethod
    def unpause(self, server_id: str) -> PowerState:
        """Thaw a paused guest."""

    @abstractmethod
    def suspend(self, server_id: str) -> PowerState:
        """Save memory to disk and stop the guest."""

    @abstractmethod
    def resume(self, spec: GuestSpec) -> PowerState:
        """Restore a suspended guest, rewiring its NICs first."""

    @abstractmethod
    def power_state(self, server_id: str) -> PowerState:
        """The state right now; ``NOSTATE`` for a guest that is not here."""

    @abstractmethod
    def console_log(self, server_id: str, max_bytes: int) -> bytes:
        """The tail of the serial console, at most ``max_bytes``. NotFound if absent."""

    @abstractmethod
    def apply_nics(self, server_id: str, nics: Sequence[NicSpec]) -> None:
        """Make the filtering rules and DHCP entries of a running guest's NICs say this."""

    # --- truth, for reconcilers and tests ---------------------------------------------------------

    @abstractmethod
    def residue(self, server_id: str | None = None) -> list[str]:
        """Names of everything of ours on the host that belongs to this server, or (``None``) to any:
        ``domain:…``, ``file:…``, ``tap:…``, ``rules:…``, ``dhcp:…``. Empty after ``destroy``.
        Shared things (image cache, tombstones, networks) are not residue of a server.
        """

    @abstractmethod
    def owners(self) -> set[str]:
        """Ids of the servers that ``residue()`` belongs to; what belongs to none is named as there."""

    @abstractmethod
    def networks(self) -> list[str]:
        """Ids of the networks that have devices on this host (removed with their last port)."""
