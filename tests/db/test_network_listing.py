"""Lists of network resources on both databases: tags, pages, filters."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, true
from sqlmodel import Session

from api.network.networks import ATTRIBUTES as NETWORKS
from api.network.security_groups import RULES
from api.network.subnets import ATTRIBUTES as SUBNETS
from db.network import Network, Subnet, ensure_default_group
from db.network.listing import Page, list_rows
from db.network.networks import add_network, add_subnet
from db.session import reading, transaction
from domain.errors import NotFound


def fill(session: Session) -> None:
    for name, mtu, tags in (
        ("a", 1400, ["red", "Blue"]),
        ("b", 1300, ["red"]),
        ("c", 1400, ['quo"red"te', "blue"]),
        ("d", 1400, []),
    ):
        network = Network(id=name, project_id="p", name=name, mtu=mtu, tags=tags, segment=0)
        add_network(session, network)


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({"tags": ["red"]}, "ab"),
        ({"tags": ["red,Blue"]}, "a"),
        ({"tags-any": ["blue,Blue"]}, "ac"),
        ({"not-tags": ["red,Blue"]}, "bcd"),
        ({"not-tags-any": ["red"]}, "cd"),
        ({"tags": ['quo"red"te']}, "c"),
        ({"mtu": ["1300", "1400"], "name": ["a", "b"]}, "ab"),
        ({"shared": ["true"]}, ""),
        ({"changed_since": ["2000-01-01T00:00:00Z"]}, "abcd"),
    ],
)
def test_filters_find_exactly(engine: Engine, filters: dict[str, list[str]], found: str) -> None:
    with transaction(engine) as session:
        fill(session)
    with reading(engine) as session:
        rows, more = list_rows(session, NETWORKS, true(), Page(filters))
    assert "".join(sorted(row.id for row in rows)) == found
    assert not more


def test_pages_go_both_ways_over_equal_and_missing_values(engine: Engine) -> None:
    with transaction(engine) as session:
        network = add_network(session, Network(project_id="p", segment=0))
        for index, gateway in enumerate((None, "10.1.0.1", None, "10.0.0.1", "10.1.0.1")):
            add_subnet(
                session,
                Subnet(
                    id=str(index),
                    network_id=network.id,
                    project_id="p",
                    cidr=f"10.{index}.0.0/24",
                    gateway_ip=gateway,
                ),
            )
    for descending in (False, True):
        sort = (("gateway_ip", descending),)
        with reading(engine) as session:
            everything, _ = list_rows(session, SUBNETS, true(), Page(sort=sort))
            forward, marker = [], None
            while True:
                page = Page(sort=sort, limit=2, marker=marker)
                rows, more = list_rows(session, SUBNETS, true(), page)
                forward += [row.id for row in rows]
                if not more:
                    break
                marker = rows[-1].id
            back, _ = list_rows(
                session, SUBNETS, true(), Page(sort=sort, limit=2, marker=forward[-1], reverse=True)
            )
        assert forward == [row.id for row in everything]
        assert sorted(forward) == ["0", "1", "2", "3", "4"]
        assert [row.id for row in back] == forward[2:4]


def test_an_empty_value_finds_what_has_none(engine: Engine) -> None:
    with transaction(engine) as session:
        ensure_default_group(session, "p")
    with reading(engine) as session:
        asked = Page({"protocol": [""], "port_range_min": [""], "remote_group_id": [""]})
        rows, _ = list_rows(session, RULES, true(), asked)
    assert [row.direction for row in rows] == ["egress", "egress"]


def test_an_unknown_marker_is_not_found(engine: Engine) -> None:
    with reading(engine) as session, pytest.raises(NotFound):
        list_rows(session, NETWORKS, true(), Page(marker="nowhere"))
