"""Every route of every service is guarded by exactly one rule, and refuses whoever brings no token."""

from __future__ import annotations

import ast
import re

import pytest
from fastapi.testclient import TestClient

from api.compute.actions import ACTIONS
from api.context import Cloud
from api.microversion import MAX
from api.policy import RULES
from domain.lifecycle import LIFECYCLES
from tests.conftest import StaticTokens
from tests.routes import Walked, walk
from tests.tree import sources

PUBLIC = {
    "GET /docs",
    "GET /healthz",
    "GET /metrics",
    "GET /readyz",
    "POST /identity/v3/auth/tokens",
}
VERSION_DOCUMENT = re.compile(
    r"GET /(compute|identity|image|network|operations)/(versions|v[0-9.]+)?/?"
)
HOST = "host"
"""The mark of ``TheHost``: a host's own token instead of a caller's."""


def is_public(route: Walked) -> bool:
    return str(route) in PUBLIC or VERSION_DOCUMENT.fullmatch(str(route)) is not None


@pytest.fixture(scope="module")
def routes() -> list[Walked]:
    return walk()


def test_the_walk_finds_every_service(routes: list[Walked]) -> None:
    assert len(routes) > 200
    assert {r.service for r in routes} == {
        "", "compute", "identity", "image", "internal", "network", "operations",
    }  # fmt: skip


def test_every_route_has_exactly_one_rule_or_is_public(routes: list[Walked]) -> None:
    assert [str(r) for r in routes if is_public(r) and r.rules] == []
    assert [(str(r), set(r.rules)) for r in routes if not is_public(r) and len(r.rules) != 1] == []


def test_every_public_route_is_there(routes: list[Walked]) -> None:
    assert {str(r) for r in routes} >= PUBLIC


def test_hosts_prove_themselves_on_internal_routes_and_nowhere_else(routes: list[Walked]) -> None:
    for route in routes:
        assert (route.service == "internal") == (route.rules == {HOST}), route


def test_every_rule_on_a_route_is_in_the_table_and_every_rule_is_used(routes: list[Walked]) -> None:
    on_routes = {rule for route in routes for rule in route.rules} - {HOST}
    in_handlers = {
        node.value
        for source in sources("api")
        if source.name != "api/policy.py"
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Constant) and node.value in RULES
    }
    of_actions = {action.rule for action in ACTIONS.values()}
    of_lifecycles = {row.rule for row in LIFECYCLES.values()}
    assert on_routes | of_actions | of_lifecycles <= RULES.keys()
    assert RULES.keys() - on_routes - in_handlers - of_actions - of_lifecycles == set()


def ask(client: TestClient, route: Walked, token: str) -> int:
    """The status of an empty request to a route in the newest version that has it."""
    span = getattr(route.endpoint, "span", None)
    version = span.until if span else MAX
    headers = {"X-Auth-Token": token, "OpenStack-API-Version": f"compute {version}"}
    path = re.sub(r"{[^}]*}", "x", route.path)
    return client.request(route.method, path, json={}, headers=headers).status_code


@pytest.mark.parametrize("token", ["", "forged"])
def test_without_a_token_of_ours_every_route_but_the_public_ones_answers_401(
    routes: list[Walked], client: TestClient, token: str
) -> None:
    answered = {str(r): ask(client, r, token) for r in routes if not is_public(r)}
    assert {route: status for route, status in answered.items() if status != 401} == {}


def test_a_token_that_was_taken_back_is_refused_before_anything_else_is_said(
    routes: list[Walked], client: TestClient, cloud: Cloud
) -> None:
    assert isinstance(cloud.tokens, StaticTokens)
    cloud.tokens.revoked.add("reader")  # whom half of the routes would refuse with 403, or 400
    guarded = [r for r in routes if not is_public(r) and r.service != "internal"]
    answered = {str(r): ask(client, r, "reader") for r in guarded}
    assert {route: status for route, status in answered.items() if status != 401} == {}
