"""CreateServer: claim a host, build there, and on failure unwind and take the next host, or wait for an operator."""

from __future__ import annotations

from dataclasses import replace

from temporalio import workflow
from temporalio.exceptions import FailureError

from domain.errors import Kind
from domain.guest import STAGES
from domain.lifecycle import RETRY_BUILD
from workflows.contract import (
    Attempt,
    Begin,
    ClaimHost,
    ControlActivities,
    DestroyGuest,
    Failure,
    Finish,
    GuestPower,
    HostActivities,
    Located,
    Placed,
    Ref,
    ReleaseClaim,
    SpawnGuest,
)
from workflows.holding import ABORT, REPLACE, RESUME, RETRY, SKIP, Aborted, Holding
from workflows.operation import (
    FAILED,
    SUCCEEDED,
    Saga,
    do,
    explain,
    failure_kind,
    failure_of,
    host_did_not_answer,
    reraise_cancel,
    undisturbed,
    will_never_do,
)
from workflows.policies import BUILD_ATTEMPTS

_SKIPPABLE = ("config_drive",)
"""Stages that a guest can do without: the metadata service says the same."""
_OVERTAKEN = (Kind.CONFLICT, Kind.NOT_FOUND, Kind.FENCED)
"""What a claim or a spawn says when its operation is over: nobody can mend that."""


class _Elsewhere(Exception):
    """An operator wants the next host."""


@workflow.defn
class CreateServer(Holding):
    """Build a server from its stored request; also again, after a build that failed."""

    def __init__(self) -> None:
        super().__init__()
        self._host: str | None = None

    @workflow.run
    async def run(self, ref: Ref) -> str:
        """Returns the outcome; the record holds the details."""
        return await self.carry_out(ref, self._story(ref))

    async def _story(self, ref: Ref) -> str:
        passed_over: list[str] = []
        silent: set[str | None] = set()
        reason: str | None = None
        attempt, failures = 0, 0
        if ref.unwind:
            return await self._give_up(ref)
        to_clear = ref.lifecycle == RETRY_BUILD
        while failures < BUILD_ATTEMPTS:
            attempt += 1
            try:
                if to_clear:
                    await self._clear(ref)
                    to_clear = False
                await self._build(Attempt(ref, attempt), tuple(passed_over))
                return SUCCEEDED
            except _Elsewhere:
                passed_over += [self._host] if self._host else []
            except Aborted as aborted:
                reason = str(aborted)
                break
            except FailureError as error:
                reraise_cancel(error)
                failures += 1
                no_host = failure_kind(error) == Kind.NO_VALID_HOST
                # "No more hosts" after a failed build would hide why the build failed.
                cause = explain(error, self._host)
                reason = f"{reason} Then: {cause}" if no_host and reason else cause
                if no_host or _hopeless(error):
                    break
                # Once may be a restart, and it may be the only host there is.
                forgiven = host_did_not_answer(error) and self._host not in silent
                silent.add(self._host)
                if self._host and not forgiven:
                    passed_over.append(self._host)
        await do(ControlActivities.finish_operation, Finish(ref, succeeded=False, error=reason))
        return FAILED

    async def _give_up(self, ref: Ref) -> str:
        """Undo what a run of this operation left that could not do so itself: it was terminated."""
        verdict = await do(ControlActivities.may_unwind, Begin(ref))
        if not verdict.allowed:
            return SUCCEEDED
        located = await self._clear(ref)
        await do(ControlActivities.release_claim, ReleaseClaim(ref, located.attempt))
        failed = Finish(ref, succeeded=False, error=ref.unwind)
        await do(ControlActivities.finish_operation, failed)
        return FAILED

    async def _clear(self, ref: Ref) -> Located:
        """Take down what a build that could not unwind left on its host. One that does not answer is
        cleaned when it reports again: the epoch has moved on."""
        located = await do(ControlActivities.begin_operation, Begin(ref))
        if located.host is None:
            return located
        destroy = DestroyGuest(located.fence, ref.server_id)
        try:
            await do(HostActivities.destroy_guest, destroy, host=located.host)
        except FailureError as error:
            reraise_cancel(error)
            workflow.logger.warning("left to the host's next report: %s", error)
        return located

    async def _build(self, attempt: Attempt, passed_over: tuple[str, ...]) -> None:
        ref, self._host = attempt.ref, None
        async with Saga(ref) as saga:
            saga.on_failure(ControlActivities.release_claim, ReleaseClaim(ref, attempt.number))
            placed = await self._claim(ClaimHost(ref, attempt.number, passed_over))
            self._host = placed.host
            guest = await self._spawn(_HostPart(attempt, placed, saga))
            done = Finish(ref, succeeded=True, guest=guest)
            # Once the record says ACTIVE there is no way back: a cancel must not unwind that.
            await undisturbed(do(ControlActivities.finish_operation, done))

    async def _claim(self, claim: ClaimHost) -> Placed:
        while True:
            try:
                return await do(ControlActivities.claim_host, claim)
            except FailureError as error:
                failure = failure_of(claim.ref, error, "claim_host", None)
                await self._decision(failure, error, (RETRY, RESUME, ABORT))

    async def _spawn(self, part: _HostPart) -> GuestPower:
        verb = ""
        while True:
            try:
                if verb == RETRY:
                    await part.clear()
                return await part.spawn()
            except FailureError as error:
                failure = failure_of(part.ref, error, part.activity, self._host)
                verb = await self._decision(failure, error, part.verbs(failure.step))
                if verb == REPLACE:
                    raise _Elsewhere from error
                if verb != RETRY:
                    part.resume_at(failure.step, without=verb == SKIP)

    async def _decision(self, failure: Failure, error: FailureError, verbs: tuple[str, ...]) -> str:
        """An operator's verb on a failed step; the error itself, where nobody is to be asked."""
        reraise_cancel(error)
        if failure_kind(error) in _OVERTAKEN:
            raise error
        if not failure.ref.hold_s:
            if self._host:  # else the decision is written down already
                await do(ControlActivities.record_failure, failure)
            raise error
        return await self.wait_for_operator(failure, verbs)


