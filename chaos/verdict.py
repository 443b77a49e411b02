"""The judgement after a round, from the record, the hosts and Temporal: an opinion of our own, so that a
fault of the product's audit is found as well as a fault of the product."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from sqlmodel import Session, col, select
from temporalio.client import Client

from chaos.guests import Guests
from chaos.load import Asked
from chaos.slow import INJECTED
from db.hosts import Claim
from db.network.tables import Port
from db.operations import Operation
from db.servers import Server
from db.session import open_engine, reading
from domain.lifecycle import LIFECYCLES
from domain.states import LIVE_OPERATION_STATES, OperationState, PowerState, VmState

SYSTEM_USER = "system"
"""Who asks for the corrections that the cloud makes by itself."""
_LOST_HOST = "timed out (HEARTBEAT)"
_POWER = {
    VmState.ACTIVE: PowerState.RUNNING,
    VmState.PAUSED: PowerState.PAUSED,
    VmState.STOPPED: PowerState.SHUTDOWN,
    VmState.SUSPENDED: PowerState.SUSPENDED,
}


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing that must not be."""

    rule: str
    subject: str
    """Mostly a server's id."""
    detail: str

    @property
    def final(self) -> bool:
        """Whether no waiting can help: history does not change."""
        return self.rule in ("failed", "lost", "unasked")


@dataclass(slots=True)
class Seen:
    """The cloud at one moment. The record is one read transaction; hosts and Temporal were asked after."""

    servers: dict[str, Server] = field(default_factory=dict)
    operations: dict[str, list[Operation]] = field(default_factory=dict)
    """server id → its operations, oldest first"""
    claims: list[Claim] = field(default_factory=list)
    ports: list[Port] = field(default_factory=list)
    guests: Guests = field(default_factory=dict)
    workflows: set[str] = field(default_factory=set)
    """Open ones: ``server:<id>``."""
    broken: frozenset[str] = frozenset()
    """Hosts on which failures were injected: tries of a step spent there and tries that ended with a killed
    host are counted together."""

    def live(self) -> list[Operation]:
        """Operations that have not ended."""
        return [
            o for ops in self.operations.values() for o in ops if o.state in LIVE_OPERATION_STATES
        ]


def read_record(database_url: str) -> Seen:
    """Everything the record holds. Blocking."""
    engine = open_engine(database_url)
    try:
        with reading(engine) as session:
            return _read(session)
    finally:
        engine.dispose()


def _read(session: Session) -> Seen:
    operations: dict[str, list[Operation]] = defaultdict(list)
    for operation in session.exec(select(Operation).order_by(col(Operation.created_at))):
        operations[operation.server_id].append(operation)
    return Seen(
        servers={s.id: s for s in session.exec(select(Server))},
        operations=operations,
        claims=list(session.exec(select(Claim))),
        ports=[p for p in session.exec(select(Port)) if p.device_id],
    )


async def open_workflows(client: Client) -> set[str]:
    """Ids of the servers' workflows that are not closed."""
    query = "ExecutionStatus = 'Running'"
    running = {w.id async for w in client.list_workflows(query)}
    return {name for name in running if name.startswith("server:")}


def judge(seen: Seen, asked: Iterable[Asked]) -> list[Violation]:
    """Everything that is wrong; empty when the cloud has settled as it should."""
    asked = list(asked)
    checks: list[Iterator[Violation]] = [check(seen) for check in _CHECKS]
    checks.append(_promises(seen, asked))
    return [violation for check in checks for violation in check]


def _stuck(seen: Seen) -> Iterator[Violation]:
    for o in seen.live():
        workflow = "open" if f"server:{o.server_id}" in seen.workflows else "not open"
        yield Violation(
            "stuck", o.server_id, f"{o.lifecycle} {o.id} is {o.state}, workflow {workflow}"
        )
    busy = {f"server:{o.server_id}" for o in seen.live()}
    for name in sorted(seen.workflows - busy):
        yield Violation("stuck", name, "a workflow is open without a live operation")


def _states(seen: Seen) -> Iterator[Violation]:
    for s in seen.servers.values():
        if s.task_state is not None:
            yield Violation("task state", s.id, f"idle, but in task_state {s.task_state}")
        operations = seen.operations.get(s.id, [])
        wanted = _outcome(operations)
        if wanted is not None and s.vm_state not in wanted:
            states = " or ".join(sorted(wanted))
            yield Violation("state", s.id, f"{s.vm_state}, its operations say {states}")


