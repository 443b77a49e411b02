"""What each workflow commands, in the order of its text: read from the syntax trees, no server needed."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

from tests.tree import Source, sources
from workflows.policies import POLICIES

FILE = Path(__file__).with_name("fingerprints.json")
_OURS = {"do", "on_failure", "carry_out"}
_TEMPORAL = {
    "continue_as_new", "deprecate_patch", "execute_activity_method", "execute_child_workflow",
    "execute_local_activity_method", "patched", "sleep", "start_activity_method",
    "start_child_workflow", "start_local_activity_method", "upsert_search_attributes", "uuid4",
    "wait", "wait_condition", "wait_for",
}  # fmt: skip
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def _commands(node: ast.AST) -> Iterator[str]:
    for call in (n for n in ast.walk(node) if isinstance(n, ast.Call)):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else ""
        name = call.func.id if isinstance(call.func, ast.Name) else name
        subject = call.args[0] if call.args else None
        if name in _OURS and isinstance(subject, ast.Attribute) and subject.attr in POLICIES:
            policy = POLICIES[subject.attr]
            where = "host" if policy.on_host and not policy.local else "control"
            yield f"{call.lineno:05}:{call.col_offset:03} {name} {where} {subject.attr}"
        elif name in _TEMPORAL or name in _OURS:
            yield f"{call.lineno:05}:{call.col_offset:03} {name}"


def _of(source: Source) -> Iterator[tuple[str, list[str]]]:
    for node in source.tree.body:
        if isinstance(node, _SCOPES) and (found := sorted(_commands(node))):
            yield f"{source.path.stem}.{node.name}", [line.split(" ", 1)[1] for line in found]


def fingerprints() -> dict[str, list[str]]:
    """``module.name`` of each workflow, and of what they share → its commands from top to bottom."""
    return dict(pair for source in sources("workflows") for pair in _of(source))


def write_fingerprints() -> None:
    """Accept the commands as they are now."""
    FILE.write_text(json.dumps(fingerprints(), indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    write_fingerprints()
