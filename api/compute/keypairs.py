"""Keypairs: imported, or made here and shown once."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal, NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import pkcs12
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from fastapi import APIRouter, Query, Response
from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError
from sqlmodel import Session

from api.context import Db, TheCloud, allow
from api.fields import Name, Stamp, Text
from api.history import (
    created_keypair_status,
    deleted_keypair_status,
    imports_keypairs_only,
    pages_keypairs,
)
from api.microversion import Body, Route, View, since
from api.paging import NextLinks, Paged, Params, TheLinks
from api.policy import Caller
from db.keypairs import Keypair, get_keypair, list_keypairs
from db.quotas import count_keypairs, limits_of, lock_quota
from db.session import insert_unique
from domain.errors import BadRequest, Forbidden, QuotaExceeded
from domain.quota import fits

router = APIRouter(prefix="/v2.1/os-keypairs", route_class=Route)
Reader = Annotated[Caller, allow("keypairs")]
Writer = Annotated[Caller, allow("keypairs:write")]
_KEY_BITS = 2048
_CERTIFICATE_LIFE = timedelta(days=3650)
_UPN = x509.ObjectIdentifier("1.3.6.1.4.1.311.20.2.3")
"""The user's principal name, by which Windows maps a certificate to an account."""


# --- bodies


def _keypair_name(name: str) -> str:
    allowed = r"[_\-@. a-zA-Z0-9]+" if imports_keypairs_only() else r"[_\- a-zA-Z0-9]+"
    if not re.fullmatch(allowed, name):
        raise PydanticCustomError("name", "It does not match '^{pattern}$'", {"pattern": allowed})
    return name


class NewKeypair(Body):
    name: Annotated[Name, AfterValidator(_keypair_name)]
    public_key: Annotated[Text, Field(max_length=65535)] | None = None
    type: Annotated[Literal["ssh", "x509"], since("2.2")] = "ssh"
    user_id: Annotated[Text | None, since("2.10"), Field(min_length=1, max_length=36)] = None


class CreateKeypair(Body):
    keypair: NewKeypair


class OneKeypair(Params):
    user_id: Annotated[str | None, since("2.10")] = None


class ListKeypairs(Paged):
    user_id: Annotated[str | None, since("2.10")] = None
    limit: Annotated[int | None, since("2.35"), Field(ge=0)] = None
    marker: Annotated[str | None, since("2.35")] = None


# --- views


class KeypairBrief(View):
    name: str
    public_key: str
    fingerprint: str
    type: Annotated[str, since("2.2")]


class KeypairMade(KeypairBrief):
    user_id: str
    private_key: Annotated[str | None, Field(exclude_if=lambda key: key is None)] = None


class KeypairView(KeypairBrief):
    id: int
    user_id: str
    created_at: Stamp
    deleted: bool = False
    deleted_at: None = None
    updated_at: None = None


class Made(View):
    keypair: KeypairMade


class Shown(View):
    keypair: KeypairView


class Listed(View):
    keypair: KeypairBrief


class KeypairList(View):
    keypairs: list[Listed]
    keypairs_links: NextLinks = None


# --- keys


class Pair(NamedTuple):
    """Both halves as text, and the public half's fingerprint."""

    private: str
    public: str
    fingerprint: str


def _colons(digest: str) -> str:
    return ":".join(a + b for a, b in zip(digest[::2], digest[1::2], strict=True))


def ssh_fingerprint(public_key: str) -> str:
    """The MD5 fingerprint of an OpenSSH public key; BadRequest when it is none."""
    try:
        serialization.load_ssh_public_key(public_key.encode())
        blob = base64.b64decode(public_key.split()[1])
    except (ValueError, IndexError, UnsupportedAlgorithm) as error:
        raise BadRequest("Keypair data is invalid: failed to generate fingerprint") from error
    return _colons(hashlib.md5(blob, usedforsecurity=False).hexdigest())


def x509_fingerprint(certificate: str) -> str:
    """The SHA-1 fingerprint of a PEM certificate; BadRequest when it is none."""
    try:
        loaded = x509.load_pem_x509_certificate(certificate.encode())
    except (ValueError, binascii.Error, UnsupportedAlgorithm) as error:
        raise BadRequest(
            f"Keypair data is invalid: failed to generate X509 fingerprint. Error message: {error}"
        ) from error
    return _colons(loaded.fingerprint(hashes.SHA1()).hex())  # noqa: S303  # what clients compare


