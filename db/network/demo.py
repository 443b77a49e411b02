"""A shared network to start with, so that a new cloud can run a server at once."""

from __future__ import annotations

from ipaddress import IPv4Network

from sqlmodel import Session, col, select

from db.network.networks import add_network, add_subnet
from db.network.tables import Network, Subnet
from db.quotas import lock_quota
from domain.addressing import default_gateway, default_pools

DEMO_NETWORK = "demo-net"
DEMO_SUBNET = "demo-subnet"
_CIDR = IPv4Network("10.213.64.0/20")
"""Away from what container engines, home routers and cloud defaults use."""


def ensure_demo_network(session: Session, project_id: str) -> Network:
    """The project's shared ``demo-net`` with its subnet; made if it is not there."""
    lock_quota(session, project_id)  # two starts at once must not make two
    network = session.exec(
        select(Network).where(
            Network.project_id == project_id,
            Network.name == DEMO_NETWORK,
            col(Network.shared),
        )
    ).first()
    if network is None:
        network = add_network(
            session,
            Network(project_id=project_id, name=DEMO_NETWORK, shared=True, segment=0),
        )
    if not session.exec(select(Subnet.id).where(Subnet.network_id == network.id)).first():
        gateway = default_gateway(_CIDR)
        add_subnet(
            session,
            Subnet(
                network_id=network.id,
                project_id=project_id,
                name=DEMO_SUBNET,
                cidr=str(_CIDR),
                gateway_ip=gateway,
                allocation_pools=default_pools(_CIDR, gateway),
                dns_nameservers=[gateway],  # the host's DNS server listens there
            ),
        )
    return network
