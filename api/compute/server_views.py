"""What a server looks like: every field with the versions that have it, and the reader that fills them.

A field that is not set is not shown, so that one class serves administrators, owners, lists and updates;
spans decide about versions. The classes say what is on the wire, in the documentation too; the reader fills
dictionaries of that shape, because lists are long (``api.microversion.shown``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha224
from typing import Annotated, Any, cast

from pydantic import Field
from sqlalchemy import Row
from sqlmodel import Session

from api.context import Cloud
from api.history import answers_updates_in_full
from api.microversion import View, shown, since, until
from api.paging import Link, Links
from api.policy import Caller, permits
from db.hosts import Host, is_up
from db.network import ServerAddress, server_addresses, server_security_groups
from db.server_list import HostOfServers, hosts_named
from db.servers import Server, ServerFault, newest_faults, tags_of
from db.session import now
from domain.ids import guest_name
from domain.states import TaskState, VmState, status
from runtime.settings import Settings

_WITH_FAULT = ("ERROR", "DELETED")
_WITH_PROGRESS = ("ACTIVE", "BUILD")


class LinkedId(View):
    """Another resource: its id and where it is."""

    id: str
    links: list[Link]


class FlavorEmbedded(View):
    """The flavor as it was when the server was made; sizes in MB (ram, swap) and GB."""

    vcpus: int
    ram: int
    disk: int
    ephemeral: int
    swap: int
    original_name: str
    extra_specs: dict[str, str]


class Address(View):
    """One address of a server on one network."""

    version: int
    addr: str
    type: Annotated[str, Field(alias="OS-EXT-IPS:type")] = "fixed"
    mac: Annotated[str, Field(alias="OS-EXT-IPS-MAC:mac_addr")] = ""


class Fault(View):
    """Why a server is in ERROR."""

    code: int
    created: str
    message: str
    details: str | None = None


class Named(View):
    """Something by its name."""

    name: str


class ServerView(View):
    """A server."""

    id: str
    name: str
    status: str
    tenant_id: str
    user_id: str
    metadata: dict[str, str]
    host_id: Annotated[str, Field(alias="hostId")]
    image: LinkedId | str
    flavor_link: Annotated[LinkedId | None, until("2.46"), Field(serialization_alias="flavor")] = (
        None
    )
    flavor: Annotated[FlavorEmbedded | None, since("2.47")] = None
    created: str
    updated: str
    addresses: dict[str, list[Address]]
    access_ip_v4: Annotated[str, Field(alias="accessIPv4")]
    access_ip_v6: Annotated[str, Field(alias="accessIPv6")]
    links: list[Link]
    disk_config: Annotated[str, Field(alias="OS-DCF:diskConfig")]
    progress: int = 0
    fault: Fault | None = None
    availability_zone: Annotated[str, Field(alias="OS-EXT-AZ:availability_zone")] = ""
    config_drive: str = ""
    key_name: str | None = None
    launched_at: Annotated[str | None, Field(alias="OS-SRV-USG:launched_at")] = None
    terminated_at: Annotated[str | None, Field(alias="OS-SRV-USG:terminated_at")] = None
    security_groups: list[Named] | None = None
    task_state: Annotated[str | None, Field(alias="OS-EXT-STS:task_state")] = None
    vm_state: Annotated[str, Field(alias="OS-EXT-STS:vm_state")] = ""
    power_state: Annotated[int, Field(alias="OS-EXT-STS:power_state")] = 0
    volumes_attached: Annotated[
        list[dict[str, Any]] | None, Field(alias="os-extended-volumes:volumes_attached")
    ] = None
    locked: Annotated[bool, since("2.9")] = False
    description: Annotated[str | None, since("2.19")] = None
    tags: Annotated[list[str] | None, since("2.26")] = None
    trusted_image_certificates: Annotated[list[str] | None, since("2.63")] = None
    server_groups: Annotated[list[str] | None, since("2.71")] = None
    locked_reason: Annotated[str | None, since("2.73")] = None
    pinned_availability_zone: Annotated[str | None, since("2.96")] = None
    hostname: Annotated[str, since("2.90"), Field(alias="OS-EXT-SRV-ATTR:hostname")] = ""
    # administrators only
    host: Annotated[str | None, Field(alias="OS-EXT-SRV-ATTR:host")] = None
    hypervisor_hostname: Annotated[
        str | None, Field(alias="OS-EXT-SRV-ATTR:hypervisor_hostname")
    ] = None
    instance_name: Annotated[str, Field(alias="OS-EXT-SRV-ATTR:instance_name")] = ""
    admin_hostname: Annotated[
        str,
        since("2.3", until="2.89"),
        Field(serialization_alias="OS-EXT-SRV-ATTR:hostname"),
    ] = ""
    reservation_id: Annotated[str, since("2.3"), Field(alias="OS-EXT-SRV-ATTR:reservation_id")] = ""
    launch_index: Annotated[int, since("2.3"), Field(alias="OS-EXT-SRV-ATTR:launch_index")] = 0
    kernel_id: Annotated[str, since("2.3"), Field(alias="OS-EXT-SRV-ATTR:kernel_id")] = ""
    ramdisk_id: Annotated[str, since("2.3"), Field(alias="OS-EXT-SRV-ATTR:ramdisk_id")] = ""
    root_device_name: Annotated[
        str | None, since("2.3"), Field(alias="OS-EXT-SRV-ATTR:root_device_name")
    ] = None
    user_data: Annotated[str | None, since("2.3"), Field(alias="OS-EXT-SRV-ATTR:user_data")] = None
    host_status: Annotated[str, since("2.16")] = ""


class ShownServer(View):
    """``{"server": …}``."""

    server: ServerView


class ServerList(View):
    """A page of servers in full."""

    servers: list[ServerView]
    servers_links: list[Link] | None = None


class ServerName(View):
    """A server in a short list."""

    id: str
    name: str
    links: list[Link]


class ServerNames(View):
    """A page of servers, short."""

    servers: list[ServerName]
    servers_links: list[Link] | None = None


def seconds(moment: datetime) -> str:
    """An instant as the server's own fields show it: ``2026-11-22T18:05:14Z``."""
    return f"{moment.isoformat()[:19]}Z"


