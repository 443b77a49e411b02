"""The host activities: the driver's blocking calls, with heartbeats, real cancellation, one at a time per server."""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Executor
from contextvars import copy_context
from dataclasses import asdict
from functools import partial
from typing import Any, TypeVar

from temporalio import activity

from activities.host.stages import Stages
from domain.errors import DuranovaError
from domain.guest import NicSpec
from domain.states import PowerState
from runtime.sealing import Sealer
from virt.driver import Cancelled, Driver, Progress
from workflows.contract import (
    ApplyNics,
    ChangePower,
    DestroyGuest,
    GuestPower,
    HostActivities,
    ReadConsole,
    SealedText,
    SpawnGuest,
)

Result = TypeVar("Result")

HEARTBEAT_S = 1.0
PARALLEL_BOOTS = (os.cpu_count() or 1) + 1
"""Booting guests are CPU-bound; more at once only makes each slower."""


class Guests(HostActivities):
    """Implements the contract for one hypervisor."""

    def __init__(
        self,
        driver: Driver,
        pool: Executor,
        sealer: Sealer,
        epoch: str,
        on_destroyed: Callable[[], None] = lambda: None,
    ) -> None:
        """``epoch`` names this start of the worker, in its reports too. ``on_destroyed`` is called after
        each destroy, done or failed."""
        self._on_destroyed = on_destroyed
        self._driver = driver
        self._pool = pool
        self._sealer = sealer
        self._epoch = epoch
        self._locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._boots = asyncio.Semaphore(PARALLEL_BOOTS)
        self._working: set[asyncio.Future[Any]] = set()

    async def settled(self) -> None:
        """Wait for the driver's calls that are still going on, their activities given up or not."""
        if self._working:
            await asyncio.wait(self._working)

    @activity.defn
    async def spawn_guest(self, cmd: SpawnGuest) -> GuestPower:
        async with _Beating("waiting for a boot slot") as beating, self._boots:
            return await self._power_after(
                cmd.spec.server_id,
                beating,
                lambda progress: self._driver.spawn(cmd.spec, cmd.fence, progress, cmd.resume_at),
            )

    @activity.defn
    async def destroy_guest(self, cmd: DestroyGuest) -> None:
        async with _Beating("destroy") as beating:
            try:
                await self._run(
                    cmd.server_id, beating, lambda _: self._driver.destroy(cmd.server_id, cmd.fence)
                )
            finally:
                self._on_destroyed()

    @activity.defn
    async def change_power(self, cmd: ChangePower) -> GuestPower:
        async with _Beating(cmd.lifecycle) as beating:
            return await self._power_after(cmd.spec.server_id, beating, partial(self._power, cmd))

    @activity.defn
    async def apply_nics(self, cmd: ApplyNics) -> None:
        async with _Beating("apply_nics") as beating:
            for server_id, nics in cmd.unpacked().items():
                await self._run(server_id, beating, partial(self._apply, server_id, nics))

    def _apply(self, server_id: str, nics: tuple[NicSpec, ...], _progress: Progress) -> None:
        self._driver.apply_nics(server_id, nics)

    @activity.defn
    async def read_console(self, cmd: ReadConsole) -> SealedText:
        async with _Beating("read_console") as beating:
            text = await self._call(
                beating, lambda _: self._driver.console_log(cmd.server_id, cmd.max_bytes)
            )
        return SealedText(self._sealer.seal(text))

    def _power(self, cmd: ChangePower, progress: Progress) -> PowerState:
        driver, spec, timeout_s = self._driver, cmd.spec, cmd.timeout_s
        calls: dict[str, Callable[[], PowerState]] = {
            "pause": lambda: driver.pause(spec.server_id),
            "reboot_hard": lambda: driver.reboot_hard(spec, progress),
            "reboot_soft": lambda: driver.reboot_soft(spec, timeout_s, progress),
            "resume": lambda: driver.resume(spec),
            "start": lambda: driver.start(spec),
            "stop": lambda: driver.stop(spec.server_id, timeout_s, progress),
            "suspend": lambda: driver.suspend(spec.server_id),
            "unpause": lambda: driver.unpause(spec.server_id),
        }
        return calls[cmd.lifecycle]()

    async def _power_after(
        self, server_id: str, beating: _Beating, call: Callable[[Progress], PowerState]
    ) -> GuestPower:
        stages = Stages(activity.info().activity_type, beating.say)
        try:
            state = await self._run(server_id, beating, call, stages)
        except DuranovaError as error:
            # The record shows them, and a build that is resumed goes on behind them.
            error.details = ([asdict(stage) for stage in stages.taken],)
            raise
        return GuestPower(state, self._epoch, stages.taken)

    async def _run(
        self,
        server_id: str,
        beating: _Beating,
        call: Callable[[Progress], Result],
        stages: Stages | None = None,
    ) -> Result:
        # A second attempt whose first still works in libvirt waits here instead of running beside it.
        async with self._locks[server_id]:
            return await self._call(beating, call, stages)

    async def _call(
        self,
        beating: _Beating,
        call: Callable[[Progress], Result],
        stages: Stages | None = None,
    ) -> Result:
        """Run a blocking call in the pool. On cancel: tell it, wait for its end, then let the cancel on."""
        progress = Progress()
        watched = stages or Stages(activity.info().activity_type, beating.say)

        def observed() -> Result:
            with watched:
                progress.on_step = watched.enter
                return call(progress)

        # The pool's threads know neither our trace nor the ids of our log lines.
        work = asyncio.get_running_loop().run_in_executor(self._pool, copy_context().run, observed)
        self._working.add(work)
        work.add_done_callback(self._working.discard)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            progress.cancelled.set()
            # Never return while the hypervisor still works: the undo would overtake it.
            await asyncio.wait([work])
            work.exception()  # seen; the cancel is what counts now
            raise
        except Cancelled:
            raise asyncio.CancelledError from None


class _Beating:
    """Heartbeats with the current step, each second from enter to exit, so that a cancel is delivered."""

    def __init__(self, step: str) -> None:
        self._step = step
        self._task: asyncio.Task[None] | None = None

    def say(self, step: str) -> None:
        """The step to report from now on; called from the driver's thread."""
        self._step = step

    async def __aenter__(self) -> _Beating:
        # Most calls have ended before the first one is due: it would be a write of Temporal's for nothing.
        self._task = asyncio.create_task(self._beat())
        return self

    async def __aexit__(self, *_exc: object) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            activity.heartbeat(self._step)
