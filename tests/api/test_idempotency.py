"""``Idempotency-Key`` over HTTP: what is sent again is answered again, in every service, and done once."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine
from sqlmodel import col, select, update

from api.context import get_caller, get_session
from api.idempotency import MAX_BODY_BYTES, PATIENCE
from api.microversion import MAX
from db.idempotency import IdempotencyKey
from db.identity import DEFAULT_DOMAIN, Domain
from db.network import Port
from db.operations import Operation
from db.servers import Server
from db.session import now, reading, transaction
from domain.errors import Unavailable
from tests.api.conftest import IMAGE, NET, SERVERS, ServerWorld
from tests.conftest import RecordingLauncher
from tests.routes import Walked, walk

NOT_COVERED = {
    "POST /identity/v3/auth/tokens": "who asks has no token yet, and nothing is made",
}
REFUSES = {
    "POST /identity/v3/groups",
    "POST /image/v2/images/{image_id}/import",
    "POST /network/v2.0/floatingips",
    "POST /network/v2.0/routers",
}
"""Answer 501 whatever comes, so they write nothing that could be written twice."""


@dataclass(frozen=True)
class Example:
    """One POST of a service, and how the service says what is wrong."""

    path: str
    body: dict[str, Any]
    other: dict[str, Any]
    status: int
    message: Callable[[Any], str]
    made: str
    """Where made things are listed."""
    who: str = "member"


def _named(key: str, **more: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    one, two = ({**more, "name": n} for n in ("one", "two"))
    return ({key: one}, {key: two}) if key else (one, two)


KEYPAIRS = Example(
    "/compute/v2.1/os-keypairs", *_named("keypair"), 200,
    lambda said: said["unprocessableEntity"]["message"], "keypairs",
)  # fmt: skip
EXAMPLES = {
    "compute": KEYPAIRS,
    "network": Example(
        "/network/v2.0/networks", *_named("network"), 201,
        lambda said: said["NeutronError"]["message"], "networks",
    ),
    "image": Example("/image/v2/images", *_named(""), 201, lambda said: said["message"], "images"),
    "identity": Example(
        "/identity/v3/projects", *_named("project"), 201,
        lambda said: said["error"]["message"], "projects", who="admin",
    ),
}  # fmt: skip


@pytest.fixture
def domain(engine: Engine) -> None:
    """Where projects are made."""
    with transaction(engine) as session:
        session.add(Domain(id=DEFAULT_DOMAIN, name="Default"))


def post(
    client: TestClient, path: str, body: Any, key: str = "k", who: str = "member", **headers: str
) -> httpx.Response:
    sent = {"X-Auth-Token": who, "Idempotency-Key": key} | headers
    return client.post(path, json=body, headers=sent)


def blank(engine: Engine, age: timedelta) -> str:
    """As if the only request under a key had been killed at its answer; returns what had been kept."""
    with transaction(engine) as session:
        row = session.exec(select(IdempotencyKey)).one()
        kept, row.answer_sealed, row.created_at = row.answer_sealed, None, now() - age
        session.add(row)
    assert kept is not None
    return kept


@pytest.fixture(scope="module")
def posts() -> list[Walked]:
    found = [r for r in walk() if r.method == "POST" and r.service != "internal"]
    assert len(found) > 25
    return found


# --- every route ----------------------------------------------------------------------------------


def test_every_post_of_every_service_knows_keys(posts: list[Walked], client: TestClient) -> None:
    deaf = set()
    for route in posts:
        path = re.sub(r"{[^}]*}", "x", route.path)
        span = getattr(route.endpoint, "span", None)
        version = span.until if span else MAX
        headers = {"OpenStack-API-Version": f"compute {version}"}
        answer = post(client, path, {}, key="", **headers)
        if answer.status_code != 400 or "Idempotency-Key" not in answer.text:
            deaf.add(str(route))
    assert deaf == NOT_COVERED.keys()


def test_every_post_that_writes_does_so_in_the_requests_session_once_its_caller_may(
    posts: list[Walked],
) -> None:
    without = {str(r) for r in posts if get_session not in r.needs}
    assert without == REFUSES | NOT_COVERED.keys()
    for route in posts:
        if get_session in route.needs:
            before = route.needs[: route.needs.index(get_session)]
            assert get_caller in before, route
            assert any(hasattr(need, "rule") for need in before), route


def test_the_header_is_documented(client: TestClient) -> None:
    for service in ("compute", "identity", "image", "network"):
        paths = client.get(f"/{service}/openapi.json").json()["paths"]
        path = EXAMPLES[service].path.removeprefix(f"/{service}")
        names = [p["name"] for p in paths[path]["post"]["parameters"]]
        assert "Idempotency-Key" in names
        assert "Idempotency-Key" not in str(paths[path]["get"])


# --- one request of each service ------------------------------------------------------------------


@pytest.mark.usefixtures("domain")
@pytest.mark.parametrize("service", EXAMPLES)
def test_a_repeated_request_gets_the_first_answer_and_is_not_done_again(
    service: str, client: TestClient
) -> None:
    example = EXAMPLES[service]
    first = post(client, example.path, example.body, who=example.who)
    again = post(client, example.path, example.body, who=example.who)
    assert (first.status_code, again.status_code) == (example.status, example.status)
    assert again.content == first.content
    assert "Idempotency-Replayed" not in first.headers
    assert again.headers["Idempotency-Replayed"] == "true"
    own = {"idempotency-replayed", "x-openstack-request-id"}
    assert {k: v for k, v in again.headers.items() if k not in own} == {
        k: v for k, v in first.headers.items() if k not in own
    }
    listed = client.get(example.path, headers={"X-Auth-Token": example.who}).json()[example.made]
    assert str(listed).count("'one'") == 1


@pytest.mark.usefixtures("domain")
@pytest.mark.parametrize("service", EXAMPLES)
def test_another_request_under_the_same_key_is_refused_in_the_services_own_format(
    service: str, client: TestClient
) -> None:
    example = EXAMPLES[service]
    assert post(client, example.path, example.body, who=example.who).is_success
    clash = post(client, example.path, example.other, who=example.who)
    assert clash.status_code == 422
    assert "used before, for another request" in example.message(clash.json())


def test_the_private_key_of_a_keypair_is_told_again_and_rests_sealed(
    client: TestClient, engine: Engine
) -> None:
    first = post(client, KEYPAIRS.path, KEYPAIRS.body).json()["keypair"]["private_key"]
    assert "PRIVATE KEY" in first
    assert post(client, KEYPAIRS.path, KEYPAIRS.body).json()["keypair"]["private_key"] == first
    with reading(engine) as session:
        row = session.exec(select(IdempotencyKey)).one()
    assert "PRIVATE" not in str(row.answer_sealed)


def test_an_image_is_told_with_its_location(client: TestClient) -> None:
    example = EXAMPLES["image"]
    first, again = (post(client, example.path, example.body) for _ in range(2))
    assert again.headers["Location"] == first.headers["Location"]


# --- servers and their actions --------------------------------------------------------------------


def server_body(name: str = "once") -> dict[str, Any]:
    return {"server": {"name": name, "flavorRef": "small", "imageRef": IMAGE}}


def test_a_server_is_made_once_and_its_password_told_twice(
    world: ServerWorld, launcher: RecordingLauncher
) -> None:
    first, again = (post(world.client, SERVERS, server_body()) for _ in range(2))
    assert (first.status_code, again.status_code) == (202, 202)
    assert again.json() == first.json()
    assert again.json()["server"]["adminPass"]
    assert again.headers["Location"] == first.headers["Location"]
    assert [key for key, *_ in launcher.started] == ["create"]
    assert world.names() == ["once"]


def test_an_action_is_carried_out_once(world: ServerWorld, launcher: RecordingLauncher) -> None:
    server_id = world.create()
    world.activate(server_id)
    path = f"{SERVERS}/{server_id}/action"
    first = post(world.client, path, {"os-stop": None})
    world.activate(server_id)  # as if it had been stopped and started since
    again = post(world.client, path, {"os-stop": None})
    assert (first.status_code, again.status_code) == (202, 202)
    assert again.headers["Idempotency-Replayed"] == "true"
    assert [key for key, *_ in launcher.started] == ["create", "stop"]
    assert post(world.client, path, {"os-start": None}).status_code == 422


def test_an_action_that_only_reads_is_kept_as_well(
    world: ServerWorld, launcher: RecordingLauncher
) -> None:
    server_id = world.create()
    world.activate(server_id)
    launcher.console = b"first boot"
    path, ask = f"{SERVERS}/{server_id}/action", {"os-getConsoleOutput": {}}
    assert post(world.client, path, ask).json() == {"output": "first boot"}
    launcher.console = b"second boot"
    assert post(world.client, path, ask).json() == {"output": "first boot"}


# --- verbs of operations --------------------------------------------------------------------------


def build_in(world: ServerWorld, state: str, **columns: Any) -> str:
    """The path of the operation of a new server, moved to this state."""
    server_id = world.create()
    with transaction(world.engine) as session:
        mine = select(Operation).where(Operation.server_id == server_id)
        operation = session.exec(mine).one()
        for name, value in ({"state": state} | columns).items():
            setattr(operation, name, value)
        session.add(operation)
        if state == "failed":
            server = session.get(Server, server_id)
            assert server is not None
            server.vm_state = "error"
        return f"/operations/v1/operations/{operation.id}"


def test_an_order_is_given_once(world: ServerWorld, launcher: RecordingLauncher) -> None:
    path = build_in(world, "waiting_operator", verbs=["resume", "abort"], step="disk")
    first, again = (post(world.client, f"{path}/abort", {"reason": "no"}) for _ in range(2))
    assert (first.status_code, again.content) == (202, first.content)
    assert "Idempotency-Replayed" in again.headers
    assert [verb for _, verb, *_ in launcher.ordered] == ["abort"]
    other = post(world.client, f"{path}/resume", {})
    assert other.status_code == 422
    assert "used before, for another request" in other.json()["error"]["message"]


def test_a_cancel_is_sent_once(world: ServerWorld, launcher: RecordingLauncher) -> None:
    path = build_in(world, "running")
    first, again = (post(world.client, f"{path}/cancel", None) for _ in range(2))
    assert (first.status_code, again.content) == (202, first.content)
    assert len(launcher.cancelled) == 1


def test_a_retry_makes_one_operation_even_if_who_accepted_it_dies(
    world: ServerWorld, launcher: RecordingLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = build_in(world, "failed")
    record = launcher.retry

    def die(*args: Any) -> Any:
        record(*args)
        raise KILLED

    monkeypatch.setattr(launcher, "retry", die)
    assert post(world.client, f"{path}/retry", {}).status_code == 503
    answer = post(world.client, f"{path}/retry", {})
    assert answer.status_code == 202
    with reading(world.engine) as session:
        again = select(Operation.id).where(col(Operation.retry_of).is_not(None))
        assert session.exec(again).all() == [answer.json()["id"]]


# --- what makes a request the same ----------------------------------------------------------------


def test_the_spelling_of_the_body_does_not_matter_but_its_values_do(client: TestClient) -> None:
    headers = {"Idempotency-Key": "k", "Content-Type": "application/json"}
    path = "/network/v2.0/networks"
    sent = '{"network": {"name": "one", "description": "d"}}'
    same = '{ "network" :{"description":"\\u0064", "name":"one"} }'
    assert client.post(path, content=sent, headers=headers).status_code == 201
    assert "Idempotency-Replayed" in client.post(path, content=same, headers=headers).headers
    other = sent.replace('"d"', '"e"')
    assert client.post(path, content=other, headers=headers).status_code == 422


def test_path_query_version_and_our_own_headers_belong_to_the_request(client: TestClient) -> None:
    assert post(client, KEYPAIRS.path, KEYPAIRS.body).status_code == 200
    assert post(client, "/image/v2/images", KEYPAIRS.body).status_code == 422
    assert post(client, f"{KEYPAIRS.path}?x=1", KEYPAIRS.body).status_code == 422
    newer = {"OpenStack-API-Version": "compute 2.2"}
    assert post(client, KEYPAIRS.path, KEYPAIRS.body, **newer).status_code == 422
    held = {"X-Duranova-Hold-On-Failure": "true"}
    assert post(client, KEYPAIRS.path, KEYPAIRS.body, **held).status_code == 422
    assert post(client, KEYPAIRS.path, KEYPAIRS.body).status_code == 200


def test_the_same_key_of_another_project_or_user_is_another_key(client: TestClient) -> None:
    example = EXAMPLES["network"]
    made = {post(client, example.path, example.body, who=who).json()["network"]["id"]
            for who in ("member", "alt", "admin")}  # fmt: skip
    assert len(made) == 3


def test_a_key_does_not_open_what_the_callers_role_no_longer_does(
    client: TestClient, engine: Engine
) -> None:
    assert post(client, EXAMPLES["network"].path, EXAMPLES["network"].body).is_success
    with transaction(engine) as session:
        session.exec(update(IdempotencyKey).values(user_id="user-reader"))
    answer = post(client, EXAMPLES["network"].path, EXAMPLES["network"].body, who="reader")
    assert answer.status_code == 403
    assert post(client, EXAMPLES["network"].path, {}, who="nobody").status_code == 401


# --- failures -------------------------------------------------------------------------------------


def test_a_request_that_fails_does_not_use_its_key_up(world: ServerWorld, engine: Engine) -> None:
    bad = {"server": {**server_body()["server"], "flavorRef": "none"}}
    for _ in range(2):
        assert post(world.client, SERVERS, bad).status_code == 400
    with reading(engine) as session:
        assert session.exec(select(IdempotencyKey)).all() == []
    assert post(world.client, SERVERS, server_body()).status_code == 202
    busy = post(world.client, f"{SERVERS}/{world.create()}/action", {"os-start": None}, key="a")
    assert busy.status_code == 409
    with reading(engine) as session:
        assert [r.key for r in session.exec(select(IdempotencyKey))] == ["k"]


@pytest.mark.parametrize("key", ["", "k" * 256])
def test_a_key_has_1_to_255_characters(client: TestClient, key: str) -> None:
    answer = post(client, EXAMPLES["image"].path, EXAMPLES["image"].body, key=key)
    assert answer.status_code == 400
    assert "1 to 255 characters" in answer.json()["message"]
    longest = post(client, EXAMPLES["image"].path, EXAMPLES["image"].body, key="k" * 255)
    assert longest.status_code == 201


def test_two_keys_are_none(client: TestClient) -> None:
    headers = [("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    answer = client.post(EXAMPLES["image"].path, json={}, headers=headers)
    assert answer.status_code == 400


def test_a_keyed_body_has_a_bound(client: TestClient) -> None:
    huge = {"network": {"name": "x" * MAX_BODY_BYTES}}
    answer = post(client, EXAMPLES["network"].path, huge)
    assert answer.status_code == 413
    assert answer.json()["NeutronError"]["type"] == "HTTPRequestEntityTooLarge"


# --- killed in between ----------------------------------------------------------------------------


KILLED = Unavailable("what this answers is lost with the process")


def test_a_server_whose_maker_died_after_the_commit_is_told_exactly(
    world: ServerWorld, launcher: RecordingLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = launcher.create

    def die(*args: Any) -> Any:
        record(*args)
        raise KILLED

    monkeypatch.setattr(launcher, "create", die)
    assert post(world.client, SERVERS, server_body()).status_code == 503
    answer = post(world.client, SERVERS, server_body())
    assert answer.status_code == 202
    with reading(world.engine) as session:
        assert [s.id for s in session.exec(select(Server))] == [answer.json()["server"]["id"]]


def test_an_action_that_was_accepted_by_a_process_that_died_is_told_exactly(
    world: ServerWorld, launcher: RecordingLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    server_id = world.create()
    world.activate(server_id)
    record = launcher.act

    def die(*args: Any) -> Any:
        record(*args)
        raise KILLED

    monkeypatch.setattr(launcher, "act", die)
    path = f"{SERVERS}/{server_id}/action"
    assert post(world.client, path, {"reboot": {"type": "HARD"}}).status_code == 503
    answer = post(world.client, path, {"reboot": {"type": "HARD"}})
    assert (answer.status_code, answer.content) == (202, b"")
    with reading(world.engine) as session:
        reboots = select(Operation).where(col(Operation.action) == "reboot")
        assert len(session.exec(reboots).all()) == 1


def test_a_port_whose_maker_died_before_the_hosts_were_told_is_told_exactly(
    world: ServerWorld, launcher: RecordingLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(_hosts: set[str]) -> bool:
        raise KILLED

    monkeypatch.setattr(launcher, "refresh_hosts", die)
    monkeypatch.setattr("api.network.ports._concerned", lambda *_: {"node-1"})
    body = {"port": {"network_id": NET}}
    assert post(world.client, "/network/v2.0/ports", body).status_code == 503
    answer = post(world.client, "/network/v2.0/ports", body)
    assert answer.status_code == 201
    with reading(world.engine) as session:
        assert [p.id for p in session.exec(select(Port))] == [answer.json()["port"]["id"]]


def test_an_answer_that_was_lost_is_a_conflict_that_names_the_request(
    client: TestClient, engine: Engine
) -> None:
    first = post(client, KEYPAIRS.path, KEYPAIRS.body)
    blank(engine, PATIENCE + timedelta(seconds=1))
    again = post(client, KEYPAIRS.path, KEYPAIRS.body)
    assert again.status_code == 409
    message = again.json()["conflictingRequest"]["message"]
    assert first.headers["X-OpenStack-Request-Id"] in message


def test_an_answer_that_is_still_being_made_is_waited_for(
    client: TestClient, engine: Engine
) -> None:
    first = post(client, KEYPAIRS.path, KEYPAIRS.body)
    kept = blank(engine, timedelta())
    with ThreadPoolExecutor(1) as pool:
        again = pool.submit(post, client, KEYPAIRS.path, KEYPAIRS.body)
        with pytest.raises(TimeoutError):
            again.result(timeout=0.5)
        with transaction(engine) as session:
            session.exec(update(IdempotencyKey).values(answer_sealed=kept))
        assert again.result(timeout=30).content == first.content
