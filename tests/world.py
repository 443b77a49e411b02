"""An in-memory world behind the activity contract, for workflow tests: effects, repeats, faults, leaks.

``World`` plays the record and the hypervisors with the same promises as the real ones (idempotent,
fenced). ``Script`` is the interceptor that records every activity call and misbehaves on demand.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from temporalio import activity
from temporalio.exceptions import ApplicationError
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from domain.errors import Kind
from domain.guest import Fence, GuestSpec, ImageRef
from domain.lifecycle import LIFECYCLES, RETRY_BUILD
from domain.states import PowerState, TaskState, VmState
from workflows.contract import (
    Accepted,
    ApplyNics,
    Attempt,
    Audited,
    Begin,
    ChangePower,
    ClaimHost,
    ControlActivities,
    DestroyGuest,
    Failure,
    Finish,
    GoOn,
    GuestPower,
    Hold,
    HostActivities,
    HostRef,
    Located,
    Placed,
    Prune,
    Pruned,
    ReadConsole,
    Reconciled,
    ReleaseClaim,
    RetryBuild,
    SealedText,
    SpawnGuest,
    Swept,
    Tick,
    Turn,
    Verdict,
    WebhookRef,
)

HOSTS = ("host-1", "host-2", "host-3")
LIVE = ("accepted", "running", "waiting_operator")


def spec(server_id: str) -> GuestSpec:
    """The smallest guest there is."""
    image = ImageRef("image-1", "0" * 128, "qcow2", 1)
    return GuestSpec(server_id, server_id, "project-1", 1, 64, 1, image)


@dataclass
class Row:
    """A server's row."""

    vm_state: VmState
    task_state: TaskState | None = None
    host: str | None = None
    epoch: int = 0
    fault: str | None = None


@dataclass
class World:
    """Everything there is: rows, claims, operations, guests, tombstones."""

    servers: dict[str, Row] = field(default_factory=dict)
    claims: dict[str, tuple[str, str, int, int]] = field(default_factory=dict)
    """server → (host, operation, attempt, epoch)"""
    operations: dict[str, str] = field(default_factory=dict)
    guests: dict[tuple[str, str], tuple[int, PowerState]] = field(default_factory=dict)
    """(host, server) → (epoch, power state)"""
    tombstones: dict[tuple[str, str], int] = field(default_factory=dict)
    untold: int = 0
    """Events that webhooks have not got."""
    failures: list[Failure] = field(default_factory=list)
    """Written down because nobody was asked."""
    holds: dict[str, Hold] = field(default_factory=dict)
    """operation → the wait that is shown"""
    spawned: list[SpawnGuest] = field(default_factory=list)
    said: list[GoOn] = field(default_factory=list)
    silent_later: set[str] = field(default_factory=set)
    """Hosts the record knows to be away by the time of a second claim."""

    def leaks(self) -> list[str]:
        """Whatever has no owner: guests, claims and hosts that do not belong to each other."""
        found = []
        for host, server_id in self.guests:
            if self.servers[server_id].host != host:
                found.append(f"guest of {server_id} on {host}")
        for server_id, (host, *_rest) in self.claims.items():
            row = self.servers[server_id]
            if row.vm_state is VmState.DELETED or row.host != host:
                found.append(f"claim of {server_id} on {host}")
        for server_id, row in self.servers.items():
            if row.host and row.vm_state is VmState.ACTIVE:
                if (row.host, server_id) not in self.guests:
                    found.append(f"no guest of {server_id} on {row.host}")
                if server_id not in self.claims:
                    found.append(f"no claim of {server_id}")
        return found


