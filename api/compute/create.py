"""POST /servers: from a checked body to new rows. Every mistake a user can make is found here."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlmodel import Session, select

from api.compute.server_bodies import BlockDevice, CreateServer, CreateServerRequest, Hints
from api.context import Cloud
from api.policy import Caller, authorize
from db.flavors import Flavor, get_flavor_for
from db.groups import ServerGroup, zones_of_hosts
from db.hosts import Host, get_host
from db.images import Image, get_visible_image
from db.keypairs import find_keypair
from db.network import PortRequest, allocate_server_ports, usable_networks
from db.quotas import (
    SetLimits,
    check_quota,
    count_group_members,
    limits_of,
    locked_limits,
    usage_of,
)
from db.servers import Server, replace_tags
from domain.errors import BadRequest, NotFound, QuotaExceeded
from domain.ids import new_id
from domain.states import TaskState, VmState
from runtime.settings import Settings

GIB = 1024**3
MAX_COUNT = 1000
"""Servers of one request."""
_CLEAR_LETTERS = "23456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
"""Without the letters and digits that look alike."""


@dataclass(frozen=True, slots=True)
class Created:
    """What a create made, not yet committed."""

    servers: list[Server]
    admin_pass: str
    reservation_id: str
    constraints: dict[str, Any]
    """For the operation: the host that was asked for, if any."""


def create_servers(
    session: Session, cloud: Cloud, who: Caller, request: CreateServerRequest
) -> Created:
    """Add the rows of the servers asked for, with ports and tags; nothing when it raises.

    BadRequest, Forbidden, Conflict or QuotaExceeded, in Nova's words.
    """
    body = request.server
    if not who.project_id:
        raise BadRequest("A server belongs to a project; the token is scoped to none.")
    _refuse_unoffered(body)
    hints = request.hints or request.old_hints or Hints()
    flavor = _flavor(session, who, body.flavor_ref)
    image = _image(session, who, body)
    _check_fit(flavor, image)
    _check_devices(body, flavor)
    constraints = _constraints(session, who, body)
    template = _template(session, cloud, who, body, flavor, image)
    template["availability_zone"] = _zone(session, cloud.settings, who, body.availability_zone)
    template["group_id"] = hints.group
    template["scheduler_hints"] = hints.model_dump(mode="json", exclude_none=True)
    ports = _ports(session, who, body)
    limits = locked_limits(session, who.project_id, who.user_id)
    count = _count(session, cloud.settings, who, body, flavor, ports, limits)
    _check_group(session, cloud.settings, who, hints.group, count, limits)
    password = body.admin_pass or generate_password()
    template["admin_pass_sealed"] = cloud.sealer.seal(password.encode())
    servers = _rows(body, template, count)
    session.add_all(servers)
    session.flush()
    for server in servers:
        _attach(session, cloud.settings, body, server, ports, limits)
    return Created(servers, password, str(template["reservation_id"]), constraints)


def generate_password(length: int = 12) -> str:
    """A password for a guest's administrator."""
    return "".join(secrets.choice(_CLEAR_LETTERS) for _ in range(length))


def default_hostname(name: str, server_id: str) -> str:
    """A host name made from a server's name, or from its id where nothing usable is left."""
    text = re.sub(r"[ _.]", "-", name.encode("ascii", "ignore").decode())
    text = re.sub(r"[^A-Za-z0-9-]", "", text).lower().strip("-")[:63].rstrip("-")
    return text or f"server-{server_id}"


def _refuse_unoffered(body: CreateServer) -> None:
    refused = {
        "personality": "File injection (personality) is not offered; use user_data instead.",
        "trusted_image_certificates": "Trusted image certificates are not offered.",
        "block_device_mapping": "Volumes are not offered: boot from an image to a local disk.",
    }
    for name, message in refused.items():
        if getattr(body, name):
            raise BadRequest(message)


def _flavor(session: Session, who: Caller, ref: str | int) -> Flavor:
    wanted = str(ref).rstrip("/").rsplit("/", 1)[-1]
    missing = f"Flavor {wanted:.255} could not be found."
    try:
        flavor = get_flavor_for(session, wanted, who.project_id, who.is_admin)
    except NotFound:
        raise BadRequest(missing) from None
    if flavor.disabled:
        raise BadRequest(missing)
    return flavor


