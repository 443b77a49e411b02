"""How values look to a person; for machines (json, yaml, csv, value) they stay what the API said."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from cliff.columns import FormattableColumn

Value = Any
_UNDER_A_MINUTE_S = 60.0


class Field(FormattableColumn[Value]):
    """Anything; what is not there is blank, and sorts last."""

    def human_readable(self) -> str:
        return "" if self._value is None else str(self._value)

    def __lt__(self, other: object) -> bool:
        if not isinstance(other, Field):
            return NotImplemented
        mine, theirs = self._value, other._value
        if mine is None or theirs is None:
            return mine is not None
        return bool(mine < theirs)


class Moment(Field):
    """An instant of the API, to the second."""

    def human_readable(self) -> str:
        return "" if self._value is None else f"{parsed(self._value):%Y-%m-%dT%H:%M:%SZ}"


class Seconds(Field):
    """How long something took."""

    def human_readable(self) -> str:
        return "" if self._value is None else span(self._value)


class Words(Field):
    """A list of words."""

    def human_readable(self) -> str:
        return ", ".join(self._value or [])


class Steps(Field):
    """The steps of an operation, a line each."""

    def human_readable(self) -> str:
        return "\n".join(step_lines(self._value or []))


class Weights(Field):
    """What each weigher gave a host."""

    def human_readable(self) -> str:
        return ", ".join(f"{n}={w:g}" for n, w in (self._value or {}).items() if n != "total")


def parsed(moment: str) -> datetime:
    """An instant as the API writes it, in UTC."""
    return datetime.fromisoformat(moment).astimezone(UTC)


def span(seconds: float) -> str:
    """``2.3 s``, or ``0:02:03`` from a minute on."""
    if seconds < _UNDER_A_MINUTE_S:
        return f"{seconds:.1f} s"
    return str(timedelta(seconds=round(seconds)))


def seconds_of(thing: dict[str, Any], now: datetime | None = None) -> float | None:
    """How long a step or an operation took; up to ``now`` if it has not ended."""
    start = thing.get("started_at") or thing.get("created_at")
    end = parsed(thing["finished_at"]) if thing.get("finished_at") else now
    if start is None or end is None:
        return None
    return max(0.0, round((end - parsed(start)).total_seconds(), 3))


def step_lines(steps: Iterable[dict[str, Any]]) -> list[str]:
    """``Success  0.1 s  compute__do_build_and_run_instance on host-1: why``, the columns aligned."""
    rows = []
    for step in steps:
        took = seconds_of(step)
        where = f"{step['name']} on {step['host']}" if step["host"] else step["name"]
        said = f"{where}: {step['details']}" if step["details"] else where
        rows.append(
            (f"{parsed(step['started_at']):%H:%M:%S}", step["result"] or "running",
             "" if took is None else span(took), said)
        )  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        f"{row[0]}  {row[1]:<{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]}".rstrip() for row in rows
    ]
