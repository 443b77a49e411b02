"""Security groups and their rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field
from sqlmodel import Session, col

from api.context import Db, TheCloud
from api.idempotency import KeyedRoute
from api.network.wire import (
    MAX_BULK,
    Entry,
    Envelope,
    Id,
    Json,
    Lister,
    OwnedEntry,
    Plain,
    Reader,
    Text,
    TheLister,
    Writer,
    common,
    owner,
    scope,
    select_fields,
    settle,
    standard_columns,
)
from api.policy import Caller
from db.network.listing import Attributes
from db.network.quotas import check_network_quota
from db.network.security_groups import (
    DEFAULT,
    add_group,
    add_rule,
    default_group_ids,
    ensure_default_group,
    find_default_group,
    get_group,
    get_rule,
    group_not_found,
    hosts_using_group,
    remove_group,
    rule_not_found,
    rules_of,
    touch_group,
    visible_groups,
    visible_rules,
)
from db.network.tables import SecurityGroup, SecurityGroupRule
from db.session import transaction
from domain.addressing import parse_prefix
from domain.errors import Conflict
from domain.firewall import check_ports, check_protocol, check_remote

router = APIRouter(prefix="/v2.0", tags=["security groups"], route_class=KeyedRoute)
GROUPS = Attributes(
    SecurityGroup,
    columns=standard_columns(SecurityGroup) | {"name": col(SecurityGroup.name)},
    missing=group_not_found,
    constants={"stateful": True, "shared": False},
)
_RULE_COLUMNS = (
    "security_group_id",
    "direction",
    "ethertype",
    "protocol",
    "port_range_min",
    "port_range_max",
    "remote_ip_prefix",
    "remote_group_id",
)
RULES = Attributes(
    SecurityGroupRule,
    columns=standard_columns(SecurityGroupRule)
    | {name: getattr(SecurityGroupRule, name) for name in _RULE_COLUMNS},
    missing=rule_not_found,
    constants={"remote_address_group_id": None},
    tagged=False,
)


class CreateGroup(OwnedEntry):
    """A new group."""

    name: Text = ""
    description: Text = ""
    stateful: Literal[True] = True


class UpdateGroup(Entry):
    """A changed group."""

    name: Text = ""
    description: Text = ""
    stateful: Literal[True] = True


class NewGroups(Envelope):
    """One or several."""

    security_group: CreateGroup | None = None
    security_groups: Annotated[list[CreateGroup], Field(max_length=MAX_BULK)] = Field(
        default_factory=list
    )


class ChangedGroup(Entry):
    """The body of an update."""

    security_group: UpdateGroup


class CreateRule(OwnedEntry):
    """A new rule."""

    security_group_id: Id
    direction: Literal["ingress", "egress"]
    ethertype: Annotated[Plain, Field(pattern="^(?i:ipv[46])$")] = "IPv4"
    protocol: Annotated[Plain, Field(max_length=40)] | int | None = None
    port_range_min: int | None = None
    port_range_max: int | None = None
    remote_ip_prefix: Plain | None = None
    remote_group_id: Id | None = None
    remote_address_group_id: None = None
    description: Text | None = ""


class NewRules(Envelope):
    """One or several."""

    security_group_rule: CreateRule | None = None
    security_group_rules: Annotated[list[CreateRule], Field(max_length=MAX_BULK)] = Field(
        default_factory=list
    )


def group_views(session: Session, rows: Sequence[SecurityGroup], who: Caller) -> list[Json]:
    """Groups with their rules."""
    rules = rules_of(session, [row.id for row in rows])
    return [
        common(row)
        | {
            "name": row.name,
            "stateful": True,
            "shared": False,
            "security_group_rules": [_rule_view(r, row.name == DEFAULT) for r in rules[row.id]],
            "tags": row.tags,
        }
        for row in rows
    ]


def rule_views(session: Session, rows: Sequence[SecurityGroupRule], _who: Caller) -> list[Json]:
    """Rules as their callers see them."""
    defaults = default_group_ids(session, {row.security_group_id for row in rows})
    return [_rule_view(row, row.security_group_id in defaults) for row in rows]


def _rule_view(row: SecurityGroupRule, of_default: bool) -> Json:
    return common(row) | {
        **{name: getattr(row, name) for name in _RULE_COLUMNS},
        "remote_address_group_id": None,
        "normalized_cidr": row.remote_ip_prefix,
        "belongs_to_default_sg": of_default,
    }


def _give_default_group(asked: Lister) -> None:
    """A project has its default group from its first look on."""
    project_id = asked.who.project_id
    if project_id and find_default_group(asked.db, project_id) is None:
        asked.db.rollback()  # the read began before the group was there
        with transaction(asked.cloud.engine) as session:
            ensure_default_group(session, project_id)


@router.get("/security-groups")
def list_security_groups(lister: TheLister) -> Json:
    """Own groups."""
    _give_default_group(lister)
    return lister.answer("security_groups", GROUPS, visible_groups(scope(lister.who)), group_views)


@router.post("/security-groups", status_code=201)
def create_security_groups(body: NewGroups, who: Writer, db: Db) -> Json:
    """Make one or several groups, all or none."""
    made = [_create_group(entry, who, db) for entry in body.entries()]
    return body.answer(group_views(db, made, who))


def _create_group(entry: CreateGroup, who: Caller, db: Session) -> SecurityGroup:
    project_id = owner(who, entry)
    ensure_default_group(db, project_id)
    if entry.name == DEFAULT:
        raise Conflict(
            "Default security group already exists.", "SecurityGroupDefaultAlreadyExists"
        )
    check_network_quota(db, project_id, "security_group", 1)
    group = SecurityGroup(project_id=project_id, name=entry.name, description=entry.description)
    return add_group(db, group)


@router.get("/security-groups/{group_id}")
def show_security_group(group_id: str, request: Request, who: Reader, db: Db) -> Json:
    """One group with its rules."""
    group = get_group(db, group_id, scope(who))
    return {"security_group": select_fields(request, group_views(db, [group], who))[0]}


@router.put("/security-groups/{group_id}")
def update_security_group(group_id: str, body: ChangedGroup, who: Writer, db: Db) -> Json:
    """Rename or describe a group."""
    group = get_group(db, group_id, scope(who))
    changes = body.security_group.given("name", "description")
    new_name = changes.get("name", group.name)
    if new_name != group.name and group.name == DEFAULT:
        raise Conflict(
            "Updating default security group not allowed.", "SecurityGroupCannotUpdateDefault"
        )
    if new_name != group.name and new_name == DEFAULT:
        raise Conflict(
            "Default security group already exists.", "SecurityGroupDefaultAlreadyExists"
        )
    for name, value in changes.items():
        setattr(group, name, value)
    touch_group(group)
    db.add(group)
    return {"security_group": group_views(db, [group], who)[0]}


@router.delete("/security-groups/{group_id}", status_code=204)
def delete_security_group(group_id: str, who: Writer, db: Db, cloud: TheCloud) -> Response:
    """Delete a group that no port uses, with the rules that refer to it."""
    group = get_group(db, group_id, scope(who))
    if group.name == DEFAULT:
        raise Conflict(
            "Insufficient rights for removing default security group.",
            "SecurityGroupCannotRemoveDefault",
        )
    hosts = hosts_using_group(db, [group.id])
    remove_group(db, group)
    settle(db, cloud, hosts)
    return Response(status_code=204)


@router.get("/security-group-rules")
def list_security_group_rules(lister: TheLister) -> Json:
    """Rules of own groups."""
    _give_default_group(lister)
    return lister.answer(
        "security_group_rules", RULES, visible_rules(scope(lister.who)), rule_views
    )


@router.post("/security-group-rules", status_code=201)
def create_security_group_rules(body: NewRules, who: Writer, db: Db, cloud: TheCloud) -> Json:
    """Make one or several rules, all or none; hosts learn them at once."""
    made = [_create_rule(entry, who, db) for entry in body.entries()]
    answer = body.answer(rule_views(db, made, who))
    settle(db, cloud, hosts_using_group(db, {rule.security_group_id for rule in made}))
    return answer


def _create_rule(entry: CreateRule, who: Caller, db: Session) -> SecurityGroupRule:
    group = get_group(db, entry.security_group_id, scope(who))
    ethertype = "IPv4" if entry.ethertype.lower() == "ipv4" else "IPv6"
    check_remote(entry.remote_ip_prefix, entry.remote_group_id)
    if entry.remote_group_id is not None:
        get_group(db, entry.remote_group_id, group.project_id)
    protocol = check_protocol(None if entry.protocol is None else str(entry.protocol), ethertype)
    ports = check_ports(protocol, entry.port_range_min, entry.port_range_max)
    prefix = entry.remote_ip_prefix
    check_network_quota(db, group.project_id, "security_group_rule", 1)
    rule = SecurityGroupRule(
        security_group_id=group.id,
        project_id=group.project_id,
        direction=entry.direction,
        ethertype=ethertype,
        protocol=protocol,
        port_range_min=ports[0],
        port_range_max=ports[1],
        remote_ip_prefix=None if prefix is None else parse_prefix(prefix, ethertype),
        remote_group_id=entry.remote_group_id,
        description=entry.description or "",
    )
    touch_group(group)
    db.add(group)
    return add_rule(db, rule)


@router.get("/security-group-rules/{rule_id}")
def show_security_group_rule(rule_id: str, request: Request, who: Reader, db: Db) -> Json:
    """One rule."""
    rule = get_rule(db, rule_id, scope(who))
    return {"security_group_rule": select_fields(request, rule_views(db, [rule], who))[0]}


@router.delete("/security-group-rules/{rule_id}", status_code=204)
def delete_security_group_rule(rule_id: str, who: Writer, db: Db, cloud: TheCloud) -> Response:
    """Delete a rule; hosts forget it at once."""
    rule = get_rule(db, rule_id, scope(who))
    group = get_group(db, rule.security_group_id, None)
    touch_group(group)
    db.add(group)
    db.delete(rule)
    db.flush()
    settle(db, cloud, hosts_using_group(db, [group.id]))
    return Response(status_code=204)
