"""The activities as typed interfaces, with their commands and results.

``activities/`` subclasses these; a workflow names the method of the interface, so both sides are type-checked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from temporalio import activity

from domain.guest import Fence, GuestSpec, NicSpec, SecurityRule, StageTaken


@dataclass(frozen=True, slots=True)
class Ref:
    """Which operation on which server: the input of every operation workflow."""

    operation_id: str
    server_id: str
    project_id: str
    request_id: str
    lifecycle: str
    """Key of ``domain.lifecycle.LIFECYCLES``."""
    hold_s: float = 0.0
    """How long a failed step waits for an operator before it is given up; 0: not at all."""
    unwind: str = ""
    """Why nothing is to be done but to undo what an earlier run of this operation left; empty: do it."""


@dataclass(frozen=True, slots=True)
class Order:
    """What an operator sends with a verb. Everything is optional, so that the Web UI can send nothing."""

    by: str = ""
    """Who gives it."""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ClaimHost:
    """Choose and claim a host, passing over those already tried."""

    ref: Ref
    attempt: int
    """1 for the first host."""
    passed_over: tuple[str, ...] = ()
    """Hosts on which this operation failed."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A claimed host and what to run there."""

    host: str
    fence: Fence
    spec: GuestSpec


@dataclass(frozen=True, slots=True)
class ReleaseClaim:
    """Give back what ``claim_host`` of this attempt took; nothing if it took nothing."""

    ref: Ref
    attempt: int
    error: str | None = None
    """Why the host was given up; recorded with the step."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try of a build, which holds a claim."""

    ref: Ref
    number: int
    """1 for the first host."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A step of an operation that did not succeed, with its retries used up."""

    ref: Ref
    step: str
    """The stage of the driver's call, or the activity."""
    error: str
    host: str | None = None
    stages: tuple[StageTaken, ...] = ()
    """Those of the last try, the failed one included, if the host could tell."""


@dataclass(frozen=True, slots=True)
class Hold:
    """Let the operation wait for an operator."""

    failure: Failure
    number: int
    """1 for the operation's first wait."""
    verbs: tuple[str, ...]
    """What the operator may say."""
    deadline_at: float
    """When it is given up by itself: seconds since 1970."""


@dataclass(frozen=True, slots=True)
class GoOn:
    """An operator's word, or the deadline's, on a wait."""

    ref: Ref
    number: int
    """The wait it ends."""
    verb: str
    order: Order


@dataclass(frozen=True, slots=True)
class RetryBuild:
    """Build again what a failed create left in ERROR."""

    subject: str
    """The id of the failed operation, or of its server."""
    order: Order = Order()
    operation_id: str = ""
    """Of the new operation, so that twice is once; the desk gives it."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """An operation that was accepted and started."""

    operation_id: str
    server_id: str


@dataclass(frozen=True, slots=True)
class Begin:
    """Start an operation on an existing server: mark it running, show the task state."""

    ref: Ref


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an operation may be unwound."""

    allowed: bool


@dataclass(frozen=True, slots=True)
class Located:
    """Where the server is. ``host`` and ``spec`` are None when it is on no host; ``spec`` too where the
    operation takes the guest down."""

    host: str | None
    fence: Fence
    spec: GuestSpec | None
    input: dict[str, str] = field(default_factory=dict)
    attempt: int = 0
    """The operation's last try of a host."""


@dataclass(frozen=True, slots=True)
class Finish:
    """End an operation and write the server's new state."""

    ref: Ref
    succeeded: bool
    guest: GuestPower | None = None
    """What the host said of the guest, for a success that leaves one."""
    error: str | None = None
    """The cause, for the fault and the operation."""
    cancelled: bool = False
    """Ended because something else took over (delete wins)."""


@dataclass(frozen=True, slots=True)
class SpawnGuest:
    """Build and start the guest on this host."""

    fence: Fence
    spec: GuestSpec
    resume_at: str | None = None
    """The stage to go on with: what was done before it on this host is not done again."""


