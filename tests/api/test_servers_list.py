"""Lists of servers: filters, order, pages, and what they cost."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest
from sqlmodel import select

from api.compute.server_views import ServerList, ServerView
from db.network import FixedIp, Port
from db.servers import Server
from db.session import now, reading, transaction
from tests.api.conftest import BIG_IMAGE, IMAGE, NET, SERVERS, ServerWorld, at, counting


@pytest.fixture
def fleet(world: ServerWorld) -> dict[str, str]:
    """name → id of five servers that differ, oldest first."""
    made = {
        "web-1": world.create("2.52", name="web-1", tags=["front", "blue"], metadata={"a": "b"}),
        "web-2": world.create("2.52", name="web-2", tags=["front"], key_name="mine"),
        "DB.main": world.create("2.52", name="DB.main", flavorRef="rich", imageRef=BIG_IMAGE),
        "batch": world.create("2.52", name="batch", description="night work", config_drive=True),
        "gone": world.create("2.52", name="gone", tags=["blue"]),
    }
    start = now() - timedelta(hours=1)
    for age, server_id in enumerate(made.values()):
        moment = start + timedelta(minutes=age)
        world.put(server_id, created_at=moment, updated_at=moment)
    world.activate(made["web-1"], "node-1")
    world.activate(made["web-2"], "node-2", task_state="rebooting")
    world.put(made["DB.main"], vm_state="stopped", power_state=4, locked=True)
    world.bury(made["gone"])
    return made


def found(world: ServerWorld, query: str, version: str = "2.1", who: str = "member") -> set[str]:
    return set(world.names(query, version, who))


ALL = {"web-1", "web-2", "DB.main", "batch"}


FILTERS_2_1 = [
    ("", ALL),
    ("name=web", {"web-1", "web-2"}),
    ("name=WEB-1", {"web-1"}),
    ("name=^web-[12]$", {"web-1", "web-2"}),
    ("name=^b", {"batch"}),
    ("name=%25", set()),
    ("name=B.m", {"DB.main"}),
    ("status=ACTIVE", {"web-1"}),
    ("status=reboot", {"web-2"}),
    ("status=ACTIVE&status=SHUTOFF", {"web-1", "DB.main"}),
    ("status=BUILD", {"batch"}),
    ("status=NOSUCH", set()),
    ("flavor=rich", {"DB.main"}),
    (f"image={BIG_IMAGE}", {"DB.main"}),
    (f"image=http://x/images/{IMAGE}", {"web-1", "web-2", "batch"}),
    ("ip=10.0.1.", ALL),
    ("ip=192.168.9.9", set()),
    ("changes-since=2000-01-01T00:00:00Z", ALL | {"gone"}),
    ("changes-since=2999-01-01", set()),
    # an administrator's filters do nothing for others in old versions
    ("host=node-1", ALL),
    ("deleted=True", ALL),
    ("key_name=mine", ALL),
    ("locked=True", ALL),
    ("tags=front", ALL),
    ("no_such_filter=1", ALL),
]


def test_filters_of_2_1(world: ServerWorld, fleet: dict[str, str]) -> None:
    assert {query: found(world, query) for query, _ in FILTERS_2_1} == dict(FILTERS_2_1)


LATER_FILTERS = [
    ("tags=front", {"web-1", "web-2"}, "2.26"),
    ("tags=front,blue", {"web-1"}, "2.26"),
    ("tags-any=blue,nothing", {"web-1"}, "2.26"),
    ("not-tags=front,blue", {"web-2", "DB.main", "batch"}, "2.26"),
    ("not-tags-any=front,blue", {"DB.main", "batch"}, "2.26"),
    ("changes-before=2999-01-01T00:00:00Z", ALL | {"gone"}, "2.66"),
    ("changes-before=2000-01-01T00:00:00Z", set(), "2.66"),
    ("locked=true", {"DB.main"}, "2.73"),
    ("locked=False", ALL - {"DB.main"}, "2.73"),
    ("key_name=mine", {"web-2"}, "2.83"),
    ("config_drive=True", {"batch"}, "2.83"),
    ("power_state=4", {"DB.main"}, "2.83"),
    ("vm_state=active", {"web-1", "web-2"}, "2.83"),
    ("task_state=rebooting", {"web-2"}, "2.83"),
    ("availability_zone=west", {"web-2"}, "2.83"),
    ("availability_zone=nova", {"web-1"}, "2.83"),
    ("user_id=user-member", ALL, "2.83"),
    ("user_id=somebody", set(), "2.83"),
    ("sort_key=locked&locked=1", {"DB.main"}, "2.73"),
]


def test_filters_of_later_versions(world: ServerWorld, fleet: dict[str, str]) -> None:
    expected = {(query, version): names for query, names, version in LATER_FILTERS}
    assert {asked: found(world, *asked) for asked in expected} == expected


ADMIN_FILTERS = [
    ("all_tenants=1", ALL | {"red"}),
    ("all_tenants", ALL | {"red"}),
    ("all_tenants=0", set()),
    ("", set()),
    ("all_tenants=1&project_id=project-alt", {"red"}),
    ("tenant_id=project-alt", {"red"}),
    ("all_tenants=1&host=node-2", {"web-2"}),
    ("all_tenants=1&node=node-1.cloud", {"web-1"}),
    ("all_tenants=1&hostname=^db", {"DB.main"}),
    ("all_tenants=1&description=night", {"batch"}),
    ("all_tenants=1&deleted=yes", {"gone"}),
    ("all_tenants=1&status=DELETED", {"gone"}),
    ("all_tenants=1&user_id=user-alt", {"red"}),
    ("all_tenants=1&launch_index=0&name=red", {"red"}),
]


def test_filters_of_administrators(world: ServerWorld, fleet: dict[str, str]) -> None:
    world.create(who="alt", name="red")
    answers = {query: found(world, query, "2.1", "admin") for query, _ in ADMIN_FILTERS}
    assert answers == dict(ADMIN_FILTERS)


def test_an_administrator_finds_by_uuid_and_created_at(
    world: ServerWorld, fleet: dict[str, str]
) -> None:
    with reading(world.engine) as session:
        server = session.get(Server, fleet["web-2"])
        assert server is not None
        moment = server.created_at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    assert found(world, f"all_tenants=1&uuid={fleet['batch']}", who="admin") == {"batch"}
    assert found(world, f"all_tenants=1&created_at={moment}", who="admin") == {"web-2"}


REFUSED = [
    ("changes-since=yesterday", 400, "2.1"),
    ("limit=-1", 400, "2.1"),
    ("limit=many", 400, "2.1"),
    ("marker=nobody", 400, "2.1"),
    ("sort_key=secret", 400, "2.1"),
    ("sort_key=locked", 400, "2.72"),
    ("sort_dir=up", 400, "2.1"),
    ("sort_key=host", 403, "2.1"),
    ("all_tenants=perhaps", 400, "2.1"),
    ("all_tenants=1", 403, "2.1"),
    ("tenant_id=project-alt", 403, "2.1"),
    ("status=DELETED", 403, "2.1"),
    ("status=NOSUCH", 400, "2.38"),
    ("no_such_filter=1", 400, "2.75"),
    ("name=(", 400, "2.1"),
    ("name=(a)%5C1", 400, "2.1"),
    ("name=" + "x" * 256, 400, "2.1"),
    ("name=%00", 400, "2.1"),
    ("power_state=99", 400, "2.1"),
    ("tags=" + ",".join(str(n) for n in range(51)), 400, "2.26"),
    ("changes-since=2020-01-02&changes-before=2020-01-01", 400, "2.66"),
]


@pytest.mark.parametrize("path", ["", "/detail"])
def test_queries_that_are_refused(world: ServerWorld, path: str) -> None:
    faults = {400: "badRequest", 403: "forbidden"}
    expected = {(query, version): (code, [faults[code]]) for query, code, version in REFUSED}
    answers = {}
    for query, version in expected:
        answer = world.client.get(f"{SERVERS}{path}?{query}", headers=at(version))
        answers[query, version] = (answer.status_code, list(answer.json()))
    assert answers == expected


def test_no_pattern_keeps_the_database_busy(world: ServerWorld) -> None:
    world.create(name="a" * 250 + "!")
    for pattern in ("(a%2B)%2B$", "(a|aa)%2B$", "(.*a){20}", "((a*)*)*b"):
        with counting(world.engine) as seen:
            answer = world.client.get(f"{SERVERS}?name={pattern}", headers=at())
        assert answer.status_code == 200
        assert sum("REGEXP" in statement for statement in seen) == 1


ORDERS = [
    ("", ["batch", "DB.main", "web-2", "web-1"]),
    ("sort_key=created_at&sort_dir=asc", ["web-1", "web-2", "DB.main", "batch"]),
    ("sort_key=display_name&sort_dir=desc", ["web-2", "web-1", "batch", "DB.main"]),
    (
        "sort_key=vm_state&sort_dir=asc&sort_key=display_name&sort_dir=desc",
        ["web-2", "web-1", "batch", "DB.main"],
    ),
    ("sort_key=kernel_id&sort_key=uuid&name=batch", ["batch"]),
]


def test_order(world: ServerWorld, fleet: dict[str, str]) -> None:
    assert {query: world.names(query) for query, _ in ORDERS} == dict(ORDERS)


def walk(world: ServerWorld, query: str, path: str = "", who: str = "member") -> list[list[str]]:
    """The pages of a list by its own next links."""
    pages, url = [], f"{SERVERS}{path}?{query}"
    while url:
        body = world.client.get(url, headers=at(who=who)).json()
        pages.append([server["name"] for server in body["servers"]])
        links = {link["rel"]: link["href"] for link in body.get("servers_links", [])}
        parts = urlsplit(links["next"]) if "next" in links else None
        url = f"{parts.path}?{parts.query}" if parts else ""
    return pages


PAGED = [
    "limit=3",
    "limit=2&sort_key=key_name&sort_dir=asc",
    "limit=2&sort_key=key_name&sort_dir=desc",
    "limit=1&sort_key=launched_at&sort_key=display_name&sort_dir=desc&sort_dir=asc",
    "limit=3&name=s",
]


def test_pages_add_up_to_the_whole_list_in_order(world: ServerWorld) -> None:
    for n in range(7):
        made = world.create(name=f"s{n}", key_name="mine" if n % 2 else None)
        if n % 3:
            world.activate(made, launched_at=now() + timedelta(seconds=n % 4))
    for query in PAGED:
        whole = world.names("&".join(part for part in query.split("&") if "limit" not in part))
        assert len(set(whole)) == 7
        for path in ("", "/detail"):
            pages = walk(world, query, path)
            assert [name for page in pages for name in page] == whole
    assert "servers_links" not in world.client.get(SERVERS, headers=at()).json()


def test_servers_present_throughout_are_listed_once_while_others_come_and_go(
    world: ServerWorld,
) -> None:
    kept = [world.create(name=f"kept-{n}") for n in range(6)]
    doomed = [world.create(name=f"doomed-{n}") for n in range(3)]
    seen: list[str] = []
    url = f"{SERVERS}?limit=2"
    while url:
        body = world.client.get(url, headers=at()).json()
        seen += [server["id"] for server in body["servers"]]
        world.create(name="new")
        if doomed:
            world.bury(doomed.pop())
        if body["servers"]:  # the marker itself disappears between two pages
            last = body["servers"][-1]["id"]
            if last in kept:
                kept.remove(last)
                world.bury(last)
        links = body.get("servers_links")
        url = links[0]["href"].removeprefix("http://testserver") if links else ""
    assert len(seen) == len(set(seen))
    assert set(kept) <= set(seen)


def test_limit_zero_is_an_empty_page(world: ServerWorld, fleet: dict[str, str]) -> None:
    answer = world.client.get(f"{SERVERS}?limit=0", headers=at())
    assert answer.json() == {"servers": []}


def test_another_projects_server_is_no_marker(world: ServerWorld) -> None:
    foreign = world.create(who="alt")
    answer = world.client.get(f"{SERVERS}?marker={foreign}", headers=at())
    assert answer.status_code == 400
    assert answer.json()["badRequest"]["message"] == f"marker [{foreign}] not found"


def test_a_deleted_server_shows_as_deleted_in_changes(
    world: ServerWorld, fleet: dict[str, str]
) -> None:
    query = "changes-since=2000-01-01T00:00:00Z"
    listed = world.client.get(f"{SERVERS}/detail?{query}", headers=at()).json()["servers"]
    assert {s["name"]: s["status"] for s in listed}["gone"] == "DELETED"


@pytest.mark.parametrize("who", ["member", "admin"])
@pytest.mark.parametrize("version", ["2.1", "2.96"])
def test_a_detailed_page_costs_the_same_statements_for_any_number_of_servers(
    world: ServerWorld, who: str, version: str
) -> None:
    def cost() -> int:
        with counting(world.engine) as seen:
            url = f"{SERVERS}/detail?all_tenants={int(who == 'admin')}&marker={newest}"
            answer = world.client.get(url, headers=at(version, who))
        assert answer.status_code == 200
        return len(seen)

    first = [world.create(name="a"), world.create(name="b")]
    for server_id in first:
        world.activate(server_id)
    newest = world.create(name="newest")
    few = cost()
    for n in range(8):
        made = world.create(name=f"more-{n}")
        world.put(made, created_at=now() - timedelta(days=1))
        if n % 2:
            world.activate(made, f"node-{1 + n % 2}")
        else:
            world.fail(made, "boom")
    assert few <= 7
    assert cost() <= 8


def test_filter_by_address_does_not_see_other_projects_ports(world: ServerWorld) -> None:
    mine = world.create(networks=[{"uuid": NET, "fixed_ip": "10.0.1.42"}])
    world.create(name="other")
    assert world.names("ip=10.0.1.42") == ["web"]
    with transaction(world.engine) as session:
        port = session.exec(select(Port).where(Port.device_id == mine)).one()
        assert session.exec(select(FixedIp).where(FixedIp.port_id == port.id)).one()
    assert world.names("ip=10.0.1.42", who="alt") == []


def test_the_short_list_reads_no_more_than_ids_and_names(
    world: ServerWorld, fleet: dict[str, Any]
) -> None:
    with counting(world.engine) as seen:
        world.names("limit=2")
    assert len(seen) == 1
    assert "user_data" not in seen[0]


@pytest.mark.parametrize("who", ["member", "admin"])
def test_a_list_and_a_show_are_of_the_shape_that_is_documented(
    world: ServerWorld, fleet: dict[str, str], who: str
) -> None:
    world.fail(fleet["batch"], "boom", "why")
    url = f"{SERVERS}/detail?all_tenants={int(who == 'admin')}"
    listed = world.client.get(url, headers=at("2.96", who)).json()
    assert len(ServerList.model_validate(listed).servers) == 4
    for server in listed["servers"]:
        shown = world.show(server["id"], "2.96", who)
        ServerView.model_validate(shown)
        assert shown == server | {"server_groups": []}


@pytest.mark.parametrize("pattern", ["äpfel", "^ÄPFEL$", "^äpf"])
def test_names_are_found_in_any_case_beyond_ascii_too(world: ServerWorld, pattern: str) -> None:
    world.create("2.1", name="Äpfel")
    world.create("2.1", name="pears")
    assert found(world, f"name={pattern}") == {"Äpfel"}
