"""What must hold in a cloud that is at rest, and what a look at it found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Invariant:
    """One thing that must hold."""

    id: str
    title: str
    advice: str
    """What an operator does about a violation; one sentence."""


INVARIANTS: dict[str, Invariant] = {
    row.id: row
    for row in (
        Invariant(
            "I1",
            "claims are those of live servers",
            "Restart the control worker so that its reconciler gives back what deleted servers hold; "
            "delete a server whose claim is wrong.",
        ),
        Invariant(
            "I2",
            "each port and address has one owner, which exists",
            "The reconciler frees ports of deleted servers; delete other ports by `openstack port delete`.",
        ),
        Invariant(
            "I3",
            "guests on hosts are the servers of the record, one copy each",
            "Look at GET /operations/v1/orphans and at the host; remove a copy by hand only when you know "
            "which one is right.",
        ),
        Invariant(
            "I4",
            "nothing on a host is without an owner",
            "Look at GET /operations/v1/orphans, then remove the named server's files, taps and rules on "
            "that host by hand.",
        ),
        Invariant(
            "I5",
            "what quotas count is what flavors say",
            "Report it: the numbers in the server's row were changed behind the program's back.",
        ),
        Invariant(
            "I6",
            "what is in transition has a running workflow",
            "Wait two minutes for the sweep and the reconciler; if it stays, see whether a control worker runs.",
        ),
        Invariant(
            "I7",
            "an ended operation has a closed workflow that ended the same",
            "Compare the operation with its workflow in the Temporal Web UI; the record is what users see.",
        ),
        Invariant(
            "I8",
            "no project is shown what belongs to another",
            "Treat it as a security incident: find out how the reference came about before you remove it.",
        ),
    )
}


@dataclass(frozen=True, slots=True, order=True)
class Violation:
    """Something that does not hold."""

    subject: str
    """Ids of what it is about, e.g. ``server 1234 on host-1``; the same thing has the same subject."""
    detail: str
    """One sentence. It may differ between two looks at the same thing."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one look at one invariant found."""

    invariant: str
    checked: int
    """How many things were looked at."""
    violations: tuple[Violation, ...] = ()


def merged(findings: Iterable[Finding]) -> list[Finding]:
    """One finding for each invariant, in order; those that nobody looked at have checked nothing."""
    found = {row: Finding(row, 0) for row in INVARIANTS}
    for each in findings:
        sum_ = found[each.invariant]
        found[each.invariant] = replace(
            sum_,
            checked=sum_.checked + each.checked,
            violations=tuple(sorted({*sum_.violations, *each.violations})),
        )
    return list(found.values())


def lasting(before: Iterable[Finding], again: Iterable[Finding]) -> list[Finding]:
    """The later findings with only those violations whose subject was in the earlier ones too: what was
    only on its way has arrived meanwhile."""
    known = {(f.invariant, v.subject) for f in before for v in f.violations}
    return [
        replace(f, violations=tuple(v for v in f.violations if (f.invariant, v.subject) in known))
        for f in again
    ]
