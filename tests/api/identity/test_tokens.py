"""Logging in, scopes, and the end of tokens."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from typing import Any

import jwt
import pytest
from sqlalchemy import event

from api.context import Cloud
from api.identity import login as login_module
from api.tokens import DENIED, Tokens
from db import identity
from db.identity import RevokedToken, User
from db.session import now, read_session, transaction
from domain.errors import BadRequest, Unauthorized
from runtime.settings import Settings
from tests.api.identity.conftest import PASSWORDS, Keystone

UNSCOPED: Any = {"unscoped": {}}
SYSTEM: Any = {"system": {"all": True}}


def assert_denied(answer: Any) -> None:
    assert answer.status_code == 401
    assert answer.json() == {"error": {"code": 401, "message": DENIED, "title": "Unauthorized"}}
    assert answer.headers["WWW-Authenticate"].startswith("Keystone uri=")
    assert "X-Subject-Token" not in answer.headers


# --- what a login gives


def test_a_project_login_answers_with_everything_keystone_puts_into_a_token(
    keystone: Keystone,
) -> None:
    answer = keystone.login("admin")
    assert answer.status_code == 201
    assert answer.headers["Vary"] == "X-Auth-Token"
    token = answer.json()["token"]
    default = {"id": "default", "name": "Default"}
    assert token["methods"] == ["password"]
    assert token["user"] == {
        "id": keystone.id_of("user", "admin"),
        "name": "admin",
        "domain": default,
        "password_expires_at": None,
    }
    project_id = keystone.id_of("project", "admin")
    assert token["project"] == {"id": project_id, "name": "admin", "domain": default}
    assert token["is_domain"] is False
    assert [r["name"] for r in token["roles"]] == ["admin", "manager", "member", "reader"]
    assert all(r["id"] for r in token["roles"])
    assert len(token["audit_ids"]) == 1
    assert token["expires_at"].endswith(".000000Z")
    assert token["issued_at"] < token["expires_at"]


def test_a_role_comes_with_those_it_implies_and_no_other(keystone: Keystone) -> None:
    roles = keystone.login("demo").json()["token"]["roles"]
    assert [r["name"] for r in roles] == ["member", "reader"]


def test_the_catalog_names_every_service_in_three_interfaces(keystone: Keystone) -> None:
    catalog = keystone.login("demo").json()["token"]["catalog"]
    urls = {
        (s["type"], s["name"]): {e["url"] for e in s["endpoints"]}
        for s in catalog
        if {e["interface"] for e in s["endpoints"]} == {"public", "internal", "admin"}
    }
    assert urls == {
        ("compute", "nova"): {"http://testserver/compute/v2.1"},
        ("identity", "keystone"): {"http://testserver/identity"},
        ("image", "glance"): {"http://testserver/image"},
        ("network", "neutron"): {"http://testserver/network"},
        ("operations", "duranova"): {"http://testserver/operations/v1"},
    }
    ids = [e["id"] for s in catalog for e in s["endpoints"]] + [s["id"] for s in catalog]
    assert len(set(ids)) == 20
    assert {e["region_id"] for s in catalog for e in s["endpoints"]} == {"RegionOne"}
    assert keystone.login("alt").json()["token"]["catalog"] == catalog


def test_nocatalog_leaves_the_catalog_out(keystone: Keystone) -> None:
    token = keystone.token("demo")
    shown = keystone.ask(
        "GET", "/auth/tokens?nocatalog", token, headers={"X-Subject-Token": token}
    ).json()["token"]
    assert "catalog" not in shown
    assert shown["roles"]


@pytest.mark.parametrize("by", ["id", "name"])
def test_user_and_project_are_found_by_id_and_by_name_in_a_domain(
    keystone: Keystone, by: str
) -> None:
    refs = {
        "id": ({"id": keystone.id_of("user", "demo")}, {"id": keystone.id_of("project", "demo")}),
        "name": (
            {"name": "demo", "domain": {"id": "default"}},
            {"name": "demo", "domain": {"name": "Default"}},
        ),
    }
    user, project = refs[by]
    proof = {
        "methods": ["password"],
        "password": {"user": user | {"password": PASSWORDS["demo"]}},
    }
    answer = keystone.auth(proof, {"project": project})
    assert answer.json()["token"]["project"]["name"] == "demo"


@pytest.mark.parametrize("scope", [UNSCOPED, "unscoped"])
def test_an_unscoped_token_has_no_roles_and_no_catalog(keystone: Keystone, scope: Any) -> None:
    answer = keystone.login("demo", scope=scope)
    assert not {"roles", "catalog", "project", "domain", "system"} & answer.json()["token"].keys()
    text = answer.headers["X-Subject-Token"]
    assert keystone.ask("GET", "/auth/catalog", text).status_code == 403
    assert keystone.ask("GET", "/auth/projects", text).json()["projects"][0]["name"] == "demo"


def test_without_a_scope_the_default_project_is_taken_if_the_user_can_use_it(
    keystone: Keystone,
) -> None:
    proof = {
        "methods": ["password"],
        "password": {
            "user": {"name": "demo", "domain": {"id": "default"}, "password": PASSWORDS["demo"]}
        },
    }
    assert "project" not in keystone.auth(proof).json()["token"]
    path = f"/users/{keystone.id_of('user', 'demo')}"
    for name, expected in (("demo", "demo"), ("alt", None)):
        body = {"user": {"default_project_id": keystone.id_of("project", name)}}
        assert keystone.as_admin("PATCH", path, json=body).status_code == 200
        token = keystone.auth(proof).json()["token"]
        assert token.get("project", {}).get("name") == expected
    assert "project" not in keystone.auth(proof, UNSCOPED).json()["token"]


def test_system_and_domain_scopes_need_a_role_there(keystone: Keystone) -> None:
    token = keystone.login("admin", scope=SYSTEM).json()["token"]
    assert token["system"] == {"all": True}
    assert token["roles"][0]["name"] == "admin"
    assert_denied(keystone.login("demo", scope=SYSTEM))

    domain = {"domain": {"id": "default"}}
    assert_denied(keystone.login("demo", scope=domain))
    keystone.grant(keystone.id_of("user", "demo"), "reader", "domains/default")
    token = keystone.login("demo", scope=domain).json()["token"]
    assert token["domain"] == {"id": "default", "name": "Default"}
    text = keystone.token("demo", scope=domain)
    assert [d["id"] for d in keystone.ask("GET", "/auth/domains", text).json()["domains"]] == [
        "default"
    ]
    assert keystone.ask("GET", "/auth/system", text).json()["system"] == []
    assert keystone.ask("GET", "/auth/system", keystone.admin).json()["system"] == [{"all": True}]


# --- refusals


@pytest.mark.parametrize(
    "user",
    [
        {"name": "demo", "domain": {"id": "default"}, "password": "wrong"},
        {"name": "demo", "domain": {"id": "default"}, "password": ""},
        {"name": "nobody", "domain": {"id": "default"}, "password": "x"},
        {"name": "demo", "domain": {"id": "nowhere"}, "password": "demo-password"},
        {"id": "nobody", "password": "x"},
    ],
)
def test_wrong_user_and_wrong_password_get_the_same_answer(
    keystone: Keystone, user: dict[str, Any]
) -> None:
    assert_denied(keystone.auth({"methods": ["password"], "password": {"user": user}}))


def test_an_unknown_user_costs_a_password_check_too(
    keystone: Keystone, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = []

    def verify(kept: str | None, password: str) -> bool:
        checked.append((kept, password))
        return False

    monkeypatch.setattr(login_module, "verify_password", verify)
    assert_denied(keystone.login("nobody", "guess", {"unscoped": {}}))
    assert checked == [(None, "guess")]


def test_a_user_without_a_password_cannot_log_in_with_an_empty_one(keystone: Keystone) -> None:
    keystone.made("user", name="bare")
    assert_denied(keystone.login("bare", "", UNSCOPED))


@pytest.mark.parametrize(
    "scope",
    [
        {"project": {"name": "alt", "domain": {"id": "default"}}},
        {"project": {"id": "missing"}},
        {"domain": {"name": "missing"}},
    ],
)
def test_a_scope_without_a_role_is_refused_as_if_it_did_not_exist(
    keystone: Keystone, scope: Any
) -> None:
    assert_denied(keystone.login("demo", scope=scope))


@pytest.mark.parametrize(
    "auth",
    [
        {},
        {"identity": {"methods": []}},
        {"identity": {"methods": ["password"]}},
        {"identity": {"methods": ["password"], "password": {"user": {"password": "x"}}}},
        {
            "identity": {
                "methods": ["password"],
                "password": {"user": {"name": "a", "password": "x"}},
            }
        },
        {"identity": {"methods": ["password"], "password": {"user": {"id": 5, "password": "x"}}}},
        {"identity": {"methods": ["token"], "token": {}}},
        {"identity": {"methods": ["token"], "token": {"id": "x"}}, "scope": {}},
        {"identity": {"methods": ["token"], "token": {"id": "x"}}, "scope": {"project": {}}},
        {
            "identity": {"methods": ["token"], "token": {"id": "x"}},
            "scope": {"project": {"id": "a"}, "domain": {"id": "b"}},
        },
        {"identity": {"methods": ["token"], "token": {"id": "x"}}, "scope": {"system": {"all": 0}}},
    ],
)
def test_a_malformed_login_is_a_bad_request(keystone: Keystone, auth: Any) -> None:
    answer = keystone.ask("POST", "/auth/tokens", json={"auth": auth})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["title"] == "Bad Request"


def test_a_bad_request_does_not_repeat_a_password(keystone: Keystone) -> None:
    user = {"id": "x", "password": 98765}
    answer = keystone.auth({"methods": ["password"], "password": {"user": user}})
    assert answer.status_code == 400
    assert "98765" not in answer.text


def test_an_unknown_method_is_refused(keystone: Keystone) -> None:
    answer = keystone.auth({"methods": ["saml2"], "saml2": {}})
    assert answer.status_code == 401
    message = "Attempted to authenticate with an unsupported method."
    assert answer.json()["error"]["message"] == message


def test_two_methods_must_show_the_same_user(keystone: Keystone) -> None:
    demo = {"name": "demo", "domain": {"id": "default"}, "password": PASSWORDS["demo"]}
    for user, status in (("demo", 201), ("alt", 401)):
        proof = {
            "methods": ["password", "token"],
            "password": {"user": demo},
            "token": {"id": keystone.token(user)},
        }
        assert keystone.auth(proof).status_code == status


def test_requests_without_a_good_token_are_refused(keystone: Keystone) -> None:
    assert_denied(keystone.ask("GET", "/projects"))
    assert_denied(keystone.ask("GET", "/projects", "nonsense"))
    head, body, mark = keystone.admin.split(".")
    assert_denied(keystone.ask("GET", "/projects", f"{head}.{body}.{mark[::-1]}"))
    claims = jwt.decode(keystone.admin, options={"verify_signature": False})
    for forged in (
        jwt.encode(claims, "another-key-of-32-bytes-at-least!", "HS256"),
        jwt.encode(claims, None, "none"),
        jwt.encode(claims, keystone.cloud.settings.secret_key.get_secret_value(), "HS256"),
    ):
        assert_denied(keystone.ask("GET", "/projects", forged))


def test_a_short_secret_key_is_not_accepted() -> None:
    with pytest.raises(BadRequest, match="32 characters"):
        Tokens(Settings(secret_key="short"))


# --- validation and revocation


def test_anyone_may_check_and_revoke_their_own_token(keystone: Keystone) -> None:
    token = keystone.token("demo")
    subject = {"X-Subject-Token": token}
    shown = keystone.ask("GET", "/auth/tokens", token, headers=subject)
    assert shown.status_code == 200
    assert shown.headers["X-Subject-Token"] == token
    assert shown.json()["token"]["project"]["name"] == "demo"
    checked = keystone.ask("HEAD", "/auth/tokens", token, headers=subject)
    assert (checked.status_code, checked.headers["X-Subject-Token"]) == (200, token)
    assert keystone.ask("DELETE", "/auth/tokens", token, headers=subject).status_code == 204
    assert_denied(keystone.ask("GET", "/auth/projects", token))
    gone = keystone.as_admin("GET", "/auth/tokens", headers=subject)
    assert gone.status_code == 404


def test_only_an_administrator_may_look_at_or_revoke_anothers_token(keystone: Keystone) -> None:
    demo, alt = keystone.token("demo"), keystone.token("alt")
    subject = {"X-Subject-Token": demo}
    for method in ("GET", "HEAD", "DELETE"):
        assert keystone.ask(method, "/auth/tokens", alt, headers=subject).status_code == 403
    shown = keystone.as_admin("GET", "/auth/tokens", headers=subject).json()
    assert shown["token"]["user"]["name"] == "demo"
    assert keystone.as_admin("DELETE", "/auth/tokens", headers=subject).status_code == 204
    assert not keystone.good(demo)
    assert keystone.good(alt)


def test_a_check_without_a_subject_is_a_bad_request(keystone: Keystone) -> None:
    assert keystone.as_admin("GET", "/auth/tokens").status_code == 400


def test_revocations_are_forgotten_when_the_token_would_have_expired(keystone: Keystone) -> None:
    with transaction(keystone.cloud.engine) as session:
        session.add(RevokedToken(jti="old", expires_at=now() - timedelta(seconds=1)))
    token = keystone.token("demo")
    keystone.ask("DELETE", "/auth/tokens", token, headers={"X-Subject-Token": token})
    with read_session(keystone.cloud.engine) as session:
        assert session.get(RevokedToken, "old") is None
    assert not keystone.good(token)


def lasting(keystone: Keystone, seconds: int) -> str:
    """An unscoped token of ``demo`` with this life."""
    settings = keystone.cloud.settings.model_copy(update={"token_ttl_s": seconds})
    cloud = dataclasses.replace(keystone.cloud, tokens=Tokens(settings))
    user = {"name": "demo", "domain": {"id": "default"}, "password": PASSWORDS["demo"]}
    auth = login_module.Auth.model_validate(
        {"identity": {"methods": ["password"], "password": {"user": user}}}
    )
    return cloud.tokens.issue(login_module.login(cloud, auth))


def test_an_expired_token_is_refused(keystone: Keystone) -> None:
    assert keystone.good(lasting(keystone, 60))
    assert not keystone.good(lasting(keystone, -5))


def test_rescoping_keeps_the_end_and_the_audit_chain(keystone: Keystone) -> None:
    first = lasting(keystone, 60)
    began = keystone.ask("GET", "/auth/tokens", first, headers={"X-Subject-Token": first}).json()
    project = {"project": {"id": keystone.id_of("project", "demo")}}
    second = keystone.rescope(first, project)
    scoped = second.json()["token"]
    assert scoped["project"]["name"] == "demo"
    assert scoped["expires_at"] == began["token"]["expires_at"]
    assert scoped["methods"] == ["password", "token"]
    assert scoped["audit_ids"][1:] == began["token"]["audit_ids"]
    third = keystone.rescope(second.headers["X-Subject-Token"], UNSCOPED).json()["token"]
    assert third["audit_ids"][1:] == began["token"]["audit_ids"]
    assert third["methods"] == ["password", "token"]


def test_a_system_token_cannot_be_exchanged_for_one_of_a_project(keystone: Keystone) -> None:
    system = keystone.token("admin", scope=SYSTEM)
    project = {"project": {"id": keystone.id_of("project", "admin")}}
    assert keystone.rescope(system, project).status_code == 403
    assert keystone.rescope(system, SYSTEM).status_code == 201


def test_a_revoked_token_buys_no_other(keystone: Keystone) -> None:
    token = keystone.token("demo")
    keystone.ask("DELETE", "/auth/tokens", token, headers={"X-Subject-Token": token})
    assert_denied(keystone.rescope(token, UNSCOPED))


# --- what ends a token


def test_disabling_a_user_ends_their_tokens_for_good(keystone: Keystone) -> None:
    token, path = keystone.token("demo"), f"/users/{keystone.id_of('user', 'demo')}"
    keystone.as_admin("PATCH", path, json={"user": {"enabled": False}})
    assert not keystone.good(token)
    assert_denied(keystone.login("demo"))
    keystone.as_admin("PATCH", path, json={"user": {"enabled": True}})
    assert not keystone.good(token)
    assert keystone.good(keystone.token("demo"))


def test_a_new_password_ends_the_tokens_got_with_the_old(keystone: Keystone) -> None:
    token, path = keystone.token("demo"), f"/users/{keystone.id_of('user', 'demo')}"
    keystone.as_admin("PATCH", path, json={"user": {"password": "new"}})
    assert not keystone.good(token)
    assert_denied(keystone.login("demo"))
    assert keystone.good(keystone.token("demo", "new"))


def test_a_password_changed_while_it_is_being_checked_gives_a_dead_token(
    keystone: Keystone, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = login_module.verify_password

    def verify(kept: str | None, password: str) -> bool:
        good = real(kept, password)
        with transaction(keystone.cloud.engine) as session:
            user = identity.find(session, User, "demo", "default")
            assert user is not None
            identity.revoke_user_tokens(user)
        return good

    monkeypatch.setattr(login_module, "verify_password", verify)
    assert not keystone.good(keystone.token("demo"))


@pytest.mark.parametrize("scope", ["project", "domain"])
def test_disabling_what_a_token_is_for_ends_it_and_refuses_new_ones(
    keystone: Keystone, scope: str
) -> None:
    domain = keystone.made("domain", name="west")
    project = keystone.made("project", name="west-project", domain_id=domain["id"])
    demo = keystone.id_of("user", "demo")
    keystone.grant(demo, "member", f"projects/{project['id']}")
    keystone.grant(demo, "member", f"domains/{domain['id']}")
    target = {"project": {"id": project["id"]}, "domain": {"id": domain["id"]}}
    token = keystone.token("demo", scope={scope: target[scope]})
    path = f"/{scope}s/{target[scope]['id']}"
    keystone.as_admin("PATCH", path, json={scope: {"enabled": False}})
    assert not keystone.good(token)
    assert_denied(keystone.login("demo", scope={scope: target[scope]}))
    assert "west-project" not in [
        p["name"]
        for p in keystone.ask("GET", "/auth/projects", keystone.token("demo")).json()["projects"]
        if scope == "project"
    ]


def test_a_disabled_domain_closes_its_users_and_projects(keystone: Keystone) -> None:
    domain = keystone.made("domain", name="east")
    user = keystone.made("user", name="eve", password="pw", domain_id=domain["id"])
    project = keystone.made("project", name="p", domain_id=domain["id"])
    keystone.grant(user["id"], "member", f"projects/{project['id']}")
    keystone.grant(keystone.id_of("user", "demo"), "member", f"projects/{project['id']}")
    proof = {"methods": ["password"], "password": {"user": {"id": user["id"], "password": "pw"}}}
    eve = keystone.auth(proof, UNSCOPED).headers["X-Subject-Token"]
    demo = keystone.token("demo", scope={"project": {"id": project["id"]}})
    assert keystone.good(eve)
    keystone.as_admin("PATCH", f"/domains/{domain['id']}", json={"domain": {"enabled": False}})
    assert not keystone.good(eve)
    assert not keystone.good(demo)
    assert_denied(keystone.auth(proof, UNSCOPED))


def test_taking_a_role_away_ends_the_tokens_that_carry_it(keystone: Keystone) -> None:
    token = keystone.token("demo")
    path = (
        f"/projects/{keystone.id_of('project', 'demo')}/users/{keystone.id_of('user', 'demo')}"
        f"/roles/{keystone.id_of('role', 'member')}"
    )
    assert keystone.as_admin("DELETE", path).status_code == 204
    assert not keystone.good(token)
    assert_denied(keystone.login("demo"))


def test_tokens_end_with_their_user_their_project_and_their_role(keystone: Keystone) -> None:
    role = keystone.made("role", name="operator")
    for what in ("user", "project", "role"):
        user = keystone.made("user", name=f"u-{what}", password="pw")
        project = keystone.made("project", name=f"p-{what}")
        keystone.grant(user["id"], "operator", f"projects/{project['id']}")
        token = keystone.token(user["name"], "pw", {"project": {"id": project["id"]}})
        assert keystone.good(token)
        gone = {"user": user, "project": project, "role": role}[what]["id"]
        assert keystone.as_admin("DELETE", f"/{what}s/{gone}").status_code == 204
        assert not keystone.good(token)


def test_validation_is_one_statement(real_cloud: Cloud, keystone: Keystone) -> None:
    statements: list[str] = []
    event.listen(
        real_cloud.engine,
        "before_cursor_execute",
        lambda *args: statements.append(args[2]),
    )
    with read_session(real_cloud.engine) as session:
        caller = real_cloud.tokens.validate(session, keystone.admin)
    assert caller.is_admin
    assert caller.project_name == "admin"
    assert len([s for s in statements if s.startswith("SELECT")]) == 1


def test_a_caller_of_another_kind_of_signed_text_is_refused(real_cloud: Cloud) -> None:
    text = jwt.encode({"sub": "x"}, real_cloud.tokens._key, "HS256")
    with read_session(real_cloud.engine) as session, pytest.raises(Unauthorized):
        real_cloud.tokens.validate(session, text)
