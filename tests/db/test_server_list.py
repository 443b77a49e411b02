"""The list of servers on both databases: every filter, every order, every page."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, event
from sqlmodel import Session

from db.groups import Aggregate, AggregateHost
from db.hosts import Host
from db.network import FixedIp, Network, Port, Subnet
from db.quotas import usage_of
from db.server_list import (
    PATTERNS,
    SORT_COLUMNS,
    Page,
    ServerFilter,
    hosts_in_zone,
    list_names,
    list_servers,
)
from db.servers import Server, ServerFault, newest_faults, replace_tags, tags_of
from db.session import reading, transaction
from domain.errors import BadRequest
from domain.states import TaskState, VmState, vm_states_of

START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def fleet(engine: Engine) -> Engine:
    """s0 … s5, one minute apart; s5 is deleted, s4 another project's."""
    with transaction(engine) as session:
        net = Network(project_id="p", name="n", segment=1001)
        session.add(net)
        for n in (1, 2):
            session.add(
                Host(name=f"h{n}", uuid=f"u{n}", service_id=f"v{n}", hypervisor_hostname=f"hv{n}")
            )
        aggregate = Aggregate(name="a", metadata_={"availability_zone": "west"})
        session.add(aggregate)
        session.flush()
        session.add(AggregateHost(aggregate_id=aggregate.id or 0, host="h2"))
        subnet = Subnet(network_id=net.id, project_id="p", cidr="10.0.0.0/24")
        session.add(subnet)
        for n in range(6):
            server = Server(
                id=f"s{n}", name=f"Web-{n}%", project_id="q" if n == 4 else "p", user_id="u",
                created_at=START + timedelta(minutes=n), updated_at=START + timedelta(hours=n),
                flavor={"id": f"f{n % 2}"}, host=f"h{n}" if n in (1, 2) else None,
                vm_state="active" if n else "building", launched_at=START if n % 2 else None,
                task_state="rebooting" if n == 1 else None, key_name="k" if n == 3 else None,
                availability_zone="west:h9" if n == 0 else None, description=f"d{n}",
                deleted_at=START if n == 5 else None, user_data="secret",
            )  # fmt: skip
            port = Port(network_id=net.id, project_id="p", mac=f"m{n}", device_id=server.id)
            session.add_all([server, port])
            session.flush()
            session.add(FixedIp(port_id=port.id, subnet_id=subnet.id, ip=f"10.0.0.{n}"))
        replace_tags(session, "s0", ["a", "b"])
        replace_tags(session, "s1", ["b", "b"])
    return engine


FILTERS = [
    (ServerFilter(), "01234"),
    (ServerFilter(project_id="p"), "0123"),
    (ServerFilter(deleted=True), "5"),
    (ServerFilter(deleted=None), "012345"),
    (ServerFilter(exact={"vm_state": "building"}), "0"),
    (ServerFilter(exact={"created_at": START + timedelta(minutes=2)}), "2"),
    (ServerFilter(patterns={"name": "web-3"}), "3"),
    (ServerFilter(patterns={"name": "WEB"}), "01234"),
    (ServerFilter(patterns={"name": "%"}), "01234"),
    (ServerFilter(patterns={"name": "_"}), ""),
    (ServerFilter(patterns={"name": "^web-[12]"}), "12"),
    (ServerFilter(patterns={"name": "b.[34]%$"}), "34"),
    (ServerFilter(patterns={"name": "^wEB-2%$"}), "2"),
    (ServerFilter(patterns={"name": "^eb-2%$"}), ""),
    (ServerFilter(patterns={"name": "^"}), "01234"),
    (ServerFilter(patterns={"key_name": "^K$"}), "3"),
    (ServerFilter(statuses=((VmState.ACTIVE, None),)), "234"),
    (ServerFilter(statuses=((VmState.ACTIVE, TaskState.REBOOTING),)), "1"),
    (ServerFilter(statuses=((VmState.BUILDING, None), (VmState.ERROR, None))), "0"),
    (ServerFilter(flavor="f1"), "13"),
    (ServerFilter(node="hv2"), "2"),
    (ServerFilter(addresses=("0.0.3",)), "3"),
    (ServerFilter(addresses=("10.", "%")), ""),
    (ServerFilter(zone="west", hosts_in_zone=("h2",)), "02"),
    (ServerFilter(changed_since=START + timedelta(hours=3)), "34"),
    (ServerFilter(changed_before=START + timedelta(hours=1)), "01"),
    (ServerFilter(tags=frozenset({"a", "b"})), "0"),
    (ServerFilter(tags_any=frozenset({"a", "b"})), "01"),
    (ServerFilter(not_tags=frozenset({"a", "b"})), "1234"),
    (ServerFilter(not_tags_any=frozenset({"a", "b"})), "234"),
]


