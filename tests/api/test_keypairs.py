"""Keypairs over HTTP."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import pkcs12
from fastapi.testclient import TestClient
from sqlalchemy import Engine

from db.keypairs import get_keypair
from db.quotas import set_limit
from db.session import reading, transaction
from domain.errors import NotFound
from tests.conftest import acting_as

ROOT = "/compute/v2.1/os-keypairs"
KEY = (
    "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQDx8nkQv/zgGgB4rMYmIf+6A4l6Rr+o/6lHBQdW5aYd44bd8JttDCE/F/pNRr0l"
    "RE+PiqSPO8nDPHw0010JeMH9gYgnnFlyY3/OcJ02RhIPyyxYpv9FhY+2YiUkpwFOcLImyrxEsYXpD/0d3ac30bNH6Sw9JD9UZHYc"
    "pSxsIbECHw== Generated-by-Nova"
)
FINGERPRINT = "1e:2c:9b:56:79:4b:45:77:f9:ca:7a:98:2c:b0:d5:3c"
"""The pair of Nova's own API reference."""


def at(version: str, who: str = "member") -> dict[str, str]:
    return {**acting_as(who), "OpenStack-API-Version": f"compute {version}"}


def add(client: TestClient, name: str = "mine", version: str = "2.1", **more: Any) -> Any:
    who = more.pop("_as", "member")
    body = {"keypair": {"name": name, "public_key": KEY, **more}}
    return client.post(ROOT, json=body, headers=at(version, who))


def names(answer: Any) -> list[str]:
    return [k["keypair"]["name"] for k in answer.json()["keypairs"]]


def test_an_imported_key_shows_novas_fingerprint(client: TestClient) -> None:
    answer = add(client)
    assert answer.status_code == 200
    assert answer.json() == {
        "keypair": {
            "name": "mine",
            "public_key": KEY,
            "fingerprint": FINGERPRINT,
            "user_id": "user-member",
        }
    }


def test_the_type_and_the_better_statuses_come_with_their_version(client: TestClient) -> None:
    made = add(client, version="2.2", type="ssh")
    assert made.status_code == 201
    assert made.json()["keypair"]["type"] == "ssh"
    assert add(client, "other", "2.1", type="ssh").status_code == 400
    listed = client.get(ROOT, headers=at("2.2")).json()["keypairs"][0]["keypair"]
    assert listed.keys() == {"name", "public_key", "fingerprint", "type"}
    old = client.get(ROOT, headers=at("2.1")).json()["keypairs"][0]["keypair"]
    assert old.keys() == {"name", "public_key", "fingerprint"}
    assert client.delete(f"{ROOT}/mine", headers=at("2.2")).status_code == 204
    add(client)
    gone = client.delete(f"{ROOT}/mine", headers=at("2.1"))
    assert (gone.status_code, gone.content) == (202, b"")


def test_show_has_everything_but_a_private_key(client: TestClient) -> None:
    add(client)
    keypair = client.get(f"{ROOT}/mine", headers=at("2.2")).json()["keypair"]
    assert keypair.keys() == {
        "id", "name", "type", "public_key", "fingerprint", "user_id",
        "created_at", "updated_at", "deleted_at", "deleted",
    }  # fmt: skip
    assert keypair["deleted"] is False
    assert isinstance(keypair["id"], int)
    assert len(keypair["created_at"]) == len("2026-01-01T00:00:00.000000")


def test_a_generated_key_fits_its_public_half_and_is_shown_once(client: TestClient) -> None:
    answer = client.post(ROOT, json={"keypair": {"name": "made"}}).json()["keypair"]
    private = serialization.load_pem_private_key(answer["private_key"].encode(), None)
    public = private.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    assert answer["public_key"].startswith(public.decode())
    assert "private_key" not in client.get(f"{ROOT}/made").json()["keypair"]


def test_a_generated_x509_pair_is_a_client_certificate(client: TestClient) -> None:
    body = {"keypair": {"name": "win", "type": "x509"}}
    answer = client.post(ROOT, json=body, headers=at("2.2")).json()["keypair"]
    certificate = x509.load_pem_x509_certificate(answer["public_key"].encode())
    bundle = base64.b64decode(answer["private_key"])
    key, bundled, _ = pkcs12.load_key_and_certificates(bundle, None)
    assert bundled == certificate
    assert key is not None
    assert key.public_key() == certificate.public_key()
    assert len(answer["fingerprint"]) == 59
    again = {"keypair": {"name": "in", "type": "x509", "public_key": answer["public_key"]}}
    imported = client.post(ROOT, json=again, headers=at("2.92")).json()["keypair"]
    assert imported["fingerprint"] == answer["fingerprint"]
    assert "private_key" not in imported


@pytest.mark.parametrize("public_key", ["", "nonsense", "ssh-rsa", "ssh-rsa AAAA", "ssh-rsa !!!"])
def test_an_invalid_public_key_is_a_400(client: TestClient, public_key: str) -> None:
    answer = add(client, public_key=public_key)
    assert answer.status_code == 400
    assert answer.json()["badRequest"]["message"] == (
        "Keypair data is invalid: failed to generate fingerprint"
    )


def test_an_ssh_key_is_no_certificate(client: TestClient) -> None:
    answer = add(client, version="2.2", type="x509")
    assert answer.status_code == 400
    assert "failed to generate X509 fingerprint" in answer.text


def test_other_kinds_of_ssh_keys_can_be_imported(client: TestClient) -> None:
    key = ed25519.Ed25519PrivateKey.generate().public_key()
    text = key.public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    ).decode()
    assert add(client, "ed", public_key=text).status_code == 200


