"""Version documents, from which clients find everything else, and the list of extensions."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter

from api.context import TheCloud, allow
from api.microversion import MAX, MIN, Route, View
from api.paging import Link
from api.policy import Caller
from domain.errors import NotFound

router = APIRouter(route_class=Route)
Reader = Annotated[Caller, allow("extensions")]
_V2_MEDIA = "application/vnd.openstack.compute+json;version=2"
_V21_MEDIA = "application/vnd.openstack.compute+json;version=2.1"

EXTENSIONS: dict[str, tuple[str, str]] = {
    # alias: (name, what it is here)
    "OS-DCF": ("DiskConfig", "How a server's disk is partitioned."),
    "OS-EXT-AZ": ("ExtendedAvailabilityZone", "A server shows its availability zone."),
    "OS-EXT-IPS": ("ExtendedIps", "Addresses show their type."),
    "OS-EXT-IPS-MAC": ("ExtendedIpsMac", "Addresses show their MAC address."),
    "OS-EXT-SRV-ATTR": ("ExtendedServerAttributes", "Administrators see where a server runs."),
    "OS-EXT-STS": ("ExtendedStatus", "A server shows its vm, task and power state."),
    "OS-FLV-DISABLED": ("FlavorDisabled", "A flavor shows whether it is disabled."),
    "OS-FLV-EXT-DATA": ("FlavorExtraData", "A flavor has an ephemeral disk size."),
    "OS-SCH-HNT": ("SchedulerHints", "Hints for the placement of a new server."),
    "OS-SRV-USG": ("ServerUsage", "A server shows when it was launched and terminated."),
    "os-access-ips": ("AccessIPs", "A server carries the addresses to reach it by."),
    "os-aggregates": ("Aggregates", "Groups of hosts with metadata."),
    "os-availability-zone": ("AvailabilityZone", "Zones, and in which one to build a server."),
    "os-config-drive": ("ConfigDrive", "A disk that tells a guest about itself."),
    "os-console-output": ("ConsoleOutput", "The end of a server's console."),
    "os-extended-hypervisors": ("ExtendedHypervisors", "A hypervisor shows its address and disk."),
    "os-extended-quotas": ("ExtendedQuotas", "Quotas can be deleted and forced."),
    "os-extended-services": ("ExtendedServices", "A service is disabled with a reason."),
    "os-extended-services-delete": ("ExtendedServicesDelete", "Services can be deleted."),
    "os-flavor-access": ("FlavorAccess", "Which projects may use a flavor that is not public."),
    "os-flavor-extra-specs": ("FlavorExtraSpecs", "Flavors have extra specs."),
    "os-flavor-manage": ("FlavorManage", "Flavors are made and deleted over the API."),
    "os-flavor-rxtx": ("FlavorRxtx", "Flavors carry a bandwidth factor."),
    "os-flavor-swap": ("FlavorSwap", "Flavors have a swap disk size."),
    "os-hypervisor-status": ("HypervisorStatus", "A hypervisor shows its state and status."),
    "os-hypervisors": ("Hypervisors", "What each host is, has and uses."),
    "os-instance-actions": ("InstanceActions", "What was done to a server, when and by whom."),
    "os-keypairs": ("Keypairs", "Public keys to log into servers with."),
    "os-lock-server": ("LockServer", "A server can be locked against changes."),
    "os-multiple-create": ("MultipleCreate", "Many servers in one request."),
    "os-pause-server": ("PauseServer", "A server can be paused."),
    "os-quota-class-sets": ("QuotaClasses", "The default quota."),
    "os-quota-sets": ("Quotas", "How much a project may have."),
    "os-security-groups": ("SecurityGroups", "The security groups of a server."),
    "os-server-groups": ("ServerGroups", "Servers that belong together, or apart."),
    "os-server-start-stop": ("ServerStartStop", "A server can be started and stopped."),
    "os-server-tags": ("ServerTags", "Servers have tags."),
    "os-services": ("Services", "The services of the cloud."),
    "os-suspend-server": ("SuspendServer", "A server can be suspended."),
    "os-used-limits": ("UsedLimits", "Limits show what is used."),
    "os-user-data": ("UserData", "A server is given data at create."),
    "os-user-quotas": ("UserQuotas", "One user of a project may have limits of their own."),
}


class TypedLink(Link):
    type: str


class MediaType(View):
    base: str = "application/json"
    type: str


class ApiVersion(View):
    id: str
    status: str
    version: str
    min_version: str
    updated: str
    links: list[Link | TypedLink]


class Extension(View):
    alias: str
    name: str
    description: str
    updated: str = "2014-12-03T00:00:00Z"
    links: tuple[Link, ...] = ()
    namespace: str = "http://docs.openstack.org/compute/ext/fake_xml"


def _base(cloud: TheCloud) -> str:
    return f"{cloud.settings.public_url.rstrip('/')}/compute"


def _v20(cloud: TheCloud) -> ApiVersion:
    return ApiVersion(
        id="v2.0",
        status="SUPPORTED",
        version="",
        min_version="",
        updated="2011-01-21T11:33:21Z",
        links=[Link(rel="self", href=f"{_base(cloud)}/v2/")],
    )


def _v21(cloud: TheCloud) -> ApiVersion:
    return ApiVersion(
        id="v2.1",
        status="CURRENT",
        version=str(MAX),
        min_version=str(MIN),
        updated="2013-07-23T11:33:21Z",
        links=[Link(rel="self", href=f"{_base(cloud)}/v2.1/")],
    )


def _document(version: ApiVersion, media_type: str) -> dict[str, Any]:
    described = TypedLink(rel="describedby", type="text/html", href="http://docs.openstack.org/")
    media = [MediaType(type=media_type).model_dump()]
    links = [*version.links, described]
    return {"version": {**version.model_dump(), "links": links, "media-types": media}}


@router.get("/")
def list_versions(cloud: TheCloud) -> dict[str, list[ApiVersion]]:
    return {"versions": [_v20(cloud), _v21(cloud)]}


@router.get("/v2")
@router.get("/v2/")
def show_v20(cloud: TheCloud) -> dict[str, Any]:
    return _document(_v20(cloud), _V2_MEDIA)


@router.get("/v2.1")
@router.get("/v2.1/")
def show_v21(cloud: TheCloud) -> dict[str, Any]:
    return _document(_v21(cloud), _V21_MEDIA)


def _extension(alias: str) -> Extension:
    name, description = EXTENSIONS[alias]
    return Extension(alias=alias, name=name, description=description)


@router.get("/v2.1/extensions")
def list_extensions(who: Reader) -> dict[str, list[Extension]]:
    return {"extensions": [_extension(alias) for alias in EXTENSIONS]}


@router.get("/v2.1/extensions/{alias}")
def show_extension(alias: str, who: Reader) -> dict[str, Extension]:
    if alias not in EXTENSIONS:
        raise NotFound("The resource could not be found.")
    return {"extension": _extension(alias)}
