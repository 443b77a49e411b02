"""This tree's own Python files, parsed: what the tests of the house look at."""

from __future__ import annotations

import ast
import tomllib
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES: list[str] = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]


@dataclass(frozen=True)
class Source:
    """One file."""

    path: Path

    @property
    def name(self) -> str:
        """Its path in the repository, with slashes."""
        return self.path.relative_to(ROOT).as_posix()

    @cached_property
    def text(self) -> str:
        return self.path.read_text()

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.name)


@lru_cache
def sources(*folders: str) -> tuple[Source, ...]:
    """Every Python file below these folders, by name; without arguments, of the product's packages."""
    found = (p for f in folders or PACKAGES for p in (ROOT / f).rglob("*.py"))
    return tuple(Source(p) for p in sorted(found) if "__pycache__" not in p.parts)
