"""Quota sets, quota classes and limits over HTTP."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine

from db.identity import Domain, Project
from db.servers import Server
from db.session import now, transaction
from runtime.settings import Settings
from tests.conftest import acting_as

ROOT = "/compute/v2.1"
DEMO = f"{ROOT}/os-quota-sets/project-demo"
ADMIN = acting_as("admin")
MODERN = {
    "instances", "cores", "ram", "metadata_items", "key_pairs", "server_groups", "server_group_members",
}  # fmt: skip
FILES = {"injected_files", "injected_file_content_bytes", "injected_file_path_bytes"}
NETWORK = {"fixed_ips", "floating_ips", "security_groups", "security_group_rules"}


def at(version: str, who: str = "admin") -> dict[str, str]:
    return {**acting_as(who), "OpenStack-API-Version": f"compute {version}"}


@pytest.fixture(autouse=True)
def projects(engine: Engine) -> None:
    with transaction(engine) as session:
        session.add(Domain(id="default", name="Default"))
        session.flush()
        for name in ("demo", "alt"):
            session.add(Project(id=f"project-{name}", domain_id="default", name=name))


def server(project: str = "demo", user: str = "member", **more: Any) -> Server:
    return Server(
        project_id=f"project-{project}",
        user_id=f"user-{user}",
        name="s",
        vcpus=2,
        ram_mb=512,
        **more,
    )


def put(client: TestClient, url: str = DEMO, **limits: Any) -> Any:
    return client.put(url, json={"quota_set": limits}, headers=ADMIN)


def test_the_defaults_come_from_the_settings(client: TestClient, settings: Settings) -> None:
    expected = {"id": "project-demo", **settings.quota_defaults}
    for url in (DEMO, f"{DEMO}/defaults"):
        assert client.get(url, headers=at("2.57", "member")).json() == {"quota_set": expected}


@pytest.mark.parametrize(
    ("version", "names"),
    [
        ("2.35", MODERN | FILES | NETWORK),
        ("2.36", MODERN | FILES),
        ("2.56", MODERN | FILES),
        ("2.57", MODERN),
        ("2.96", MODERN),
    ],
)
def test_the_resources_of_a_version(client: TestClient, version: str, names: set[str]) -> None:
    for url in (DEMO, f"{DEMO}/defaults", f"{DEMO}/detail"):
        shown = client.get(url, headers=at(version)).json()["quota_set"]
        assert shown.keys() == names | {"id"}
    changed = client.put(DEMO, json={"quota_set": {}}, headers=at(version)).json()["quota_set"]
    assert changed.keys() == names
    for name in NETWORK | FILES:
        answer = client.put(DEMO, json={"quota_set": {name: 7}}, headers=at(version))
        assert answer.status_code == (200 if name in names else 400)


def test_an_update_changes_what_it_names_and_delete_restores_the_defaults(
    client: TestClient, settings: Settings
) -> None:
    changed = put(client, instances=5, cores="-1").json()["quota_set"]
    assert (changed["instances"], changed["cores"]) == (5, -1)
    assert changed["ram"] == settings.quota_ram
    shown = client.get(DEMO).json()["quota_set"]
    assert (shown["instances"], shown["cores"]) == (5, -1)
    other = client.get(f"{ROOT}/os-quota-sets/project-alt", headers=ADMIN).json()["quota_set"]
    assert other["instances"] == settings.quota_instances
    gone = client.delete(DEMO, headers=ADMIN)
    assert (gone.status_code, gone.content) == (202, b"")
    assert client.get(DEMO).json()["quota_set"]["instances"] == settings.quota_instances


@pytest.mark.parametrize(
    "limits",
    [
        {"instances": -2},
        {"instances": 2**31},
        {"instances": "many"},
        {"instances": None},
        {"instances": 1.5},
        {"instances": True},
        {"gigabytes": 5},
        {"force": "perhaps"},
    ],
)
def test_a_bad_limit_is_a_400_and_changes_nothing(
    client: TestClient, limits: dict[str, Any], settings: Settings
) -> None:
    assert put(client, **limits).status_code == 400
    assert client.get(DEMO).json()["quota_set"]["instances"] == settings.quota_instances


def test_who_may_read_and_write(client: TestClient) -> None:
    assert client.get(DEMO, headers=acting_as("reader")).status_code == 200
    assert client.get(DEMO, headers=acting_as("alt")).status_code == 403
    assert client.get(f"{DEMO}/detail", headers=acting_as("alt")).status_code == 403
    assert client.put(DEMO, json={"quota_set": {"instances": 1}}).status_code == 403
    assert client.delete(DEMO).status_code == 403
    assert client.get(f"{ROOT}/os-quota-class-sets/default").status_code == 403


def test_an_unknown_project_is_refused_in_keystones_words(client: TestClient) -> None:
    url = f"{ROOT}/os-quota-sets/nobody"
    for answer in (client.get(url, headers=ADMIN), put(client, url, instances=1)):
        assert answer.status_code == 400
        message = answer.json()["badRequest"]["message"]
        assert message == "Project ID nobody is not a valid project."


def test_detail_counts_what_is_in_use(client: TestClient, engine: Engine) -> None:
    with transaction(engine) as session:
        session.add_all([server(), server(user="other"), server(deleted_at=now()), server("alt")])
    shown = client.get(f"{DEMO}/detail").json()["quota_set"]
    assert shown["instances"] == {"limit": 1000, "in_use": 2, "reserved": 0}
    assert shown["cores"]["in_use"] == 4
    assert shown["ram"]["in_use"] == 1024
    mine = client.get(f"{DEMO}/detail?user_id=user-member").json()["quota_set"]
    assert mine["instances"]["in_use"] == 1


def test_a_limit_below_the_usage_needs_force(client: TestClient, engine: Engine) -> None:
    with transaction(engine) as session:
        session.add_all([server(), server()])
    answer = put(client, instances=1)
    assert answer.status_code == 400
    assert answer.json()["badRequest"]["message"] == (
        "Quota limit 1 for instances must be greater than or equal to already used and reserved 2."
    )
    assert put(client, instances=1, force=True).status_code == 200
    assert put(client, instances=2).status_code == 200


def test_a_users_limit_stays_within_the_projects(client: TestClient) -> None:
    user = f"{DEMO}?user_id=user-member"
    put(client, instances=10)
    assert put(client, user, instances=11).status_code == 400
    assert put(client, user, instances=4).json()["quota_set"]["instances"] == 4
    assert client.get(user).json()["quota_set"]["instances"] == 4
    assert client.get(DEMO).json()["quota_set"]["instances"] == 10
    assert put(client, f"{DEMO}?user_id=user-other", instances=7).status_code == 400
    assert put(client, instances=3).status_code == 400
    client.delete(user, headers=ADMIN)
    assert client.get(user).json()["quota_set"]["instances"] == 10


# --- classes


@pytest.mark.parametrize(
    ("version", "names"),
    [
        ("2.49", (MODERN | FILES | NETWORK) - {"server_groups", "server_group_members"}),
        ("2.50", MODERN | FILES),
        ("2.57", MODERN),
    ],
)
def test_the_resources_of_a_class(client: TestClient, version: str, names: set[str]) -> None:
    url = f"{ROOT}/os-quota-class-sets/default"
    shown = client.get(url, headers=at(version)).json()["quota_class_set"]
    assert shown.keys() == names | {"id"}
    assert shown["id"] == "default"


def test_the_default_class_sets_everybodys_default(client: TestClient) -> None:
    body = {"quota_class_set": {"instances": 3}}
    other = client.put(f"{ROOT}/os-quota-class-sets/gold", json=body, headers=ADMIN)
    assert other.json()["quota_class_set"]["instances"] == 3
    assert "id" not in other.json()["quota_class_set"]
    assert client.get(DEMO).json()["quota_set"]["instances"] == 1000
    client.put(f"{ROOT}/os-quota-class-sets/default", json=body, headers=ADMIN)
    assert client.get(DEMO).json()["quota_set"]["instances"] == 3
    assert client.get(f"{DEMO}/defaults").json()["quota_set"]["instances"] == 3
    long = f"{ROOT}/os-quota-class-sets/{'x' * 256}"
    assert client.put(long, json=body, headers=ADMIN).status_code == 400


# --- limits


def absolute(client: TestClient, version: str = "2.1", query: str = "", who: str = "member") -> Any:
    answer = client.get(f"{ROOT}/limits{query}", headers=at(version, who))
    assert answer.json()["limits"]["rate"] == []
    return answer.json()["limits"]["absolute"]


def test_limits_show_what_may_be_and_what_is(client: TestClient, engine: Engine) -> None:
    with transaction(engine) as session:
        session.add(server())
    shown = absolute(client, "2.57")
    assert shown == {
        "maxTotalInstances": 1000,
        "maxTotalCores": 4000,
        "maxTotalRAMSize": 8 * 1024**2,
        "maxTotalKeypairs": 100,
        "maxServerMeta": 128,
        "maxServerGroups": 10,
        "maxServerGroupMembers": 10,
        "totalInstancesUsed": 1,
        "totalCoresUsed": 2,
        "totalRAMUsed": 512,
        "totalServerGroupsUsed": 0,
    }


@pytest.mark.parametrize(
    ("version", "gone"),
    [
        ("2.36", {"maxTotalFloatingIps", "maxSecurityGroups", "totalFloatingIpsUsed"}),
        ("2.39", {"maxImageMeta"}),
        ("2.57", {"maxPersonality", "maxPersonalitySize"}),
    ],
)
def test_limits_go_with_their_version(client: TestClient, version: str, gone: set[str]) -> None:
    before = f"2.{int(version[2:]) - 1}"
    assert gone <= absolute(client, before).keys()
    assert not gone & absolute(client, version).keys()


def test_only_admins_see_the_limits_of_another_project(client: TestClient, engine: Engine) -> None:
    with transaction(engine) as session:
        session.add(server("alt"))
    shown = absolute(client, query="?tenant_id=project-alt", who="admin")
    assert shown["totalInstancesUsed"] == 1
    answer = client.get(f"{ROOT}/limits?tenant_id=project-alt")
    assert answer.status_code == 403
    assert client.get(f"{ROOT}/limits?reserved=1", headers=at("2.75")).status_code == 200
    assert client.get(f"{ROOT}/limits?colour=1", headers=at("2.75")).status_code == 400