class _HostPart:
    """A build's part on its host: built, gone on with, or taken down and built afresh under a new epoch."""

    def __init__(self, attempt: Attempt, placed: Placed, saga: Saga) -> None:
        self.ref = attempt.ref
        self.activity = "spawn_guest"
        """What was called last."""
        self._attempt = attempt
        self._saga = saga
        self._take(placed)

    def _take(self, placed: Placed) -> None:
        self._host = placed.host
        self._command = SpawnGuest(placed.fence, placed.spec)
        self._saga.on_failure(HostActivities.destroy_guest, self._destroy(), host=placed.host)

    def _destroy(self) -> DestroyGuest:
        return DestroyGuest(self._command.fence, self.ref.server_id)

    def verbs(self, step: str) -> tuple[str, ...]:
        """What an operator may say when this step has failed."""
        again = (RETRY, REPLACE, ABORT)
        if self.activity == "destroy_guest":  # what was being taken down cannot be gone on with
            return again
        return (RESUME, *((SKIP,) if step in _SKIPPABLE else ()), *again)

    async def spawn(self) -> GuestPower:
        self.activity = "spawn_guest"
        return await do(HostActivities.spawn_guest, self._command, host=self._host)

    async def clear(self) -> None:
        self.activity = "destroy_guest"
        await do(HostActivities.destroy_guest, self._destroy(), host=self._host)
        self._take(await do(ControlActivities.renew_claim, self._attempt))

    def resume_at(self, step: str, *, without: bool) -> None:
        """Go on with this stage at the next ``spawn``, or with the one after it."""
        spec = self._command.spec
        if without:
            spec = replace(spec, config_drive=False)
            step = STAGES[STAGES.index(step) + 1]
        self._command = replace(self._command, spec=spec, resume_at=step)


def _hopeless(error: FailureError) -> bool:
    """Another host would say the same: the request itself cannot be built."""
    return will_never_do(error) and failure_kind(error) in (
        Kind.GUEST,
        Kind.CONFLICT,
        Kind.NOT_FOUND,
        Kind.BAD_REQUEST,
    )
