"""House laws that no linter knows, as walks over the syntax trees. Each names what breaks it and where."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator

import pytest

from tests.tree import PACKAGES, ROOT, Source, sources
from workflows.policies import POLICIES

Law = Callable[[Source], Iterator[int]]
"""The lines of a file that break it."""
COMMITS = {
    "api/drift.py": "each correction is a transaction of its own, and some start operations",
    "api/context.py": "the session of a request",
    "api/internal.py": "the report is kept before corrections start operations of their own",
    "api/launch.py": "row, commit, start",
    "db/session.py": "transaction()",
}
CLOCKS = {"time", "random", "secrets", "uuid", "datetime.now", "datetime.utcnow", "date.today"}
NAMELESS = {"base", "common", "helper", "helpers", "manager", "misc", "util", "utils"}
ACTIVITY_CALLS = re.compile(r"(execute|start)_(local_)?activity(_method|_class)?")
VERSION_MODULES = {"api/history.py", "api/microversion.py"}
SILENCER = re.compile(
    r"#\s*(?:noqa\b(?::\s*[A-Z]+\d+(?:,\s*[A-Z]+\d+)*)?|type:\s*ignore\b(?:\[[\w, -]+\])?)"
)
REASON = re.compile(r"\s*(?:#|-|—)?\s*\w.*\w")


def dotted(node: ast.AST) -> str:
    """``a.b.c`` of a name or attribute; empty for anything else."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}".lstrip(".")
    return node.id if isinstance(node, ast.Name) else ""


def calls(tree: ast.AST) -> Iterator[tuple[ast.Call, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node, dotted(node.func)


def strings(node: ast.AST) -> list[str]:
    return [
        n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)
    ]


def foreign_commits(source: Source) -> Iterator[int]:
    """Mentions of ``commit`` outside the edges: queries and activities never end a transaction."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute) and node.attr == "commit" and source.name not in COMMITS:
            yield node.lineno


def clocks_in_workflows(source: Source) -> Iterator[int]:
    """Whatever answers differently on replay."""
    if not source.name.startswith("workflows/"):
        return
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            named = {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            named = {node.module or ""}
        else:
            named = {".".join(dotted(node).split(".")[-2:])}
        if named & CLOCKS:
            yield getattr(node, "lineno", 0)


def activities_beside_do(source: Source) -> Iterator[int]:
    """Activity calls that go past ``do`` and ``Saga``, or name one without a row of POLICIES."""
    if not source.name.startswith("workflows/"):
        return
    for call, name in calls(source.tree):
        last = name.rpartition(".")[2]
        if ACTIVITY_CALLS.fullmatch(last) and source.name != "workflows/operation.py":
            yield call.lineno
        elif last in ("do", "on_failure") and source.name != "workflows/operation.py":
            activity = dotted(call.args[0]).rpartition(".")[2] if call.args else ""
            if activity not in POLICIES:
                yield call.lineno


def version_branches(source: Source) -> Iterator[int]:
    """Microversions compared or parsed outside their declarations."""
    if not source.name.startswith("api/") or source.name in VERSION_MODULES:
        return
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call) and dotted(node.func) in ("Version", "Version.parse"):
            yield node.lineno
        elif isinstance(node, ast.Compare) and any(
            isinstance(op, ast.Lt | ast.LtE | ast.Gt | ast.GtE | ast.Eq | ast.NotEq)
            for op in node.ops
        ):
            sides = (node.left, *node.comparators)
            asked = any(isinstance(s, ast.Call) and dotted(s.func) == "current" for s in sides)
            if asked or any(isinstance(s, ast.Constant) and _is_version(s.value) for s in sides):
                yield node.lineno


def _is_version(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"2\.\d{1,3}", value) is not None


def guessed_formats(source: Source) -> Iterator[int]:
    """qemu-img command lines that leave a format to be guessed: a guest writes the header it reads."""
    for node in ast.walk(source.tree):
        if (
            isinstance(node, ast.Tuple | ast.List)
            and node.elts
            and strings(node.elts[0]) == ["qemu-img"]
        ):
            words = strings(node)
            overlay = "-b" in words or "--backing" in words
            if (
                "-f" not in words
                or (overlay and "-F" not in words)
                or ("convert" in words and "-O" not in words)
            ):
                yield node.lineno


def silenced_without_reason(source: Source) -> Iterator[int]:
    """``noqa`` and ``type: ignore`` that do not say why."""
    for number, line in enumerate(source.text.splitlines(), 1):
        marks = list(SILENCER.finditer(line))
        if marks and not REASON.match(line[marks[-1].end() :]):
            yield number


EVERYWHERE, PRODUCT = (*PACKAGES, "bench", "chaos", "tests"), tuple(PACKAGES)
LAWS: dict[Law, tuple[str, ...]] = {
    foreign_commits: PRODUCT,
    clocks_in_workflows: PRODUCT,
    activities_beside_do: PRODUCT,
    version_branches: PRODUCT,
    guessed_formats: PRODUCT,
    silenced_without_reason: EVERYWHERE,
}


@pytest.mark.parametrize("law", LAWS, ids=[law.__name__ for law in LAWS])
def test_the_house_keeps(law: Law) -> None:
    assert [f"{s.name}:{line}" for s in sources(*LAWS[law]) for line in law(s)] == []


BREAKS: list[tuple[Law, str, str]] = [
    (foreign_commits, "db/servers.py", "session.commit()"),
    (foreign_commits, "activities/x.py", "run(session.commit)"),
    (clocks_in_workflows, "workflows/x.py", "import random"),
    (clocks_in_workflows, "workflows/x.py", "from time import monotonic"),
    (clocks_in_workflows, "workflows/x.py", "import datetime\ndatetime.datetime.now()"),
    (activities_beside_do, "workflows/x.py", "workflow.execute_activity(f, 1)"),
    (activities_beside_do, "workflows/x.py", "do(HostActivities.no_such, 1)"),
    (version_branches, "api/x.py", "if current() >= other: pass"),
    (version_branches, "api/x.py", "Version.parse('2.9')"),
    (version_branches, "api/x.py", "if version < '2.79': pass"),
    (guessed_formats, "virt/x.py", "run('x', *('qemu-img', 'info', 'a'))"),
    (guessed_formats, "virt/x.py", "x = ['qemu-img', 'create', '-f', 'qcow2', '-b', 'a', 'c']"),
    (silenced_without_reason, "api/x.py", "x = 1  # no" + "qa: S101"),
    (silenced_without_reason, "api/x.py", "x = 1  # type: " + "ignore[misc]"),
]  # fmt: skip


@pytest.mark.parametrize(("law", "name", "text"), BREAKS)
def test_a_break_is_found(law: Law, name: str, text: str) -> None:
    source = Source(ROOT / name)
    source.__dict__.update(text=text, tree=ast.parse(text))
    assert list(law(source))


def test_no_module_has_a_name_that_says_nothing() -> None:
    parts = {
        s.name: set(s.path.relative_to(ROOT).with_suffix("").parts) for s in sources(*EVERYWHERE)
    }
    assert [name for name, words in parts.items() if words & NAMELESS] == []


def test_every_edge_that_may_commit_still_does() -> None:
    commits = {s.name for s in sources() if any(
        isinstance(n, ast.Attribute) and n.attr in ("commit", "begin") for n in ast.walk(s.tree)
    )}  # fmt: skip
    assert COMMITS.keys() - commits == set()
