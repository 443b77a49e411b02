"""Hypervisors: what each host is, has and uses."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal

from fastapi import APIRouter, Query
from pydantic import Field
from sqlmodel import Session

from api.compute.hosts import find_host, number_of
from api.context import Db, TheCloud, allow
from api.fields import Boolean, HostName
from api.history import always_lists_hypervisor_servers, pages_hypervisors, uses_host_uuids
from api.microversion import Route, View, since, until, versions
from api.paging import NextLinks, Paged, Params, TheLinks
from api.policy import Caller
from db.hosts import Host, is_up, list_hosts, servers_on, usage_by_host
from db.session import now
from domain.errors import BadRequest, NotFound, NotImplementedHere
from domain.usage import NOTHING_USED, Usage
from runtime.settings import Settings

router = APIRouter(prefix="/v2.1/os-hypervisors", route_class=Route)
Admin = Annotated[Caller, allow("hypervisors")]
_NONE = Field(exclude_if=lambda value: value is None)


# --- queries


class ListHypervisors(Paged):
    _refuses_unknown: ClassVar[Callable[[], bool]] = uses_host_uuids
    limit: Annotated[int | None, since("2.33"), Field(ge=0)] = None
    marker: Annotated[str | None, since("2.33")] = None
    pattern: Annotated[
        HostName | None, since("2.53"), Field(alias="hypervisor_hostname_pattern")
    ] = None
    with_servers: Annotated[Boolean, since("2.53")] = False


class ShowHypervisor(Params):
    _refuses_unknown: ClassVar[Callable[[], bool]] = uses_host_uuids
    with_servers: Annotated[Boolean, since("2.53")] = False


# --- views


class HostedServer(View):
    name: str
    uuid: str


class HypervisorBrief(View):
    number: Annotated[int, until("2.52"), Field(serialization_alias="id")]
    uuid: Annotated[str, since("2.53"), Field(serialization_alias="id")]
    hypervisor_hostname: str
    state: Literal["up", "down"]
    status: Literal["enabled", "disabled"]
    servers: Annotated[list[HostedServer] | None, _NONE] = None


class HypervisorService(View):
    number: Annotated[int, until("2.52"), Field(serialization_alias="id")]
    uuid: Annotated[str, since("2.53"), Field(serialization_alias="id")]
    host: str
    disabled_reason: str | None


class Numbers(View):
    """Sizes and use, of one host or of all; MB and GB."""

    vcpus: Annotated[int, until("2.87")]
    memory_mb: Annotated[int, until("2.87")]
    local_gb: Annotated[int, until("2.87")]
    vcpus_used: Annotated[int, until("2.87")]
    memory_mb_used: Annotated[int, until("2.87")]
    local_gb_used: Annotated[int, until("2.87")]
    free_ram_mb: Annotated[int, until("2.87")]
    free_disk_gb: Annotated[int, until("2.87")]
    current_workload: Annotated[int, until("2.87")]
    """Servers being built."""
    running_vms: Annotated[int, until("2.87")]
    disk_available_least: Annotated[int, until("2.87")]


class HypervisorView(HypervisorBrief, Numbers):
    hypervisor_type: str
    hypervisor_version: int
    host_ip: str
    service: HypervisorService
    cpu_info_text: Annotated[str, until("2.27"), Field(serialization_alias="cpu_info")]
    cpu_info: Annotated[dict[str, Any], since("2.28", until="2.87")]
    uptime: Annotated[str | None, since("2.88")]
    """As the host's ``uptime`` writes it; None when the host does not report it."""


class HypervisorUptime(HypervisorBrief):
    uptime: str


class Statistics(Numbers):
    count: int


class HypervisorEnvelope(View):
    hypervisor: HypervisorView


class UptimeEnvelope(View):
    hypervisor: HypervisorUptime


class BriefList(View):
    hypervisors: list[HypervisorBrief]
    hypervisors_links: NextLinks = None


class DetailList(View):
    hypervisors: list[HypervisorView]
    hypervisors_links: NextLinks = None


class StatisticsEnvelope(View):
    hypervisor_statistics: Statistics


