"""What the demo shows: one line when a step is done, what it saw, and a table at the end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

LOG_WIDTH = 140


@dataclass(slots=True)
class Step:
    """One thing the demo did. Fill in ``seen``: it is shown when the step ends."""

    title: str
    seen: str = ""
    seconds: float = 0.0


class Screen:
    """A person's terminal, or a log file."""

    def __init__(self, console: Console) -> None:
        self.console = console
        if not console.is_terminal:  # nobody's window is too narrow for a table
            console.width = max(console.width, LOG_WIDTH)
        self.steps: list[Step] = []

    @contextmanager
    def step(self, title: str, *, slow: bool = False) -> Iterator[Step]:
        """Show what goes on inside the block. ``slow``: a log without spinner says so beforehand."""
        step = Step(title)
        started = time.monotonic()
        if slow and not self.console.is_terminal:
            self.console.print(f"[dim]… {escape(title)}[/]")
        with self.console.status(f"{escape(title)}…"):
            try:
                yield step
            except BaseException:
                self.console.print(f"[bold red]✗[/] {escape(title)}")
                raise
            finally:
                step.seconds = time.monotonic() - started
        self.steps.append(step)
        seen = f"  [dim]{escape(step.seen)}[/]" if step.seen else ""
        self.console.print(
            f"[bold green]✓[/] {escape(title)} [cyan]{_seconds(step.seconds)}[/]{seen}",
            soft_wrap=True,
        )

    def command(self, line: str) -> None:
        """Show a command that runs now."""
        self.console.print(f"  [dim]$[/] {escape(line)}", soft_wrap=True)

    def quote(self, text: str, marked: str | None = None) -> None:
        """Show what a program or the guest said, word for word; one line may be marked."""
        for line in text.rstrip().splitlines():
            shown = "".join(c for c in line if c.isprintable())
            style = "bold green" if marked is not None and marked in line else "default"
            self.console.print(f"  [dim]│[/] [{style}]{escape(shown)}[/]", soft_wrap=True)

    def say(self, markup: str) -> None:
        """A line of our own."""
        self.console.print(markup, soft_wrap=True)

    def summary(self) -> None:
        """Every step with its time and what was seen."""
        table = Table(show_edge=False, pad_edge=False, box=SIMPLE_HEAD)
        table.add_column("step", no_wrap=True)
        table.add_column("time", justify="right", no_wrap=True, style="cyan")
        table.add_column("seen", overflow="fold")
        for step in self.steps:
            table.add_row(escape(step.title), _seconds(step.seconds), escape(step.seen))
        total = sum(step.seconds for step in self.steps)
        table.add_section()
        table.add_row("all of it", _seconds(total), f"{len(self.steps)} steps")
        self.console.print()
        self.console.print(table)


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s"