def micros(moment: datetime | None) -> str | None:
    """An instant as the extensions show it: ``2026-11-22T18:05:14.000000``."""
    return None if moment is None else moment.isoformat(timespec="microseconds")[:26]


def host_id(project_id: str, host: str | None) -> str:
    """The host as a project may know it: the same for two servers on one host, telling nothing else."""
    return sha224(f"{project_id}{host}".encode()).hexdigest() if host else ""


def host_status(host: HostOfServers | None, settings: Settings) -> str:
    """UP, UNKNOWN (silent), DOWN (forced) or MAINTENANCE (disabled); empty without a host."""
    if host is None:
        return ""
    if host.forced_down:
        return "DOWN"
    if host.disabled:
        return "MAINTENANCE"
    return "UP" if is_up(cast("Host", host), settings, now()) else "UNKNOWN"  # has what it looks at


def shown_addresses(
    found: Sequence[ServerAddress], *, extended: bool
) -> dict[str, list[dict[str, Any]]]:
    """Network name → addresses (``Address``); ``extended`` adds their type and MAC."""
    networks: dict[str, list[dict[str, Any]]] = {}
    for a in found:
        plain = {"version": a.version, "addr": a.ip}
        extra = {"OS-EXT-IPS:type": a.type, "OS-EXT-IPS-MAC:mac_addr": a.mac} if extended else {}
        networks.setdefault(a.network, []).append(plain | extra)
    return networks


AnyServer = Server | Row[Any]
"""A whole row, or the columns of one that a view has."""


@dataclass(frozen=True, slots=True)
class _Related:
    """What other tables say about the servers of a page, by server id or host name."""

    addresses: dict[str, list[ServerAddress]]
    groups: dict[str, list[str]]
    tags: dict[str, list[str]]
    faults: dict[str, ServerFault]
    hosts: dict[str, HostOfServers]


def _load(session: Session, servers: Sequence[AnyServer]) -> _Related:
    ids = [s.id for s in servers]
    failed = [s.id for s in servers if _status(s) in _WITH_FAULT]
    hosts = {s.host for s in servers if s.host}
    return _Related(
        addresses=server_addresses(session, ids),
        groups=server_security_groups(session, ids),
        tags=tags_of(session, ids),
        faults=newest_faults(session, failed) if failed else {},
        hosts=hosts_named(session, hosts) if hosts else {},
    )


def _status(server: AnyServer) -> str:
    task = TaskState(server.task_state) if server.task_state else None
    return status(VmState(server.vm_state), task)