class _Reader:
    """Turns hosts into views; reads what several hosts need once."""

    def __init__(self, db: Session, settings: Settings, with_servers: bool = False) -> None:
        self._db = db
        self._settings = settings
        self._with_servers = with_servers
        self._at: datetime = now()

    def brief(self, hosts: Sequence[Host]) -> list[HypervisorBrief]:
        servers = self._servers(hosts)
        return [HypervisorBrief(**self._common(h, servers)) for h in hosts]

    def detail(self, hosts: Sequence[Host]) -> list[HypervisorView]:
        servers = self._servers(hosts)
        usage = usage_by_host(self._db)
        return [
            HypervisorView(
                **self._common(h, servers),
                **self.numbers(h, usage.get(h.name, NOTHING_USED)),
                **_identity(h),
            )
            for h in hosts
        ]

    def uptime(self, host: Host) -> HypervisorUptime:
        if not self._is_up(host):
            raise BadRequest(f"Compute service of {host.name} is unavailable at this time.")
        uptime = host.metrics.get("uptime")
        if uptime is None:
            raise NotImplementedHere("The requested functionality is not supported.")
        return HypervisorUptime(**self._common(host, {}), uptime=str(uptime))

    def numbers(self, host: Host, usage: Usage) -> dict[str, int]:
        ram_used = usage.ram_mb + self._settings.reserved_host_ram_mb
        return {
            "vcpus": host.vcpus,
            "memory_mb": host.ram_mb,
            "local_gb": host.disk_gb,
            "vcpus_used": usage.vcpus,
            "memory_mb_used": ram_used,
            "local_gb_used": usage.disk_gb,
            "free_ram_mb": host.ram_mb - ram_used,
            "free_disk_gb": host.disk_gb - usage.disk_gb,
            "current_workload": usage.building,
            "running_vms": usage.servers,
            "disk_available_least": host.disk_gb - usage.disk_gb,
        }

    def _is_up(self, host: Host) -> bool:
        return is_up(host, self._settings, self._at)

    def _servers(self, hosts: Sequence[Host]) -> dict[str, list[tuple[str, str]]]:
        return servers_on(self._db, [h.name for h in hosts]) if self._with_servers else {}

    def _common(self, host: Host, servers: dict[str, list[tuple[str, str]]]) -> dict[str, Any]:
        hosted: list[HostedServer] | None = [
            HostedServer(name=name, uuid=server_id)
            for server_id, name in servers.get(host.name, ())
        ]
        if not hosted and not (self._with_servers and always_lists_hypervisor_servers()):
            hosted = None
        return {
            "number": number_of(host.uuid),
            "uuid": host.uuid,
            "hypervisor_hostname": host.hypervisor_hostname,
            "state": "up" if self._is_up(host) else "down",
            "status": "disabled" if host.disabled else "enabled",
            "servers": hosted,
        }


def _identity(host: Host) -> dict[str, Any]:
    cpu = {"arch": host.cpu_arch, "model": host.cpu_model}
    return {
        "hypervisor_type": host.hypervisor_type,
        "hypervisor_version": host.hypervisor_version,
        "host_ip": host.host_ip,
        "service": HypervisorService(
            number=number_of(host.service_id),
            uuid=host.service_id,
            host=host.name,
            disabled_reason=host.disabled_reason,
        ),
        "cpu_info_text": json.dumps(cpu),
        "cpu_info": cpu,
        "uptime": host.metrics.get("uptime"),
    }


# --- handlers


def _ref(host: Host) -> str:
    return host.uuid if uses_host_uuids() else str(number_of(host.uuid))


def _matching(hosts: list[Host], pattern: str) -> list[Host]:
    found = [h for h in hosts if pattern in h.hypervisor_hostname]
    if not found:
        raise NotFound(f"No hypervisor matching '{pattern}' could be found.")
    return found


