"""Version documents, first start, domains, projects, users, roles and grants."""

from __future__ import annotations

from typing import Any

import pytest

from db import identity
from db.bootstrap import bootstrap
from db.identity import Project, User
from db.passwords import verify_password
from db.session import read_session, transaction
from tests.api.identity.conftest import PASSWORDS, Keystone

ROOT = "http://testserver/identity/v3"


# --- discovery


@pytest.mark.parametrize("path", ["/identity", "/identity/"])
def test_the_root_offers_its_versions_without_a_token(keystone: Keystone, path: str) -> None:
    answer = keystone.http.get(path)
    assert answer.status_code == 300
    assert answer.headers["Location"] == f"{ROOT}/"
    (version,) = answer.json()["versions"]["values"]
    assert version == {
        "id": "v3.14",
        "status": "stable",
        "updated": "2020-04-07T00:00:00Z",
        "links": [{"rel": "self", "href": f"{ROOT}/"}],
        "media-types": [
            {
                "base": "application/json",
                "type": "application/vnd.openstack.identity-v3+json",
            }
        ],
    }
    for one in ("/identity/v3", "/identity/v3/"):
        shown = keystone.http.get(one)
        assert (shown.status_code, shown.json()) == (200, {"version": version})


def test_a_slash_at_the_end_changes_nothing_and_redirects_nobody(keystone: Keystone) -> None:
    plain = keystone.as_admin("GET", "/projects")
    slashed = keystone.as_admin("GET", "/projects/")
    assert slashed.status_code == 200
    assert slashed.json() == plain.json()
    made = keystone.as_admin("POST", "/projects/", json={"project": {"name": "slashed"}})
    assert made.status_code == 201


def test_what_is_not_there_is_404_in_keystones_shape(keystone: Keystone) -> None:
    for path in ("/policies", "/nonsense", "/auth/nonsense"):
        answer = keystone.as_admin("GET", path)
        assert answer.status_code == 404
        assert answer.json()["error"]["title"] == "Not Found"
    assert keystone.as_admin("PUT", "/users").status_code == 405


# --- first start


def test_bootstrap_may_run_at_every_start(keystone: Keystone) -> None:
    def snapshot() -> dict[str, Any]:
        return {
            kind: keystone.as_admin("GET", f"/{kind}").json()[kind]
            for kind in ("domains", "projects", "users", "roles", "role_assignments")
        }

    before = snapshot()
    with transaction(keystone.cloud.engine) as session:
        bootstrap(session, {"admin": "another", "demo": "another", "alt": "another"})
    assert snapshot() == before
    assert keystone.login("demo").status_code == 201
    assert keystone.login("demo", "another").status_code == 401
    assert [r["name"] for r in before["roles"]] == ["admin", "manager", "member", "reader"]
    assert [p["name"] for p in before["projects"]] == ["admin", "alt", "demo"]


def test_bootstrap_gives_a_password_to_a_user_without_one(keystone: Keystone) -> None:
    path = f"/users/{keystone.id_of('user', 'demo')}"
    keystone.as_admin("PATCH", path, json={"user": {"password": None}})
    assert keystone.login("demo").status_code == 401
    with transaction(keystone.cloud.engine) as session:
        bootstrap(session, {"demo": "given-later"})
    assert keystone.login("demo", "given-later").status_code == 201


# --- domains


def test_a_domain_lives_and_dies_as_in_keystone(keystone: Keystone) -> None:
    made = keystone.made("domain", name="west", description="far", color="red")
    path = f"/domains/{made['id']}"
    assert made == {
        "id": made["id"],
        "name": "west",
        "description": "far",
        "enabled": True,
        "tags": [],
        "options": {},
        "color": "red",
        "links": {"self": f"{ROOT}{path}"},
    }
    assert keystone.as_admin("GET", path).json() == {"domain": made}
    listing = keystone.as_admin("GET", "/domains?name=west").json()
    assert listing == {
        "domains": [made],
        "links": {"next": None, "self": f"{ROOT}/domains?name=west", "previous": None},
    }
    assert keystone.as_admin("DELETE", path).status_code == 403  # enabled
    user = keystone.made("user", name="w", domain_id=made["id"])
    project = keystone.made("project", name="w", domain_id=made["id"])
    changed = keystone.as_admin("PATCH", path, json={"domain": {"enabled": False}})
    assert changed.json() == {"domain": made | {"enabled": False}}
    assert keystone.as_admin("GET", "/domains?enabled=false").json()["domains"][0]["name"] == "west"
    assert keystone.as_admin("DELETE", path).status_code == 204
    for gone in (path, f"/users/{user['id']}", f"/projects/{project['id']}"):
        assert keystone.as_admin("GET", gone).status_code == 404


