"""What a watcher knows: the operations it has seen, brought up to date by looks and by events."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from osc_duranova.client import MOVING, Operation
from osc_duranova.columns import step_lines
from osc_duranova.outcome import sentence
from osc_duranova.stream import Event

KEPT = 30
"""How many operations a watcher of many looks at and keeps."""
_TOLD = (
    *("action", "attempt", "created_at", "error", "finished_at", "host", "percent"),
    *("server_id", "started_at", "state"),
)
"""Fields of an operation that its events carry under the same name."""
ENDED = ("succeeded", "failed", "cancelled")
_BLANK = dict.fromkeys((*_TOLD, "step"))


class Board:
    """Operations by id, those that move first, then the newest."""

    def __init__(self) -> None:
        self._rows: dict[str, Operation] = {}
        self._told: dict[str, str] = {}

    def __iter__(self) -> Iterator[Operation]:
        return iter(
            sorted(
                self._rows.values(),
                key=lambda row: (row["state"] not in ENDED, row["created_at"] or ""),
                reverse=True,
            )
        )

    def load(self, found: Iterable[Operation]) -> list[Operation]:
        """Take what the record says, newest first; returns what is news, oldest first."""
        news = [row for row in found if _stamp(row) != _stamp(self._rows.get(row["id"]))]
        self._rows.update({row["id"]: row for row in news})
        self._forget()
        return news[::-1]

    def apply(self, event: Event) -> Operation:
        """Take an event; returns the operation as it is now."""
        known = self._rows.get(event.operation_id, _BLANK | {"created_at": event.time})
        told = {key: event.data[key] for key in _TOLD if key in event.data}
        row = {**known, **told, "id": event.operation_id, "step": _step(known, event)}
        self._rows[event.operation_id] = row
        self._forget()
        return row

    def line(self, row: Operation) -> list[str]:
        """How an operation stands, in a line; none if that was told last."""
        where = f" on {row['host']}" if row["host"] else ""
        words = f"{row['id']}  {sentence(row).splitlines()[0]}{where}"
        before = self._told.get(row["id"])
        self._told[row["id"]] = words
        return [] if words == before else [words]

    def _forget(self) -> None:
        for row in list(self)[KEPT:]:
            if row["state"] in ENDED:
                del self._rows[row["id"]]
                self._told.pop(row["id"], None)


def _stamp(row: Operation | None) -> tuple[Any, ...] | None:
    return None if row is None else (row["state"], row["step"], row["host"], row["attempt"])


def _step(known: Operation, event: Event) -> str | None:
    """The step an operation is at, after this event."""
    told = event.data.get("step")
    if event.kind == "ended":
        return None
    if isinstance(told, dict):
        return None if told.get("finished_at") else str(told["name"])
    before: str | None = known["step"]
    return str(told) if told else before


class Story:
    """One operation told in lines, each once."""

    def __init__(self) -> None:
        self._told: list[str] = []
        self._standing: tuple[Any, ...] | None = None

    def go_on(self, shown: Operation) -> list[str]:
        """What has happened since the last time: steps that began or ended, another state."""
        steps = [step for s in shown["steps"] for step in step_lines([s])]
        lines = [step for step in steps if step not in self._told]
        self._told = steps
        standing = (shown["state"], shown["attempt"] if shown["state"] in MOVING else None)
        if standing != self._standing:
            self._standing = standing
            lines += sentence(shown).splitlines()
        return lines
