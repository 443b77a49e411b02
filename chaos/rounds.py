"""Rounds: load and kills together, then quiet, then judgement."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import httpx
from temporalio.service import RPCError

from chaos.guests import Guests
from chaos.load import Asked, Load
from chaos.plan import Failure, Kill, Pace, Round, plan_round
from chaos.slow import break_host, mend_hosts
from chaos.verdict import Seen, Violation, judge, open_workflows, read_record
from domain.errors import GuestFailure
from runtime.temporal import connect

_LOOK_EVERY_S = 1.0
_AUDIT_WITHIN_S = 120.0


class Prey(Protocol):
    """A cloud that can be hunted."""

    data_dir: Path
    log_dir: Path

    @property
    def parts(self) -> tuple[str, ...]: ...

    @property
    def url(self) -> str: ...

    @property
    def database_url(self) -> str: ...

    @property
    def temporal_address(self) -> str: ...

    def guests(self) -> Guests: ...

    async def start(self) -> None: ...

    async def kill(self, part: str, down_s: float) -> None: ...

    async def close(self) -> None: ...


@dataclass(slots=True)
class Outcome:
    """What one round came to."""

    number: int
    asked: Counter[str] = field(default_factory=Counter)
    """lifecycle → requests accepted"""
    refused: int = 0
    unanswered: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    settle_s: float = 0.0
    violations: list[Violation] = field(default_factory=list)
    operations: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Of the servers that violate something."""
    requests: list[Asked] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """For the report."""
        found = [asdict(v) for v in self.violations]
        counts = {"accepted": dict(self.asked), "kills": dict(self.kills)}
        return {
            "round": self.number,
            **counts,
            "refused": self.refused,
            "unanswered": self.unanswered,
            "settle_s": self.settle_s,
            "violations": found,
            "operations": self.operations,
            "requests": [asdict(one) for one in self.requests],
        }


@dataclass(slots=True)
class Hunt:
    """One run on one cloud."""

    prey: Prey
    load: Load
    seed: int
    pace: Pace
    settle_s: float
    fake: bool
    """Whether the hosts are fake ones, which can be made to fail."""
    say: Callable[[str], None]
    audit: bool = False
    """Whether ``duranova audit`` is asked as well."""
    _broken: set[str] = field(default_factory=set)
    """Hosts on which a step was made to fail."""

    async def round(self, number: int) -> Outcome:
        """Play a round and judge it."""
        plan = plan_round(self.seed, number, self.prey.parts, self.pace)
        outcome = Outcome(number)
        mine = await self._play(plan, outcome)
        _count(outcome, mine)
        await self._settle(outcome)
        return outcome

    async def clean_up(self, number: int) -> Outcome:
        """Delete every server: nothing may be left."""
        outcome = Outcome(number)
        known = await self.load.servers()
        mine = [await self.load.delete(number, 0.0, server_id) for server_id in known]
        _count(outcome, mine)
        await self._settle(outcome)
        return outcome

    @property
    def _hosts_dir(self) -> Path:
        return self.prey.data_dir / "hosts"

    async def _play(self, plan: Round, outcome: Outcome) -> list[Asked]:
        began = asyncio.get_running_loop().time()

        async def at(at_s: float) -> None:
            await asyncio.sleep(max(0.0, began + at_s - asyncio.get_running_loop().time()))

        async def ask(decision: Any) -> Asked | None:
            await at(decision.at_s)
            return await self.load.carry_out(plan.number, decision)

        async def kill(planned: Kill) -> None:
            await at(planned.at_s)
            async with locks[planned.part]:
                self.say(f"kill -9 {planned.part}, back after {planned.down_s} s")
                outcome.kills[planned.part] += 1
                await self.prey.kill(planned.part, planned.down_s)

        async def spoil(failure: Failure) -> None:
            await at(failure.at_s)
            host = await asyncio.to_thread(break_host, self._hosts_dir, failure)
            self._broken.add(host)
            self.say(f"{failure.step} fails {failure.times} times on {host}")

        locks = {kill.part: asyncio.Lock() for kill in plan.kills}
        if "up" in locks:  # its death takes the others along
            locks = dict.fromkeys(locks, locks["up"])
        failures = plan.failures if self.fake else ()
        kills = asyncio.gather(*map(kill, plan.kills), *map(spoil, failures))
        answers = await asyncio.gather(*(ask(d) for d in plan.decisions))
        await kills
        if self.fake:
            await asyncio.to_thread(mend_hosts, self._hosts_dir)
        return [a for a in answers if a is not None]

    async def _settle(self, outcome: Outcome) -> None:
        """Look until everything is right, or the time is over; what is wrong then is a violation."""
        began = time.monotonic()
        while True:
            seen, outcome.violations = await self._look()
            if self.audit and not outcome.violations:  # hosts have to report first
                outcome.violations = await self._audited()
            if all(v.final for v in outcome.violations) or time.monotonic() - began > self.settle_s:
                break
            await asyncio.sleep(_LOOK_EVERY_S)
        outcome.settle_s = round(time.monotonic() - began, 1)
        guilty = {v.subject.removeprefix("server:") for v in outcome.violations}
        outcome.operations = {i: _told(seen, i) for i in guilty & seen.operations.keys()}

    async def _look(self) -> tuple[Seen, list[Violation]]:
        seen = await asyncio.to_thread(read_record, self.prey.database_url)
        try:
            client = await connect(self.prey.temporal_address, "default")
            seen.workflows = await open_workflows(client)
            seen.guests = await asyncio.to_thread(self.prey.guests)
        except (RPCError, RuntimeError, OSError, ValueError) as error:
            return seen, [Violation("temporal", "server", f"does not answer: {error}")]
        except GuestFailure as error:
            return seen, [Violation("libvirt", "server", f"does not answer: {error.message}")]
        seen.broken = frozenset(self._broken)
        found = judge(seen, self.load.asked)
        with suppress(httpx.HTTPError):
            await self.load.servers()
            return seen, found
        return seen, [*found, Violation("api", "server", "does not answer")]

    async def _audited(self) -> list[Violation]:
        words = ["-m", "cli.main", "audit", "--json", "--database-url", self.prey.database_url]
        words += ["--temporal", self.prey.temporal_address]
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *words,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(process.communicate(), _AUDIT_WITHIN_S)
        if process.returncode not in (0, 1):
            return [Violation("audit", "audit", f"could not run: {err.decode()[-300:]}")]
        return [
            Violation(f"audit {invariant['id']}", v["subject"], v["detail"])
            for invariant in json.loads(out)["invariants"]
            for v in invariant["violations"]
        ]


def _count(outcome: Outcome, asked: list[Asked]) -> None:
    outcome.requests = asked
    for one in asked:
        outcome.asked[one.lifecycle] += one.accepted
        outcome.unanswered += one.may_be_accepted
        outcome.refused += not one.accepted and not one.may_be_accepted


def _told(seen: Seen, server_id: str) -> list[dict[str, Any]]:
    shown = {"id", "lifecycle", "state", "step", "attempt", "host", "error", "request_id"}
    times = {"created_at", "started_at", "finished_at"}
    return [o.model_dump(mode="json", include=shown | times) for o in seen.operations[server_id]]
