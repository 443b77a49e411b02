"""The arithmetic of the bench, and what its report says."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from bench.figures import FIGURES, Figure, percentile, spread
from bench.measure import Results
from bench.report import as_json, as_table, medians, published, shown


def test_a_percentile_is_one_of_the_values() -> None:
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert [percentile(values, p) for p in (0, 20, 50, 95, 100)] == [1.0, 1.0, 3.0, 5.0, 5.0]
    assert percentile(range(1, 101), 99) == 99
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


def test_a_spread_is_the_median_between_the_extremes() -> None:
    found = spread([3.0, 1.0, 2.0])
    assert (found.median, found.low, found.high) == (2.0, 1.0, 3.0)


def test_a_target_is_a_bound_on_one_side() -> None:
    assert Figure(title="", unit="s", at_most=1).meets(1)
    assert not Figure(title="", unit="s", at_most=1).meets(1.01)
    assert Figure(title="", unit="/s", at_least=5).meets(5)
    assert not Figure(title="", unit="/s", at_least=5).meets(4.9)
    assert Figure(title="", unit="s").meets(1) is None


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0123, "s", "12.3 ms"), (0.00456, "s", "4.56 ms"), (0.755, "s", "755 ms"), (1.5, "s", "1.50 s"),
        (1234.5, "MiB", "1,234 MiB"), (0, "", "0"), (35, "", "35"), (1.3, "/s", "1.30 /s"),
    ],
)  # fmt: skip
def test_values_are_shown_to_three_digits(value: float, unit: str, text: str) -> None:
    assert shown(value, unit) == text


def test_the_table_shows_what_was_measured_beside_the_target_and_nova() -> None:
    results = Results()
    for cpu, rate in ((0.09, 12.0), (0.08, 11.0), (0.2, 10.0)):
        results.add("lifecycle", {"create_cpu": cpu, "creates_rate": rate}, {})
    console = Console(width=140, file=io.StringIO(), record=True)
    console.print(as_table(results, published(), "Nova 34"))
    lines = console.export_text().splitlines()
    [cpu] = [" ".join(line.split()) for line in lines if "per server created" in line]
    [rate] = [" ".join(line.split()) for line in lines if "100 creates" in line]
    assert cpu.endswith("90.0 ms 80.0 ms 200 ms ≤ 100 ms met 1.38 s")
    assert rate.endswith("11.0 /s 10.0 /s 12.0 /s ≥ 15.0 /s missed 1.30 /s")


def test_a_report_is_what_the_next_one_is_compared_with() -> None:
    results = Results()
    for value in (0.3, 0.1, 0.2):
        results.add("reads", {"token_p50": value}, {"note": value})
    report = as_json(results, {"cloud": "here"})
    assert medians(report) == {"reads": {"token_p50": 0.2}}
    assert report["figures"]["reads"]["token_p50"]["rounds"] == [0.3, 0.1, 0.2]
    assert report["details"]["reads"] == [{"note": 0.3}, {"note": 0.1}, {"note": 0.2}]
    assert report["cloud"] == "here"
    assert report["machine"]["processors"] >= 1


def test_a_figure_that_the_table_does_not_know_is_refused() -> None:
    with pytest.raises(KeyError):
        Results().add("reads", {"nothing": 1.0}, {})
    assert all(
        figure.at_most is None or figure.at_least is None
        for rows in FIGURES.values()
        for figure in rows.values()
    )
