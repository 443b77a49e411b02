"""CreateServer: claim a host, build there, and on failure unwind and take the next host."""

from __future__ import annotations

from temporalio import workflow
from temporalio.exceptions import FailureError

from domain.errors import Kind
from workflows.contract import (
    ClaimHost,
    ControlActivities,
    DestroyGuest,
    Finish,
    HostActivities,
    Ref,
    ReleaseClaim,
    SpawnGuest,
)
from workflows.operation import (
    FAILED,
    SUCCEEDED,
    Operation,
    Saga,
    do,
    explain,
    failure_kind,
    host_did_not_answer,
    reraise_cancel,
    undisturbed,
    will_never_do,
)
from workflows.policies import BUILD_ATTEMPTS


@workflow.defn
class CreateServer(Operation):
    """Build a server from its stored request."""

    def __init__(self) -> None:
        super().__init__()
        self._host: str | None = None

    @workflow.run
    async def run(self, ref: Ref) -> str:
        """Returns the outcome; the record holds the details."""
        return await self.carry_out(ref, self._story(ref))

    async def _story(self, ref: Ref) -> str:
        passed_over: list[str] = []
        reason: str | None = None
        for attempt in range(1, BUILD_ATTEMPTS + 1):
            try:
                await self._build(ref, attempt, tuple(passed_over))
                return SUCCEEDED
            except FailureError as error:
                reraise_cancel(error)
                no_host = failure_kind(error) == Kind.NO_VALID_HOST
                # "No more hosts" after a failed build would hide why the build failed.
                cause = explain(error, self._host)
                reason = f"{reason} Then: {cause}" if no_host and reason else cause
                if no_host or _hopeless(error):
                    break
                if self._host and not host_did_not_answer(error):
                    passed_over.append(self._host)
        await do(ControlActivities.finish_operation, Finish(ref, succeeded=False, error=reason))
        return FAILED

    async def _build(self, ref: Ref, attempt: int, passed_over: tuple[str, ...]) -> None:
        self._host = None
        async with Saga(ref) as saga:
            saga.on_failure(ControlActivities.release_claim, ReleaseClaim(ref, attempt))
            claim = ClaimHost(ref, attempt, passed_over)
            placed = await do(ControlActivities.claim_host, claim)
            self._host = placed.host
            destroy = DestroyGuest(placed.fence, ref.server_id)
            saga.on_failure(HostActivities.destroy_guest, destroy, host=placed.host)
            spawn = SpawnGuest(placed.fence, placed.spec)
            guest = await do(HostActivities.spawn_guest, spawn, host=placed.host)
            done = Finish(ref, succeeded=True, guest=guest)
            # Once the record says ACTIVE there is no way back: a cancel must not unwind that.
            await undisturbed(do(ControlActivities.finish_operation, done))


def _hopeless(error: FailureError) -> bool:
    """Another host would say the same: the request itself cannot be built."""
    return will_never_do(error) and failure_kind(error) in (
        Kind.GUEST,
        Kind.CONFLICT,
        Kind.NOT_FOUND,
        Kind.BAD_REQUEST,
    )
