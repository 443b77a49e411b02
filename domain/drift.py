"""When a guest changed by itself: what the record then says, or what brings back the user's wish."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from domain.states import PowerState, VmState


class PowerPolicy(StrEnum):
    """What is done when a guest's power state is not the one its server should have."""

    FOLLOW = "follow"
    """The record follows the guest."""
    RESTORE = "restore"
    """The guest is brought back to what its user asked for last."""


FOLLOWED: dict[PowerState, VmState] = {
    PowerState.SHUTDOWN: VmState.STOPPED,
    PowerState.CRASHED: VmState.STOPPED,
    PowerState.NOSTATE: VmState.STOPPED,
    PowerState.PAUSED: VmState.PAUSED,
    PowerState.SUSPENDED: VmState.SUSPENDED,
    PowerState.RUNNING: VmState.ACTIVE,
}
"""Power state → the VM state of a server whose guest is in it."""

DOWN = (PowerState.SHUTDOWN, PowerState.CRASHED, PowerState.NOSTATE)


@dataclass(frozen=True, slots=True)
class Restoration:
    """The operation that brings a wish back."""

    lifecycle: str
    follow: bool = True
    """Whether the record follows first: most operations start from the state that the guest is in."""


RESTORATIONS: dict[tuple[VmState, VmState], Restoration] = {
    (VmState.ACTIVE, VmState.STOPPED): Restoration("reboot_hard", follow=False),
    (VmState.ACTIVE, VmState.PAUSED): Restoration("unpause"),
    (VmState.ACTIVE, VmState.SUSPENDED): Restoration("resume"),
    (VmState.STOPPED, VmState.ACTIVE): Restoration("stop"),
    (VmState.PAUSED, VmState.ACTIVE): Restoration("pause"),
    (VmState.SUSPENDED, VmState.ACTIVE): Restoration("suspend"),
}
"""(wished, found) → what leads back; what is missing needs more than one operation and is followed."""


def drifted(vm_state: str, power_state: int) -> VmState | None:
    """The VM state that the guest has come to by itself; None when it is as its server says, or when the
    server is in a state in which nothing is expected of a guest."""
    found = FOLLOWED.get(PowerState(power_state))
    return found if vm_state in FOLLOWED.values() and found != vm_state else None
