"""Application credentials and the limits of the tokens got with them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from db import identity
from db.identity import ApplicationCredential, Role, Target
from db.session import now, read_session, transaction
from tests.api.identity.conftest import Keystone


def create(keystone: Keystone, user: str, token: str | None = None, **given: Any) -> Any:
    path = f"/users/{keystone.id_of('user', user)}/application_credentials"
    body = {"application_credential": {"name": "c"} | given}
    return keystone.ask("POST", path, token or keystone.token(user), json=body)


def made(keystone: Keystone, user: str, **given: Any) -> dict[str, Any]:
    answer = create(keystone, user, **given)
    assert answer.status_code == 201, answer.text
    view: dict[str, Any] = answer.json()["application_credential"]
    return view


def enter(keystone: Keystone, credential: dict[str, Any], scope: Any = None) -> Any:
    given = {"id": credential["id"], "secret": credential["secret"]}
    proof = {"methods": ["application_credential"], "application_credential": given}
    return keystone.auth(proof, scope)


def test_the_secret_is_made_and_shown_once(keystone: Keystone) -> None:
    credential = made(keystone, "demo", description="robot")
    demo = keystone.id_of("user", "demo")
    path = f"/users/{demo}/application_credentials/{credential['id']}"
    secret = credential.pop("secret")
    assert len(secret) > 80
    assert credential == {
        "id": credential["id"],
        "name": "c",
        "description": "robot",
        "user_id": demo,
        "project_id": keystone.id_of("project", "demo"),
        "system": None,
        "expires_at": None,
        "roles": [{"id": keystone.id_of("role", "member"), "name": "member", "domain_id": None}],
        "unrestricted": False,
        "links": {"self": f"http://testserver/identity/v3{path}"},
    }
    token = keystone.token("demo")
    assert keystone.ask("GET", path, token).json() == {"application_credential": credential}
    listing = keystone.ask("GET", path.rpartition("/")[0], token).json()
    assert listing["application_credentials"] == [credential]
    with read_session(keystone.cloud.engine) as session:
        row = session.get(ApplicationCredential, credential["id"])
        assert row is not None
        assert secret not in row.secret_hash


@pytest.mark.parametrize("by_name", [True, False])
def test_it_logs_in_to_its_project_by_id_or_by_name_and_user(
    keystone: Keystone, by_name: bool
) -> None:
    credential = made(keystone, "demo", secret="s3cret")
    given: dict[str, Any] = {"id": credential["id"], "secret": "s3cret"}
    if by_name:
        user = {"name": "demo", "domain": {"name": "Default"}}
        given = {"name": "c", "user": user, "secret": "s3cret"}
    answer = keystone.auth({"methods": ["application_credential"], "application_credential": given})
    token = answer.json()["token"]
    assert token["project"]["name"] == "demo"
    assert token["methods"] == ["application_credential"]
    assert [r["name"] for r in token["roles"]] == ["member", "reader"]
    claim = {"id": credential["id"], "name": "c", "restricted": True}
    assert token["application_credential"] == claim
    given["secret"] = "wrong"
    refused = keystone.auth(
        {"methods": ["application_credential"], "application_credential": given}
    )
    assert refused.status_code == 401
    unknown = {"id": "nope", "secret": "x"}
    refused = keystone.auth(
        {"methods": ["application_credential"], "application_credential": unknown}
    )
    assert refused.status_code == 401


def test_its_roles_are_those_asked_for_and_held(keystone: Keystone) -> None:
    credential = made(keystone, "admin", roles=[{"name": "reader"}])
    answer = enter(keystone, credential)
    assert [r["name"] for r in answer.json()["token"]["roles"]] == ["reader"]
    token = answer.headers["X-Subject-Token"]
    assert keystone.ask("GET", "/users", token).status_code == 403
    assert create(keystone, "demo", roles=[{"name": "admin"}]).status_code == 400
    assert create(keystone, "demo", roles=[{"name": "nope"}]).status_code == 404
    assert create(keystone, "demo", roles=[{}]).status_code == 400


def test_a_role_that_was_taken_away_does_not_come_back_through_it(keystone: Keystone) -> None:
    credential = made(keystone, "demo")
    with transaction(keystone.cloud.engine) as session:
        reader = identity.find(session, Role, "reader")
        member = identity.find(session, Role, "member")
        assert reader is not None
        assert member is not None
        target = Target("project", credential["project_id"])
        grant = identity.find_grant(session, credential["user_id"], target, member.id)
        assert grant is not None
        identity.remove_grant(session, grant)
        identity.add_grant(session, credential["user_id"], target, reader.id)
    assert enter(keystone, credential).status_code == 401


def test_a_restricted_one_makes_and_deletes_no_others(keystone: Keystone) -> None:
    credential = made(keystone, "demo")
    token = enter(keystone, credential).headers["X-Subject-Token"]
    assert create(keystone, "demo", token, name="second").status_code == 403
    path = f"/users/{credential['user_id']}/application_credentials/{credential['id']}"
    assert keystone.ask("DELETE", path, token).status_code == 403
    assert keystone.ask("GET", path, token).status_code == 200

    free = made(keystone, "demo", name="free", unrestricted=True)
    token = enter(keystone, free).headers["X-Subject-Token"]
    assert create(keystone, "demo", token, name="second").status_code == 201
    assert keystone.ask("DELETE", path, token).status_code == 204


def test_exchanging_its_token_does_not_shake_off_its_limits(keystone: Keystone) -> None:
    alt = keystone.id_of("project", "alt")
    keystone.grant(keystone.id_of("user", "demo"), "member", f"projects/{alt}")
    credential = made(keystone, "demo", roles=[{"name": "reader"}])
    token = enter(keystone, credential).headers["X-Subject-Token"]
    assert keystone.rescope(token, {"project": {"id": alt}}).status_code == 401
    assert keystone.rescope(token, {"unscoped": {}}).status_code == 401
    same = {"project": {"id": credential["project_id"]}}
    for scope in (None, same):
        renewed = keystone.rescope(token, scope)
        assert renewed.status_code == 201
        view = renewed.json()["token"]
        assert [r["name"] for r in view["roles"]] == ["reader"]
        assert view["application_credential"]["restricted"] is True
        text = renewed.headers["X-Subject-Token"]
        assert create(keystone, "demo", text, name="second").status_code == 403


def test_a_login_with_it_takes_no_scope(keystone: Keystone) -> None:
    credential = made(keystone, "demo")
    scope = {"project": {"id": credential["project_id"]}}
    assert enter(keystone, credential, scope).status_code == 401


def test_it_expires_and_its_tokens_do_not_outlive_it(keystone: Keystone) -> None:
    soon = (now() + timedelta(minutes=5)).replace(microsecond=0)
    credential = made(keystone, "demo", expires_at=soon.strftime("%Y-%m-%dT%H:%M:%S"))
    assert credential["expires_at"] == soon.strftime("%Y-%m-%dT%H:%M:%S.000000")
    view = enter(keystone, credential).json()["token"]
    assert view["expires_at"] == soon.strftime("%Y-%m-%dT%H:%M:%S.000000Z")
    with transaction(keystone.cloud.engine) as session:
        row = session.get(ApplicationCredential, credential["id"])
        assert row is not None
        row.expires_at = now() - timedelta(seconds=1)
    assert enter(keystone, credential).status_code == 401


def test_its_tokens_end_with_it(keystone: Keystone) -> None:
    credential = made(keystone, "demo")
    token = enter(keystone, credential).headers["X-Subject-Token"]
    assert keystone.good(token)
    path = f"/users/{credential['user_id']}/application_credentials/{credential['id']}"
    assert keystone.ask("DELETE", path, keystone.token("demo")).status_code == 204
    assert not keystone.good(token)
    assert enter(keystone, credential).status_code == 401


def test_only_the_user_makes_them_and_only_admins_see_anothers(keystone: Keystone) -> None:
    credential = made(keystone, "demo")
    assert create(keystone, "demo", keystone.admin, name="x").status_code == 403
    path = f"/users/{credential['user_id']}/application_credentials"
    for method, one in (("GET", path), ("GET", f"{path}/{credential['id']}")):
        assert keystone.ask(method, one, keystone.token("alt")).status_code == 403
        assert keystone.as_admin(method, one).status_code == 200
    alt = f"/users/{keystone.id_of('user', 'alt')}/application_credentials/{credential['id']}"
    assert keystone.as_admin("GET", alt).status_code == 404
    assert (
        keystone.ask("DELETE", f"{path}/{credential['id']}", keystone.token("alt")).status_code
        == 403
    )
    assert keystone.as_admin("DELETE", f"{path}/{credential['id']}").status_code == 204


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ({"name": ""}, 400),
        ({"name": None}, 400),
        ({"expires_at": "yesterday"}, 400),
        ({"expires_at": "2001-01-01T00:00:00"}, 400),
        ({"expires_at": "0001-01-01T00:00:00+14:00"}, 400),
        ({"secret": ""}, 400),
        ({"unrestricted": "no"}, 400),
        ({"access_rules": [{"path": "/v2.1/servers", "method": "GET", "service": "compute"}]}, 501),
    ],
)
def test_bad_attributes_are_refused(keystone: Keystone, given: Any, status: int) -> None:
    assert create(keystone, "demo", **given).status_code == status


def test_the_name_is_unique_for_a_user(keystone: Keystone) -> None:
    made(keystone, "demo")
    assert create(keystone, "demo").status_code == 409
    made(keystone, "alt")


def test_a_token_without_a_project_makes_none(keystone: Keystone) -> None:
    token = keystone.token("demo", scope={"unscoped": {}})
    assert create(keystone, "demo", token).status_code == 400
