"""Networks, subnets, ports and security groups (Neutron's model, IPv4), and what servers use of them."""

from __future__ import annotations

from db.network.demo import ensure_demo_network
from db.network.networks import get_network, usable_networks
from db.network.ports import fixed_ips_of
from db.network.security_groups import (
    ensure_default_group,
    hosts_using_group,
    rules_of,
)
from db.network.server_ports import (
    PortRequest,
    allocate_server_ports,
    bind_server_ports,
    hosts_to_refresh,
    join_group,
    leave_group,
    ports_of,
    release_server_ports,
    unbind_server_ports,
)
from db.network.server_views import (
    ServerAddress,
    groups_of_server,
    nic_specs,
    server_addresses,
    server_security_groups,
)
from db.network.tables import (
    FixedIp,
    Network,
    Port,
    PortSecurityGroup,
    SecurityGroup,
    SecurityGroupRule,
    Subnet,
)

__all__ = [
    "FixedIp",
    "Network",
    "Port",
    "PortRequest",
    "PortSecurityGroup",
    "SecurityGroup",
    "SecurityGroupRule",
    "ServerAddress",
    "Subnet",
    "allocate_server_ports",
    "bind_server_ports",
    "ensure_default_group",
    "ensure_demo_network",
    "fixed_ips_of",
    "get_network",
    "groups_of_server",
    "hosts_to_refresh",
    "hosts_using_group",
    "join_group",
    "leave_group",
    "nic_specs",
    "ports_of",
    "release_server_ports",
    "rules_of",
    "server_addresses",
    "server_security_groups",
    "unbind_server_ports",
    "usable_networks",
]
