"""Flat packages cost one thing: their names could belong to somebody else, too. These tests pay for it."""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.tree import PACKAGES, PYPROJECT, ROOT


@pytest.mark.parametrize("name", PACKAGES)
def test_no_other_distribution_owns_the_name(name: str) -> None:
    owners = set(packages_distributions().get(name, [])) - {"duranova"}
    assert owners == set()


@pytest.mark.parametrize("name", PACKAGES)
def test_the_package_that_is_imported_is_the_one_of_this_tree(name: str) -> None:
    found = importlib.import_module(name).__file__
    assert found is not None
    assert Path(found).resolve().is_relative_to(ROOT)


@pytest.mark.parametrize("name", PACKAGES)
def test_no_package_hides_a_module_of_the_standard_library(name: str) -> None:
    assert name not in sys.stdlib_module_names


def test_every_package_of_the_tree_is_shipped_and_under_the_import_rules() -> None:
    here = {p.parent.name for p in ROOT.glob("*/__init__.py")} - {"tests", "bench", "chaos"}
    assert here == set(PACKAGES)
    assert set(PYPROJECT["tool"]["importlinter"]["root_packages"]) == here
    assert set(PYPROJECT["tool"]["mypy"]["packages"]) == here | {"bench", "chaos"}
