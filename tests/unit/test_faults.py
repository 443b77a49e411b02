"""``docs/faults.md`` names tests that exist, and none of its rows is without one."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.tree import ROOT
from workflows.policies import POLICIES

TEXT = (ROOT / "docs" / "faults.md").read_text()
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT)))
ROWS = dict(re.findall(r"^\| (F\d\d) \|(.*)$", TEXT, re.MULTILINE))
WANTED = {
    *(f"F{n:02}" for n in (*range(1, 8), *range(9, 13), 14, *range(16, 20))),
    *("F38", "F39", "F40", "F42", "F45", "F48", "F49", "F51", "F52", "F53"),
}


def functions_in(path: Path) -> set[str]:
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    return {n.name for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, kinds)}


@pytest.mark.parametrize("file", sorted({file for file, _ in NAMED}))
def test_every_test_that_is_named_exists(file: str) -> None:
    named = {test for where, test in NAMED if where == file}
    assert (ROOT / file).is_file()
    assert named - functions_in(ROOT / file) == set()


def test_every_row_names_a_test() -> None:
    assert set(ROWS) == WANTED
    assert [row for row, text in ROWS.items() if "::test_" not in text] == []


def test_every_step_has_a_deadline_and_every_host_step_a_heartbeat() -> None:
    for name, policy in POLICIES.items():
        assert policy.start_to_close.total_seconds() > 0, name
        assert policy.local or policy.heartbeat is not None, name
