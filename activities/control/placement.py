"""Decide and claim: one transaction reads the hosts, picks one, takes its share and writes down why."""

from __future__ import annotations

from datetime import datetime
from itertools import islice
from typing import Any

from sqlalchemy import Engine, bindparam
from sqlmodel import Session, col, select

from activities.control.snapshot import Snapshots, build_request
from db.hosts import Claim, get_claim, lock_placement, want_nics
from db.network import bind_server_ports, hosts_to_refresh, nic_specs, unbind_server_ports
from db.operations import (
    SCHEDULE_EVENT,
    Decision,
    Operation,
    OperationEvent,
    close_events,
    open_event,
)
from db.servers import Server
from db.session import losses, now, transaction
from domain.errors import Conflict, NotFound, NoValidHost
from domain.guest import Fence, GuestSpec, ImageRef
from domain.states import LIVE_OPERATION_STATES, OperationState, TaskState, VmState
from runtime.settings import Settings
from scheduler.model import Request, Selection
from scheduler.plugins import load_filters, load_weighers
from scheduler.select import explain
from scheduler.select import select as select_host
from workflows.contract import Attempt, ClaimHost, Placed, Ref, ReleaseClaim

_FAULT_CHARS = 255
_KEPT = 100
"""Hosts that a stored decision names; all are counted."""
_CLAIMED, _REFUSED, _RELEASED = "claimed", "no_valid_host", "released"
"""Steps of an operation in which placement left it."""


