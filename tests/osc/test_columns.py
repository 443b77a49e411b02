"""How values look to a person, and how they sort."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from osc_duranova.columns import Field, Moment, Words, seconds_of, span, step_lines
from tests.osc.conftest import MOMENT, step


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.04, "0.0 s"), (59.9, "59.9 s"), (60, "0:01:00"), (3723.4, "1:02:03")],
)
def test_a_time_is_told_in_the_unit_that_fits(seconds: float, said: str) -> None:
    assert span(seconds) == said


def test_what_is_not_there_is_blank_and_sorts_last() -> None:
    values = sorted([Field("b"), Field(None), Field("a")])
    assert [value.human_readable() for value in values] == ["a", "b", ""]
    assert Moment(None).human_readable() == Words(None).human_readable() == ""


def test_what_runs_takes_until_now() -> None:
    now = datetime(2026, 1, 2, 3, 4, 6, tzinfo=UTC)
    assert seconds_of({"started_at": MOMENT, "finished_at": None}, now) == 0.4
    assert seconds_of({"started_at": MOMENT, "finished_at": None}) is None


def test_steps_are_told_in_aligned_lines() -> None:
    assert step_lines([step("Error", details="why"), step(host=None)]) == [
        "03:04:05  Error    1.5 s  build on node-1: why",
        "03:04:05  running         build",
    ]
    assert step_lines([]) == []