def _image(session: Session, who: Caller, body: CreateServer) -> Image:
    if not body.image_ref:
        if body.block_device_mapping_v2:
            raise BadRequest("Volumes are not offered: boot from an image to a local disk.")
        raise BadRequest("Missing imageRef attribute")
    try:
        image_id = str(UUID(body.image_ref.rstrip("/").rsplit("/", 1)[-1]))
    except ValueError:
        raise BadRequest("Invalid imageRef provided.") from None
    try:
        image = get_visible_image(session, image_id, who.project_id, who.is_admin)
    except NotFound:
        raise BadRequest("Can not find requested image") from None
    if image.status != "active":
        raise BadRequest(f"Image {image_id} is not active.")
    return image


def _check_fit(flavor: Flavor, image: Image) -> None:
    if flavor.ram_mb < image.min_ram:
        raise BadRequest("Flavor's memory is too small for requested image.")
    disk = flavor.disk_gb * GIB
    if not disk:  # the disk is then as large as the image
        return
    size = max(image.size or 0, image.virtual_size or 0)
    if size > disk:
        raise BadRequest(
            "Flavor's disk is too small for requested image. "
            f"Flavor disk is {disk} bytes, image is {size} bytes."
        )
    if image.min_disk * GIB > disk:
        raise BadRequest(
            "Flavor's disk is smaller than the minimum size specified in image metadata. "
            f"Flavor disk is {disk} bytes, minimum size is {image.min_disk * GIB} bytes."
        )


def _check_devices(body: CreateServer, flavor: Flavor) -> None:
    """Only what the flavor gives anyway can be asked for: the image on a local disk, blank disks."""
    devices = [d for d in body.block_device_mapping_v2 if not d.no_device]
    if devices and not any(_is_root(d, body.image_ref or "") for d in devices):
        if any(d.boot_index == 0 for d in devices):
            raise BadRequest("Volumes are not offered: boot from an image to a local disk.")
        raise BadRequest(
            "Block Device Mapping is Invalid: Boot sequence for the instance is invalid."
        )
    swap, ephemeral = 0, 0
    for device in devices:
        if _is_root(device, body.image_ref or ""):
            continue
        if device.source_type != "blank" or device.destination_type == "volume":
            raise BadRequest("Volumes are not offered: boot from an image to a local disk.")
        if device.guest_format == "swap":
            swap += device.volume_size or flavor.swap_mb
        else:
            ephemeral += device.volume_size or flavor.ephemeral_gb
    _check_blanks("Swap drive", swap, flavor.swap_mb)
    _check_blanks("Ephemeral disks", ephemeral, flavor.ephemeral_gb)


def _is_root(device: BlockDevice, image_ref: str) -> bool:
    local = device.source_type == "image" and device.destination_type in (None, "local")
    return local and device.boot_index == 0 and image_ref.endswith(device.uuid or "/")


def _check_blanks(what: str, asked: int, given: int) -> None:
    if asked > given:
        raise BadRequest(f"{what} requested is larger than instance type allows.")
    if asked and asked < given:
        raise BadRequest(f"{what} smaller than the flavor's {given} is not offered.")


def _constraints(session: Session, who: Caller, body: CreateServer) -> dict[str, str]:
    if body.host is None and body.hypervisor_hostname is None:
        return {}
    authorize(who, "servers:create:forced_host")
    found: dict[str, str] = {}
    if body.host is not None:
        _known_host(session, body.host)
        found["host"] = body.host
    if body.hypervisor_hostname is not None:
        node = body.hypervisor_hostname
        _known_node(session, node)
        found["hypervisor_hostname"] = node
    return found


def _known_host(session: Session, name: str) -> None:
    try:
        get_host(session, name)
    except NotFound as missing:
        raise BadRequest(missing.message) from None


