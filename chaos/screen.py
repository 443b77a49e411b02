"""What a person sees of a run: a line for each round, a table at the end, and where to look when it failed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from chaos.rounds import Outcome

_SHOWN = 20
"""Violations on the screen; the report has all."""


def counted(counts: Counter[str]) -> str:
    """``create 5, stop 2``."""
    return ", ".join(f"{name} {n}" for name, n in sorted(counts.items()) if n) or "none"


def show_round(console: Console, name: str, outcome: Outcome) -> None:
    """One line, and what was wrong."""
    good = not outcome.violations
    mark = "[bold green]✓[/]" if good else "[bold red]✗[/]"
    console.print(
        f"{mark} {name}: {counted(outcome.asked)}; refused {outcome.refused}, unanswered "
        f"{outcome.unanswered}; killed {counted(outcome.kills)}; settled in "
        f"[cyan]{outcome.settle_s} s[/]; violations {len(outcome.violations)}",
        soft_wrap=True,
    )
    for violation in outcome.violations[:_SHOWN]:
        line = f"{violation.rule}: {violation.subject}: {violation.detail}"
        console.print(f"    [red]{escape(line)}[/]", soft_wrap=True)
    for server_id, operations in list(outcome.operations.items())[:_SHOWN]:
        console.print(f"    operations of {server_id}:")
        for o in operations:
            line = (
                f"{o['created_at']} {o['lifecycle']} {o['state']} step={o['step']} "
                f"attempt={o['attempt']} host={o['host']} {o['error'] or ''} ({o['id']})"
            )
            console.print(f"      {escape(line)}", soft_wrap=True)


def show_summary(console: Console, outcomes: list[Outcome]) -> None:
    """All rounds together."""
    table = Table(show_edge=False, pad_edge=False, box=SIMPLE_HEAD)
    for title, right in (("round", 1), ("accepted", 1), ("refused", 1), ("unanswered", 1)):
        table.add_column(title, justify="right" if right else "left")
    table.add_column("kills")
    table.add_column("settled", justify="right", style="cyan")
    table.add_column("violations", justify="right")
    kills: Counter[str] = Counter()
    for o in outcomes:
        kills += o.kills
        row = (o.number, o.asked.total(), o.refused, o.unanswered)
        tail = (counted(o.kills), f"{o.settle_s} s", str(len(o.violations)))
        table.add_row(*map(str, row), *tail)
    table.add_section()
    sums = (sum(o.asked.total() for o in outcomes), sum(o.refused for o in outcomes))
    rest = (sum(o.unanswered for o in outcomes), counted(kills))
    slowest = max((o.settle_s for o in outcomes), default=0.0)
    bad = sum(len(o.violations) for o in outcomes)
    table.add_row("all", *map(str, (*sums, *rest)), f"≤ {slowest} s", str(bad))
    console.print(table)


def show_failure(console: Console, seed: int, outcome: Outcome, logs: Path, report: Path) -> None:
    """Where to look."""
    console.print(
        f"[bold red]failed[/] in round {outcome.number} of seed {seed}\n"
        f"logs: {logs}\nreport: {report}",
        soft_wrap=True,
    )