# --- projects


def test_a_project_is_shown_as_keystone_shows_it(keystone: Keystone) -> None:
    made = keystone.made("project", name="p", description="d", tags=["a", "b"])
    assert made == {
        "id": made["id"],
        "name": "p",
        "domain_id": "default",
        "description": "d",
        "enabled": True,
        "parent_id": "default",
        "is_domain": False,
        "tags": ["a", "b"],
        "options": {},
        "links": {"self": f"{ROOT}/projects/{made['id']}"},
    }
    assert len(made["id"]) == 32
    path = f"/projects/{made['id']}"
    changed = keystone.as_admin("PATCH", path, json={"project": {"name": "q", "cost": 5}})
    assert changed.json()["project"] == made | {"name": "q", "cost": 5}
    assert keystone.as_admin("GET", path).json()["project"]["cost"] == 5
    assert keystone.as_admin("DELETE", path).status_code == 204
    gone = keystone.as_admin("GET", path)
    assert gone.status_code == 404
    assert gone.json()["error"]["message"] == f"Could not find project: {made['id']}."


def test_projects_are_filtered_by_name_domain_parent_state_and_tags(keystone: Keystone) -> None:
    domain = keystone.made("domain", name="west")
    top = keystone.made("project", name="top", domain_id=domain["id"], tags=["x", "y"])
    keystone.made("project", name="low", parent_id=top["id"], enabled=False, tags=["y"])

    def names(query: str) -> list[str]:
        found = keystone.as_admin("GET", f"/projects?{query}").json()["projects"]
        return [p["name"] for p in found]

    here = f"domain_id={domain['id']}"
    assert names("name=top") == ["top"]
    assert names(here) == ["low", "top"]
    assert names(f"parent_id={top['id']}") == ["low"]
    assert names(f"parent_id={domain['id']}") == ["top"]
    assert names(f"{here}&enabled=True") == ["top"]
    assert names(f"{here}&enabled=0") == ["low"]
    assert names("tags=x,y") == ["top"]
    assert names("tags-any=x,z") == ["top"]
    assert names(f"{here}&not-tags=x,y") == ["low"]
    assert names("tags=y&not-tags-any=x") == ["low"]
    assert names("is_domain=true") == []
    assert names("unknown=filter") == ["admin", "alt", "demo", "low", "top"]


def test_the_project_tree_is_kept_whole(keystone: Keystone) -> None:
    top = keystone.made("project", name="top")
    low = keystone.made("project", name="low", parent_id=top["id"])
    assert low["parent_id"] == top["id"]
    shown = keystone.as_admin("GET", f"/projects/{low['id']}?parents_as_ids").json()["project"]
    assert shown["parents"] == {top["id"]: {"default": None}}
    shown = keystone.as_admin("GET", f"/projects/{top['id']}?subtree_as_ids").json()["project"]
    assert shown["subtree"] == {low["id"]: None}
    assert keystone.as_admin("DELETE", f"/projects/{top['id']}").status_code == 403
    moved = {"project": {"parent_id": keystone.id_of("project", "demo")}}
    assert keystone.as_admin("PATCH", f"/projects/{low['id']}", json=moved).status_code == 403
    elsewhere = {"project": {"domain_id": "other"}}
    assert keystone.as_admin("PATCH", f"/projects/{low['id']}", json=elsewhere).status_code == 400


def test_project_tags_can_be_set_one_by_one(keystone: Keystone) -> None:
    path = f"/projects/{keystone.id_of('project', 'demo')}/tags"
    assert keystone.as_admin("PUT", f"{path}/red").status_code == 201
    assert keystone.as_admin("PUT", f"{path}/red").status_code == 201
    assert keystone.as_admin("PUT", f"{path}/a,b").status_code == 400
    assert keystone.as_admin("GET", path).json()["tags"] == ["red"]
    assert keystone.as_admin("GET", f"{path}/red").status_code == 204
    assert keystone.as_admin("GET", f"{path}/blue").status_code == 404
    replaced = keystone.as_admin("PUT", path, json={"tags": ["blue", "green"]})
    assert replaced.json()["tags"] == ["blue", "green"]
    assert keystone.as_admin("DELETE", f"{path}/blue").status_code == 204
    assert keystone.as_admin("DELETE", f"{path}/blue").status_code == 404
    assert keystone.as_admin("GET", path).json()["tags"] == ["green"]
    assert keystone.as_admin("DELETE", path).status_code == 204
    assert keystone.as_admin("GET", path).json()["tags"] == []


