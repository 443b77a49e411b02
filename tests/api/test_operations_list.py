"""The list of operations over HTTP: pages, filters, and who sees what."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from sqlmodel import select

from db.operations import Operation
from db.session import now, transaction
from tests.api.conftest import ServerWorld
from tests.conftest import acting_as

OPERATIONS = "/operations/v1/operations"


@pytest.fixture
def server(world: ServerWorld) -> str:
    """A server with a create, a stop and a start, newest last; the start failed on node-2."""
    made = world.create()
    with transaction(world.engine) as session:
        create = session.exec(select(Operation)).one()
        create.state, create.host = "succeeded", "node-1"
        for n, (action, state) in enumerate([("stop", "succeeded"), ("start", "failed")], 1):
            moment = create.created_at + timedelta(hours=n)
            session.add(
                Operation(
                    request_id=f"req-{n}", action=action, lifecycle=action, server_id=made,
                    project_id="project-demo", user_id="user-member", state=state,
                    host=f"node-{n}", created_at=moment, updated_at=now(),
                )
            )  # fmt: skip
    return made


def listed(world: ServerWorld, who: str = "member", **query: Any) -> list[str]:
    answer = world.client.get(OPERATIONS, params=query, headers=acting_as(who))
    assert answer.status_code == 200, answer.text
    return [operation["action"] for operation in answer.json()["operations"]]


def test_operations_are_listed_newest_first(world: ServerWorld, server: str) -> None:
    assert listed(world) == ["start", "stop", "create"]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({"state": "failed"}, ["start"]),
        ({"action": "stop"}, ["stop"]),
        ({"action": "stop", "state": "failed"}, []),
        ({"server_id": "nosuch"}, []),
    ],
)
def test_filters_narrow_the_list(
    world: ServerWorld, server: str, query: dict[str, str], found: list[str]
) -> None:
    assert listed(world, **query) == found


def test_an_admin_filters_by_host_and_by_project(world: ServerWorld, server: str) -> None:
    assert listed(world, "admin", host="node-1") == ["stop", "create"]
    assert listed(world, "admin", project_id="project-demo", host="node-2") == ["start"]
    assert listed(world, "admin", project_id="project-alt") == []


@pytest.mark.parametrize("query", [{"host": "node-1"}, {"project_id": "project-demo"}])
def test_a_member_does_not_ask_by_host_or_by_project(
    world: ServerWorld, server: str, query: dict[str, str]
) -> None:
    assert world.client.get(OPERATIONS, params=query).status_code == 403


def test_another_project_sees_none_of_them(world: ServerWorld, server: str) -> None:
    assert listed(world, "alt") == []


def test_the_next_page_keeps_the_filters(world: ServerWorld, server: str) -> None:
    query = {"state": "succeeded", "limit": 1}
    first = world.client.get(OPERATIONS, params=query).json()
    second = world.client.get(first["next"]).json()
    pages = [[o["action"] for o in page["operations"]] for page in (first, second)]
    assert pages == [["stop"], ["create"]]
    assert second["next"] is None


def test_the_version_document_leads_to_itself(world: ServerWorld) -> None:
    version = world.client.get("/operations/v1", headers=acting_as("nobody")).json()["version"]
    assert version["links"] == [{"rel": "self", "href": "http://testserver/operations/v1"}]
