"""Nova's state vocabulary and the one function that turns it into the status a user sees."""

from __future__ import annotations

from enum import IntEnum, StrEnum


class VmState(StrEnum):
    """What the server is, between operations (Nova's ``vm_states``)."""

    BUILDING = "building"
    ACTIVE = "active"
    PAUSED = "paused"
    SUSPENDED = "suspended"
    STOPPED = "stopped"
    ERROR = "error"
    DELETED = "deleted"


class TaskState(StrEnum):
    """What a running operation is doing to the server; display only (Nova's ``task_states``)."""

    SCHEDULING = "scheduling"
    SPAWNING = "spawning"
    POWERING_ON = "powering-on"
    POWERING_OFF = "powering-off"
    REBOOTING = "rebooting"
    REBOOTING_HARD = "rebooting_hard"
    PAUSING = "pausing"
    UNPAUSING = "unpausing"
    SUSPENDING = "suspending"
    RESUMING = "resuming"
    DELETING = "deleting"


class PowerState(IntEnum):
    """What the hypervisor says (the numbers are Nova's wire values)."""

    NOSTATE = 0
    RUNNING = 1
    PAUSED = 3
    SHUTDOWN = 4
    CRASHED = 6
    SUSPENDED = 7


class OperationState(StrEnum):
    """The life of one accepted request. Only the first three are live."""

    ACCEPTED = "accepted"
    RUNNING = "running"
    WAITING_OPERATOR = "waiting_operator"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


LIVE_OPERATION_STATES = (
    OperationState.ACCEPTED,
    OperationState.RUNNING,
    OperationState.WAITING_OPERATOR,
)

_STATUS: dict[VmState, dict[TaskState | None, str]] = {
    VmState.BUILDING: {None: "BUILD"},
    VmState.ACTIVE: {
        None: "ACTIVE",
        TaskState.REBOOTING: "REBOOT",
        TaskState.REBOOTING_HARD: "HARD_REBOOT",
    },
    VmState.PAUSED: {None: "PAUSED", TaskState.REBOOTING_HARD: "HARD_REBOOT"},
    VmState.SUSPENDED: {None: "SUSPENDED", TaskState.REBOOTING_HARD: "HARD_REBOOT"},
    VmState.STOPPED: {None: "SHUTOFF", TaskState.REBOOTING_HARD: "HARD_REBOOT"},
    VmState.ERROR: {None: "ERROR", TaskState.REBOOTING_HARD: "HARD_REBOOT"},
    VmState.DELETED: {None: "DELETED"},
}


def status(vm_state: VmState, task_state: TaskState | None) -> str:
    """The ``status`` of the compute API, e.g. ``ACTIVE`` or ``HARD_REBOOT``."""
    row = _STATUS[vm_state]
    return row.get(task_state, row[None])


def vm_states_of(wanted: str) -> tuple[tuple[VmState, TaskState | None], ...]:
    """The (vm_state, task_state) pairs that show as this status; empty when it is no status.

    A ``None`` task state stands for "every task state that has no status of its own".
    """
    return tuple(
        (vm, task)
        for vm, row in _STATUS.items()
        for task, text in row.items()
        if text == wanted.upper()
    )


def own_status_tasks(vm_state: VmState) -> tuple[TaskState, ...]:
    """The task states that give this vm state a status of their own."""
    return tuple(task for task in _STATUS[vm_state] if task is not None)
