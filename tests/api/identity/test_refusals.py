"""Bad input, what is not there, and who may not."""

from __future__ import annotations

from typing import Any

import pytest

from api import identity as identity_service
from tests.api.identity.conftest import Keystone

# --- bad input


@pytest.mark.parametrize("kind", ["domain", "project", "user", "role"])
def test_names_are_unique_where_they_must_be(keystone: Keystone, kind: str) -> None:
    keystone.made(kind, name="one")
    again = keystone.as_admin("POST", f"/{kind}s", json={kind: {"name": "one"}})
    assert again.status_code == 409
    assert again.json()["error"]["title"] == "Conflict"
    other = keystone.made(kind, name="two")
    renamed = keystone.as_admin("PATCH", f"/{kind}s/{other['id']}", json={kind: {"name": "one"}})
    assert renamed.status_code == 409
    if kind in ("project", "user"):
        domain = keystone.made("domain", name="west")
        assert keystone.made(kind, name="one", domain_id=domain["id"])["name"] == "one"


BAD: list[Any] = [
    None,
    [],
    {},
    {"name": ""},
    {"name": "  "},
    {"name": None},
    {"name": 5},
    {"name": "x" * 300},
    {"name": "a\x00b"},
    {"name": "ok", "description": 5},
    {"name": "ok", "options": {"unheard_of": True}},
    {"name": "ok", "options": {"immutable": "yes"}},
]


@pytest.mark.parametrize("kind", ["domain", "project", "user", "role"])
def test_bad_attributes_are_bad_requests(keystone: Keystone, kind: str) -> None:
    switch = [] if kind == "role" else [{"name": "ok", "enabled": "yes"}]
    for given in BAD + switch:
        answer = keystone.as_admin("POST", f"/{kind}s", json={kind: given})
        assert answer.status_code == 400, (given, answer.text)
        assert answer.json()["error"]["code"] == 400


def test_half_a_surrogate_pair_is_a_bad_request(keystone: Keystone) -> None:
    json = {"Content-Type": "application/json"}
    for user in ('{"name": "\\ud800"}', '{"name": "a", "note": "\\ud800"}'):
        content = f'{{"user": {user}}}'
        answer = keystone.as_admin("POST", "/users", content=content, headers=json)
        assert answer.status_code == 400, answer.text
    assert keystone.as_admin("GET", "/users").status_code == 200


def test_references_must_exist(keystone: Keystone) -> None:
    for kind in ("project", "user"):
        given = {kind: {"name": "x", "domain_id": "nope"}}
        assert keystone.as_admin("POST", f"/{kind}s", json=given).status_code == 404
    given = {"project": {"name": "x", "parent_id": "nope"}}
    assert keystone.as_admin("POST", "/projects", json=given).status_code == 404
    for kind in ("domains", "projects", "users", "roles"):
        for method in ("GET", "DELETE"):
            assert keystone.as_admin(method, f"/{kind}/nope").status_code == 404


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/projects", {"project": {"name": "x", "is_domain": True}}),
        ("/roles", {"role": {"name": "x", "domain_id": "default"}}),
        ("/users", {"user": {"name": "x", "options": {"multi_factor_auth_enabled": True}}}),
    ],
)
def test_what_this_service_lacks_is_said_to_be_missing(
    keystone: Keystone, path: str, body: Any
) -> None:
    assert keystone.as_admin("POST", path, json=body).status_code == 501


# --- policy


def test_members_readers_and_unscoped_tokens_do_not_run_the_cloud(keystone: Keystone) -> None:
    demo, project = keystone.id_of("user", "demo"), keystone.id_of("project", "demo")
    role = keystone.id_of("role", "admin")
    tokens = [
        keystone.token("demo"),
        keystone.token("demo", scope={"unscoped": {}}),
        keystone.token("admin", scope={"unscoped": {}}),
    ]
    named = {"name": "x"}
    asks: list[tuple[str, str, Any]] = [
        ("GET", "/domains", None),
        ("GET", "/projects", None),
        ("GET", "/users", None),
        ("GET", "/roles", None),
        ("GET", "/role_assignments", None),
        ("GET", "/services", None),
        ("GET", "/endpoints", None),
        ("GET", "/groups", None),
        ("POST", "/domains", {"domain": named}),
        ("POST", "/projects", {"project": named}),
        ("POST", "/users", {"user": named}),
        ("POST", "/roles", {"role": named}),
        ("PATCH", f"/users/{demo}", {"user": {"email": "x"}}),
        ("PATCH", f"/projects/{project}", {"project": {"tags": []}}),
        ("DELETE", f"/users/{demo}", None),
        ("DELETE", f"/projects/{project}", None),
        ("PUT", f"/projects/{project}/users/{demo}/roles/{role}", None),
        ("PUT", f"/system/users/{demo}/roles/{role}", None),
        ("GET", f"/users/{keystone.id_of('user', 'alt')}", None),
        ("GET", f"/users/{keystone.id_of('user', 'alt')}/projects", None),
        ("GET", f"/projects/{keystone.id_of('project', 'alt')}", None),
    ]
    for token in tokens:
        for method, path, body in asks:
            answer = keystone.ask(method, path, token, json=body)
            assert answer.status_code == 403, (method, path, answer.text)
            assert answer.json()["error"]["title"] == "Forbidden"


def test_everyone_reads_what_is_their_own(keystone: Keystone) -> None:
    demo, token = keystone.id_of("user", "demo"), keystone.token("demo")
    project = keystone.id_of("project", "demo")
    for path in (
        f"/users/{demo}",
        f"/users/{demo}/projects",
        f"/users/{demo}/groups",
        f"/users/{demo}/application_credentials",
        f"/projects/{project}",
        f"/projects/{project}/tags",
        "/domains/default",
        "/regions",
        "/auth/projects",
        "/auth/domains",
        "/auth/system",
        "/auth/catalog",
    ):
        assert keystone.ask("GET", path, token).status_code == 200, path
    projects = keystone.ask("GET", f"/users/{demo}/projects", token).json()["projects"]
    assert [p["name"] for p in projects] == ["demo"]


def test_a_reader_of_the_system_reads_all_and_changes_nothing(keystone: Keystone) -> None:
    keystone.grant(keystone.id_of("user", "alt"), "reader", "system")
    token = keystone.token("alt", scope={"system": {"all": True}})
    for kind in ("domains", "projects", "users", "roles", "role_assignments"):
        assert keystone.ask("GET", f"/{kind}", token).status_code == 200
    answer = keystone.ask("POST", "/users", token, json={"user": {"name": "x"}})
    assert answer.status_code == 403


def test_every_route_but_discovery_and_login_has_exactly_one_rule(keystone: Keystone) -> None:
    public = set()
    for router in identity_service.routers:
        for route in router.routes:
            rules = [d.call.rule for d in route.dependant.dependencies if hasattr(d.call, "rule")]
            assert len(rules) <= 1, route.path
            if not rules:
                public |= {(m, route.path) for m in route.methods}
    assert public == {("GET", "/"), ("GET", "/v3"), ("POST", "/v3/auth/tokens")}


@pytest.mark.postgres
@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_a_nul_character_in_a_path_or_query_is_the_callers_fault(keystone: Keystone) -> None:
    for path in ("/users/a%00b", "/users?name=a%00b", "/role_assignments?user.id=%00"):
        assert keystone.as_admin("GET", path).status_code == 400
    assert keystone.as_admin("GET", "/users").status_code == 200
