"""ONE TABLE: what each lifecycle operation needs, shows and ends in.

The API guard, the workflows, the documentation matrix and the tests read the same rows. States and
names are Nova's, so that clients and instance actions look the same.
"""

from __future__ import annotations

from dataclasses import dataclass

from domain.errors import Conflict
from domain.states import TaskState, VmState

_ANY = tuple(s for s in VmState if s is not VmState.DELETED)


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """One operation: which server may take it, and the states it goes through."""

    action: str
    """Nova's instance-action name, also the operation's kind."""
    workflow: str
    """The workflow type that carries it out."""
    allowed: tuple[VmState, ...]
    task_state: TaskState | None
    success: VmState
    failure: VmState | None
    """The vm state after a failure; ``None`` keeps the state the server had (F28)."""
    rule: str
    """The policy rule of the API route."""
    locked_ok: bool = False
    """Whether a locked server takes it from its owner."""


CREATE = Lifecycle(
    "create", "CreateServer", (VmState.BUILDING,), TaskState.SCHEDULING,
    VmState.ACTIVE, VmState.ERROR, "servers:create", locked_ok=True,
)  # fmt: skip
RETRY = Lifecycle(
    "create", "CreateServer", (VmState.ERROR,), TaskState.SCHEDULING,
    VmState.ACTIVE, VmState.ERROR, "operations:retry", locked_ok=True,
)  # fmt: skip
DELETE = Lifecycle(
    "delete", "DeleteServer", _ANY, TaskState.DELETING, VmState.DELETED, VmState.ERROR,
    "servers:delete",
)  # fmt: skip
START = Lifecycle(
    "start", "PowerServer", (VmState.STOPPED,), TaskState.POWERING_ON, VmState.ACTIVE, None,
    "servers:start",
)  # fmt: skip
STOP = Lifecycle(
    "stop", "PowerServer", (VmState.ACTIVE, VmState.ERROR), TaskState.POWERING_OFF,
    VmState.STOPPED, None, "servers:stop",
)  # fmt: skip
REBOOT_SOFT = Lifecycle(
    "reboot", "PowerServer", (VmState.ACTIVE,), TaskState.REBOOTING, VmState.ACTIVE, None,
    "servers:reboot",
)  # fmt: skip
REBOOT_HARD = Lifecycle(
    "reboot", "PowerServer",
    (VmState.ACTIVE, VmState.STOPPED, VmState.PAUSED, VmState.SUSPENDED, VmState.ERROR),
    TaskState.REBOOTING_HARD, VmState.ACTIVE, None, "servers:reboot",
)  # fmt: skip
PAUSE = Lifecycle(
    "pause", "PowerServer", (VmState.ACTIVE,), TaskState.PAUSING, VmState.PAUSED, None,
    "servers:pause",
)  # fmt: skip
UNPAUSE = Lifecycle(
    "unpause", "PowerServer", (VmState.PAUSED,), TaskState.UNPAUSING, VmState.ACTIVE, None,
    "servers:unpause",
)  # fmt: skip
SUSPEND = Lifecycle(
    "suspend", "PowerServer", (VmState.ACTIVE,), TaskState.SUSPENDING, VmState.SUSPENDED, None,
    "servers:suspend",
)  # fmt: skip
RESUME = Lifecycle(
    "resume", "PowerServer", (VmState.SUSPENDED,), TaskState.RESUMING, VmState.ACTIVE, None,
    "servers:resume",
)  # fmt: skip

RETRY_BUILD = "retry_build"
"""The key of the create that is tried again; the action is the same."""
BUILDS = ("create", RETRY_BUILD)
"""Lifecycles that make a guest, and that can be done again."""

LIFECYCLES: dict[str, Lifecycle] = {
    "create": CREATE,
    "delete": DELETE,
    "pause": PAUSE,
    "reboot_hard": REBOOT_HARD,
    "reboot_soft": REBOOT_SOFT,
    "resume": RESUME,
    RETRY_BUILD: RETRY,
    "start": START,
    "stop": STOP,
    "suspend": SUSPEND,
    "unpause": UNPAUSE,
}


def check_allowed(lifecycle: Lifecycle, server_id: str, vm_state: VmState) -> None:
    """Raise Conflict, worded as Nova does, when the server's state does not take this operation."""
    if vm_state not in lifecycle.allowed:
        raise Conflict(
            f"Cannot '{lifecycle.action}' instance {server_id} while it is in vm_state {vm_state}"
        )
