"""Flavors over HTTP."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine
from sqlmodel import select

from db.flavors import Flavor, FlavorAccess, ensure_default_flavors, get_flavor_for
from db.identity import Project
from db.session import reading, transaction
from domain.errors import NotFound
from tests.conftest import acting_as

ADMIN = acting_as("admin")
ROOT = "/compute/v2.1/flavors"


def at(version: str, who: str = "admin") -> dict[str, str]:
    return {**acting_as(who), "OpenStack-API-Version": f"compute {version}"}


def create(client: TestClient, name: str = "small", version: str = "2.1", **more: Any) -> Any:
    flavor = {"name": name, "ram": 512, "vcpus": 1, "disk": 1, "id": name, **more}
    return client.post(ROOT, json={"flavor": flavor}, headers=at(version))


def ids(answer: Any) -> list[str]:
    return [f["id"] for f in answer.json()["flavors"]]


@pytest.fixture
def projects(engine: Engine) -> None:
    with transaction(engine) as session:
        for name in ("demo", "alt"):
            session.add(Project(id=f"project-{name}", domain_id=_domain(session), name=name))


def _domain(session: Any) -> str:
    from db.identity import Domain  # noqa: PLC0415  # only this fixture needs it

    if session.get(Domain, "default") is None:
        session.add(Domain(id="default", name="Default"))
        session.flush()
    return "default"


def test_create_answers_the_whole_flavor(client: TestClient) -> None:
    answer = create(client, swap="64", **{"OS-FLV-EXT-DATA:ephemeral": 2, "rxtx_factor": "1.5"})
    assert answer.status_code == 200
    assert answer.json()["flavor"] == {
        "id": "small",
        "name": "small",
        "ram": 512,
        "disk": 1,
        "vcpus": 1,
        "swap": 64,
        "OS-FLV-EXT-DATA:ephemeral": 2,
        "OS-FLV-DISABLED:disabled": False,
        "os-flavor-access:is_public": True,
        "rxtx_factor": 1.5,
        "links": [
            {"rel": "self", "href": "http://testserver/compute/v2.1/flavors/small"},
            {"rel": "bookmark", "href": "http://testserver/compute/flavors/small"},
        ],
    }


@pytest.mark.parametrize(
    ("version", "keys", "swap"),
    [
        ("2.1", set(), ""),
        ("2.54", set(), ""),
        ("2.55", {"description"}, ""),
        ("2.61", {"description", "extra_specs"}, ""),
        ("2.74", {"description", "extra_specs"}, ""),
        ("2.75", {"description", "extra_specs"}, 0),
        ("2.96", {"description", "extra_specs"}, 0),
    ],
)
def test_fields_appear_with_their_version(
    client: TestClient, version: str, keys: set[str], swap: Any
) -> None:
    create(client)
    flavor = client.get(f"{ROOT}/small", headers=at(version)).json()["flavor"]
    assert flavor.keys() & {"description", "extra_specs"} == keys
    assert flavor["swap"] == swap
    assert type(flavor["swap"]) is type(swap)
    listed = client.get(f"{ROOT}/detail", headers=at(version)).json()["flavors"]
    assert listed == [flavor]


def test_the_brief_list_has_id_name_links_and_later_a_description(client: TestClient) -> None:
    create(client)
    old = client.get(ROOT, headers=at("2.54")).json()["flavors"][0]
    new = client.get(ROOT, headers=at("2.55")).json()["flavors"][0]
    assert old.keys() == {"id", "name", "links"}
    assert new.keys() == {"id", "name", "links", "description"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": ""},
        {"name": " small"},
        {"name": "x" * 256},
        {"name": "tab\there"},
        {"name": 5},
        {"id": "with/slash"},
        {"id": ""},
        {"id": "x" * 256},
        {"id": True},
        {"ram": 0},
        {"ram": "many"},
        {"ram": 2**31},
        {"ram": True},
        {"ram": 1.5},
        {"vcpus": 0},
        {"vcpus": None},
        {"disk": -1},
        {"swap": "1_0"},
        {"rxtx_factor": 0},
        {"rxtx_factor": "fast"},
        {"os-flavor-access:is_public": "maybe"},
        {"is_public": True},
        {"ephemeral": 1},
        {"colour": "red"},
        {"description": "only since 2.55"},
    ],
)
def test_a_bad_field_is_refused(client: TestClient, wrong: dict[str, Any]) -> None:
    answer = create(client, **wrong)
    assert answer.status_code == 400
    assert answer.json()["badRequest"]["code"] == 400
    assert client.get(ROOT).json()["flavors"] == []


@pytest.mark.parametrize("missing", ["name", "ram", "vcpus", "disk"])
def test_a_missing_field_is_named(client: TestClient, missing: str) -> None:
    flavor = {"name": "n", "ram": 1, "vcpus": 1, "disk": 0}
    del flavor[missing]
    answer = client.post(ROOT, json={"flavor": flavor}, headers=ADMIN)
    assert answer.status_code == 400
    assert f"'{missing}' is a required property" in answer.json()["badRequest"]["message"]


def test_an_id_is_made_when_none_is_given_and_a_number_becomes_text(client: TestClient) -> None:
    made = create(client, "a", id=None).json()["flavor"]["id"]
    assert len(made) == 36
    assert create(client, "b", id=7).json()["flavor"]["id"] == "7"


def test_a_taken_name_or_id_is_a_conflict(client: TestClient) -> None:
    create(client)
    same_name = create(client, id="other")
    same_id = create(client, "other", id="small")
    assert (same_name.status_code, same_id.status_code) == (409, 409)
    assert same_name.json()["conflictingRequest"]["message"] == (
        "Flavor with name small already exists."
    )
    assert same_id.json()["conflictingRequest"]["message"] == "Flavor with ID small already exists."


def test_only_admins_write(client: TestClient) -> None:
    body = {"flavor": {"name": "n", "ram": 1, "vcpus": 1, "disk": 0}}
    create(client)
    assert client.post(ROOT, json=body).status_code == 403
    assert client.delete(f"{ROOT}/small").status_code == 403
    assert client.get(f"{ROOT}/small", headers=acting_as("reader")).status_code == 200
    assert client.get(ROOT, headers={"X-Auth-Token": "nobody"}).status_code == 401


def test_the_description_can_be_changed_since_its_version(client: TestClient) -> None:
    create(client)
    change = {"flavor": {"description": "for small things"}}
    assert client.put(f"{ROOT}/small", json=change, headers=at("2.54")).status_code in (404, 405)
    answer = client.put(f"{ROOT}/small", json=change, headers=at("2.55"))
    assert answer.json()["flavor"]["description"] == "for small things"
    shown = client.get(f"{ROOT}/small", headers=at("2.55")).json()["flavor"]
    assert shown["description"] == "for small things"
    assert client.put(f"{ROOT}/small", json={"flavor": {}}, headers=at("2.55")).status_code == 400


def test_delete_answers_202_without_a_body_and_the_flavor_is_gone(client: TestClient) -> None:
    create(client)
    answer = client.delete(f"{ROOT}/small", headers=ADMIN)
    assert (answer.status_code, answer.content) == (202, b"")
    again = client.delete(f"{ROOT}/small", headers=ADMIN)
    assert again.status_code == 404
    assert again.json()["itemNotFound"]["message"] == "Flavor small could not be found."


# --- lists


def test_pages_follow_the_next_link_to_the_end(client: TestClient) -> None:
    for name in "edcba":
        create(client, name)
    seen: list[str] = []
    url = f"{ROOT}?limit=2"
    for _ in range(4):
        answer = client.get(url).json()
        seen += [f["id"] for f in answer["flavors"]]
        if "flavors_links" not in answer:
            break
        link = answer["flavors_links"][0]
        assert link["rel"] == "next"
        url = link["href"].removeprefix("http://testserver")
    assert seen == list("abcde")


def test_the_next_link_of_the_detail_keeps_the_other_parameters(client: TestClient) -> None:
    for name in "abc":
        create(client, name)
    answer = client.get(f"{ROOT}/detail?limit=1&minRam=1&sort_key=name&sort_dir=desc").json()
    assert [f["id"] for f in answer["flavors"]] == ["c"]
    href = answer["flavors_links"][0]["href"]
    assert href.startswith("http://testserver/compute/v2.1/flavors/detail?")
    assert ids(client.get(href.removeprefix("http://testserver"))) == ["b"]


def test_filters_and_sorting(client: TestClient) -> None:
    create(client, "a", ram=100, disk=30)
    create(client, "b", ram=300, disk=10)
    create(client, "c", ram=200, disk=20)
    assert ids(client.get(f"{ROOT}?minRam=200")) == ["b", "c"]
    assert ids(client.get(f"{ROOT}?minDisk=20&minRam=150")) == ["c"]
    assert ids(client.get(f"{ROOT}?sort_key=memory_mb&sort_dir=desc")) == ["b", "c", "a"]
    assert ids(client.get(f"{ROOT}?sort_key=root_gb")) == ["b", "c", "a"]
    assert ids(client.get(f"{ROOT}?limit=0")) == []


@pytest.mark.parametrize(
    "query",
    [
        "limit=-1",
        "limit=many",
        "marker=nothing",
        "minRam=much",
        "minDisk=1.5",
        "sort_key=colour",
        "sort_dir=up",
        "sort_key=name&sort_dir=asc&sort_dir=desc",
        "is_public=perhaps",
    ],
)
def test_a_bad_query_is_a_400(client: TestClient, query: str) -> None:
    assert client.get(f"{ROOT}?{query}", headers=ADMIN).status_code == 400


def test_unknown_parameters_are_ignored_first_and_refused_later(client: TestClient) -> None:
    assert client.get(f"{ROOT}?colour=red", headers=at("2.74")).status_code == 200
    answer = client.get(f"{ROOT}?colour=red", headers=at("2.75"))
    assert answer.status_code == 400
    assert "'colour' was unexpected" in answer.json()["badRequest"]["message"]


# --- non-public flavors


def private(client: TestClient) -> None:
    create(client, "secret", **{"os-flavor-access:is_public": "false"})


@pytest.mark.usefixtures("projects")
def test_a_non_public_flavor_is_seen_only_with_access(client: TestClient) -> None:
    private(client)
    create(client, "open")
    assert ids(client.get(ROOT)) == ["open"]
    assert client.get(f"{ROOT}/secret").status_code == 404
    assert client.get(f"{ROOT}/secret/os-extra_specs").status_code == 404

    grant = {"addTenantAccess": {"tenant": "project-demo"}}
    answer = client.post(f"{ROOT}/secret/action", json=grant, headers=ADMIN)
    assert answer.json() == {
        "flavor_access": [{"flavor_id": "secret", "tenant_id": "project-demo"}]
    }
    assert ids(client.get(ROOT)) == ["open", "secret"]
    assert client.get(f"{ROOT}/secret").status_code == 200
    assert ids(client.get(ROOT, headers=acting_as("alt"))) == ["open"]

    take = {"removeTenantAccess": {"tenant": "project-demo"}}
    answer = client.post(f"{ROOT}/secret/action", json=take, headers=ADMIN)
    assert answer.json() == {"flavor_access": []}
    assert client.get(f"{ROOT}/secret").status_code == 404


def test_admins_choose_which_kind_to_list(client: TestClient) -> None:
    private(client)
    create(client, "open")
    assert ids(client.get(ROOT, headers=ADMIN)) == ["open"]
    assert ids(client.get(f"{ROOT}?is_public=true", headers=ADMIN)) == ["open"]
    assert ids(client.get(f"{ROOT}?is_public=False", headers=ADMIN)) == ["secret"]
    assert ids(client.get(f"{ROOT}?is_public=None", headers=ADMIN)) == ["open", "secret"]
    assert ids(client.get(f"{ROOT}?is_public=None")) == ["open"]


@pytest.mark.usefixtures("projects")
def test_access_is_granted_once_and_taken_once(client: TestClient) -> None:
    private(client)
    grant = {"addTenantAccess": {"tenant": "project-demo"}}
    take = {"removeTenantAccess": {"tenant": "project-demo"}}
    url = f"{ROOT}/secret/action"
    assert client.post(url, json=take, headers=ADMIN).status_code == 404
    assert client.post(url, json=grant, headers=ADMIN).status_code == 200
    assert client.post(url, json=grant, headers=ADMIN).status_code == 409
    assert client.post(url, json=grant).status_code == 403
    unknown = {"addTenantAccess": {"tenant": "no-such-project"}}
    assert client.post(url, json=unknown, headers=ADMIN).status_code == 400
    for bad in ({}, {"add": {"tenant": "project-demo"}}, grant | take, {"addTenantAccess": None}):
        assert client.post(url, json=bad, headers=ADMIN).status_code == 400


@pytest.mark.usefixtures("projects")
def test_a_public_flavor_refuses_an_access_list_since_its_version(client: TestClient) -> None:
    create(client, "open")
    grant = {"addTenantAccess": {"tenant": "project-demo"}}
    assert client.post(f"{ROOT}/open/action", json=grant, headers=at("2.6")).status_code == 200
    assert client.post(f"{ROOT}/open/action", json=grant, headers=at("2.7")).status_code == 409
    assert client.get(f"{ROOT}/open/os-flavor-access", headers=ADMIN).status_code == 404


@pytest.mark.usefixtures("projects")
def test_access_goes_with_its_flavor(client: TestClient, engine: Engine) -> None:
    private(client)
    grant = {"addTenantAccess": {"tenant": "project-demo"}}
    client.post(f"{ROOT}/secret/action", json=grant, headers=ADMIN)
    client.delete(f"{ROOT}/secret", headers=ADMIN)
    with reading(engine) as session:
        assert session.exec(select(FlavorAccess)).all() == []


# --- extra specs


def specs(client: TestClient, given: Any, version: str = "2.96") -> Any:
    return client.post(
        f"{ROOT}/small/os-extra_specs", json={"extra_specs": given}, headers=at(version)
    )


def test_extra_specs_are_added_read_changed_and_removed(client: TestClient) -> None:
    create(client)
    url = f"{ROOT}/small/os-extra_specs"
    assert specs(client, {"hw:cpu_policy": "shared", "rack": 7}).json() == {
        "extra_specs": {"hw:cpu_policy": "shared", "rack": "7"}
    }
    assert client.get(url).json() == {"extra_specs": {"hw:cpu_policy": "shared", "rack": "7"}}
    changed = client.put(f"{url}/rack", json={"rack": "8"}, headers=ADMIN)
    assert changed.json() == {"rack": "8"}
    assert client.get(f"{url}/rack").json() == {"rack": "8"}
    gone = client.delete(f"{url}/rack", headers=ADMIN)
    assert (gone.status_code, gone.content) == (200, b"")
    assert client.get(f"{url}/rack").status_code == 404
    assert client.delete(f"{url}/rack", headers=ADMIN).status_code == 404
    shown = client.get(f"{ROOT}/small", headers=at("2.61")).json()["flavor"]
    assert shown["extra_specs"] == {"hw:cpu_policy": "shared"}
    assert client.post(url, json={"extra_specs": {"a": "b"}}).status_code == 403


@pytest.mark.parametrize(
    "given", [{"bad/key": "x"}, {"": "x"}, {"k": None}, {"k": True}, {"k": ["x"]}, {"k": "x" * 256}]
)
def test_an_ill_formed_extra_spec_is_refused_in_every_version(
    client: TestClient, given: Any
) -> None:
    create(client)
    assert specs(client, given, "2.1").status_code == 400


def test_known_extra_specs_are_checked_since_their_version(client: TestClient) -> None:
    create(client)
    assert specs(client, {"hw:cpu_policy": "magic"}, "2.85").status_code == 200
    answer = specs(client, {"hw:cpu_policy": "magic"}, "2.86")
    assert answer.status_code == 400
    assert "'magic' is not one of: dedicated, shared, mixed." in answer.text
    assert specs(client, {"hw:no_such": "x"}, "2.86").status_code == 400


def test_an_extra_spec_update_names_exactly_the_key_of_its_path(client: TestClient) -> None:
    create(client)
    url = f"{ROOT}/small/os-extra_specs/a"
    for bad in ({"b": "1"}, {}, {"a": "1", "b": "2"}, {"a": None}, []):
        assert client.put(url, json=bad, headers=ADMIN).status_code == 400


# --- what other modules call


def test_default_flavors_are_made_once(engine: Engine, client: TestClient) -> None:
    for _ in range(2):
        with transaction(engine) as session:
            ensure_default_flavors(session)
    assert set(ids(client.get(ROOT))) == {"tiny", "0", "1", "2", "3", "4"}
    tiny = client.get(f"{ROOT}/tiny").json()["flavor"]
    assert (tiny["vcpus"], tiny["ram"], tiny["disk"]) == (1, 96, 1)


def test_a_server_gets_a_flavor_only_where_its_project_may_use_it(engine: Engine) -> None:
    with transaction(engine) as session:
        session.add(Flavor(flavor_id="p", name="p", vcpus=1, ram_mb=1, disk_gb=1, is_public=False))
    with reading(engine) as session:
        assert get_flavor_for(session, "p", "project-demo", is_admin=True).name == "p"
        with pytest.raises(NotFound, match="Flavor p could not be found"):
            get_flavor_for(session, "p", "project-demo", is_admin=False)


def test_text_that_no_database_keeps_is_a_400(client: TestClient) -> None:
    create(client)
    url = f"{ROOT}/small/os-extra_specs"
    for text in (r"\u0000", r"\ud800"):
        body = f'{{"extra_specs": {{"a": "{text}"}}}}'
        headers = {**ADMIN, "Content-Type": "application/json"}
        assert client.post(url, content=body, headers=headers).status_code == 400
    assert client.get(url).json() == {"extra_specs": {}}