def _outcome(operations: list[Operation]) -> set[VmState] | None:
    """The states in which a server may be after these; None when nothing can be said."""
    states: set[VmState] | None = {VmState.BUILDING}
    for o in sorted(operations, key=lambda o: (o.finished_at or o.updated_at, o.created_at)):
        row = LIFECYCLES.get(o.lifecycle)
        if (
            row is None
        ):  # a correction: the record followed the guest, with which it is compared anyway
            states = None
        elif o.state == OperationState.SUCCEEDED:
            states = {row.success}
        elif o.state == OperationState.FAILED:
            # Whether the host had done it when contact was lost shows in the next reports.
            states = {row.failure} if row.failure else {*(states or set()), row.success}
    return states


def _failures(seen: Seen) -> Iterator[Violation]:
    for operations in seen.operations.values():
        for o in operations:
            if o.state == OperationState.FAILED and not _meant(o, seen.broken):
                yield Violation("failed", o.server_id, f"{o.lifecycle} {o.id}: {o.error}")
            deleted = any(x.lifecycle == "delete" for x in operations)
            if o.state == OperationState.CANCELLED and not deleted:
                yield Violation("failed", o.server_id, f"{o.lifecycle} {o.id} was cancelled")


def _meant(failed: Operation, broken: frozenset[str]) -> bool:
    error = failed.error or ""
    return INJECTED in error or (_LOST_HOST in error and failed.host in broken)


def _claims(seen: Seen) -> Iterator[Violation]:
    held = {c.server_id: c.host for c in seen.claims}
    for s in seen.servers.values():
        wanted = None if s.deleted_at else s.host
        if held.pop(s.id, None) != wanted:
            yield Violation("claims", s.id, f"on {wanted}, but claims {_of(seen.claims, s.id)}")
    for server_id, host in held.items():
        yield Violation("claims", server_id, f"claims {host} without a record")


def _of(claims: list[Claim], server_id: str) -> list[str]:
    return [c.host for c in claims if c.server_id == server_id]


def _ports(seen: Seen) -> Iterator[Violation]:
    live = {s.id for s in seen.servers.values() if s.deleted_at is None}
    owners = {p.device_id for p in seen.ports}
    for server_id in sorted(owners - live):
        yield Violation("ports", server_id, "a port belongs to a server that is gone")
    for server_id in sorted(live - owners):
        yield Violation("ports", server_id, "no port")


def _guests(seen: Seen) -> Iterator[Violation]:
    where: dict[str, list[str]] = defaultdict(list)
    for host, guests in seen.guests.items():
        for server_id in guests:
            where[server_id].append(host)
    for s in seen.servers.values():
        built = s.deleted_at is None and s.vm_state not in (VmState.BUILDING, VmState.ERROR)
        hosts = where.pop(s.id, [])
        if hosts != ([s.host] if built else []):
            yield Violation("guests", s.id, f"{s.vm_state} on {s.host}, its guests are on {hosts}")
        elif built and s.host is not None:
            yield from _power(s, seen.guests[s.host][s.id])
    for server_id, hosts in where.items():
        yield Violation("guests", server_id, f"a guest without a record on {hosts}")


def _power(server: Server, power: PowerState) -> Iterator[Violation]:
    wanted = _POWER.get(VmState(server.vm_state))
    if wanted is not None and power is not wanted:
        yield Violation("power", server.id, f"{server.vm_state}, its guest is {power.name}")


def _promises(seen: Seen, asked: list[Asked]) -> Iterator[Violation]:
    """Every answered request has its operation, and every operation somebody who asked for it."""
    by_request = {(o.server_id, o.request_id): o for ops in seen.operations.values() for o in ops}
    explained: set[str] = set()
    for one in asked:
        if one.accepted:
            operation = by_request.get((one.server_id or "", one.request_id or ""))
            if operation is not None:
                explained.add(operation.id)
            elif not _told_of_another(one, seen):
                yield Violation("lost", one.server_id or one.name, f"no trace of {one.lifecycle}")
    unsure = [a for a in asked if a.may_be_accepted]
    for server_id, operations in seen.operations.items():
        for o in operations:
            if o.id in explained or o.user_id == SYSTEM_USER:
                continue
            maybe = next((a for a in unsure if _may_be(a, o, seen.servers[server_id])), None)
            if maybe is None:
                yield Violation("unasked", server_id, f"nobody asked for {o.lifecycle} {o.id}")
            else:
                unsure.remove(maybe)


def _told_of_another(one: Asked, seen: Seen) -> bool:
    """A delete of a server that is being deleted is told of the delete under way."""
    deletes = (o for o in seen.operations.get(one.server_id or "", []) if o.lifecycle == "delete")
    return one.lifecycle == "delete" and any(deletes)


def _may_be(one: Asked, operation: Operation, server: Server) -> bool:
    if one.lifecycle != operation.lifecycle:
        return False
    return server.name == one.name if one.server_id is None else server.id == one.server_id


_CHECKS: tuple[Callable[[Seen], Iterator[Violation]], ...] = (
    _stuck,
    _states,
    _failures,
    _claims,
    _ports,
    _guests,
)
