"""Size budgets: good and bad code differ in the tail, so the tail is policed. Growing one needs an ADR."""

from __future__ import annotations

import ast

import pytest

from tests.tree import PACKAGES, Source, sources

FILE_LINES, FUNCTION_LINES, CLASS_LINES = 500, 40, 250
EXEMPT = {"db/migrations/versions/": "written by alembic's autogenerate, one statement per table"}


def counted(*folders: str) -> list[Source]:
    return [s for s in sources(*folders) if not any(s.name.startswith(e) for e in EXEMPT)]


def too_long(source: Source) -> list[str]:
    found = []
    if (lines := len(source.text.splitlines())) > FILE_LINES:
        found.append(f"{source.name}: {lines} lines, the budget is {FILE_LINES}")
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            budget = CLASS_LINES if isinstance(node, ast.ClassDef) else FUNCTION_LINES
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > budget:
                found.append(f"{source.name}:{node.lineno} {node.name}: {lines} lines of {budget}")
    return found


@pytest.mark.parametrize("folder", [*PACKAGES, "bench", "chaos", "tests"])
def test_files_functions_and_classes_keep_their_budgets(folder: str) -> None:
    assert [line for source in counted(folder) for line in too_long(source)] == []


def test_a_long_function_is_found() -> None:
    body = "\n".join("    pass" for _ in range(FUNCTION_LINES))
    tree = ast.parse(f"def long():\n{body}\n")
    source = Source(counted("domain")[0].path)
    source.__dict__.update(tree=tree, text="")
    assert too_long(source)


def test_every_exemption_is_still_needed() -> None:
    for prefix in EXEMPT:
        assert any(too_long(s) for s in sources() if s.name.startswith(prefix)), prefix
