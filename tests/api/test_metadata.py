"""Instance metadata for hosts: who may read what, and what is read."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine

from api.metadata import MAX_PASSWORD_BYTES
from db.hosts import Claim, Host
from db.network import PortRequest, allocate_server_ports, ensure_demo_network
from db.servers import Server
from db.session import now, transaction
from runtime.hosttoken import host_token
from runtime.sealing import Sealer, host_key
from tests.conftest import SECRET

KEY_1, KEY_2 = host_key(SECRET, "host-1"), host_key(SECRET, "host-2")


def proof(host: str = "host-1", key: str = KEY_1) -> dict[str, str]:
    return {"X-Host-Token": host_token(key, host)}


def url(
    server: str, path: str = "metadata/openstack/latest/meta_data.json", host: str = "host-1"
) -> str:
    return f"/internal/v1/hosts/{host}/servers/{server}/{path}"


@pytest.fixture
def server(engine: Engine) -> Server:
    """A server on host-1 with a card, a key, user data and a password."""
    with transaction(engine) as session:
        for name in ("host-1", "host-2"):
            session.add(Host(name=name, uuid=name, service_id=name, availability_zone="az1"))
        network = ensure_demo_network(session, "project-admin")
        server = Server(
            project_id="project-demo",
            user_id="u",
            name="Web 1",
            hostname="web-1",
            host="host-1",
            key_name="mine",
            public_key="ssh-ed25519 AAAA me",
            user_data=base64.b64encode(b"#cloud-config\n").decode(),
            metadata_={"role": "web"},
            admin_pass_sealed=Sealer(SECRET).seal(b"s3cret"),
        )
        session.add(server)
        session.flush()
        allocate_server_ports(
            session,
            server_id=server.id,
            project_id="project-demo",
            az="az1",
            requests=[PortRequest(network_id=network.id, tag="front")],
            security_groups=[],
        )
    return server


def test_a_host_reads_its_server(client: TestClient, server: Server) -> None:
    answer = client.get(url(server.id), headers=proof())
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    shown = answer.json()
    assert shown["uuid"] == server.id
    assert shown["availability_zone"] == "az1"
    assert shown["public_keys"] == {"mine": "ssh-ed25519 AAAA me"}
    assert shown["meta"] == {"role": "web"}
    assert "admin_pass" not in shown
    (device,) = shown["devices"]
    assert device["tags"] == ["front"]
    data = client.get(url(server.id, "metadata/openstack/latest/user_data"), headers=proof())
    assert data.content == b"#cloud-config\n"
    network = client.get(
        url(server.id, "metadata/openstack/latest/network_data.json"), headers=proof()
    ).json()
    assert network["links"][0]["ethernet_mac_address"] == device["mac"]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("metadata", "latest"),
        ("metadata/", "latest"),
        ("metadata/openstack", "2018-08-27"),
        ("metadata/openstack/", "latest"),
        ("metadata/openstack/latest/", "meta_data.json"),
        ("metadata/latest/meta-data/", "public-keys/"),
        ("metadata/2009-04-04/meta-data/hostname", "web-1"),
    ],
)
def test_directories_list_what_they_hold(
    client: TestClient, server: Server, path: str, words: str
) -> None:
    answer = client.get(url(server.id, path), headers=proof())
    assert answer.status_code == 200
    assert words in answer.text.splitlines()


@pytest.mark.parametrize(
    "path", ["metadata/openstack/1999-01-01", "metadata/nothing", "metadata/../x"]
)
def test_what_is_not_there_is_404(client: TestClient, server: Server, path: str) -> None:
    assert client.get(url(server.id, path), headers=proof()).status_code == 404


def test_the_config_drive_holds_the_password_too(client: TestClient, server: Server) -> None:
    files = client.get(url(server.id, "config-drive"), headers=proof()).json()
    assert b"s3cret" in base64.b64decode(files["openstack/latest/meta_data.json"])
    assert base64.b64decode(files["openstack/latest/user_data"]) == b"#cloud-config\n"


def _signed(key: str, algorithm: str = "HS256", **claims: Any) -> str:
    at = datetime.now(UTC)
    default = {"sub": "host-1", "iat": at, "exp": at + timedelta(seconds=60)}
    kept = {k: v for k, v in (default | claims).items() if v is not None}
    return jwt.encode(kept, key, algorithm)


def test_only_the_hosts_own_fresh_token_opens(client: TestClient, server: Server) -> None:
    at = datetime.now(UTC)
    bad = {
        "another host's key": _signed(KEY_2),
        "the cloud's secret": _signed(SECRET),
        "another subject": _signed(KEY_1, sub="host-2"),
        "no subject": _signed(KEY_1, sub=None),
        "no end": _signed(KEY_1, exp=None),
        "no beginning": _signed(KEY_1, iat=None),
        "a life too long": _signed(KEY_1, exp=at + timedelta(days=1)),
        "expired": _signed(KEY_1, iat=at - timedelta(hours=1), exp=at - timedelta(minutes=59)),
        "unsigned": jwt.encode({"sub": "host-1", "iat": at, "exp": at}, "", "none"),
        "another algorithm": _signed(KEY_1, "HS512"),
        "no token": "cows",
        "empty": "",
    }
    for why, token in bad.items():
        answer = client.get(url(server.id), headers={"X-Host-Token": token})
        assert answer.status_code == 401, why
        assert token == "" or token not in answer.text
    assert client.get(url(server.id)).status_code == 401
    twice = [("X-Host-Token", proof()["X-Host-Token"])] * 2
    assert client.get(url(server.id), headers=twice).status_code == 401
    mine = {"X-Host-Token": _signed(KEY_1), "X-Auth-Token": "admin"}
    assert client.get(url(server.id), headers=mine).status_code == 200


def test_a_host_reads_no_other_hosts_server(client: TestClient, server: Server) -> None:
    for path in ("metadata/openstack/latest/meta_data.json", "config-drive"):
        answer = client.get(url(server.id, path, "host-2"), headers=proof("host-2", KEY_2))
        assert answer.status_code == 404
        answer = client.get(url(server.id, path, "host-1"), headers=proof("host-2", KEY_2))
        assert answer.status_code == 401
    assert client.get(url("nowhere"), headers=proof()).status_code == 404
    spoofed = proof("host-2", KEY_2) | {"X-Instance-ID": server.id, "X-Forwarded-For": "10.0.0.1"}
    assert client.get(url("nowhere", host="host-2"), headers=spoofed).status_code == 404


def test_a_claim_opens_the_door_and_delete_shuts_it(
    client: TestClient, engine: Engine, server: Server
) -> None:
    with transaction(engine) as session:
        session.add(
            Claim(
                server_id=server.id,
                host="host-2",
                operation_id="op",
                epoch=1,
                vcpus=1,
                ram_mb=1,
                disk_gb=1,
            )
        )
    answer = client.get(url(server.id, host="host-2"), headers=proof("host-2", KEY_2))
    assert answer.status_code == 200
    with transaction(engine) as session:
        row = session.get_one(Server, server.id)
        row.deleted_at = now()
        session.add(row)
    for host, key in (("host-1", KEY_1), ("host-2", KEY_2)):
        answer = client.get(url(server.id, host=host), headers=proof(host, key))
        assert answer.status_code == 404


def test_a_guest_posts_its_password_once(client: TestClient, server: Server) -> None:
    path = url(server.id, "metadata/openstack/2013-04-04/password")
    for body in (b"x" * (MAX_PASSWORD_BYTES + 1), b"\xff", b"a\x00b"):
        assert client.post(path, content=body, headers=proof()).status_code == 400
    assert client.get(path, headers=proof()).content == b""
    assert client.post(path, content=b"sealed", headers=proof()).status_code == 200
    assert client.get(path, headers=proof()).content == b"sealed"
    assert client.post(path, content=b"other", headers=proof()).status_code == 409
    assert client.post(path, content=b"x").status_code == 401


def test_a_broken_user_data_does_not_take_metadata_down(
    client: TestClient, engine: Engine, server: Server
) -> None:
    with transaction(engine) as session:
        row = session.get_one(Server, server.id)
        row.user_data = "x"
        session.add(row)
    assert client.get(url(server.id), headers=proof()).status_code == 200
