"""What is done when: every decision of a run follows from its seed. Only timings differ between runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

Verb = Literal["create", "act", "delete"]
_WEIGHTS: dict[Verb, int] = {"create": 4, "act": 7, "delete": 2}
_FIRST_CREATES = 3
"""A round begins with some servers, else there is nothing to act on."""
_SHORTLY_S = 1.5
_STEPS = ("disk", "define", "start", "destroy", "stop", "power_on", "reboot_hard")
_MOST_FAILURES = 6
_LONG_OUTAGE = 0.15
"""Of the kills: the dead part stays away for longer than heartbeats and sticky queues wait."""


@dataclass(frozen=True, slots=True)
class Decision:
    """One request of the load. ``which`` and ``what`` (0 ≤ x < 1) choose among the servers there are, and
    among the actions that the chosen one takes, when the time has come."""

    at_s: float
    verb: Verb
    which: float
    what: float


@dataclass(frozen=True, slots=True)
class Kill:
    """SIGKILL to one part at this time; it is started again ``down_s`` later."""

    at_s: float
    part: str
    down_s: float


@dataclass(frozen=True, slots=True)
class Failure:
    """From this time on, the next ``times`` visits of a step fail on one host (fake driver only)."""

    at_s: float
    host: float
    """0 ≤ x < 1, chooses the host."""
    step: str
    times: int


@dataclass(frozen=True, slots=True)
class Round:
    """Times count from the round's beginning."""

    number: int
    decisions: tuple[Decision, ...]
    kills: tuple[Kill, ...]
    failures: tuple[Failure, ...]


@dataclass(frozen=True, slots=True)
class Pace:
    """How much happens in one round."""

    seconds: float = 20.0
    requests: int = 30
    kills: int = 4
    failures: int = 2


def plan_round(seed: int, number: int, parts: Sequence[str], pace: Pace) -> Round:
    """Round ``number`` (from 1) of the run with this seed. Each part is killed in its turn, the others of
    the round by chance."""
    chance = Random(f"{seed}:{number}")  # noqa: S311  # it has to be guessable
    kills = _kills(chance, number, parts, pace)
    failures = tuple(
        Failure(
            round(chance.uniform(0, pace.seconds), 2),
            chance.random(),
            chance.choice(_STEPS),
            chance.randint(1, _MOST_FAILURES),
        )
        for _ in range(pace.failures)
    )
    return Round(number, _decisions(chance, pace, kills), kills, failures)


def _decisions(chance: Random, pace: Pace, kills: Sequence[Kill]) -> tuple[Decision, ...]:
    verbs = chance.choices(list(_WEIGHTS), list(_WEIGHTS.values()), k=pace.requests)
    verbs[:_FIRST_CREATES] = ["create"] * min(_FIRST_CREATES, len(verbs))
    times = sorted(_time(chance, pace, kills) for _ in verbs)
    return tuple(
        Decision(round(at, 2), verb, chance.random(), chance.random())
        for at, verb in zip(times, verbs, strict=True)
    )


def _time(chance: Random, pace: Pace, kills: Sequence[Kill]) -> float:
    """Every other request comes shortly before a kill, so that the kill finds it on its way."""
    if not kills or chance.random() < 0.5:
        return chance.uniform(0, pace.seconds)
    return max(0.0, chance.choice(kills).at_s - chance.uniform(0, _SHORTLY_S))


def _kills(chance: Random, number: int, parts: Sequence[str], pace: Pace) -> tuple[Kill, ...]:
    times = sorted(chance.uniform(0.1, 1.0) * pace.seconds for _ in range(pace.kills))
    victims = [parts[(number - 1) % len(parts)], *chance.choices(parts, k=max(0, pace.kills - 1))]
    return tuple(
        Kill(round(at, 2), part, round(_down_s(chance), 2))
        for at, part in zip(times, victims, strict=False)
    )


def _down_s(chance: Random) -> float:
    return chance.uniform(8, 15) if chance.random() < _LONG_OUTAGE else chance.uniform(0.2, 4)