@dataclass(frozen=True, slots=True)
class DestroyGuest:
    """Remove the guest and everything it left on this host."""

    fence: Fence
    server_id: str


@dataclass(frozen=True, slots=True)
class ChangePower:
    """One power operation; ``lifecycle`` names it."""

    lifecycle: str
    spec: GuestSpec
    timeout_s: float
    """For a graceful stop or reboot; 0 pulls the plug."""


@dataclass(frozen=True, slots=True)
class GuestPower:
    """The power state after the call (``domain.states.PowerState``)."""

    power_state: int
    seen_by: str = ""
    """Epoch of the host worker that says so: of its start, as in its reports."""
    stages: tuple[StageTaken, ...] = ()


@dataclass(frozen=True, slots=True)
class ApplyNics:
    """Make the filtering of running guests say this: server id → its NICs.

    The rules stand apart, each once. Cards of one project share theirs, and such a rule names every member
    of a group: repeated for each card, a few thousand members would not fit into what Temporal takes as one
    payload (2 MB); dozens of rules with thousands of members still do not. A host that knows only ``nics``
    lets nothing through.
    """

    nics: dict[str, tuple[NicSpec, ...]]
    rules: tuple[SecurityRule, ...] = ()
    rules_of: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Port id → its rules, as places in ``rules``."""

    @classmethod
    def packed(cls, nics: Mapping[str, Sequence[NicSpec]]) -> ApplyNics:
        """From cards with their rules."""
        rules: dict[int, SecurityRule] = {}  # by identity: to compare them is to read every member
        places: dict[int, int] = {}
        cards = [card for of_server in nics.values() for card in of_server]
        for rule in (rule for card in cards for rule in card.rules):
            places.setdefault(id(rule), len(places))
            rules[id(rule)] = rule
        return cls(
            {key: tuple(replace(c, rules=()) for c in value) for key, value in nics.items()},
            tuple(rules.values()),
            {card.port_id: tuple(places[id(rule)] for rule in card.rules) for card in cards},
        )

    def unpacked(self) -> dict[str, tuple[NicSpec, ...]]:
        """The cards with their rules."""
        return {key: tuple(map(self._whole, value)) for key, value in self.nics.items()}

    def _whole(self, card: NicSpec) -> NicSpec:
        places = self.rules_of.get(card.port_id)
        if places is None:
            return card
        return replace(card, rules=tuple(self.rules[place] for place in places))


@dataclass(frozen=True, slots=True)
class HostRef:
    """One host."""

    host: str


@dataclass(frozen=True, slots=True)
class PurgeGuest:
    """A guest that a host reported and the record no longer wants there."""

    host: str
    server_id: str
    fence: Fence


@dataclass(frozen=True, slots=True)
class ReadConsole:
    """The tail of a guest's serial console."""

    server_id: str
    max_bytes: int


