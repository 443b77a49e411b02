"""The report: a table for people, JSON for programs."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from bench.figures import FIGURES, Figure, Spread, spread
from bench.measure import Results
from runtime.devserver import temporal_binary

_ROOT = Path(__file__).parents[1]


def shown(value: float, unit: str) -> str:
    """A value for people, to three digits: ``12.3 ms``, ``4.5 /s``, ``0``."""
    if unit == "s" and abs(value) < 1:
        value, unit = value * 1000, "ms"
    digits = 0 if not unit or abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f} {unit}".strip()


def as_table(results: Results, beside: Mapping[str, Mapping[str, float]], name: str) -> Table:
    """Each measured figure with its target and another cloud's (``published`` gives the table's)."""
    table = Table(show_edge=False, pad_edge=False, box=SIMPLE_HEAD)
    table.add_column("figure")
    for title in ("median", "min", "max", "target", "", name):
        table.add_column(title, justify="right")
    for part, measured in results.figures.items():
        for figure_name, figure in FIGURES[part].items():
            if values := measured.get(figure_name):
                other = beside.get(part, {}).get(figure_name)
                table.add_row(*_row(figure, spread(values), other))
        table.add_section()
    return table


def _row(figure: Figure, found: Spread, other: float | None) -> tuple[str, ...]:
    met = figure.meets(found.median)
    mark = {None: "", True: "[green]met[/]", False: "[red]missed[/]"}[met]
    target = ""
    if figure.at_most is not None:
        target = f"≤ {shown(figure.at_most, figure.unit)}"
    elif figure.at_least is not None:
        target = f"≥ {shown(figure.at_least, figure.unit)}"
    return (
        figure.title,
        shown(found.median, figure.unit),
        shown(found.low, figure.unit),
        shown(found.high, figure.unit),
        target,
        mark,
        "" if other is None else shown(other, figure.unit),
    )


def published() -> dict[str, dict[str, float]]:
    """Nova's figures, as far as the table has them: part → figure → value."""
    return {
        part: {name: f.nova for name, f in rows.items() if f.nova is not None}
        for part, rows in FIGURES.items()
    }


def medians(report: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Part → figure → median of an earlier report."""
    return {
        part: {name: row["median"] for name, row in rows.items()}
        for part, rows in report["figures"].items()
    }


def as_json(results: Results, about: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that was measured, with the circumstances."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
        **about,
        "others_percent": results.others_percent,
        "figures": {
            part: {name: _figure(part, name, values) for name, values in rows.items()}
            for part, rows in results.figures.items()
        },
        "details": results.details,
    }


def _figure(part: str, name: str, values: list[float]) -> dict[str, Any]:
    figure, found = FIGURES[part][name], spread(values)
    return {
        "title": figure.title,
        "unit": figure.unit,
        "median": found.median,
        "min": found.low,
        "max": found.high,
        "rounds": values,
        "target": figure.at_most if figure.at_most is not None else figure.at_least,
        "met": figure.meets(found.median),
    }


def machine() -> dict[str, Any]:
    """What it was measured on."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "processors": os.cpu_count(),
        "model": models[0] if models else platform.machine(),
        "memory_mib": psutil.virtual_memory().total // 2**20,
        "kernel": platform.release(),
        "load_before": os.getloadavg(),
    }


def versions() -> dict[str, str]:
    """Of the programs that were measured, and that measured."""
    found = {name: version(name) for name in ("duranova", "temporalio", "aiohttp", "psutil")}
    found["python"] = platform.python_version()
    found["temporal"] = _said(temporal_binary(), "--version")
    found["commit"] = _said("git", "-C", str(_ROOT), "describe", "--always", "--dirty")
    return found


def _said(*line: str) -> str:
    try:
        return subprocess.run(line, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def save(path: Path, report: Mapping[str, Any]) -> None:
    """Write a report; the directory is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")


def show(console: Console, results: Results, beside: Path | None) -> None:
    """The table, beside another report's figures or those that are published of Nova."""
    other = medians(json.loads(beside.read_text())) if beside else published()
    console.print(as_table(results, other, beside.stem if beside else "Nova 34"))
    shares = ", ".join(f"{part} {share:.0f} %" for part, share in results.others_percent.items())
    console.print(f"Other programs used of the machine meanwhile: {shares}", soft_wrap=True)
