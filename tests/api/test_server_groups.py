"""Server groups over HTTP."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine

from db.quotas import set_limit
from db.servers import Server
from db.session import now, reading, transaction
from tests.conftest import acting_as

ROOT = "/compute/v2.1/os-server-groups"


def at(version: str, who: str = "member") -> dict[str, str]:
    return {**acting_as(who), "OpenStack-API-Version": f"compute {version}"}


def create(client: TestClient, version: str = "2.64", who: str = "member", **group: Any) -> Any:
    if version == "2.64" and "policy" not in group and "policies" not in group:
        group["policy"] = "anti-affinity"
    body = {"server_group": {"name": "g", **group}}
    return client.post(ROOT, json=body, headers=at(version, who))


def make(client: TestClient, **group: Any) -> str:
    made: str = create(client, **group).json()["server_group"]["id"]
    return made


def test_the_old_form_has_policies_and_the_new_one_a_policy(client: TestClient) -> None:
    old = create(client, "2.1", policies=["affinity"])
    assert old.status_code == 200
    group = old.json()["server_group"]
    assert group == {
        "id": group["id"], "name": "g", "policies": ["affinity"], "metadata": {}, "members": [],
    }  # fmt: skip
    new = client.get(f"{ROOT}/{group['id']}", headers=at("2.64")).json()["server_group"]
    assert new == {
        "id": group["id"], "name": "g", "policy": "affinity", "rules": {}, "members": [],
        "project_id": "project-demo", "user_id": "user-member",
    }  # fmt: skip
    middle = client.get(f"{ROOT}/{group['id']}", headers=at("2.13")).json()["server_group"]
    assert middle.keys() == group.keys() | {"project_id", "user_id"}


def test_rules_are_shown_as_they_were_asked_for(client: TestClient) -> None:
    ruled = create(client, rules={"max_server_per_host": "3"}).json()["server_group"]
    assert ruled["rules"] == {"max_server_per_host": 3}
    assert create(client).json()["server_group"]["rules"] == {}
    one = create(client, rules={"max_server_per_host": 1}).json()["server_group"]
    assert one["rules"] == {"max_server_per_host": 1}
    refused = create(client, policy="affinity", rules={"max_server_per_host": 3})
    assert refused.status_code == 400
    assert "Only anti-affinity policy supports rules." in refused.text


@pytest.mark.parametrize(
    ("version", "policy", "status"),
    [
        ("2.14", "soft-affinity", 400),
        ("2.15", "soft-affinity", 200),
        ("2.15", "soft-anti-affinity", 200),
        ("2.15", "random", 400),
    ],
)
def test_soft_policies_come_with_their_version(
    client: TestClient, version: str, policy: str, status: int
) -> None:
    assert create(client, version, policies=[policy]).status_code == status


@pytest.mark.parametrize(
    ("version", "group"),
    [
        ("2.1", {}),
        ("2.1", {"policies": []}),
        ("2.1", {"policies": ["affinity", "anti-affinity"]}),
        ("2.1", {"policies": "affinity"}),
        ("2.1", {"policies": None}),
        ("2.1", {"policy": "affinity"}),
        ("2.63", {"policies": ["affinity"], "rules": {}}),
        ("2.64", {"policies": ["affinity"]}),
        ("2.64", {"policy": None}),
        ("2.64", {"policy": "anti-affinity", "rules": {"max_server_per_host": 0}}),
        ("2.64", {"policy": "anti-affinity", "rules": {"colour": 1}}),
        ("2.64", {"policy": "anti-affinity", "name": " g"}),
        ("2.64", {"policy": "anti-affinity", "name": "x" * 256}),
        ("2.64", {"policy": "anti-affinity", "metadata": {}}),
    ],
)
def test_a_bad_group_is_a_400(client: TestClient, version: str, group: dict[str, Any]) -> None:
    answer = create(client, version, **group)
    assert answer.status_code == 400
    assert client.get(ROOT).json() == {"server_groups": []}


def test_members_are_the_servers_that_live(client: TestClient, engine: Engine) -> None:
    group = make(client)
    at_first = now()
    with transaction(engine) as session:
        for n, gone in enumerate([None, at_first, None]):
            session.add(
                Server(
                    id=f"s{n}", project_id="project-demo", user_id="user-member", name="s",
                    group_id=group, deleted_at=gone, created_at=at_first + timedelta(seconds=n),
                )
            )  # fmt: skip
    assert client.get(f"{ROOT}/{group}").json()["server_group"]["members"] == ["s0", "s2"]
    assert client.get(ROOT).json()["server_groups"][0]["members"] == ["s0", "s2"]


def test_delete_leaves_the_servers_without_a_group(client: TestClient, engine: Engine) -> None:
    group = make(client)
    with transaction(engine) as session:
        session.add(
            Server(id="s", project_id="project-demo", user_id="u", name="s", group_id=group)
        )
    answer = client.delete(f"{ROOT}/{group}")
    assert (answer.status_code, answer.content) == (204, b"")
    assert client.delete(f"{ROOT}/{group}").status_code == 404
    with reading(engine) as session:
        server = session.get(Server, "s")
        assert server is not None
        assert server.group_id is None


def test_another_projects_group_is_not_found(client: TestClient) -> None:
    group = make(client)
    for call in (client.get, client.delete):
        answer = call(f"{ROOT}/{group}", headers=acting_as("alt"))
        assert answer.status_code == 404
        message = answer.json()["itemNotFound"]["message"]
        assert message == f"Instance group {group} could not be found."
    assert client.get(f"{ROOT}/{group}", headers=acting_as("admin")).status_code == 200


def test_only_admins_list_all_projects(client: TestClient) -> None:
    mine, other = make(client), make(client, who="alt")

    def listed(who: str, query: str = "") -> list[str]:
        answer = client.get(f"{ROOT}{query}", headers=acting_as(who)).json()
        return [g["id"] for g in answer["server_groups"]]

    assert listed("member") == [mine]
    assert listed("member", "?all_projects=1") == [mine]
    assert listed("admin") == []
    assert listed("admin", "?all_projects") == [mine, other]
    assert listed("admin", "?all_projects=1&offset=1&limit=5") == [other]
    assert listed("admin", "?all_projects=1&limit=1") == [mine]


def test_a_bad_query_is_a_400(client: TestClient) -> None:
    assert client.get(f"{ROOT}?limit=-1").status_code == 400
    assert client.get(f"{ROOT}?offset=x").status_code == 400
    assert client.get(f"{ROOT}?a=b", headers=at("2.75")).status_code == 400


def test_readers_read_only(client: TestClient) -> None:
    group = make(client)
    assert client.get(f"{ROOT}/{group}", headers=acting_as("reader")).status_code == 200
    assert client.delete(f"{ROOT}/{group}", headers=acting_as("reader")).status_code == 403
    assert create(client, who="reader").status_code == 403


def test_the_quota_of_groups_holds(client: TestClient, engine: Engine) -> None:
    with transaction(engine) as session:
        set_limit(session, "project-demo", "server_groups", 1)
    make(client)
    answer = create(client)
    assert answer.status_code == 403
    message = answer.json()["forbidden"]["message"]
    assert message == "Quota exceeded, too many server groups."
    assert create(client, who="alt").status_code == 200