class WorldControl(ControlActivities):
    """The record."""

    def __init__(self, world: World) -> None:
        self.world = world

    @activity.defn
    async def claim_host(self, cmd: ClaimHost) -> Placed:
        server_id, row = cmd.ref.server_id, self.world.servers[cmd.ref.server_id]
        held = self.world.claims.get(server_id)
        if held is None or held[1:3] != (cmd.ref.operation_id, cmd.attempt):
            away = self.world.silent_later if cmd.attempt > 1 else set()
            free = [h for h in HOSTS if h not in cmd.passed_over and h not in away]
            row.epoch += 1
            held = (free[0], cmd.ref.operation_id, cmd.attempt, row.epoch)
            self.world.claims[server_id] = held
        row.host, row.task_state = held[0], TaskState.SPAWNING
        self.world.operations[cmd.ref.operation_id] = "running"
        return Placed(held[0], Fence(held[3], cmd.ref.operation_id), spec(server_id))

    @activity.defn
    async def release_claim(self, cmd: ReleaseClaim) -> None:
        if self.world.operations.get(cmd.ref.operation_id) not in LIVE:
            return
        held = self.world.claims.get(cmd.ref.server_id)
        if held and held[1:3] == (cmd.ref.operation_id, cmd.attempt):
            del self.world.claims[cmd.ref.server_id]
            self.world.servers[cmd.ref.server_id].host = None

    @activity.defn
    async def renew_claim(self, cmd: Attempt) -> Placed:
        server_id, row = cmd.ref.server_id, self.world.servers[cmd.ref.server_id]
        held = self.world.claims[server_id]
        assert held[1:3] == (cmd.ref.operation_id, cmd.number)
        row.epoch += 1
        self.world.claims[server_id] = (*held[:3], row.epoch)
        return Placed(held[0], Fence(row.epoch, cmd.ref.operation_id), spec(server_id))

    @activity.defn
    async def record_failure(self, cmd: Failure) -> None:
        self.world.failures.append(cmd)

    @activity.defn
    async def hold_operation(self, cmd: Hold) -> None:
        self.world.holds[cmd.failure.ref.operation_id] = cmd
        self.world.operations[cmd.failure.ref.operation_id] = "waiting_operator"

    @activity.defn
    async def release_hold(self, cmd: GoOn) -> None:
        if self.world.operations[cmd.ref.operation_id] == "waiting_operator":
            self.world.operations[cmd.ref.operation_id] = "running"
            self.world.said.append(cmd)

    @activity.defn
    async def retry_build(self, cmd: RetryBuild) -> Accepted:
        return Accepted(cmd.operation_id, cmd.subject)

    @activity.defn
    async def begin_operation(self, cmd: Begin) -> Located:
        row = self.world.servers[cmd.ref.server_id]
        lifecycle = LIFECYCLES[cmd.ref.lifecycle]
        if self.world.operations.get(cmd.ref.operation_id) != "running":
            self.world.operations[cmd.ref.operation_id] = "running"
            row.task_state = lifecycle.task_state
            row.epoch += cmd.ref.lifecycle in ("delete", RETRY_BUILD)
        fence = Fence(row.epoch, cmd.ref.operation_id)
        guest = spec(cmd.ref.server_id) if row.host else None
        return Located(row.host, fence, guest, {"timeout_s": "1"}, attempt=1)

    @activity.defn
    async def may_unwind(self, cmd: Begin) -> Verdict:
        state = self.world.operations.get(cmd.ref.operation_id)
        return Verdict(allowed=state in LIVE)

    @activity.defn
    async def finish_operation(self, cmd: Finish) -> None:
        if self.world.operations.get(cmd.ref.operation_id) not in (None, *LIVE):
            return
        row, lifecycle = self.world.servers[cmd.ref.server_id], LIFECYCLES[cmd.ref.lifecycle]
        self.world.operations[cmd.ref.operation_id] = "succeeded" if cmd.succeeded else "failed"
        if cmd.succeeded:
            row.vm_state, row.task_state = lifecycle.success, None
            if lifecycle.success is VmState.DELETED:
                self.world.claims.pop(cmd.ref.server_id, None)
                row.host = None
        elif row.task_state is not TaskState.DELETING or cmd.ref.lifecycle == "delete":
            row.task_state = None
            row.vm_state, row.fault = lifecycle.failure or row.vm_state, cmd.error

    @activity.defn
    async def host_nics(self, cmd: HostRef) -> ApplyNics:
        return ApplyNics({s: () for s, row in self.world.servers.items() if row.host == cmd.host})

    @activity.defn
    async def sweep_operations(self, _cmd: HostRef) -> Swept:
        return Swept()

    @activity.defn
    async def deliver_events(self, cmd: WebhookRef) -> Turn:
        self.world.untold -= 1
        return Turn(configured=self.world.untold >= 0, delivered=1)

    @activity.defn
    async def prune_events(self, cmd: Prune) -> Pruned:
        return Pruned(0)

    @activity.defn
    async def reconcile_record(self, _cmd: Tick) -> Reconciled:
        return Reconciled()

    @activity.defn
    async def audit_cloud(self, _cmd: Tick) -> Audited:
        return Audited()