def _known_node(session: Session, node: str) -> None:
    if session.exec(select(Host.name).where(Host.hypervisor_hostname == node)).first() is None:
        raise BadRequest(f"Compute host {node} could not be found.")


def _zone(session: Session, settings: Settings, who: Caller, asked: str | None) -> str | None:
    """The zone as asked, ``zone:host:node`` in full; the scheduler reads all parts."""
    if asked is None:
        return None
    zone, *forced = asked.split(":")
    if len(forced) > 2:
        raise BadRequest("Unable to parse availability_zone")
    if forced:
        authorize(who, "servers:create:forced_host")
        host, node = [*forced, ""][:2]
        if host:
            _known_host(session, host)
        if node:
            _known_node(session, node)
    default = settings.default_availability_zone
    if zone and zone != default and zone not in zones_of_hosts(session, default).values():
        raise BadRequest("The requested availability zone is not available")
    return asked


def _template(
    session: Session, cloud: Cloud, who: Caller, body: CreateServer, flavor: Flavor, image: Image
) -> dict[str, Any]:
    """The fields that all servers of the request share."""
    if body.metadata:
        most = limits_of(session, who.project_id, cloud.settings.quota_defaults)["metadata_items"]
        if 0 <= most < len(body.metadata):
            raise QuotaExceeded(f"Maximum number of metadata items exceeds {most}")
    public_key = None
    if body.key_name is not None:
        keypair = find_keypair(session, who.user_id, body.key_name)
        if keypair is None:
            raise BadRequest("Invalid key_name provided.")
        public_key = keypair.public_key
    automatic = str(image.properties.get("auto_disk_config", "")).lower() in ("true", "1", "yes")
    return {
        "project_id": who.project_id,
        "user_id": who.user_id,
        "description": body.description,
        "flavor": flavor_copy(flavor),
        "vcpus": flavor.vcpus,
        "ram_mb": flavor.ram_mb,
        "disk_gb": flavor.disk_gb,
        "image_id": image.id,
        "image": image_copy(image),
        "key_name": body.key_name,
        "public_key": public_key,
        "user_data": body.user_data,
        "metadata_": body.metadata,
        "config_drive": bool(body.config_drive),
        "access_ip_v4": body.access_ip_v4,
        "access_ip_v6": body.access_ip_v6,
        "disk_config": body.disk_config or ("AUTO" if automatic else "MANUAL"),
        "reservation_id": f"r-{secrets.token_hex(4)}",
    }


def flavor_copy(flavor: Flavor) -> dict[str, Any]:
    """What a server keeps of its flavor, whatever becomes of the flavor."""
    return {
        "id": flavor.flavor_id,
        "name": flavor.name,
        "vcpus": flavor.vcpus,
        "ram_mb": flavor.ram_mb,
        "disk_gb": flavor.disk_gb,
        "ephemeral_gb": flavor.ephemeral_gb,
        "swap_mb": flavor.swap_mb,
        "extra_specs": dict(flavor.extra_specs),
    }


def image_copy(image: Image) -> dict[str, Any]:
    """What a server keeps of its image, whatever becomes of the image."""
    return {
        "checksum": image.sha512,
        "disk_format": image.disk_format,
        "size_bytes": image.size,
        "virtual_size": image.virtual_size,
        "min_disk": image.min_disk,
        "min_ram": image.min_ram,
        "properties": dict(image.properties),
    }


def _ports(session: Session, who: Caller, body: CreateServer) -> list[PortRequest]:
    if body.networks == "none":
        return []
    if isinstance(body.networks, list) and body.networks:
        cards = body.networks
        for card in cards:
            if card.port is None and card.uuid is None:
                raise BadRequest("Bad networks format: missing 'uuid'")
        return [
            PortRequest(port_id=card.port, tag=card.tag)
            if card.port is not None
            else PortRequest(network_id=card.uuid, fixed_ip=card.fixed_ip or None, tag=card.tag)
            for card in cards
        ]
    if usable_networks(session, who.project_id):
        return [PortRequest()]
    if body.networks == "auto":
        raise BadRequest(f"Unable to automatically allocate a network for project {who.project_id}")
    return []


