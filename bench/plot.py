"""The curves of a report as PNG and SVG."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from bench.placement import SIZES as FLEETS
from bench.reads import SIZES as LISTS

NOVA_DECISIONS = {10: 0.13, 50: 0.27, 200: 0.77, 1000: 4.0, 5000: 5.7}
"""Hosts → seconds of one decision with claim, of Nova 34 on two processors."""
NOVA_LIST = {500: 0.82}
"""Servers → seconds of ``GET /servers/detail?limit=100``, likewise."""
_OURS, _OURS_TOO, _NOVA, _TARGET = "#0b62a4", "#5aa9e6", "#c0392b", "#7f8c8d"
Points = Mapping[int, tuple[float, float, float]]
"""x → median, min and max"""


def draw(report: Mapping[str, Any], directory: Path) -> list[Path]:
    """The curves for which the report has figures; returns the files."""
    mpl.rcParams["svg.hashsalt"] = "bench"  # the same figures give the same file
    drawn: list[Path] = []
    figures = report["figures"]
    if "lists" in figures:
        drawn += _save(_lists(figures["lists"]), directory / "lists")
    if "placement" in figures:
        drawn += _save(_placement(figures["placement"]), directory / "placement")
    return drawn


def _lists(rows: Mapping[str, Any]) -> Figure:
    figure, axes = _axes("servers in the project", "GET /servers/detail?limit=100, p50")
    _curve(axes, _points(rows, "first_{}", LISTS), "first page", _OURS)
    _curve(axes, _points(rows, "deep_{}", LISTS), "page in the middle", _OURS_TOO)
    _nova(axes, NOVA_LIST)
    axes.axhline(30, linestyle="--", linewidth=1, color=_TARGET, label="target")
    _finish(axes, (5, 2000))
    return figure


def _placement(rows: Mapping[str, Any]) -> Figure:
    figure, axes = _axes("hosts", "one decision with its claim")
    _curve(axes, _points(rows, "decision_p50_{}", FLEETS), "p50", _OURS)
    _curve(axes, _points(rows, "decision_p99_{}", FLEETS), "p99", _OURS_TOO)
    _nova(axes, NOVA_DECISIONS)
    axes.plot(
        [1000, 10_000],
        [10, 50],
        "_",
        color=_TARGET,
        markersize=18,
        markeredgewidth=2.5,
        label="target of p99",
    )
    _finish(axes, (0.5, 20_000))
    return figure


def _axes(x: str, title: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xscale="log", yscale="log", xlabel=x, ylabel="milliseconds", title=title)
    axes.grid(which="major", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _points(rows: Mapping[str, Any], name: str, sizes: tuple[int, ...]) -> Points:
    found = {size: rows.get(name.format(size)) for size in sizes}
    return {s: (r["median"], r["min"], r["max"]) for s, r in found.items() if r is not None}


def _curve(axes: Any, points: Points, label: str, color: str) -> None:
    if not points:
        return
    sizes = list(points)
    middle, low, high = zip(*(tuple(v * 1000 for v in p) for p in points.values()), strict=True)
    axes.fill_between(sizes, low, high, color=color, alpha=0.18, linewidth=0)
    axes.plot(sizes, middle, "o-", color=color, label=f"Duranova, {label}")


def _nova(axes: Any, points: Mapping[int, float]) -> None:
    seconds = [s * 1000 for s in points.values()]
    axes.plot(list(points), seconds, "s-", color=_NOVA, label="Nova 34, p50")


def _finish(axes: Any, between: tuple[float, float]) -> None:
    axes.set_ylim(*between)
    plain = mpl.ticker.FuncFormatter(lambda value, _: f"{value:,.10g}")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(plain)
        axis.set_minor_formatter(mpl.ticker.NullFormatter())
    axes.legend(framealpha=1, edgecolor="none")


def _save(figure: Figure, path: Path) -> list[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [path.with_suffix(".png"), path.with_suffix(".svg")]
    figure.savefig(files[0], dpi=150)
    figure.savefig(files[1], metadata={"Date": None})
    return files