def _page(db: Session, query: ListHypervisors) -> list[Host]:
    hosts = list_hosts(db)
    if query.pattern is not None:
        if query.limit is not None or query.marker is not None:
            raise BadRequest(
                "Paging over hypervisors with the hypervisor_hostname_pattern query parameter is not supported."
            )
        return _matching(hosts, query.pattern)
    if not pages_hypervisors():
        return hosts
    start = 0
    if query.marker is not None:
        refs = [_ref(h) for h in hosts]
        if query.marker not in refs:
            raise BadRequest(f"marker [{query.marker}] not found")
        start = refs.index(query.marker) + 1
    return hosts[start : start + query.page_size]


def _links(links: TheLinks, path: str, query: ListHypervisors, page: list[Host]) -> Any:
    if query.pattern is not None or not pages_hypervisors():
        return None
    return links.next(path, query, [_ref(h) for h in page])


def _find(db: Session, ref: str) -> Host:
    missing = f"Hypervisor with ID '{ref}' could not be found."
    if not uses_host_uuids() and not ref.isdigit():
        raise NotFound(missing)
    host = find_host(list_hosts(db), "uuid", ref)
    if host is None:
        raise NotFound(missing)
    return host


@router.get("")
def index(
    query: Annotated[ListHypervisors, Query()],
    who: Admin,
    db: Db,
    cloud: TheCloud,
    links: TheLinks,
) -> BriefList:
    page = _page(db, query)
    views = _Reader(db, cloud.settings, query.with_servers).brief(page)
    return BriefList(
        hypervisors=views, hypervisors_links=_links(links, "os-hypervisors", query, page)
    )


@router.get("/detail")
def detail(
    query: Annotated[ListHypervisors, Query()],
    who: Admin,
    db: Db,
    cloud: TheCloud,
    links: TheLinks,
) -> DetailList:
    page = _page(db, query)
    views = _Reader(db, cloud.settings, query.with_servers).detail(page)
    return DetailList(
        hypervisors=views, hypervisors_links=_links(links, "os-hypervisors/detail", query, page)
    )


@router.get("/statistics")
@versions("2.1", "2.87")
def statistics(who: Admin, db: Db, cloud: TheCloud) -> StatisticsEnvelope:
    reader = _Reader(db, cloud.settings)
    usage = usage_by_host(db)
    hosts = [h for h in list_hosts(db) if not h.disabled]
    rows = [reader.numbers(h, usage.get(h.name, NOTHING_USED)) for h in hosts]
    sums = {name: sum(row[name] for row in rows) for name in Numbers.model_fields}
    return StatisticsEnvelope(hypervisor_statistics=Statistics(count=len(hosts), **sums))


@router.get("/statistics")
@versions("2.88")
def no_statistics(who: Admin) -> None:
    raise NotFound("The resource could not be found.")


@router.get("/{hypervisor_id}")
def show(
    hypervisor_id: str,
    query: Annotated[ShowHypervisor, Query()],
    who: Admin,
    db: Db,
    cloud: TheCloud,
) -> HypervisorEnvelope:
    host = _find(db, hypervisor_id)
    [view] = _Reader(db, cloud.settings, query.with_servers).detail([host])
    return HypervisorEnvelope(hypervisor=view)


@router.get("/{hypervisor_id}/uptime")
@versions("2.1", "2.87")
def uptime(hypervisor_id: str, who: Admin, db: Db, cloud: TheCloud) -> UptimeEnvelope:
    view = _Reader(db, cloud.settings).uptime(_find(db, hypervisor_id))
    return UptimeEnvelope(hypervisor=view)


@router.get("/{pattern}/search")
@versions("2.1", "2.52")
def search(pattern: str, who: Admin, db: Db, cloud: TheCloud) -> BriefList:
    hosts = _matching(list_hosts(db), pattern)
    return BriefList(hypervisors=_Reader(db, cloud.settings).brief(hosts))


@router.get("/{pattern}/servers")
@versions("2.1", "2.52")
def servers(pattern: str, who: Admin, db: Db, cloud: TheCloud) -> BriefList:
    hosts = _matching(list_hosts(db), pattern)
    return BriefList(hypervisors=_Reader(db, cloud.settings, with_servers=True).brief(hosts))