class WorldHost(HostActivities):
    """One hypervisor."""

    def __init__(self, world: World, host: str) -> None:
        self.world = world
        self.host = host

    @activity.defn
    async def spawn_guest(self, cmd: SpawnGuest) -> GuestPower:
        key = (self.host, cmd.spec.server_id)
        self.world.spawned.append(cmd)
        if cmd.fence.epoch <= self.world.tombstones.get(key, 0):
            raise ApplicationError("fenced", type=Kind.FENCED, non_retryable=True)
        self.world.guests[key] = (cmd.fence.epoch, PowerState.RUNNING)
        return GuestPower(PowerState.RUNNING)

    @activity.defn
    async def destroy_guest(self, cmd: DestroyGuest) -> None:
        key = (self.host, cmd.server_id)
        self.world.tombstones[key] = max(self.world.tombstones.get(key, 0), cmd.fence.epoch)
        if key in self.world.guests and self.world.guests[key][0] <= cmd.fence.epoch:
            del self.world.guests[key]

    @activity.defn
    async def change_power(self, cmd: ChangePower) -> GuestPower:
        off = cmd.lifecycle in ("stop", "suspend")
        state = PowerState.SHUTDOWN if off else PowerState.RUNNING
        epoch, _ = self.world.guests[self.host, cmd.spec.server_id]
        self.world.guests[self.host, cmd.spec.server_id] = (epoch, state)
        return GuestPower(state)

    @activity.defn
    async def apply_nics(self, cmd: ApplyNics) -> None:
        return None

    @activity.defn
    async def read_console(self, cmd: ReadConsole) -> SealedText:
        return SealedText("")


Hook = Callable[[], Awaitable[None]]


@dataclass
class Script:
    """Records the calls of one run and misbehaves at one of them, always after the effect happened."""

    calls: list[str] = field(default_factory=list)
    twice: bool = False
    """Execute every activity twice."""
    at: int | None = None
    """The call to misbehave at."""
    then: Hook | None = None
    """What to do there: raise, or cause something and return."""
    always: dict[str, Hook] = field(default_factory=dict)
    """By activity: what to do after its effect at every call."""


class Director(Interceptor):
    """Lets each workflow's activities follow that workflow's script."""

    def __init__(self) -> None:
        self.scripts: dict[str, Script] = {}
        """workflow id → script"""

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        director = self

        class Inbound(ActivityInboundInterceptor):
            async def execute_activity(self, input: ExecuteActivityInput) -> Any:
                script = director.scripts[activity.info().workflow_id or ""]
                name, number = activity.info().activity_type, len(script.calls)
                script.calls.append(name)
                result = await super().execute_activity(input)
                if script.twice:
                    result = await super().execute_activity(input)
                if number == script.at and script.then is not None:
                    await script.then()
                if hook := script.always.get(name):
                    await hook()
                return result

        return Inbound(next)
