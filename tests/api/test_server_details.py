"""Metadata, tags, addresses, groups, cards and the rest of one server, over HTTP."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from sqlmodel import select

from api.compute import actions as server_actions
from api.compute import details, instance_actions, labels, servers
from db.network import Port
from db.quotas import set_limit
from db.session import reading, transaction
from tests.api.conftest import IMAGE, NET, SERVERS, ServerWorld, at


@pytest.fixture
def server(world: ServerWorld) -> str:
    made = world.create(metadata={"a": "1"})
    world.activate(made)
    return made


def ask(
    world: ServerWorld,
    method: str,
    path: str,
    version: str = "2.26",
    body: Any = None,
    who: str = "member",
) -> httpx.Response:
    return world.client.request(method, f"{SERVERS}/{path}", json=body, headers=at(version, who))


def test_metadata_is_read_merged_replaced_and_removed(world: ServerWorld, server: str) -> None:
    path = f"{server}/metadata"
    assert ask(world, "GET", path).json() == {"metadata": {"a": "1"}}
    merged = ask(world, "POST", path, body={"metadata": {"b": "2"}})
    assert (merged.status_code, merged.json()) == (200, {"metadata": {"a": "1", "b": "2"}})
    replaced = ask(world, "PUT", path, body={"metadata": {"c": "3"}})
    assert replaced.json() == {"metadata": {"c": "3"}}
    assert ask(world, "PUT", f"{path}/d", body={"meta": {"d": "4"}}).json() == {"meta": {"d": "4"}}
    assert ask(world, "GET", f"{path}/d").json() == {"meta": {"d": "4"}}
    assert ask(world, "DELETE", f"{path}/c").status_code == 204
    assert world.show(server)["metadata"] == {"d": "4"}


def test_metadata_mistakes(world: ServerWorld, server: str) -> None:
    path = f"{server}/metadata"
    assert ask(world, "GET", f"{path}/no").status_code == 404
    assert ask(world, "DELETE", f"{path}/no").status_code == 404
    mismatch = ask(world, "PUT", f"{path}/x", body={"meta": {"y": "1"}})
    assert mismatch.json()["badRequest"]["message"] == "Request body and URI mismatch"
    for method, body in (
        ("POST", {}),
        ("POST", {"metadata": None}),
        ("POST", {"metadata": {"k": None}}),
        ("PUT", {"metadata": {"k/": "v"}}),
        ("PUT", {"metadata": {"k": "v" * 256}}),
    ):
        assert ask(world, method, path, body=body).status_code == 400, body
    assert ask(world, "PUT", f"{path}/x", body={"meta": {"x": "1", "y": "2"}}).status_code == 400
    many = {f"k{n}": "v" for n in range(129)}
    full = ask(world, "POST", path, body={"metadata": many})
    assert full.status_code == 403
    assert full.json()["forbidden"]["message"] == "Maximum number of metadata items exceeds 128"
    with transaction(world.engine) as session:
        set_limit(session, "project-demo", "metadata_items", 1)
    assert ask(world, "PUT", f"{path}/x", body={"meta": {"x": "1"}}).status_code == 403
    assert ask(world, "PUT", f"{path}/a", body={"meta": {"a": "2"}}).status_code == 200
    world.put(server, vm_state="error")
    assert ask(world, "POST", path, body={"metadata": {}}).status_code == 409


def test_tags_are_read_added_replaced_and_removed(world: ServerWorld, server: str) -> None:
    path = f"{server}/tags"
    assert ask(world, "GET", path).json() == {"tags": []}
    added = ask(world, "PUT", f"{path}/red")
    assert (added.status_code, added.content) == (201, b"")
    assert added.headers["Location"].endswith(f"/servers/{server}/tags/red")
    again = ask(world, "PUT", f"{path}/red")
    assert (again.status_code, again.content) == (204, b"")
    assert ask(world, "GET", f"{path}/red").status_code == 204
    assert ask(world, "GET", f"{path}/blue").status_code == 404
    replaced = ask(world, "PUT", path, body={"tags": ["green", "blue"]})
    assert (replaced.status_code, replaced.json()) == (200, {"tags": ["blue", "green"]})
    assert ask(world, "DELETE", f"{path}/red").status_code == 404
    assert ask(world, "DELETE", f"{path}/blue").status_code == 204
    assert world.show(server, "2.26")["tags"] == ["green"]
    assert ask(world, "DELETE", path).status_code == 204
    assert ask(world, "GET", path).json() == {"tags": []}


def test_tag_mistakes(world: ServerWorld, server: str) -> None:
    path = f"{server}/tags"
    for body in ({}, {"tags": ["a", "a"]}, {"tags": ["a,b"]}, {"tags": ["x" * 61]}, {"tags": [1]}):
        assert ask(world, "PUT", path, body=body).status_code == 400, body
    assert ask(world, "PUT", f"{path}/a,b").status_code == 400
    assert ask(world, "PUT", path, body={"tags": [str(n) for n in range(50)]}).status_code == 200
    assert ask(world, "PUT", f"{path}/one-more").status_code == 400
    assert ask(world, "GET", path, "2.25").status_code == 404
    world.put(server, vm_state="building")
    assert ask(world, "PUT", f"{path}/x").status_code == 409


def test_addresses_by_network(world: ServerWorld, server: str) -> None:
    shown = ask(world, "GET", f"{server}/ips").json()["addresses"]
    assert [sorted(address) for address in shown["blue"]] == [["addr", "version"]]
    assert ask(world, "GET", f"{server}/ips/blue").json() == shown
    missing = ask(world, "GET", f"{server}/ips/red")
    assert missing.status_code == 404
    assert "not a member of specified network" in missing.json()["itemNotFound"]["message"]


def test_cards_and_groups(world: ServerWorld, server: str) -> None:
    with reading(world.engine) as session:
        port = session.exec(select(Port).where(Port.device_id == server)).one()
    cards = ask(world, "GET", f"{server}/os-interface").json()["interfaceAttachments"]
    assert [(c["port_id"], c["net_id"], c["mac_addr"]) for c in cards] == [(port.id, NET, port.mac)]
    assert "tag" not in cards[0]
    one = ask(world, "GET", f"{server}/os-interface/{port.id}", "2.70").json()
    assert one["interfaceAttachment"] == {**cards[0], "tag": None}
    assert ask(world, "GET", f"{server}/os-interface/nope").status_code == 404
    [group] = ask(world, "GET", f"{server}/os-security-groups").json()["security_groups"]
    assert (group["name"], group["tenant_id"]) == ("default", "project-demo")
    assert {rule["group"]["name"] for rule in group["rules"]} == {"default"}


def test_the_guests_password_is_shown_and_forgotten(world: ServerWorld, server: str) -> None:
    path = f"{server}/os-server-password"
    assert ask(world, "GET", path).json() == {"password": ""}
    world.put(server, guest_password="c2VhbGVk")
    assert ask(world, "GET", path).json() == {"password": "c2VhbGVk"}
    assert ask(world, "DELETE", path).status_code == 204
    assert ask(world, "GET", path).json() == {"password": ""}


def test_what_servers_do_not_have_is_said_plainly(world: ServerWorld, server: str) -> None:
    empty = {"nodes": [], "pagesize_kb": None}
    assert ask(world, "GET", f"{server}/topology", "2.78").json() == empty
    assert ask(world, "GET", f"{server}/topology", "2.77").status_code == 404
    assert ask(world, "GET", f"{server}/os-volume_attachments").json() == {"volumeAttachments": []}
    for method, path, who in (
        ("POST", "os-interface", "member"),
        ("DELETE", "os-interface/x", "member"),
        ("POST", "os-volume_attachments", "member"),
        ("POST", "remote-consoles", "member"),
        ("GET", "diagnostics", "admin"),
    ):
        assert ask(world, method, f"{server}/{path}", who=who).status_code == 501, path


# --- who may: every route of a server, walked

ROUTES = sorted(
    (method, route.path)
    for module in (servers, server_actions, details, labels, instance_actions)
    for route in module.router.routes
    for method in route.methods  # type: ignore[attr-defined]  # APIRoute has them
)
ADMIN_ONLY = {"diagnostics", "migrations"}
BODIES: dict[tuple[str, str], Any] = {
    ("POST", "/servers"): {"server": {
        "name": "n", "flavorRef": "small", "imageRef": IMAGE, "networks": "none"}},
    ("PUT", "/servers/{server_id}"): {"server": {"name": "n"}},
    ("POST", "/action"): {"os-stop": None},
    ("POST", "/metadata"): {"metadata": {}},
    ("PUT", "/metadata"): {"metadata": {}},
    ("PUT", "/metadata/{key}"): {"meta": {"a": "1"}},
    ("PUT", "/tags"): {"tags": []},
}  # fmt: skip


def call(client: TestClient, method: str, path: str, server_id: str, who: str) -> httpx.Response:
    bodies = [b for (m, end), b in BODIES.items() if m == method and path.endswith(end)]
    filled = path.replace("{server_id}", server_id)
    names = {"key": "a", "tag": "t", "label": "blue", "port_id": "p", "request_id": "r"}
    url = re.sub(r"\{(\w+)\}", lambda m: names[m[1]], filled)
    body = bodies[0] if bodies else None
    return client.request(method, f"/compute{url}", json=body, headers=at("2.96", who))


def wanted(method: str, path: str, who: str) -> set[int]:
    reads = method == "GET"
    admin_only = path.rsplit("/", 1)[-1] in ADMIN_ONLY
    if who == "nobody":
        return {401}
    if who == "unscoped" or (who == "reader" and not reads) or (admin_only and who != "admin"):
        return {403}
    if who == "alt":
        return {404} if "{server_id}" in path else {200, 202}
    return {200, 201, 202, 204, 404, 501}


@pytest.mark.parametrize("who", ["nobody", "unscoped", "reader", "member", "alt", "admin"])
def test_every_route_answers_each_role_as_it_should(
    world: ServerWorld, client: TestClient, who: str
) -> None:
    assert len(ROUTES) > 30
    wrong = []
    for method, path in ROUTES:
        server_id = world.create()
        world.activate(server_id)
        answer = call(client, method, path, server_id, who)
        if answer.status_code not in wanted(method, path, who):
            wrong.append((method, path, answer.status_code, answer.text))
        foreign_words = f"Instance {server_id} could not be found."
        if who == "alt" and answer.status_code == 404 and foreign_words not in answer.text:
            wrong.append((method, path, answer.status_code, answer.text))
        world.bury(server_id)
    assert wrong == []