class ServerReader:
    """Turns server rows into what views show (``ServerView``) for one caller, with a constant number of
    statements a page."""

    def __init__(self, session: Session, cloud: Cloud, links: Links, who: Caller) -> None:
        self._session = session
        self._settings = cloud.settings
        self._links = links
        self._is_admin = who.is_admin
        self._sees_status = permits(who, "servers:host_status")
        self._sees_attributes = permits(who, "servers:extended_attributes")

    def page(self, servers: Sequence[AnyServer]) -> list[dict[str, Any]]:
        """The servers of a list, in full."""
        if not servers:
            return []
        related = _load(self._session, servers)
        return [shown(ServerView, self._whole(s, related)) for s in servers]

    def one(self, server: AnyServer) -> dict[str, Any]:
        """``ShownServer``: one server in full, with the groups it is in."""
        fields = self._whole(server, _load(self._session, [server]))
        return {"server": shown(ServerView, fields | {"server_groups": _groups(server)})}

    def updated(self, server: AnyServer) -> dict[str, Any]:
        """``ShownServer``: one server after an update, of which old versions show less."""
        if answers_updates_in_full():
            return self.one(server)
        fields = self._basics(server, _load(self._session, [server]), extended=False)
        return {"server": shown(ServerView, fields | {"server_groups": _groups(server)})}

    def _whole(self, server: AnyServer, related: _Related) -> dict[str, Any]:
        return self._basics(server, related, extended=True) | self._details(server, related)

    def _basics(self, server: AnyServer, related: _Related, *, extended: bool) -> dict[str, Any]:
        text = _status(server)
        fields: dict[str, Any] = {
            "id": server.id,
            "name": server.name,
            "status": text,
            "tenant_id": server.project_id,
            "user_id": server.user_id,
            "metadata": server.metadata_,
            "host_id": host_id(server.project_id, server.host),
            "image": self._linked("images", server.image_id) if server.image_id else "",
            "flavor_link": self._linked("flavors", str(server.flavor.get("id", ""))),
            "flavor": _flavor(server.flavor),
            "created": seconds(server.created_at),
            "updated": seconds(server.updated_at),
            "addresses": shown_addresses(related.addresses[server.id], extended=extended),
            "access_ip_v4": server.access_ip_v4,
            "access_ip_v6": server.access_ip_v6,
            "links": self._links.of("servers", server.id),
            "disk_config": server.disk_config,
            "locked": server.locked,
            "locked_reason": server.locked_reason,
            "description": server.description,
            "tags": related.tags.get(server.id, []),
            "trusted_image_certificates": None,
        }
        if text in _WITH_PROGRESS:
            fields["progress"] = server.progress
        if text in _WITH_FAULT and (fault := related.faults.get(server.id)):
            fields["fault"] = self._fault(fault)
        return fields

    def _details(self, server: AnyServer, related: _Related) -> dict[str, Any]:
        host = related.hosts.get(server.host or "")
        fields: dict[str, Any] = {
            "availability_zone": self._zone(server, host),
            "pinned_availability_zone": _asked_zone(server),
            "config_drive": "True" if server.config_drive else "",
            "key_name": server.key_name,
            "launched_at": micros(server.launched_at),
            "terminated_at": micros(server.terminated_at),
            "task_state": server.task_state,
            "vm_state": server.vm_state,
            "power_state": server.power_state,
            "volumes_attached": [],
            "hostname": server.hostname,
        }
        if names := related.groups.get(server.id):
            fields["security_groups"] = [{"name": name} for name in names]
        if self._sees_status:
            fields["host_status"] = host_status(host, self._settings)
        if self._sees_attributes:
            fields |= _attributes(server, host)
        return fields

    def _zone(self, server: AnyServer, host: HostOfServers | None) -> str:
        if not server.host:
            return _asked_zone(server) or ""
        return (host.zone if host else None) or self._settings.default_availability_zone

    def _linked(self, collection: str, id: str) -> dict[str, Any]:
        return {"id": id, "links": [self._links.bookmark(collection, id)]}

    def _fault(self, fault: ServerFault) -> dict[str, Any]:
        fields = {
            "code": fault.code,
            "created": seconds(fault.created_at),
            "message": fault.message,
        }
        if fault.details and (self._is_admin or fault.code != 500):
            fields["details"] = fault.details
        return fields


def _asked_zone(server: AnyServer) -> str | None:
    """The zone of ``zone:host:node``, or of the plain form."""
    return (server.availability_zone or "").partition(":")[0] or None


def _groups(server: AnyServer) -> list[str]:
    return [server.group_id] if server.group_id else []


def _flavor(copy: dict[str, Any]) -> dict[str, Any]:
    """``FlavorEmbedded``."""
    return {
        "vcpus": copy.get("vcpus", 0),
        "ram": copy.get("ram_mb", 0),
        "disk": copy.get("disk_gb", 0),
        "ephemeral": copy.get("ephemeral_gb", 0),
        "swap": copy.get("swap_mb", 0),
        "original_name": copy.get("name", ""),
        "extra_specs": copy.get("extra_specs", {}),
    }


def _attributes(server: AnyServer, host: HostOfServers | None) -> dict[str, Any]:
    return {
        "host": server.host,
        "hypervisor_hostname": host.hypervisor_hostname if host else None,
        "instance_name": guest_name(server.id),
        "admin_hostname": server.hostname,
        "reservation_id": server.reservation_id,
        "launch_index": server.launch_index,
        "kernel_id": "",
        "ramdisk_id": "",
        "root_device_name": "/dev/vda",
        "user_data": server.user_data,
    }