def ids(engine: Engine, wanted: ServerFilter, page: Page) -> str:
    with reading(engine) as session:
        return "".join(row.id[1:] for row in list_names(session, wanted, page))


def test_every_filter(fleet: Engine) -> None:
    page = Page([("created_at", False)], 100)
    answers = [ids(fleet, wanted, page) for wanted, _ in FILTERS]
    assert answers == [expected for _, expected in FILTERS]
    assert {"name", "key_name"} <= PATTERNS.keys()


@pytest.mark.parametrize("descending", [True, False])
def test_every_sort_key_gives_pages_that_add_up(fleet: Engine, descending: bool) -> None:
    for key in SORT_COLUMNS:
        seen, marker = "", None
        while page := ids(fleet, ServerFilter(), Page([(key, descending)], 2, marker)):
            seen += page
            marker = f"s{page[-1]}"
        assert sorted(seen) == list("01234"), key
        assert seen == ids(fleet, ServerFilter(), Page([(key, descending)], 100)), key


def test_a_deleted_server_is_still_a_marker_but_another_projects_is_not(fleet: Engine) -> None:
    newest_first = [("created_at", True)]
    assert ids(fleet, ServerFilter(project_id="p"), Page(newest_first, 9, "s5")) == "3210"
    with pytest.raises(BadRequest, match=r"marker \[s4\] not found"):
        ids(fleet, ServerFilter(project_id="p"), Page(newest_first, 9, "s4"))


def test_a_list_leaves_secrets_and_documents_unread(fleet: Engine) -> None:
    page = Page([("created_at", False)], 9)
    with reading(fleet) as session:
        plain = list_servers(session, ServerFilter(), page, user_data=False)[0]
        full = list_servers(session, ServerFilter(), page, user_data=True)[0]
    assert not {"user_data", "image", "scheduler_hints"} & set(plain._fields)
    assert full.user_data == "secret"
    assert not {"admin_pass_sealed", "guest_password"} & set(full._fields)


def test_the_zone_of_a_host_is_its_aggregates_then_its_own_then_the_default(fleet: Engine) -> None:
    with reading(fleet) as session:
        assert hosts_in_zone(session, "west", "nova") == ("h2",)
        assert hosts_in_zone(session, "nova", "nova") == ("h1",)
        assert hosts_in_zone(session, "east", "nova") == ()


def test_tags_are_sets_and_faults_are_the_newest(fleet: Engine) -> None:
    with transaction(fleet) as session:
        for text in ("old", "new"):
            session.add(ServerFault(server_id="s0", message=text))
            session.flush()
        assert tags_of(session, ["s0", "s1", "s2"]) == {"s0": ["a", "b"], "s1": ["b"]}
        assert [f.message for f in newest_faults(session, ["s0", "s1"]).values()] == ["new"]


# --- how the database finds them


