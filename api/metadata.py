"""Instance metadata for hosts: what a guest may learn about itself, as 169.254.169.254 or a config drive.

A host asks for the servers that run on it or are being built there, for no others.
"""

from __future__ import annotations

import base64
import binascii
import secrets
from typing import Annotated, Any

from fastapi import APIRouter, Body, Response
from sqlalchemy import or_
from sqlmodel import Session, col, select

from api.answers import AnsweringRoute
from api.context import Cloud, Db, TheCloud
from api.hostauth import TheHost
from db.groups import zones_of_hosts
from db.hosts import Claim
from db.network import nic_specs, server_security_groups
from db.network.server_ports import ports_of
from db.servers import Server
from domain.errors import BadRequest, Conflict, NotFound
from domain.guest import NicSpec
from domain.userdata import InstanceDocument, NicDocument, config_drive_files, metadata_tree

router = APIRouter(
    prefix="/v1/hosts/{host}/servers/{server_id}", tags=["metadata"], route_class=AnsweringRoute
)
MAX_PASSWORD_BYTES = 1020
_SEED_BYTES = 512
_TYPES = {"json": "application/json", "user_data": "application/octet-stream"}


def _missing() -> NotFound:
    return NotFound("The resource could not be found.")


def _server_on(session: Session, host: str, server_id: str) -> Server:
    """The living server that runs on the host, or is placed there. NotFound for any other."""
    placed = select(Claim.server_id).where(Claim.host == host, Claim.server_id == server_id)
    server = session.exec(
        select(Server).where(
            Server.id == server_id,
            col(Server.deleted_at).is_(None),
            or_(col(Server.host) == host, col(Server.id).in_(placed)),
        )
    ).first()
    if server is None:
        raise _missing()
    return server


def build_document(
    session: Session, server: Server, *, host: str, default_zone: str, admin_pass: str | None = None
) -> InstanceDocument:
    """All that the server's guest may learn, read from the record. ``host`` runs it."""
    specs = nic_specs(session, [server.id], with_rules=False)[server.id]
    tags = {port.id: port.extra.get("tag") for port in ports_of(session, server.id)}
    zone = zones_of_hosts(session, default_zone).get(host, default_zone)
    return InstanceDocument(
        uuid=server.id,
        hostname=server.hostname or server.name,
        name=server.name,
        project_id=server.project_id,
        availability_zone=zone,
        launch_index=server.launch_index,
        public_keys={server.key_name or "key": server.public_key} if server.public_key else {},
        meta=server.metadata_,
        user_data=_decoded(server.user_data),
        admin_pass=admin_pass,
        nics=tuple(_nic(spec, tags.get(spec.port_id)) for spec in specs),
        random_seed=secrets.token_bytes(_SEED_BYTES),
        instance_type=str(server.flavor.get("name", "")),
        image_id=server.image_id or "",
        reservation_id=server.reservation_id,
        security_groups=tuple(server_security_groups(session, [server.id])[server.id]),
        password=server.guest_password or "",
    )


def _decoded(user_data: str | None) -> bytes | None:
    if not user_data:
        return None
    try:
        return base64.b64decode(user_data)
    except binascii.Error:  # the API refuses such; a row made otherwise must not take metadata down
        return None


def _nic(spec: NicSpec, tag: str | None) -> NicDocument:
    return NicDocument(
        port_id=spec.port_id,
        network_id=spec.network_id,
        mac=spec.mac,
        ip=spec.ip,
        cidr=spec.subnet.cidr,
        mtu=spec.mtu,
        gateway_ip=spec.subnet.gateway_ip,
        dns_nameservers=spec.subnet.dns_nameservers,
        host_routes=spec.subnet.host_routes,
        dhcp=spec.subnet.enable_dhcp,
        tag=tag,
    )


def _document(session: Session, cloud: Cloud, host: str, server: Server) -> InstanceDocument:
    zone = cloud.settings.default_availability_zone
    return build_document(session, server, host=host, default_zone=zone)


@router.get("/metadata")
@router.get("/metadata/{path:path}")
def show_metadata(
    server_id: str, host: TheHost, db: Db, cloud: TheCloud, path: str = ""
) -> Response:
    """What the metadata service answers under this path."""
    tree = metadata_tree(_document(db, cloud, host, _server_on(db, host, server_id)))
    content = tree.get(path.strip("/"))
    if content is None:
        raise _missing()
    kind = _TYPES.get(path.rpartition(".")[2].rpartition("/")[2], "text/plain; charset=utf-8")
    return Response(content, media_type=kind)


@router.post("/metadata/openstack/{version}/password")
def post_password(
    server_id: str,
    version: str,
    host: TheHost,
    db: Db,
    body: Annotated[bytes, Body(media_type="application/octet-stream")],
) -> Response:
    """Keep the password a guest made, encrypted by it for its owner. Once: Conflict afterwards."""
    server = _server_on(db, host, server_id)
    if len(body) > MAX_PASSWORD_BYTES or not body.isascii() or b"\x00" in body:
        raise BadRequest("Request is too large or not text.")
    if server.guest_password:
        raise Conflict("The password is set already.")
    server.guest_password = body.decode()
    db.add(server)
    return Response()


@router.get("/config-drive")
def show_config_drive(server_id: str, host: TheHost, db: Db, cloud: TheCloud) -> dict[str, Any]:
    """The files of the server's config drive: path → base64."""
    server = _server_on(db, host, server_id)
    sealed = server.admin_pass_sealed
    document = build_document(
        db,
        server,
        host=host,
        default_zone=cloud.settings.default_availability_zone,
        admin_pass=cloud.sealer.unseal(sealed).decode() if sealed else None,
    )
    files = config_drive_files(document)
    return {path: base64.b64encode(content).decode() for path, content in files.items()}
