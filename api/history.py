"""Every microversion, oldest first: what it changed, and whether Duranova has a part in it.

A span or route that begins or ends at a version must find that version here. Behaviour that is no field
and no route is asked for by a predicate below: no other module compares version numbers.
"""

from __future__ import annotations

from typing import NamedTuple

from api.microversion import Version, current


class Change(NamedTuple):
    """One microversion."""

    version: str
    says: str
    """What users see, in one sentence."""
    touches: str
    """The names it adds, drops or reshapes; ``behaviour`` when it is neither field nor route; or
    ``not offered yet: …`` when the resource it concerns is refused here in every version."""

    @property
    def offered(self) -> bool:
        """Whether Duranova has the resource this version is about."""
        return not self.touches.startswith("not offered yet")


_VOLUMES = "not offered yet: servers have no volumes"
_MOVES = "not offered yet: servers do not move between hosts"
_CONSOLES = "not offered yet: remote consoles"
_REBUILD = "not offered yet: rebuild"
_EVENTS = "not offered yet: os-server-external-events"
_SHELVE = "not offered yet: shelve"
_CACHE = "not offered yet: os-aggregates/{id}/images"

HISTORY: tuple[Change, ...] = (
    Change("2.1", "The first version: the v2 API with strict checks of every body.", "everything"),
    Change("2.2", "Keypairs have a type; create answers 201 and delete 204.", "type"),
    Change("2.3", "Administrators see the boot attributes of a server.", "OS-EXT-SRV-ATTR:*"),
    Change(
        "2.4", "Fixed addresses say whether they are reserved.", "not offered yet: os-fixed-ips"
    ),
    Change("2.5", "Everybody may filter servers by ip6.", "behaviour"),
    Change("2.6", "One call gives a remote console of any type.", _CONSOLES),
    Change("2.7", "A public flavor refuses an access list.", "behaviour"),
    Change("2.8", "The mks console protocol.", _CONSOLES),
    Change("2.9", "A server shows whether it is locked.", "locked"),
    Change("2.10", "Administrators handle the keypairs of others.", "user_id"),
    Change("2.11", "A compute service can be forced down.", "forced_down os-services/force-down"),
    Change(
        "2.12", "Virtual interfaces show their network.", "not offered yet: os-virtual-interfaces"
    ),
    Change("2.13", "Server groups show their owner.", "project_id user_id"),
    Change("2.14", "Evacuate finds out by itself whether storage is shared.", _MOVES),
    Change("2.15", "Server groups have soft policies.", "behaviour"),
    Change("2.16", "A server shows the state of its host.", "host_status"),
    Change("2.17", "A crash dump can be triggered.", "not offered yet: trigger_crash_dump"),
    Change("2.18", "The project's id in the path is optional.", "behaviour"),
    Change("2.19", "Servers have a description.", "description"),
    Change("2.20", "Volumes of shelved servers can be attached and detached.", _VOLUMES),
    Change("2.21", "The actions of deleted servers can be read.", "behaviour"),
    Change("2.22", "A running live migration can be forced to complete.", _MOVES),
    Change("2.23", "The migrations of one server can be listed.", _MOVES),
    Change("2.24", "A running live migration can be aborted.", _MOVES),
    Change("2.25", "Live migration chooses block migration by itself.", _MOVES),
    Change("2.26", "Servers have tags.", "tags"),
    Change("2.27", "The version can be asked for in OpenStack-API-Version.", "behaviour"),
    Change("2.28", "The cpu_info of a hypervisor is an object, no longer text.", "cpu_info"),
    Change("2.29", "Evacuate to a named host asks the scheduler.", _MOVES),
    Change("2.30", "Live migration to a named host asks the scheduler.", _MOVES),
    Change("2.31", "Console tokens of every type can be looked up.", _CONSOLES),
    Change("2.32", "The networks of a new server take a device tag.", "tag"),
    Change("2.33", "Hypervisors are listed in pages.", "hypervisors_links"),
    Change("2.34", "Live migration checks run after the answer.", _MOVES),
    Change("2.35", "Keypairs are listed in pages, by name.", "keypairs_links"),
    Change("2.36", "Proxies to other services are gone, and the network quotas.", "floating_ips"),
    Change("2.37", "A new server must say its networks; auto and none are words.", "behaviour"),
    Change("2.38", "An unknown status in a server list is refused.", "behaviour"),
    Change("2.39", "The image metadata quota is gone.", "maxImageMeta"),
    Change("2.40", "Usage reports come in pages.", "not offered yet: os-simple-tenant-usage"),
    Change("2.41", "Aggregates show their uuid.", "uuid"),
    Change("2.42", "Device tags of new servers are taken again.", "behaviour"),
    Change("2.43", "os-hosts is gone.", "not offered yet: os-hosts"),
    Change("2.44", "Address actions on servers are gone.", "not offered yet: addFixedIp and kin"),
    Change("2.45", "createImage answers with the image's id.", "not offered yet: createImage"),
    Change("2.46", "The request id also comes as x-openstack-request-id.", "behaviour"),
    Change("2.47", "A server shows its flavor instead of a link to it.", "flavor"),
    Change("2.48", "Diagnostics have one shape.", "not offered yet: diagnostics"),
    Change("2.49", "Attached interfaces take a tag.", "not offered yet: attaching interfaces"),
    Change("2.50", "Quota classes show group quotas and no network quotas.", "server_groups"),
    Change("2.51", "Everybody may read the events of an instance action.", "behaviour"),
    Change("2.52", "A new server can be given tags.", "tags"),
    Change("2.53", "Services and hypervisors are named by uuid.", "id servers os-services/{uuid}"),
    Change("2.54", "Rebuild can change the keypair.", _REBUILD),
    Change("2.55", "Flavors have a description.", "description"),
    Change("2.56", "Cold migration takes a host.", _MOVES),
    Change("2.57", "File injection is gone, with its quotas and limits.", "personality"),
    Change(
        "2.58", "Instance actions are listed in pages and show their last change.", "updated_at"
    ),
    Change("2.59", "Migrations are listed in pages.", _MOVES),
    Change("2.60", "Volumes can be attached to many servers.", _VOLUMES),
    Change("2.61", "Flavors show their extra specs.", "extra_specs"),
    Change("2.62", "Action events show their host.", "host hostId"),
    Change("2.63", "Servers can demand trusted image certificates.", "trusted_image_certificates"),
    Change("2.64", "A server group has one policy, with rules.", "policy rules"),
    Change("2.65", "Queued live migrations can be aborted.", _MOVES),
    Change("2.66", "Lists can be cut by changes-before.", "changes-before"),
    Change("2.67", "A boot volume can be given a type.", _VOLUMES),
    Change("2.68", "Moves can no longer be forced past the scheduler.", _MOVES),
    Change("2.69", "Parts of a cloud that are down are listed with what is known.", "behaviour"),
    Change("2.70", "Attached interfaces show their tag.", "tag"),
    Change("2.71", "A server shows its groups.", "server_groups"),
    Change("2.72", "Servers may have ports with resource requests.", "behaviour"),
    Change("2.73", "A lock has a reason.", "locked_reason"),
    Change("2.74", "Administrators may ask for a host at create.", "host hypervisor_hostname"),
    Change(
        "2.75", "Unknown query parameters are refused; a flavor's swap is 0, not empty.", "swap"
    ),
    Change("2.76", "The power-update event.", _EVENTS),
    Change("2.77", "Unshelve takes a zone.", _SHELVE),
    Change("2.78", "The NUMA topology of a server can be read.", "topology"),
    Change("2.79", "Attached volumes say whether they go with the server.", _VOLUMES),
    Change("2.80", "Migrations show and filter by user and project.", _MOVES),
    Change("2.81", "Hosts of an aggregate can fetch images ahead.", _CACHE),
    Change("2.82", "The accelerator-request-bound event.", _EVENTS),
    Change("2.83", "Everybody may use more filters of the server list.", "behaviour"),
    Change("2.84", "Failed action events tell details.", "details"),
    Change("2.85", "Whether a volume goes with its server can be changed.", _VOLUMES),
    Change("2.86", "Known extra specs are checked.", "behaviour"),
    Change("2.87", "Servers on volumes can be rescued.", _VOLUMES),
    Change("2.88", "Hypervisors no longer show usage; they show uptime.", "uptime statistics"),
    Change("2.89", "Volume attachments show more ids.", _VOLUMES),
    Change("2.90", "Users choose and see the hostname.", "hostname OS-EXT-SRV-ATTR:hostname"),
    Change("2.91", "Unshelve takes a host.", _SHELVE),
    Change("2.92", "Keypairs are imported only; names may hold @ and dots.", "behaviour"),
    Change("2.93", "Servers on volumes can be rebuilt.", _VOLUMES),
    Change("2.94", "The hostname may be fully qualified.", "behaviour"),
    Change("2.95", "Evacuated servers land stopped.", _MOVES),
    Change("2.96", "A server shows the zone it is pinned to.", "pinned_availability_zone"),
)