NEWEST = [("created_at", True)]
RANGED = ServerFilter(deleted=None, changed_since=START + timedelta(hours=3))
IN_ORDER = {
    "server_live": [
        (ServerFilter(), None),
        (ServerFilter(), "s3"),
        (ServerFilter(patterns={"name": "web"}), None),
    ],
    "server_live_in_project": [
        (ServerFilter(project_id="p"), None),
        (ServerFilter(project_id="p"), "s3"),
        (ServerFilter(project_id="p", patterns={"name": "web"}), None),
    ],
    "server_live_in_state": [
        (ServerFilter(statuses=vm_states_of("ERROR")), None),
        (ServerFilter(statuses=vm_states_of("ACTIVE")), "s3"),
    ],
    "server_live_in_project_state": [
        (ServerFilter(project_id="p", statuses=vm_states_of("ACTIVE")), None),
        (ServerFilter(project_id="p", statuses=vm_states_of("ERROR")), "s3"),
    ],
    "server_on_host": [(ServerFilter(exact={"host": "h1"}), None)],
}
"""Index → lists that are read from it in their order, so that the first page is as quick as the table is long."""
FROM_MARKER = ("created_at<", "created_at <")


def plan(engine: Engine, wanted: ServerFilter, marker: str | None) -> str:
    """How the database would read the servers of a page, a line for each step."""
    page = Page(NEWEST, 2, marker)
    return explained(engine, lambda session: list_servers(session, wanted, page, user_data=False))


def explained(engine: Engine, ask: Callable[[Session], Any]) -> str:
    """The plan of a question's last statement on servers."""
    asked: list[tuple[str, Any]] = []

    def note(_conn: Any, _cursor: Any, statement: str, parameters: Any, *_more: Any) -> None:
        asked.append((statement, parameters))

    event.listen(engine, "before_cursor_execute", note)
    try:
        with reading(engine) as session:
            ask(session)
    finally:
        event.remove(engine, "before_cursor_execute", note)
    statement, parameters = [a for a in asked if re.search(r"FROM server\s", a[0])][-1]
    postgres = engine.dialect.name == "postgresql"
    with engine.connect() as connection:
        if postgres:  # with six rows it would read the whole table, and sort it
            for way in ("seqscan", "sort", "incremental_sort", "bitmapscan"):
                connection.exec_driver_sql(f"SET LOCAL enable_{way} = off")
        explain = "EXPLAIN" if postgres else "EXPLAIN QUERY PLAN"
        rows = connection.exec_driver_sql(f"{explain} {statement}", parameters).all()
    return "\n".join(row[-1] for row in rows)


@pytest.mark.parametrize("index", IN_ORDER)
def test_a_list_is_read_from_an_index_in_its_order(fleet: Engine, index: str) -> None:
    for wanted, marker in IN_ORDER[index]:
        steps = plan(fleet, wanted, marker)
        # Which of several is best, PostgreSQL decides by statistics that six rows do not give.
        wanted_index = (
            "Index Scan" if fleet.dialect.name == "postgresql" else f"USING INDEX {index} "
        )
        assert wanted_index in f"{steps} ".replace("\n", " "), steps
        assert "TEMP B-TREE" not in steps, steps
        assert "Sort" not in steps, steps
        if marker is not None:
            assert any(bound in steps for bound in FROM_MARKER), steps


def test_changes_since_a_moment_read_no_more_than_what_changed(fleet: Engine) -> None:
    assert "server_changed" in plan(fleet, RANGED, None)
    if fleet.dialect.name != "postgresql":  # it decides by statistics that six rows do not give
        assert "server_changed" in plan(fleet, replace(RANGED, project_id="p"), None)


def test_names_are_listed_and_usage_is_summed_from_the_index_alone(fleet: Engine) -> None:
    if fleet.dialect.name == "postgresql":
        pytest.skip("whether it need not look at the rows depends on its last vacuum")
    page = Page(NEWEST, 2)
    for wanted in (ServerFilter(), ServerFilter(project_id="p")):
        steps = explained(fleet, lambda session, asked=wanted: list_names(session, asked, page))
        assert "USING COVERING INDEX server_live" in steps
    steps = explained(fleet, lambda session: usage_of(session, "p"))
    assert "USING COVERING INDEX server_live_in_project " in steps