@pytest.mark.parametrize(
    ("name", "version", "status"),
    [
        ("with space", "2.1", 200),
        ("a@b.c", "2.91", 400),
        ("a@b.c", "2.92", 201),
        ("", "2.1", 400),
        (" x", "2.1", 400),
        ("x" * 255, "2.1", 200),
        ("x" * 256, "2.1", 400),
        ("sch\u00f6n", "2.92", 400),
        ("a/b", "2.92", 400),
    ],
)
def test_names_follow_the_grammar_of_their_version(
    client: TestClient, name: str, version: str, status: int
) -> None:
    assert add(client, name, version).status_code == status


def test_generation_ends_at_its_version(client: TestClient) -> None:
    body = {"keypair": {"name": "made"}}
    assert client.post(ROOT, json=body, headers=at("2.91")).status_code == 201
    answer = client.post(ROOT, json=body, headers=at("2.92"))
    assert answer.status_code == 400
    assert "'public_key' is a required property" in answer.text


def test_a_name_is_taken_once_per_user(client: TestClient) -> None:
    add(client)
    answer = add(client)
    assert answer.status_code == 409
    message = answer.json()["conflictingRequest"]["message"]
    assert message == "Key pair 'mine' already exists."
    assert add(client, _as="alt").status_code == 200


def test_another_users_keypair_is_not_found(client: TestClient) -> None:
    add(client)
    assert client.get(f"{ROOT}/mine", headers=acting_as("alt")).status_code == 404
    assert client.delete(f"{ROOT}/mine", headers=acting_as("alt")).status_code == 404
    assert names(client.get(ROOT, headers=acting_as("alt"))) == []
    message = client.get(f"{ROOT}/none").json()["itemNotFound"]["message"]
    assert message == "Keypair none not found for user user-member"


def test_admins_handle_the_keypairs_of_others_since_their_version(client: TestClient) -> None:
    made = add(client, version="2.10", user_id="user-alt", _as="admin")
    assert made.json()["keypair"]["user_id"] == "user-alt"
    query = f"{ROOT}?user_id=user-alt"
    assert names(client.get(query, headers=at("2.10", "admin"))) == ["mine"]
    assert names(client.get(query, headers=at("2.9", "admin"))) == []
    shown = client.get(f"{ROOT}/mine?user_id=user-alt", headers=at("2.10", "admin"))
    assert shown.status_code == 200
    assert client.get(query, headers=at("2.10")).status_code == 403
    assert add(client, version="2.10", user_id="user-alt").status_code == 403
    assert add(client, version="2.9", user_id="user-member").status_code == 400
    url = f"{ROOT}/mine?user_id=user-alt"
    assert client.delete(url, headers=at("2.10")).status_code == 403
    assert client.delete(url, headers=at("2.10", "admin")).status_code == 204


def test_the_list_is_paged_by_name_since_its_version(client: TestClient) -> None:
    for name in "cab":
        add(client, name)
    assert names(client.get(f"{ROOT}?limit=1", headers=at("2.34"))) == ["a", "b", "c"]
    first = client.get(f"{ROOT}?limit=2", headers=at("2.35"))
    assert names(first) == ["a", "b"]
    href = first.json()["keypairs_links"][0]["href"]
    assert href == "http://testserver/compute/v2.1/os-keypairs?limit=2&marker=b"
    last = client.get(href.removeprefix("http://testserver"), headers=at("2.35"))
    assert names(last) == ["c"]
    assert "keypairs_links" not in last.json()
    assert client.get(f"{ROOT}?marker=zzz", headers=at("2.35")).status_code == 400


def test_unknown_parameters_are_refused_since_their_version(client: TestClient) -> None:
    assert client.get(f"{ROOT}?a=b", headers=at("2.74")).status_code == 200
    assert client.get(f"{ROOT}?a=b", headers=at("2.75")).status_code == 400


def test_readers_read_only(client: TestClient) -> None:
    assert client.get(ROOT, headers=acting_as("reader")).status_code == 200
    body = {"keypair": {"name": "mine", "public_key": KEY}}
    assert client.post(ROOT, json=body, headers=acting_as("reader")).status_code == 403


def test_the_quota_counts_the_keypairs_of_one_user(client: TestClient, engine: Engine) -> None:
    with transaction(engine) as session:
        set_limit(session, "project-demo", "key_pairs", 2)
    assert add(client, "a").status_code == 200
    assert add(client, "b").status_code == 200
    answer = add(client, "c")
    assert answer.status_code == 403
    assert answer.json()["forbidden"]["message"] == "Quota exceeded, too many key pairs."
    client.delete(f"{ROOT}/a")
    assert add(client, "c").status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"keypair": {}},
        {"keypair": {"name": 5}},
        {"keypair": {"name": "a", "public_key": 5}},
        {"keypair": {"name": "a", "public_key": "ssh-rsa \x00"}},
        {"keypair": {"name": "a", "fingerprint": "x"}},
        {"keypair": None},
        [],
    ],
)
def test_an_ill_formed_body_is_a_400(client: TestClient, body: Any) -> None:
    assert client.post(ROOT, json=body).status_code == 400


def test_a_server_finds_the_keypair_of_its_user(client: TestClient, engine: Engine) -> None:
    add(client)
    with reading(engine) as session:
        assert get_keypair(session, "user-member", "mine").fingerprint == FINGERPRINT
        with pytest.raises(NotFound):
            get_keypair(session, "user-alt", "mine")
