"""Operations drawn on a terminal: one with its steps, or a table of many."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from osc_duranova.client import HELD, MOVING, Operation
from osc_duranova.columns import seconds_of, span
from osc_duranova.outcome import choices

_STYLES = {
    "accepted": "cyan",
    "running": "cyan",
    HELD: "bold yellow",
    "succeeded": "green",
    "failed": "bold red",
    "cancelled": "magenta",
}
_MARKS = {HELD: "⏸", "succeeded": "✔", "failed": "✘", "cancelled": "⊘"}

_COLUMNS = {
    **{"": 1, "Operation": 36, "Action": 6, "State": 9, "Time": 7, "Host": 4},
    **{"Server": 0, "Step or error": 0},
}
"""Of the table of many: how wide at least; those with 0 share what is left of the line."""


class Drawing:
    """What is on the screen: drawn again and again, so that times go on and spinners turn."""

    def __init__(self) -> None:
        self.one: Operation | None = None
        """Draw this one with its steps …"""
        self.many: Iterable[Operation] = ()
        """… or else these as a table."""
        self.note = ""
        """What else the watcher should know, until the next news."""
        self._spinner = Spinner("dots", style="cyan")

    def __rich__(self) -> RenderableType:
        now = datetime.now(UTC)
        drawn = self._table(now) if self.one is None else self._story(self.one, now)
        return Group(drawn, Text(self.note, _style(HELD))) if self.note else drawn

    def _story(self, shown: Operation, now: datetime) -> RenderableType:
        head = Table.grid(padding=(0, 1))
        title = Text.assemble((shown["action"], "bold"), f" of server {shown['server_id']}")
        head.add_row(self._mark(shown["state"]), title, _state(shown), _took(shown, now))
        return Group(head, self._steps(shown, now), *_end(shown))

    def _steps(self, shown: Operation, now: datetime) -> Table:
        steps = Table.grid(padding=(0, 2))
        steps.add_column(width=3, justify="right")
        steps.add_column()
        steps.add_column(style="dim")
        steps.add_column(justify="right")
        steps.add_column(overflow="fold")
        for step in shown["steps"]:
            steps.add_row(*self._step(step, shown, now))
        return steps

    def _step(
        self, step: dict[str, Any], shown: Operation, now: datetime
    ) -> tuple[RenderableType, ...]:
        details = Text(step["details"] or "")
        if step["finished_at"] is None:
            mark = self._mark(shown["state"])
            if step is shown["steps"][-1] and shown["state"] in MOVING and not step["details"]:
                details = Text(_doing(step, shown))
        elif step["result"] == "Success":
            mark = self._mark("succeeded")
        else:
            mark, details.style = self._mark("failed"), "red"
        return mark, step["name"], step["host"] or "", _took(step, now), details

    def _table(self, now: datetime) -> RenderableType:
        table = Table(box=box.SIMPLE_HEAD, caption="ctrl-C ends", caption_justify="left")
        for name, width in _COLUMNS.items():
            table.add_column(name, no_wrap=width > 0, min_width=width or None)
        for row in self.many:
            said = row["error"] or row["step"] or ""
            table.add_row(
                self._mark(row["state"]), row["id"], row["action"], _state(row), _took(row, now),
                row["host"] or "", _cut(row["server_id"]), _cut(said),
            )  # fmt: skip
        return table if table.row_count else Text("No operations yet; ctrl-C ends.", "dim")

    def _mark(self, state: str) -> RenderableType:
        return self._spinner if state in MOVING else Text(_MARKS.get(state, "?"), _style(state))


def _style(state: str) -> str:
    return _STYLES.get(state, "")


def _state(shown: Operation) -> Text:
    words = "held" if shown["state"] == HELD else shown["state"]
    return Text(words or "", _style(shown["state"]))


def _took(thing: dict[str, Any], now: datetime) -> str:
    took = seconds_of(thing, now)
    return "" if took is None else span(took)


def _doing(step: dict[str, Any], shown: Operation) -> str:
    """What is known of a step that runs, beside its name."""
    within = shown["step"] if shown["step"] != step["name"] else ""
    return f"{within or ''} {shown['percent']} %" if shown["percent"] else within or ""


def _cut(words: str) -> Text:
    return Text(words, no_wrap=True, overflow="ellipsis")


def _end(shown: Operation) -> list[Text]:
    """What is below the steps of an operation that does not go on."""
    error = [Text(shown["error"], "red")] if shown["error"] else []
    return error + [Text(words, _style(HELD)) for words in choices(shown)]
