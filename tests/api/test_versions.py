"""Version documents and negotiation over HTTP."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient

from api.history import HISTORY
from api.microversion import MAX, MIN
from tests.conftest import acting_as

NOBODY = {"X-Auth-Token": "nobody"}


def test_the_root_lists_the_versions_without_a_token(client: TestClient) -> None:
    answer = client.get("/compute/", headers=NOBODY)
    assert answer.status_code == 200
    old, new = answer.json()["versions"]
    assert (old["id"], old["version"], old["min_version"]) == ("v2.0", "", "")
    assert new == {
        "id": "v2.1",
        "status": "CURRENT",
        "version": str(MAX),
        "min_version": str(MIN),
        "updated": "2013-07-23T11:33:21Z",
        "links": [{"rel": "self", "href": "http://testserver/compute/v2.1/"}],
    }


@pytest.mark.parametrize("path", ["/compute/v2.1", "/compute/v2.1/"])
def test_the_v21_document_tells_the_range(client: TestClient, path: str) -> None:
    answer = client.get(path, headers=NOBODY, follow_redirects=False)
    assert answer.status_code == 200
    version = answer.json()["version"]
    assert (version["min_version"], version["version"]) == (str(MIN), str(MAX))
    assert version["links"][0] == {"rel": "self", "href": "http://testserver/compute/v2.1/"}
    assert version["links"][1]["rel"] == "describedby"
    assert version["media-types"] == [
        {
            "base": "application/json",
            "type": "application/vnd.openstack.compute+json;version=2.1",
        }
    ]


@pytest.mark.parametrize("path", ["/compute/v2", "/compute/v2/"])
def test_the_v2_document_has_no_microversions(client: TestClient, path: str) -> None:
    version = client.get(path, headers=NOBODY).json()["version"]
    assert (version["id"], version["version"], version["status"]) == ("v2.0", "", "SUPPORTED")


def test_v2_is_the_first_version_whatever_the_headers_say(client: TestClient) -> None:
    answer = client.get(
        "/compute/v2/os-keypairs", headers={"OpenStack-API-Version": "compute 2.96"}
    )
    assert answer.json() == {"keypairs": []}
    assert answer.headers["OpenStack-API-Version"] == "compute 2.1"


@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        ({}, "2.1"),
        ({"OpenStack-API-Version": "compute 2.53"}, "2.53"),
        ({"X-OpenStack-Nova-API-Version": "2.53"}, "2.53"),
        ({"OpenStack-API-Version": "compute latest"}, str(MAX)),
        ({"OpenStack-API-Version": "volume 3.1, compute 2.7"}, "2.7"),
        ({"OpenStack-API-Version": "volume 3.1"}, "2.1"),
        ({"OpenStack-API-Version": "compute 2.8", "X-OpenStack-Nova-API-Version": "2.9"}, "2.8"),
    ],
)
def test_the_version_is_negotiated_and_echoed(
    client: TestClient, asked: dict[str, str], answered: str
) -> None:
    answer = client.get("/compute/v2.1/flavors", headers=asked)
    assert answer.status_code == 200
    assert answer.headers["OpenStack-API-Version"] == f"compute {answered}"
    assert answer.headers["X-OpenStack-Nova-API-Version"] == answered
    assert "OpenStack-API-Version" in answer.headers["Vary"]
    assert answer.headers["x-openstack-request-id"].startswith("req-")


@pytest.mark.parametrize(
    ("text", "status", "fault"),
    [
        ("2", 400, "badRequest"),
        ("two", 400, "badRequest"),
        ("2.01", 400, "badRequest"),
        ("2.0", 406, "computeFault"),
        (f"2.{MAX.minor + 1}", 406, "computeFault"),
        ("3.1", 406, "computeFault"),
    ],
)
def test_a_version_that_is_none_or_not_offered_is_refused(
    client: TestClient, text: str, status: int, fault: str
) -> None:
    headers = {"OpenStack-API-Version": f"compute {text}"}
    answer = client.get("/compute/v2.1/flavors", headers=headers)
    assert answer.status_code == status
    assert answer.json()[fault]["code"] == status
    assert client.get("/compute/", headers=headers).status_code == 200


def test_every_listed_version_is_answered(client: TestClient) -> None:
    for change in HISTORY:
        headers = {"OpenStack-API-Version": f"compute {change.version}"}
        answer = client.get("/compute/v2.1/flavors/detail", headers=headers)
        assert answer.headers["OpenStack-API-Version"] == f"compute {change.version}"


def test_extensions_can_be_listed_and_shown(client: TestClient) -> None:
    listed = client.get("/compute/v2.1/extensions").json()["extensions"]
    for extension in listed:
        assert extension.keys() == {
            "alias", "name", "description", "updated", "links", "namespace",
        }  # fmt: skip
        shown = client.get(f"/compute/v2.1/extensions/{extension['alias']}").json()
        assert shown == {"extension": extension}
    aliases = [e["alias"] for e in listed]
    assert "os-keypairs" in aliases
    assert "os-volumes" not in aliases
    missing = client.get("/compute/v2.1/extensions/os-volumes", headers=acting_as("reader"))
    assert missing.status_code == 404
    assert "itemNotFound" in missing.json()


def test_an_unknown_path_and_a_wrong_method_have_novas_faults(client: TestClient) -> None:
    missing = client.get("/compute/v2.1/nothing-here")
    assert missing.status_code == 404
    assert missing.json()["itemNotFound"]["message"] == "The resource could not be found."
    assert client.patch("/compute/v2.1/flavors").status_code == 405
