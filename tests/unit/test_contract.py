"""The seam between workflows and activities is whole: declared, implemented, registered, given a policy."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any

import pytest
from temporalio import activity

from activities.control.control import Control
from activities.host.guests import Guests
from domain.lifecycle import LIFECYCLES
from tests.tree import PYPROJECT, ROOT, Source
from workers.registry import declared, implemented
from workflows.catalog import WORKFLOWS
from workflows.contract import ControlActivities, HostActivities
from workflows.policies import POLICIES

CONTRACTS: dict[type[Any], type[Any]] = {ControlActivities: Control, HostActivities: Guests}


def test_every_public_method_of_a_contract_is_an_activity() -> None:
    for contract in CONTRACTS:
        methods = [n for n, _ in inspect.getmembers(contract, inspect.isfunction) if n[0] != "_"]
        assert declared(contract) == sorted(methods)


def test_activity_names_are_unique_over_all_contracts() -> None:
    names = [name for contract in CONTRACTS for name in declared(contract)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("contract", CONTRACTS)
def test_each_activity_is_implemented_once_and_decorated(contract: type[Any]) -> None:
    implementation = CONTRACTS[contract]
    bound = implemented(object.__new__(implementation), contract)
    assert sorted(method.__name__ for method in bound) == declared(contract)
    ours = [c for c in contract.__subclasses__() if c.__module__.startswith("activities.")]
    assert ours == [implementation]


def test_an_override_without_its_decorator_is_refused() -> None:
    class Forgetful(Guests):
        async def spawn_guest(self, cmd: object) -> object:  # type: ignore[override]  # the mistake
            return cmd

    with pytest.raises(TypeError, match="spawn_guest is no activity"):
        implemented(object.__new__(Forgetful), HostActivities)


def test_each_contract_is_registered_by_exactly_one_worker() -> None:
    workers = [Source(p) for p in sorted((ROOT / "workers").glob("*.py")) if p.stem != "registry"]
    for contract in CONTRACTS:
        users = [w.name for w in workers if f", {contract.__name__})" in w.text]
        assert len(users) == 1, users


def test_policies_and_declared_activities_are_the_same_names() -> None:
    assert sorted(POLICIES) == sorted(n for contract in CONTRACTS for n in declared(contract))


def test_control_activities_are_local_or_long_and_host_ones_are_on_their_host() -> None:
    for name in declared(ControlActivities):
        policy = POLICIES[name]
        assert policy.local or (policy.heartbeat and not policy.on_host), name
    for name in declared(HostActivities):
        assert not POLICIES[name].local, name
        assert POLICIES[name].on_host, name
        assert POLICIES[name].heartbeat, f"{name}: a cancel is delivered with a heartbeat"


def test_every_lifecycle_has_its_workflow_in_the_catalog() -> None:
    names = {workflow.__name__ for workflow in WORKFLOWS}
    assert {row.workflow for row in LIFECYCLES.values()} <= names


def test_every_workflow_of_the_package_is_in_the_catalog() -> None:
    """A workflow that no worker runs would wait for ever."""
    listed = {workflow.__name__ for workflow in WORKFLOWS}
    written = {
        node.name
        for path in sorted((ROOT / "workflows").glob("*.py"))
        for node in Source(path).tree.body
        if isinstance(node, ast.ClassDef) and _is_workflow(node)
    }
    assert written == listed


def _is_workflow(node: ast.ClassDef) -> bool:
    return any(isinstance(d, ast.Attribute) and d.attr == "defn" for d in node.decorator_list)


def test_commands_and_results_are_one_frozen_dataclass_each() -> None:
    """Fields can be added later without breaking histories; a second argument could not."""
    for contract in CONTRACTS:
        for name in declared(contract):
            definition = activity._Definition.must_from_callable(getattr(contract, name))
            [command] = definition.arg_types or []
            assert command.__dataclass_params__.frozen, name


def test_the_import_rule_names_every_workflow_module_but_the_contract() -> None:
    [rule] = [
        c
        for c in PYPROJECT["tool"]["importlinter"]["contracts"]
        if c["name"] == "activities see workflows only through the contract"
    ]
    modules = {f"workflows.{p.stem}" for p in Path(ROOT / "workflows").glob("*.py")}
    assert set(rule["forbidden_modules"]) == modules - {"workflows.__init__", "workflows.contract"}