class Placement:
    """Claims hosts for servers and gives them back. Blocking; safe to call from several threads."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        """BadRequest when the settings name a filter or weigher that does not exist."""
        self._engine = engine
        self._filters = load_filters(settings.enabled_filters)
        self._weighers = load_weighers(settings.weigher_multipliers)
        self._snapshots = Snapshots(settings)

    def claim(self, cmd: ClaimHost) -> Placed:
        """Choose a host and claim it for this attempt; the same command again answers the same.

        NoValidHost, with the decision kept, when no host passes. Conflict when the server is deleted, the
        operation has ended, or this attempt was released before. NotFound without a record.
        """
        with transaction(self._engine) as session:
            lock_placement(session)
            server, operation, held = _load(session, cmd.ref)
            _check(server, operation, cmd.attempt)
            if held is None:
                outcome = self._decide(session, server, operation, cmd)
            elif not _left_behind(session, held):
                return _again(session, server, held, cmd)
            else:
                _give_back(session, server, held)  # its guest was destroyed before we were asked
                outcome = None
        if outcome is None:
            return self.claim(cmd)  # in a new transaction: a decision reads only what is committed
        if isinstance(outcome, Selection):
            raise NoValidHost(explain(outcome, _FAULT_CHARS))
        return outcome

    def _decide(
        self, session: Session, server: Server, operation: Operation, cmd: ClaimHost
    ) -> Placed | Selection:
        """What was claimed, or the decision that let no host pass."""
        started = now()
        request = build_request(session, server, operation, cmd.passed_over)
        hosts = self._snapshots.hosts(session, started, losses(self._engine))
        selection = select_host(hosts, request, self._filters, self._weighers)
        _record(session, operation, cmd.attempt, selection, started)
        if not selection.ranked:
            return selection
        return _take(session, server, operation, request, selection.ranked[0].host)

    def renew(self, cmd: Attempt) -> Placed:
        """Give this attempt's claim the next epoch, its host and share unchanged. Conflict without a claim
        of it."""
        with transaction(self._engine) as session:
            server, operation, held = _load(session, cmd.ref)
            _check(server, operation, cmd.number)
            if held is None or (held.operation_id, held.attempt) != (operation.id, cmd.number):
                raise Conflict(f"Attempt {cmd.number} of operation {operation.id} holds no claim")
            server.epoch += 1
            held.epoch = server.epoch
            session.add_all((server, held))
            return _placed(session, server, held)

    def release(self, cmd: ReleaseClaim) -> None:
        """Give back what this attempt claimed and refuse it from now on; nothing if it claimed nothing."""
        with transaction(self._engine) as session:
            server = session.get(Server, cmd.ref.server_id, with_for_update=True)
            operation = session.get(Operation, cmd.ref.operation_id)
            if server is None or operation is None:
                return
            if operation.state not in LIVE_OPERATION_STATES:
                return  # it has ended, and with success the claim is the server's
            claim = get_claim(session, server.id)
            if claim and claim.operation_id == operation.id and claim.attempt == cmd.attempt:
                _give_back(session, server, claim)
            if operation.attempt <= cmd.attempt:
                # A claim that is still on its way, with its caller gone, finds this and stops.
                operation.attempt, operation.step = cmd.attempt, _RELEASED
                operation.host = None
                operation.updated_at = now()
                session.add(operation)
                close_events(session, operation.id, cmd.error or "The host was given up")


# Not one statement with the server: it would see these as they were before the wait for the lock.
_OPERATION_AND_CLAIM = (
    select(Operation, Claim)
    .join(Claim, col(Claim.server_id) == Operation.server_id, isouter=True)
    .where(Operation.id == bindparam("operation_id"), Operation.server_id == bindparam("server_id"))
)


def _load(session: Session, ref: Ref) -> tuple[Server, Operation, Claim | None]:
    server = session.get(Server, ref.server_id, with_for_update=True)
    asked = {"operation_id": ref.operation_id, "server_id": ref.server_id}
    row = session.exec(_OPERATION_AND_CLAIM, params=asked).one_or_none()
    if server is None or row is None:
        raise NotFound(f"Instance {ref.server_id} has no record of operation {ref.operation_id}")
    return server, *row


def _check(server: Server, operation: Operation, attempt: int) -> None:
    if server.deleted_at is not None or server.vm_state == VmState.DELETED:
        raise Conflict(f"Instance {server.id} was deleted meanwhile")
    if server.task_state == TaskState.DELETING:
        raise Conflict(f"Instance {server.id} is being deleted")
    if operation.state not in LIVE_OPERATION_STATES:
        raise Conflict(f"Operation {operation.id} has ended: {operation.state}")
    released = operation.attempt == attempt and operation.step == _RELEASED
    if operation.attempt > attempt or released:
        raise Conflict(f"Attempt {attempt} of operation {operation.id} was given up")


def _left_behind(session: Session, held: Claim) -> bool:
    """Whether a claim belongs to a build that ended without unwinding: its workflow was terminated."""
    owner = session.get(Operation, held.operation_id)
    return owner is None or owner.state not in LIVE_OPERATION_STATES


def _again(session: Session, server: Server, held: Claim, cmd: ClaimHost) -> Placed:
    if (held.operation_id, held.attempt) != (cmd.ref.operation_id, cmd.attempt):
        raise Conflict(
            f"Instance {server.id} holds a claim on host {held.host} "
            f"(operation {held.operation_id}, attempt {held.attempt})"
        )
    return _placed(session, server, held)


def _take(
    session: Session, server: Server, operation: Operation, request: Request, host: str
) -> Placed:
    server.epoch += 1
    server.host = host
    server.task_state = TaskState.SPAWNING
    server.updated_at = now()
    operation.host = host
    operation.step = _CLAIMED
    claim = Claim(
        server_id=server.id,
        host=host,
        operation_id=operation.id,
        attempt=operation.attempt,
        epoch=server.epoch,
        vcpus=request.vcpus,
        ram_mb=request.ram_mb,
        disk_gb=request.disk_gb,
        group_id=server.group_id,
    )
    session.add_all((server, operation, claim))
    bind_server_ports(session, server.id, host)
    want_nics(session, hosts_to_refresh(session, server.id))
    open_event(session, operation, host)
    session.flush()
    return _placed(session, server, claim)


def _placed(session: Session, server: Server, claim: Claim) -> Placed:
    fence = Fence(claim.epoch, claim.operation_id)
    return Placed(claim.host, fence, guest_spec(session, server, claim.host))


def _give_back(session: Session, server: Server, claim: Claim) -> None:
    session.delete(claim)
    session.flush()  # one row for each server: a new one may follow at once
    server.epoch += 1  # a guest that could not be destroyed is known by its older epoch
    want_nics(session, hosts_to_refresh(session, server.id))
    unbind_server_ports(session, server.id)
    if server.host == claim.host:
        server.host = None
    if server.task_state == TaskState.SPAWNING:
        server.task_state = TaskState.SCHEDULING
    server.updated_at = now()
    session.add(server)


def _record(
    session: Session, operation: Operation, attempt: int, selection: Selection, started: datetime
) -> None:
    """The decision, its event and the operation's progress; a decision made again replaces the first."""
    first_time = operation.attempt < attempt
    decision, event = _rows_of(session, operation, attempt, first_time)
    decision.host = selection.ranked[0].host if selection.ranked else None
    decision.weights = _weights(selection)
    decision.refusals = dict(islice(selection.refusals.items(), _KEPT))
    decision.counts = {
        "hosts": selection.hosts,
        "passed": selection.passed,
        "refused": selection.counts,
    }
    decision.summary = event.details = explain(selection)
    event.started_at, event.finished_at = started, now()
    event.result = "Success" if selection.ranked else "Error"
    operation.attempt = attempt
    operation.state = OperationState.RUNNING
    operation.step = None if selection.ranked else _REFUSED
    operation.started_at = operation.started_at or started
    operation.updated_at = now()
    session.add_all((decision, event, operation))


