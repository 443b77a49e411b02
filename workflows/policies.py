"""Every timeout, retry rule and queue of every activity, in one table."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from temporalio.common import RetryPolicy

BUILD_ATTEMPTS = 3
"""Hosts tried for one create, the first included (Nova's default of ``max_attempts``)."""

HOST_ANSWERS_WITHIN = timedelta(seconds=60)
"""A host whose worker does not take a task in this time counts as not answering."""


DEATHS_FORGIVEN = 5
"""How often a call is begun anew, with all its tries, because the last one ended with its worker: the step was
not to blame. Not without limit, since a call may be what kills the worker."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How one activity is called."""

    start_to_close: timedelta
    """How long one attempt may take."""
    retry: RetryPolicy
    local: bool = True
    """Control activities run as local activities (one dispatch less); host ones never do."""
    on_host: bool = True
    """One that is not local goes to its host's queue, or is a long one of the control worker."""
    heartbeat: timedelta | None = None


_RECORD = RetryPolicy(
    initial_interval=timedelta(milliseconds=200), maximum_interval=timedelta(seconds=10)
)
_GUEST = RetryPolicy(
    initial_interval=timedelta(seconds=1),
    maximum_interval=timedelta(seconds=15),
    maximum_attempts=3,
)
_UNDO = RetryPolicy(
    initial_interval=timedelta(seconds=1), maximum_interval=timedelta(minutes=1)
)  # without limit: what was built is taken down, however long it takes

_RECEIVER = RetryPolicy(
    initial_interval=timedelta(seconds=1), maximum_interval=timedelta(minutes=1)
)  # without limit: a webhook that is down is waited for

_HEARTBEAT = timedelta(seconds=10)

POLICIES: dict[str, Policy] = {
    # control: the record. A database that is down is waited for.
    "audit_cloud": Policy(timedelta(minutes=3), RetryPolicy(maximum_attempts=1)),
    "begin_operation": Policy(timedelta(seconds=30), _RECORD),
    "claim_host": Policy(timedelta(seconds=30), _RECORD),
    "finish_operation": Policy(timedelta(seconds=30), _RECORD),
    "hold_operation": Policy(timedelta(seconds=30), _RECORD),
    "host_nics": Policy(timedelta(seconds=30), _RECORD),
    "may_unwind": Policy(timedelta(seconds=30), _RECORD),
    "record_failure": Policy(timedelta(seconds=30), _RECORD),
    "reconcile_record": Policy(timedelta(minutes=3), RetryPolicy(maximum_attempts=1)),
    "release_claim": Policy(timedelta(seconds=30), _RECORD),
    "release_hold": Policy(timedelta(seconds=30), _RECORD),
    "renew_claim": Policy(timedelta(seconds=30), _RECORD),
    "retry_build": Policy(timedelta(seconds=30), RetryPolicy(maximum_attempts=3)),
    "sweep_operations": Policy(timedelta(minutes=2), RetryPolicy(maximum_attempts=1)),
    "prune_events": Policy(timedelta(minutes=2), RetryPolicy(maximum_attempts=1)),
    # control, but long: it follows the outbox for minutes
    "deliver_events": Policy(
        timedelta(minutes=10), _RECEIVER, local=False, on_host=False, heartbeat=_HEARTBEAT
    ),
    # hosts: a hypervisor
    "apply_nics": Policy(timedelta(minutes=2), _GUEST, local=False, heartbeat=_HEARTBEAT),
    "change_power": Policy(timedelta(minutes=10), _GUEST, local=False, heartbeat=_HEARTBEAT),
    "destroy_guest": Policy(timedelta(minutes=5), _UNDO, local=False, heartbeat=_HEARTBEAT),
    "read_console": Policy(timedelta(seconds=30), _GUEST, local=False, heartbeat=_HEARTBEAT),
    "spawn_guest": Policy(timedelta(minutes=60), _GUEST, local=False, heartbeat=_HEARTBEAT),
}