def _make_ssh() -> Pair:
    key = rsa.generate_private_key(public_exponent=65537, key_size=_KEY_BITS)
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    ).decode()
    public = (
        key.public_key()
        .public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        .decode()
    )
    return Pair(private, f"{public} Generated-by-Duranova", ssh_fingerprint(public))


def _make_x509(user_id: str) -> Pair:
    """A self-signed client certificate, and base64 PKCS #12 of it with its key, as Nova gives for WinRM."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=_KEY_BITS)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, user_id[:64])])
    principal = x509.OtherName(_UPN, asn1.encode_der(f"{user_id}@localhost"))
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + _CERTIFICATE_LIFE)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), False)
        .add_extension(x509.SubjectAlternativeName([principal]), False)
        .sign(key, hashes.SHA256())
    )
    bundle = pkcs12.serialize_key_and_certificates(
        None, key, certificate, None, serialization.NoEncryption()
    )
    public = certificate.public_bytes(serialization.Encoding.PEM).decode()
    return Pair(base64.b64encode(bundle).decode(), public, x509_fingerprint(public))


# --- handlers


def _owner(who: Caller, asked: str | None, verb: str) -> str:
    """Whose keypairs: the caller's own, or, for admins, another's."""
    if asked is None or asked == who.user_id:
        return who.user_id
    if not who.is_admin:
        raise Forbidden(f"Policy doesn't allow os_compute_api:os-keypairs:{verb} to be performed.")
    return asked


def _check_room(db: Session, who: Caller, owner: str, defaults: dict[str, int]) -> None:
    lock_quota(db, owner)
    limit = limits_of(db, who.project_id, defaults)["key_pairs"]
    if not fits(limit, count_keypairs(db, owner), 1):
        raise QuotaExceeded("Quota exceeded, too many key pairs.")


@router.get("")
def index(
    query: Annotated[ListKeypairs, Query()], who: Reader, db: Db, links: TheLinks
) -> KeypairList:
    owner = _owner(who, query.user_id, "index")
    paged = pages_keypairs()
    rows = list_keypairs(db, owner, query.page_size if paged else None, query.marker)
    names = [row.name for row in rows]
    return KeypairList(
        keypairs=[Listed(keypair=KeypairBrief.model_validate(row)) for row in rows],
        keypairs_links=links.next("os-keypairs", query, names) if paged else None,
    )


@router.post("")
def create(body: CreateKeypair, response: Response, who: Writer, db: Db, cloud: TheCloud) -> Made:
    asked = body.keypair
    owner = _owner(who, asked.user_id, "create")
    if asked.public_key is None and imports_keypairs_only():
        raise BadRequest(
            "Invalid input for field/attribute keypair. 'public_key' is a required property"
        )
    if asked.public_key is None:
        made = _make_ssh() if asked.type == "ssh" else _make_x509(owner)
    else:
        read = ssh_fingerprint if asked.type == "ssh" else x509_fingerprint
        made = Pair("", asked.public_key, read(asked.public_key))
    _check_room(db, who, owner, cloud.settings.quota_defaults)
    keypair = Keypair(
        user_id=owner,
        name=asked.name,
        type=asked.type,
        public_key=made.public,
        fingerprint=made.fingerprint,
    )
    insert_unique(db, keypair, f"Key pair '{asked.name}' already exists.")
    response.status_code = created_keypair_status()
    view = KeypairMade.model_validate(keypair)
    view.private_key = made.private or None
    return Made(keypair=view)


@router.get("/{name}")
def show(name: str, query: Annotated[OneKeypair, Query()], who: Reader, db: Db) -> Shown:
    keypair = get_keypair(db, _owner(who, query.user_id, "show"), name)
    return Shown(keypair=KeypairView.model_validate(keypair))


@router.delete("/{name}", response_class=Response)
def delete(name: str, query: Annotated[OneKeypair, Query()], who: Writer, db: Db) -> Response:
    db.delete(get_keypair(db, _owner(who, query.user_id, "delete"), name))
    return Response(status_code=deleted_keypair_status())