def test_immutable_things_are_not_changed_or_deleted(keystone: Keystone) -> None:
    for kind in ("project", "role", "domain"):
        made = keystone.made(kind, name="stone", options={"immutable": True})
        path = f"/{kind}s/{made['id']}"
        assert keystone.as_admin("DELETE", path).status_code == 403
        sneaky = {kind: {"name": "sand", "options": {}}}
        assert keystone.as_admin("PATCH", path, json=sneaky).status_code == 403
        lifted = {kind: {"enabled": False, "options": {"immutable": None}}}
        assert keystone.as_admin("PATCH", path, json=lifted).json()[kind]["options"] == {}
        assert keystone.as_admin("DELETE", path).status_code == 204


# --- users


def test_a_user_is_shown_as_keystone_shows_it_and_never_with_a_password(
    keystone: Keystone,
) -> None:
    project_id = keystone.id_of("project", "demo")
    made = keystone.made(
        "user",
        name="eve",
        password="pw",
        email="eve@example.org",
        description="tester",
        default_project_id=project_id,
        options={"ignore_password_expiry": True},
        team="blue",
    )
    assert made == {
        "id": made["id"],
        "name": "eve",
        "domain_id": "default",
        "enabled": True,
        "password_expires_at": None,
        "email": "eve@example.org",
        "description": "tester",
        "default_project_id": project_id,
        "options": {"ignore_password_expiry": True},
        "team": "blue",
        "links": {"self": f"{ROOT}/users/{made['id']}"},
    }
    with read_session(keystone.cloud.engine) as session:
        row = identity.get(session, User, made["id"])
        assert row.password_hash is not None
        assert row.password_hash.startswith("$argon2id$")
        assert verify_password(row.password_hash, "pw")
        assert "pw" not in str(row.extra)


def test_a_user_changes_and_goes(keystone: Keystone) -> None:
    project_id = keystone.id_of("project", "demo")
    made = keystone.made("user", name="eve", default_project_id=project_id)
    path = f"/users/{made['id']}"
    changed = keystone.as_admin(
        "PATCH", path, json={"user": {"default_project_id": None, "email": "new@example.org"}}
    ).json()["user"]
    assert "default_project_id" not in changed
    assert changed["email"] == "new@example.org"
    assert keystone.as_admin("DELETE", path).status_code == 204
    assert keystone.as_admin("GET", path).status_code == 404


def test_users_are_filtered(keystone: Keystone) -> None:
    domain = keystone.made("domain", name="west")
    keystone.made("user", name="w", domain_id=domain["id"], enabled=False)

    def names(query: str) -> list[str]:
        return [u["name"] for u in keystone.as_admin("GET", f"/users?{query}").json()["users"]]

    assert names("name=demo") == ["demo"]
    assert names(f"domain_id={domain['id']}") == ["w"]
    assert names("enabled=false") == ["w"]
    assert names("enabled=true") == ["admin", "alt", "demo"]


def test_a_user_changes_the_own_password_by_knowing_the_old(keystone: Keystone) -> None:
    demo, token = keystone.id_of("user", "demo"), keystone.token("demo")
    path = f"/users/{demo}/password"
    wrong = {"user": {"password": "new", "original_password": "wrong"}}
    assert keystone.ask("POST", path, token, json=wrong).status_code == 401
    right = {"user": {"password": "new", "original_password": PASSWORDS["demo"]}}
    assert keystone.as_admin("POST", path, json=right).status_code == 403
    assert keystone.good(token)
    assert keystone.ask("POST", path, token, json=right).status_code == 204
    assert not keystone.good(token)
    assert keystone.login("demo").status_code == 401
    token = keystone.token("demo", "new")
    lock = {"user": {"options": {"lock_password": True}}}
    keystone.as_admin("PATCH", f"/users/{demo}", json=lock)
    back = {"user": {"password": "newer", "original_password": "new"}}
    assert keystone.ask("POST", path, token, json=back).status_code == 403


def test_a_change_of_password_that_is_sent_again_with_a_new_token_has_been_done(
    keystone: Keystone,
) -> None:
    path = f"/users/{keystone.id_of('user', 'demo')}/password"
    change = {"user": {"password": "new", "original_password": PASSWORDS["demo"]}}
    for password in (PASSWORDS["demo"], "new"):
        headers = {"Idempotency-Key": "k", "X-Auth-Token": keystone.token("demo", password)}
        answer = keystone.ask("POST", path, json=change, headers=headers)
        assert answer.status_code == 204
    assert answer.headers["Idempotency-Replayed"] == "true"