def _from(version: str) -> bool:
    return current() >= Version.parse(version)


def refuses_unknown_query() -> bool:
    """Whether an unknown query parameter is a 400 rather than ignored."""
    return _from("2.75")


def refuses_access_to_public_flavor() -> bool:
    """Whether adding a project to a public flavor is a conflict."""
    return _from("2.7")


def checks_extra_specs() -> bool:
    """Whether extra specs of known namespaces must have known keys and proper values."""
    return _from("2.86")


def created_keypair_status() -> int:
    """The status of a keypair create."""
    return 201 if _from("2.2") else 200


def deleted_keypair_status() -> int:
    """The status of a keypair delete."""
    return 204 if _from("2.2") else 202


def pages_keypairs() -> bool:
    """Whether the keypair list is in pages."""
    return _from("2.35")


def imports_keypairs_only() -> bool:
    """Whether a keypair needs its public key; names are then free of the old restrictions."""
    return _from("2.92")


def pages_hypervisors() -> bool:
    """Whether the hypervisor list is in pages."""
    return _from("2.33")


def has_soft_group_policies() -> bool:
    """Whether a server group may be soft-affinity or soft-anti-affinity."""
    return _from("2.15")


def uses_host_uuids() -> bool:
    """Whether services and hypervisors are named by uuid rather than by number."""
    return _from("2.53")