@dataclass(frozen=True, slots=True)
class SealedText:
    """Bytes sealed with the host's key (``runtime.sealing``)."""

    sealed: str


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep did: ids of the operations it started again or closed."""

    restarted: tuple[str, ...] = ()
    closed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WebhookRef:
    """One configured webhook; where it is and its secret stay in the settings."""

    name: str


@dataclass(frozen=True, slots=True)
class Turn:
    """What one turn of a delivery did. ``configured`` is False when the settings have no such webhook."""

    configured: bool
    delivered: int = 0


@dataclass(frozen=True, slots=True)
class Prune:
    """Delete events that are older than they are kept; at most so many at once."""

    at_most: int


@dataclass(frozen=True, slots=True)
class Pruned:
    """How many events a pruning deleted."""

    count: int


@dataclass(frozen=True, slots=True)
class Tick:
    """It is time; reconcilers take no other input."""


@dataclass(frozen=True, slots=True)
class Reconciled:
    """What a run of the reconcilers did."""

    fixes: dict[str, int] = field(default_factory=dict)
    """Reconciler → things put right."""
    failed: tuple[str, ...] = ()
    """Reconcilers that did not end well."""


@dataclass(frozen=True, slots=True)
class Audited:
    """What an audit found."""

    violations: dict[str, int] = field(default_factory=dict)
    """Invariant → violations."""


class ControlActivities:
    """Effects on the record; run beside the database as local activities."""

    @activity.defn
    async def claim_host(self, cmd: ClaimHost) -> Placed:
        """Decide and claim in one transaction. NoValidHost when no host passes."""
        raise NotImplementedError

    @activity.defn
    async def release_claim(self, cmd: ReleaseClaim) -> None:
        """Undo of ``claim_host``; tolerates that it never happened."""
        raise NotImplementedError

    @activity.defn
    async def renew_claim(self, cmd: Attempt) -> Placed:
        """Give the claim of this attempt a new epoch, so that its host may build afresh after a destroy."""
        raise NotImplementedError

    @activity.defn
    async def record_failure(self, cmd: Failure) -> None:
        """Write down a failed step that is not waited for."""
        raise NotImplementedError

    @activity.defn
    async def hold_operation(self, cmd: Hold) -> None:
        """Show that the operation waits for an operator, at which step, why, and until when."""
        raise NotImplementedError

    @activity.defn
    async def release_hold(self, cmd: GoOn) -> None:
        """End the wait and write down who said what."""
        raise NotImplementedError

    @activity.defn
    async def retry_build(self, cmd: RetryBuild) -> Accepted:
        """Accept and start a new operation that builds a server in ERROR again. Conflict if it cannot be."""
        raise NotImplementedError

    @activity.defn
    async def begin_operation(self, cmd: Begin) -> Located:
        """First step of an operation on an existing server."""
        raise NotImplementedError

    @activity.defn
    async def may_unwind(self, cmd: Begin) -> Verdict:
        """Close the way to success, unless the record says that the operation has succeeded already."""
        raise NotImplementedError

    @activity.defn
    async def finish_operation(self, cmd: Finish) -> None:
        """Last step of every operation."""
        raise NotImplementedError

    @activity.defn
    async def host_nics(self, cmd: HostRef) -> ApplyNics:
        """The wanted NICs of every server on a host."""
        raise NotImplementedError

    @activity.defn
    async def sweep_operations(self, _cmd: HostRef) -> Swept:
        """Start accepted operations that have no workflow; close rows whose workflow has ended."""
        raise NotImplementedError

    @activity.defn
    async def deliver_events(self, cmd: WebhookRef) -> Turn:
        """Hand a webhook its events in order, for some minutes; Unavailable when it takes none."""
        raise NotImplementedError

    @activity.defn
    async def prune_events(self, cmd: Prune) -> Pruned:
        """Delete the oldest events, if they are old enough."""
        raise NotImplementedError

    @activity.defn
    async def reconcile_record(self, _cmd: Tick) -> Reconciled:
        """Put right what the record itself proves to be wrong."""
        raise NotImplementedError

    @activity.defn
    async def audit_cloud(self, _cmd: Tick) -> Audited:
        """Hold the record, the hosts' reports and Temporal against each other; changes nothing."""
        raise NotImplementedError


class HostActivities:
    """Effects on one hypervisor; run on queue ``host:<name>``, without a database."""

    @activity.defn
    async def spawn_guest(self, cmd: SpawnGuest) -> GuestPower:
        """Build and start; no-op if it already runs."""
        raise NotImplementedError

    @activity.defn
    async def destroy_guest(self, cmd: DestroyGuest) -> None:
        """Undo of ``spawn_guest`` and the heart of delete."""
        raise NotImplementedError

    @activity.defn
    async def change_power(self, cmd: ChangePower) -> GuestPower:
        """Start, stop, reboot, pause, unpause, suspend or resume."""
        raise NotImplementedError

    @activity.defn
    async def apply_nics(self, cmd: ApplyNics) -> None:
        """Refresh filtering rules of running guests."""
        raise NotImplementedError

    @activity.defn
    async def read_console(self, cmd: ReadConsole) -> SealedText:
        """Read the console; sealed, because it is the tenant's."""
        raise NotImplementedError
