"""How ports look, and by what they are found."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import ColumnElement, and_, or_
from sqlmodel import Session, col, select

from api.network.wire import Json, common, standard_columns, view_of
from api.policy import Caller
from db.network.listing import Attributes
from db.network.ports import fixed_ips_of, groups_of, port_not_found
from db.network.tables import FixedIp, Port, PortSecurityGroup
from domain.errors import BadRequest

_HIDDEN = ("binding:host_id", "binding:profile", "binding:vif_type", "binding:vif_details")


def port_views(session: Session, rows: Sequence[Port], who: Caller) -> list[Json]:
    """Ports as their callers see them."""
    ids = [row.id for row in rows]
    addresses, groups = fixed_ips_of(session, ids), groups_of(session, ids)
    return [view_of(_view(row, addresses[row.id], groups[row.id]), _HIDDEN, who) for row in rows]


def _view(row: Port, addresses: Sequence[FixedIp], groups: list[str]) -> Json:
    return common(row) | {
        "name": row.name,
        "network_id": row.network_id,
        "mac_address": row.mac,
        "admin_state_up": row.admin_state_up,
        "status": row.status,
        "device_id": row.device_id,
        "device_owner": row.device_owner,
        "fixed_ips": [{"subnet_id": ip.subnet_id, "ip_address": ip.ip} for ip in addresses],
        "security_groups": groups,
        "allowed_address_pairs": [
            {"mac_address": row.mac, **pair} for pair in row.allowed_address_pairs
        ],
        "extra_dhcp_opts": [],
        "port_security_enabled": row.port_security_enabled,
        "tags": row.tags,
        "binding:vnic_type": row.vnic_type,
        "binding:host_id": row.host,
        "binding:profile": {},
        "binding:vif_type": "bridge" if row.host else "unbound",
        "binding:vif_details": {"port_filter": True} if row.host else {},
    }


def _by_fixed_ips(values: Sequence[str]) -> ColumnElement[bool]:
    """``ip_address=…``, ``subnet_id=…`` or ``ip_address_substr=…``: all kinds must hold, within a kind
    any value."""
    kinds: dict[str, list[ColumnElement[bool]]] = {}
    for value in values:
        kind, _, wanted = value.partition("=")
        if kind == "ip_address":
            condition: ColumnElement[bool] = col(FixedIp.ip) == wanted
        elif kind == "subnet_id":
            condition = col(FixedIp.subnet_id) == wanted
        elif kind == "ip_address_substr":
            condition = col(FixedIp.ip).contains(wanted, autoescape=True)
        else:
            raise BadRequest(
                f"'{value:.80}' is not a filter on fixed_ips: ip_address, subnet_id or ip_address_substr is."
            )
        kinds.setdefault(kind, []).append(condition)
    ports = select(FixedIp.port_id).where(and_(*(or_(*any_of) for any_of in kinds.values())))
    return col(Port.id).in_(ports)


def _by_groups(values: Sequence[str]) -> ColumnElement[bool]:
    return col(Port.id).in_(
        select(PortSecurityGroup.port_id).where(
            col(PortSecurityGroup.security_group_id).in_(values)
        )
    )


ATTRIBUTES = Attributes(
    Port,
    columns=standard_columns(Port)
    | {
        "name": col(Port.name),
        "network_id": col(Port.network_id),
        "mac_address": col(Port.mac),
        "admin_state_up": col(Port.admin_state_up),
        "status": col(Port.status),
        "device_id": col(Port.device_id),
        "device_owner": col(Port.device_owner),
        "port_security_enabled": col(Port.port_security_enabled),
        "binding:host_id": col(Port.host),
        "binding:vnic_type": col(Port.vnic_type),
    },
    missing=port_not_found,
    admin_only=_HIDDEN,
    special={
        "fixed_ips": _by_fixed_ips,
        "security_groups": _by_groups,
        "security_group_ids": _by_groups,
    },
)