def _rows_of(
    session: Session, operation: Operation, attempt: int, first_time: bool
) -> tuple[Decision, OperationEvent]:
    if not first_time:
        decisions = select(Decision).where(
            Decision.operation_id == operation.id, Decision.attempt == attempt
        )
        events = select(OperationEvent).where(
            OperationEvent.operation_id == operation.id, OperationEvent.name == SCHEDULE_EVENT
        )
        decision = session.exec(decisions).first()
        event = session.exec(events.order_by(col(OperationEvent.id).desc())).first()
        if decision is not None and event is not None:
            return decision, event
    return (
        Decision(operation_id=operation.id, server_id=operation.server_id, attempt=attempt),
        OperationEvent(operation_id=operation.id, name=SCHEDULE_EVENT),
    )


def _weights(selection: Selection) -> dict[str, Any]:
    return {
        ranked.host: {
            **{name: round(weight, 4) for name, weight in ranked.weights.items()},
            "total": round(ranked.total, 4),
        }
        for ranked in selection.ranked[:_KEPT]
    }


def guest_spec(session: Session, server: Server, host: str) -> GuestSpec:
    """What this host has to run: from the server's copies of flavor and image, and its ports.

    Conflict for a server without an image.
    """
    if server.image_id is None:
        raise Conflict(f"Instance {server.id} has no image to run on host {host}")
    flavor, image = server.flavor, server.image
    return GuestSpec(
        server_id=server.id,
        name=server.name,
        project_id=server.project_id,
        vcpus=flavor["vcpus"],
        ram_mb=flavor["ram_mb"],
        disk_gb=flavor["disk_gb"],
        ephemeral_gb=flavor.get("ephemeral_gb", 0),
        swap_mb=flavor.get("swap_mb", 0),
        extra_specs=dict(flavor.get("extra_specs") or {}),
        hostname=server.hostname,
        image=ImageRef(
            id=server.image_id,
            checksum=image["checksum"],
            disk_format=image["disk_format"],
            size_bytes=image["size_bytes"],
            properties={k: str(v) for k, v in (image.get("properties") or {}).items()},
        ),
        nics=nic_specs(session, [server.id]).get(server.id, ()),
        config_drive=server.config_drive,
    )