def _count(
    session: Session,
    settings: Settings,
    who: Caller,
    body: CreateServer,
    flavor: Flavor,
    ports: list[PortRequest],
    limits: SetLimits,
) -> int:
    """How many servers: the most that was asked for, or fewer where the quota has room for
    ``min_count`` only."""
    least = body.min_count or 1
    most = body.max_count or least
    if least > most:
        raise BadRequest("min_count must be <= max_count")
    if most > 1:
        _check_repeatable(body, ports)

    def check(count: int) -> None:
        wanted = {"instances": count, "cores": count * flavor.vcpus, "ram": count * flavor.ram_mb}
        defaults = settings.quota_defaults
        check_quota(session, who.project_id, who.user_id, wanted, defaults, limits)

    try:
        check(most)
    except QuotaExceeded:
        if least == most:
            raise
        most = max(least, min(most, _headroom(session, settings, who, flavor, limits)))
        check(most)
    if most > MAX_COUNT:
        raise BadRequest(f"At most {MAX_COUNT} servers can be created by one request.")
    return most


def _check_repeatable(body: CreateServer, ports: list[PortRequest]) -> None:
    if any(port.port_id for port in ports):
        raise BadRequest(
            "Unable to launch multiple instances with a single configured port ID. "
            "Please launch your instance one by one with different ports."
        )
    if any(port.fixed_ip for port in ports):
        raise BadRequest(
            "Failed to launch instances: "
            "max_count cannot be greater than 1 if an fixed_ip is specified."
        )
    if body.hostname is not None and "." in body.hostname:
        raise BadRequest("A fully qualified hostname cannot be given to multiple instances.")


def _headroom(
    session: Session, settings: Settings, who: Caller, flavor: Flavor, limits: SetLimits
) -> int:
    """How many more servers of this flavor the quotas of project and user allow."""
    costs = {"instances": 1, "cores": flavor.vcpus, "ram": flavor.ram_mb}
    defaults = settings.quota_defaults
    rooms = []
    for user_id, most in (
        ("", limits.in_project(defaults)),
        (who.user_id, limits.for_user(defaults)),
    ):
        used = usage_of(session, who.project_id, user_id)
        rooms += [
            (most[name] - used[name]) // cost
            for name, cost in costs.items()
            if most[name] >= 0 and cost
        ]
    return min(rooms, default=MAX_COUNT)


def _check_group(
    session: Session,
    settings: Settings,
    who: Caller,
    group_id: str | None,
    count: int,
    limits: SetLimits,
) -> None:
    if group_id is None:
        return
    group = session.get(ServerGroup, group_id)
    if group is None or group.project_id != who.project_id:
        raise BadRequest(f"Instance group {group_id} could not be found.")
    limit = limits.for_user(settings.quota_defaults)["server_group_members"]
    if 0 <= limit < count_group_members(session, group_id, who.user_id) + count:
        raise QuotaExceeded("Quota exceeded, too many servers in group")


def _rows(body: CreateServer, template: dict[str, Any], count: int) -> list[Server]:
    several = (body.max_count or body.min_count or 1) > 1
    servers = []
    for index in range(count):
        suffix = f"-{index + 1}" if several else ""
        server = Server(**template, id=new_id(), name=f"{body.name[: 255 - len(suffix)]}{suffix}")
        server.launch_index = index
        server.vm_state, server.task_state = VmState.BUILDING, TaskState.SCHEDULING
        wanted = body.hostname + suffix if body.hostname else None
        server.hostname = wanted or default_hostname(server.name, server.id)
        servers.append(server)
    return servers


def _attach(
    session: Session,
    settings: Settings,
    body: CreateServer,
    server: Server,
    ports: list[PortRequest],
    limits: SetLimits,
) -> None:
    zone = (server.availability_zone or "").split(":")[0] or settings.default_availability_zone
    allocate_server_ports(
        session,
        server_id=server.id,
        project_id=server.project_id,
        az=zone,
        requests=ports,
        security_groups=[group.name for group in body.security_groups],
        limits=limits,
    )
    if body.tags:
        replace_tags(session, server.id, body.tags)
