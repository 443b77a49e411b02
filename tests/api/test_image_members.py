"""Sharing images: owners offer, members accept or reject, nobody sees more than that."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.conftest import acting_as

IMAGES = "/image/v2/images"


def make(client: TestClient, **fields: Any) -> str:
    body = {"disk_format": "raw", "container_format": "bare", **fields}
    return str(client.post(IMAGES, json=body).json()["id"])


def test_a_shared_image_is_seen_by_members_and_listed_once_accepted(client: TestClient) -> None:
    image_id = make(client)
    there = f"{IMAGES}/{image_id}/members"
    octets = {"Content-Type": "application/octet-stream"}
    client.put(f"{IMAGES}/{image_id}/file", content=b"data", headers=octets)
    alt = acting_as("alt")
    assert client.post(there, json={"member": "project-alt"}).json()["status"] == "pending"
    assert client.post(there, json={"member": "project-alt"}).status_code == 409

    def listed(query: str = "") -> list[str]:
        found = client.get(f"{IMAGES}?{query}", headers=alt).json()["images"]
        return [image["id"] for image in found]

    assert client.get(f"{IMAGES}/{image_id}/file", headers=alt).content == b"data"
    assert (listed(), listed("member_status=pending")) == ([], [image_id])
    mine = f"{there}/project-alt"
    assert client.put(mine, json={"status": "accepted"}).status_code == 403
    assert client.put(mine, json={"status": "maybe"}, headers=alt).status_code == 400
    accepted = client.put(mine, json={"status": "accepted"}, headers=alt).json()
    assert accepted["status"] == "accepted"
    assert accepted["schema"] == "/v2/schemas/member"
    assert listed() == listed("visibility=shared") == [image_id]
    client.put(mine, json={"status": "rejected"}, headers=alt)
    assert (listed(), listed("member_status=all")) == ([], [image_id])
    assert client.delete(mine, headers=alt).status_code == 403
    assert client.delete(mine).status_code == 204
    assert client.delete(mine).status_code == 404
    assert client.get(f"{IMAGES}/{image_id}", headers=alt).status_code == 404


def test_members_see_only_themselves(client: TestClient) -> None:
    image_id = make(client)
    there = f"{IMAGES}/{image_id}/members"
    alt = acting_as("alt")
    for member in ("project-alt", "project-other"):
        client.post(there, json={"member": member})
    both = client.get(there).json()
    assert [m["member_id"] for m in both["members"]] == ["project-alt", "project-other"]
    assert both["schema"] == "/v2/schemas/members"
    only = client.get(there, headers=alt).json()["members"]
    assert [m["member_id"] for m in only] == ["project-alt"]
    assert client.get(f"{there}/project-alt", headers=alt).status_code == 200
    assert client.get(f"{there}/project-other", headers=alt).status_code == 404
    assert client.get(f"{there}/%00").status_code == 404
    answer = {"status": "accepted"}
    assert client.put(f"{there}/project-other", json=answer, headers=alt).status_code == 404
    assert client.post(there, json={"member": ""}).status_code == 400
    assert client.post(there, json={}).status_code == 400
    assert client.post(there, json={"member": "x"}, headers=alt).status_code == 403


@pytest.mark.parametrize("visibility", ["private", "community"])
def test_only_shared_images_have_members(client: TestClient, visibility: str) -> None:
    there = f"{IMAGES}/{make(client, visibility=visibility)}/members"
    assert client.post(there, json={"member": "project-alt"}).status_code == 403
    assert client.get(there).status_code == 403


def test_membership_ends_with_the_image(client: TestClient) -> None:
    image_id = make(client)
    client.post(f"{IMAGES}/{image_id}/members", json={"member": "project-alt"})
    assert client.delete(f"{IMAGES}/{image_id}").status_code == 204
    assert client.get(f"{IMAGES}/{image_id}/members").status_code == 404
    assert client.get(IMAGES).json()["images"] == []