def always_lists_hypervisor_servers() -> bool:
    """Whether a hypervisor asked with its servers shows an empty list when it has none."""
    return _from("2.75")


def answers_updates_in_full() -> bool:
    """Whether a server update shows every field that a show does."""
    return _from("2.75")


def reads_actions_of_deleted() -> bool:
    """Whether the instance actions of deleted servers can be read."""
    return _from("2.21")


def filters_by_ip6_for_all() -> bool:
    """Whether everybody, not only an administrator, may filter servers by ip6."""
    return _from("2.5")


def filters_servers_freely() -> bool:
    """Whether everybody may use the server filters that were an administrator's."""
    return _from("2.83")


def refuses_unknown_status() -> bool:
    """Whether a list of servers in a status that does not exist is refused rather than empty."""
    return _from("2.38")


def sorts_by_locked() -> bool:
    """Whether servers can be sorted by their lock."""
    return _from("2.73")


def needs_networks() -> bool:
    """Whether a create must name its networks, for which auto and none are words."""
    return _from("2.37")


def refuses_device_tags() -> bool:
    """The gap: the device tags that 2.32 brought were gone until 2.42."""
    return _from("2.37") and not _from("2.42")


def takes_qualified_hostnames() -> bool:
    """Whether a hostname may have dots."""
    return _from("2.94")


def shows_events_to_all() -> bool:
    """Whether everybody, not only an administrator, sees the events of an instance action."""
    return _from("2.51")


def pages_instance_actions() -> bool:
    """Whether instance actions are listed in pages."""
    return _from("2.58")