def test_hashing_holds_no_transaction_open(
    keystone: Keystone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a password is hashed or checked another writer must get through at once."""
    wrote = []

    def write(*_: Any) -> str:
        with transaction(keystone.cloud.engine) as session:
            session.add(Project(name=f"meanwhile-{len(wrote)}", domain_id="default"))
        wrote.append(1)
        return "$hash"

    def check(*_: Any) -> bool:
        return bool(write())

    monkeypatch.setattr("api.identity.users.hash_password", write)
    monkeypatch.setattr("api.identity.users.verify_password", check)
    monkeypatch.setattr("api.identity.application_credentials.hash_password", write)
    token, demo = keystone.token("demo"), keystone.id_of("user", "demo")
    keystone.made("user", name="eve", password="x")
    keystone.as_admin("PATCH", f"/users/{demo}/", json={"user": {"name": "demo"}})
    credential = {"application_credential": {"name": "c"}}
    path = f"/users/{demo}/application_credentials"
    assert keystone.ask("POST", path, token, json=credential).status_code == 201
    change = {"user": {"password": "new", "original_password": "old"}}
    assert keystone.ask("POST", f"/users/{demo}/password", token, json=change).status_code == 204
    assert len(wrote) == 4


# --- roles and grants


def test_roles_live_and_die(keystone: Keystone) -> None:
    made = keystone.made("role", name="operator", description="d")
    assert made["domain_id"] is None
    assert made["links"] == {"self": f"{ROOT}/roles/{made['id']}"}
    path = f"/roles/{made['id']}"
    changed = keystone.as_admin("PATCH", path, json={"role": {"name": "op"}}).json()["role"]
    assert changed == made | {"name": "op"}
    assert keystone.as_admin("GET", "/roles?name=op").json()["roles"] == [changed]
    assert keystone.as_admin("DELETE", path).status_code == 204
    assert keystone.as_admin("GET", path).status_code == 404


def test_which_role_implies_which_is_told(keystone: Keystone) -> None:
    rules = keystone.as_admin("GET", "/role_inferences").json()["role_inferences"]
    told = {r["prior_role"]["name"]: [i["name"] for i in r["implies"]] for r in rules}
    assert told == {
        "admin": ["manager"],
        "manager": ["member"],
        "member": ["reader"],
    }
    path = f"/roles/{keystone.id_of('role', 'member')}/implies"
    implied = keystone.as_admin("GET", path).json()["role_inference"]["implies"]
    assert [i["name"] for i in implied] == ["reader"]


@pytest.mark.parametrize("kind", ["projects", "domains", "system"])
def test_a_grant_is_made_checked_listed_and_taken_back(keystone: Keystone, kind: str) -> None:
    where = {
        "projects": f"/projects/{keystone.id_of('project', 'alt')}",
        "domains": "/domains/default",
        "system": "/system",
    }[kind]
    roles = f"{where}/users/{keystone.id_of('user', 'demo')}/roles"
    path = f"{roles}/{keystone.id_of('role', 'reader')}"
    assert keystone.as_admin("HEAD", path).status_code == 404
    missing = keystone.as_admin("GET", path)
    assert missing.status_code == 404
    assert missing.json()["error"]["message"].startswith("Could not find role assignment with role")
    assert keystone.as_admin("DELETE", path).status_code == 404
    for _ in range(2):
        assert keystone.as_admin("PUT", path).status_code == 204
    assert keystone.as_admin("HEAD", path).status_code == 204
    assert keystone.as_admin("GET", path).status_code == 204
    assert [r["name"] for r in keystone.as_admin("GET", roles).json()["roles"]] == ["reader"]
    assert keystone.as_admin("DELETE", path).status_code == 204
    assert keystone.as_admin("GET", roles).json()["roles"] == []


def test_grants_name_what_exists(keystone: Keystone) -> None:
    project, user = keystone.id_of("project", "demo"), keystone.id_of("user", "demo")
    role = keystone.id_of("role", "member")
    for path in (
        f"/projects/nope/users/{user}/roles/{role}",
        f"/projects/{project}/users/nope/roles/{role}",
        f"/projects/{project}/users/{user}/roles/nope",
        f"/domains/nope/users/{user}/roles/{role}",
        f"/system/users/nope/roles/{role}",
    ):
        for method in ("PUT", "HEAD", "GET", "DELETE"):
            assert keystone.as_admin(method, path).status_code == 404


def test_role_assignments_are_listed_by_every_filter(keystone: Keystone) -> None:
    demo, project = keystone.id_of("user", "demo"), keystone.id_of("project", "demo")
    member, reader = keystone.id_of("role", "member"), keystone.id_of("role", "reader")
    keystone.grant(demo, "reader", "domains/default")

    def ask(query: str) -> Any:
        return keystone.as_admin("GET", f"/role_assignments?{query}").json()["role_assignments"]

    on_project = {
        "role": {"id": member},
        "user": {"id": demo},
        "scope": {"project": {"id": project}},
        "links": {"assignment": f"{ROOT}/projects/{project}/users/{demo}/roles/{member}"},
    }
    assert ask(f"user.id={demo}&scope.project.id={project}") == [on_project]
    assert on_project in ask("")
    assert ask(f"scope.domain.id=default&role.id={reader}")[0]["scope"] == {
        "domain": {"id": "default"}
    }
    assert [a["scope"] for a in ask("scope.system=all")] == [{"system": {"all": True}}]
    assert ask("group.id=any") == []
    effective = ask(f"scope.project.id={project}&effective")
    assert [a["role"]["id"] for a in effective] == [member, reader]
    assert "prior_role" in effective[1]["links"]
    assert ask(f"user.id={demo}&scope.project.id={project}&role.id={reader}") == []
    assert len(ask(f"scope.project.id={project}&role.id={reader}&effective=True")) == 1
    assert ask(f"scope.project.id={project}&effective=0") == [on_project]
    (named,) = ask(f"scope.project.id={project}&include_names=True")
    default = {"id": "default", "name": "Default"}
    assert named["user"] == {"id": demo, "name": "demo", "domain": default}
    assert named["role"] == {"id": member, "name": "member"}
    assert named["scope"] == {"project": {"id": project, "name": "demo", "domain": default}}
    low = keystone.made("project", name="low", parent_id=project)
    keystone.grant(demo, "member", f"projects/{low['id']}")
    assert len(ask(f"scope.project.id={project}&include_subtree=True")) == 2
    both = "/role_assignments?scope.project.id=a&scope.domain.id=b"
    assert keystone.as_admin("GET", both).status_code == 400


def test_deleting_a_project_leaves_no_grant_behind(keystone: Keystone) -> None:
    project = keystone.made("project", name="p")
    keystone.grant(keystone.id_of("user", "demo"), "member", f"projects/{project['id']}")
    keystone.as_admin("DELETE", f"/projects/{project['id']}")
    with read_session(keystone.cloud.engine) as session:
        assert identity.search_grants(session, target_id=project["id"]) == []
    assert keystone.as_admin("GET", "/role_assignments?include_names=1").status_code == 200


# --- the read-only rest


def test_services_endpoints_and_regions_agree_with_the_catalog(keystone: Keystone) -> None:
    catalog = keystone.as_admin("GET", "/auth/catalog").json()["catalog"]
    services = keystone.as_admin("GET", "/services").json()["services"]
    assert [(s["id"], s["type"], s["name"]) for s in services] == [
        (s["id"], s["type"], s["name"]) for s in catalog
    ]
    (compute,) = keystone.as_admin("GET", "/services?type=compute").json()["services"]
    assert keystone.as_admin("GET", f"/services/{compute['id']}").json()["service"] == compute
    query = f"/endpoints?service_id={compute['id']}&interface=admin"
    (endpoint,) = keystone.as_admin("GET", query).json()["endpoints"]
    assert endpoint["url"] == "http://testserver/compute/v2.1"
    assert endpoint["id"] in {e["id"] for s in catalog for e in s["endpoints"]}
    assert keystone.as_admin("GET", f"/endpoints/{endpoint['id']}").json()["endpoint"] == endpoint
    (region,) = keystone.as_admin("GET", "/regions").json()["regions"]
    assert keystone.as_admin("GET", "/regions/RegionOne").json() == {"region": region}
    for kind in ("services", "endpoints", "regions"):
        assert keystone.as_admin("GET", f"/{kind}/nope").status_code == 404


def test_there_are_no_groups(keystone: Keystone) -> None:
    assert keystone.as_admin("GET", "/groups").json()["groups"] == []
    path = f"/users/{keystone.id_of('user', 'demo')}/groups"
    assert keystone.ask("GET", path, keystone.token("demo")).json()["groups"] == []
    assert keystone.as_admin("GET", "/groups/x").status_code == 404
    assert keystone.as_admin("POST", "/groups", json={"group": {"name": "g"}}).status_code == 501
