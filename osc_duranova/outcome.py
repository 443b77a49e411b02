"""How an operation stands, as an exit code and a sentence; the same for ``wait``, ``--wait`` and ``watch``."""

from __future__ import annotations

from enum import IntEnum

from osc_duranova.client import HELD, MOVING, Operation
from osc_duranova.columns import Moment, seconds_of, span


class Exit(IntEnum):
    """Exit codes; 2 is the command's own for a line it does not understand."""

    SUCCEEDED = 0
    FAILED = 1
    """The operation has failed or was cancelled; also: the question itself was refused."""
    HELD = 3
    """It waits for an operator's verb."""
    TIMED_OUT = 4
    """It was still going on when the time was over."""


def exit_code(shown: Operation) -> Exit:
    """What to exit with, given how the operation stands."""
    if shown["state"] in MOVING:
        return Exit.TIMED_OUT
    if shown["state"] == HELD:
        return Exit.HELD
    return Exit.SUCCEEDED if shown["state"] == "succeeded" else Exit.FAILED


def sentence(shown: Operation) -> str:
    """How the operation stands; if it will not go on by itself, what may be done about it, a line each."""
    what = f"{shown['action']} of server {shown['server_id']}"
    took = seconds_of(shown)
    after = "" if took is None else f" after {span(took)}"
    why = f": {shown['error']}" if shown["error"] else ""
    at = f" at step {shown['step']}" if shown["step"] else ""
    match shown["state"]:
        case "succeeded":
            return f"{what} succeeded{after}"
        case "failed":
            return "\n".join((f"{what} failed{after}{why}", *choices(shown)))
        case "cancelled":
            return "\n".join((f"{what} was cancelled{after}{why}", *choices(shown)))
        case "waiting_operator":
            return "\n".join((f"{what} is held{at}{why}", *choices(shown)))
        case state:
            return f"{what} is {state}{at}"


def choices(shown: Operation) -> list[str]:
    """What an operator may do about an operation that does not go on by itself, and until when."""
    verbs = [] if shown["state"] in MOVING else shown.get("verbs") or []
    lines = [f"possible now: openstack operation {'|'.join(verbs)} {shown['id']}"] if verbs else []
    if shown.get("deadline_at") and shown["state"] == HELD:
        until = Moment(shown["deadline_at"]).human_readable()
        lines.append(f"without a decision it is aborted at {until}")
    return lines
