"""POST /servers/{id}/action over HTTP."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlmodel import select

from api.compute.actions import ACTIONS
from api.microversion import MAX
from api.policy import RULES
from db.network import Port, SecurityGroup
from db.session import transaction
from tests.api.conftest import SERVERS, ServerWorld, at
from tests.conftest import RecordingLauncher

LIFECYCLE = [
    # action, body, the operation it starts, the state it needs
    ("os-start", None, "start", "stopped"),
    ("os-stop", None, "stop", "active"),
    ("os-stop", {}, "stop", "error"),
    ("reboot", {"type": "SOFT"}, "reboot_soft", "active"),
    ("reboot", {"type": "hard"}, "reboot_hard", "paused"),
    ("pause", None, "pause", "active"),
    ("unpause", None, "unpause", "paused"),
    ("suspend", None, "suspend", "active"),
    ("resume", None, "resume", "suspended"),
    ("forceDelete", None, "delete", "error"),
]


@pytest.fixture
def server(world: ServerWorld) -> str:
    made = world.create()
    world.activate(made)
    return made


def test_lifecycle_actions_start_their_operation_and_answer_an_empty_202(
    world: ServerWorld, server: str, launcher: RecordingLauncher
) -> None:
    for action, body, lifecycle, state in LIFECYCLE:
        world.put(server, vm_state=state)
        answer = world.act(server, action, body)
        assert (answer.status_code, answer.content) == (202, b""), (action, answer.text)
        assert launcher.started[-1] == (lifecycle, server, {})


def test_lifecycle_actions_in_the_wrong_state_are_a_409_in_novas_words(
    world: ServerWorld, server: str, launcher: RecordingLauncher
) -> None:
    started = len(launcher.started)
    for action, body in (("os-start", None), ("unpause", None), ("resume", None)):
        answer = world.act(server, action, body)
        assert answer.status_code == 409
        message = answer.json()["conflictingRequest"]["message"]
        assert f"instance {server} while it is in vm_state active" in message
    world.put(server, vm_state="building")
    assert world.act(server, "reboot", {"type": "HARD"}).status_code == 409
    assert len(launcher.started) == started


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{}", "Malformed request body"),
        (b'{"pause": null, "unpause": null}', "Malformed request body"),
        (b"[]", "valid dictionary"),
        (b"{", "Malformed request body"),
        (b'{"explode": null}', "There is no such action: explode"),
        (b'{"reboot": null}', "reboot"),
        (b'{"reboot": {}}', "'type' is a required property"),
        (b'{"reboot": {"type": "GENTLE"}}', "type"),
        (b'{"reboot": {"type": "SOFT", "now": 1}}', "'now' was unexpected"),
        (b'{"os-getConsoleOutput": {"length": "many"}}', "length"),
        (b'{"addSecurityGroup": {}}', "'name' is a required property"),
        (b'{"lock": {"locked_reason": "x"}}', "'locked_reason' was unexpected"),
    ],
)
def test_bodies_that_are_refused(world: ServerWorld, server: str, body: bytes, words: str) -> None:
    headers = {**at(), "Content-Type": "application/json"}
    answer = world.client.post(f"{SERVERS}/{server}/action", content=body, headers=headers)
    assert answer.status_code == 400
    assert words in answer.json()["badRequest"]["message"]


def test_what_is_not_offered_is_a_501_that_says_so(world: ServerWorld, server: str) -> None:
    for action in ("resize", "rebuild", "createImage", "rescue", "shelve", "os-migrateLive"):
        answer = world.act(server, action, {})
        assert answer.status_code == 501, action
        assert "not offered" in answer.json()["notImplemented"]["message"]


def test_actions_outside_their_versions_are_not_found(world: ServerWorld, server: str) -> None:
    assert world.act(server, "addFloatingIp", {}, "2.43").status_code == 501
    assert world.act(server, "addFloatingIp", {}, "2.44").status_code == 404
    assert world.act(server, "trigger_crash_dump", None, "2.16").status_code == 404
    assert world.act(server, "trigger_crash_dump", None, "2.17").status_code == 501


def test_every_row_of_the_table_names_a_rule_and_a_range_of_versions() -> None:
    for name, action in ACTIONS.items():
        assert action.rule in RULES, name
        assert action.versions.until <= MAX


def test_an_owners_lock_is_his_to_open_and_an_administrators_is_not(
    world: ServerWorld, server: str
) -> None:
    assert world.act(server, "lock", {"locked_reason": "hands off"}, "2.73").status_code == 202
    shown = world.show(server, "2.73")
    assert (shown["locked"], shown["locked_reason"]) == (True, "hands off")
    assert world.act(server, "unlock").status_code == 202
    shown = world.show(server, "2.73")
    assert (shown["locked"], shown["locked_reason"]) == (False, None)
    assert world.act(server, "lock", who="admin").status_code == 202
    assert world.act(server, "unlock").status_code == 403
    assert world.act(server, "lock").status_code == 202
    assert world.act(server, "unlock").status_code == 403
    assert world.act(server, "unlock", who="admin").status_code == 202
    assert world.show(server, "2.9")["locked"] is False


def test_a_locked_server_takes_changes_from_administrators_only(
    world: ServerWorld, server: str
) -> None:
    world.act(server, "lock")
    path = f"{SERVERS}/{server}/metadata"
    body = {"metadata": {"a": "b"}}
    assert world.act(server, "addSecurityGroup", {"name": "default"}).status_code == 409
    refused = world.client.post(path, json=body, headers=at())
    assert refused.status_code == 409
    assert refused.json()["conflictingRequest"]["message"] == f"Instance {server} is locked"
    assert world.client.post(path, json=body, headers=at(who="admin")).status_code == 200


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, "one\ntwo\nthree"),
        ({}, "one\ntwo\nthree"),
        ({"length": None}, "one\ntwo\nthree"),
        ({"length": -1}, "one\ntwo\nthree"),
        ({"length": 2}, "two\nthree"),
        ({"length": "1"}, "three"),
        ({"length": 0}, ""),
    ],
)
def test_the_console_is_shown_from_its_end(
    world: ServerWorld, server: str, launcher: RecordingLauncher, given: Any, expected: str
) -> None:
    launcher.console = b"one\ntwo\nthree"
    answer = world.act(server, "os-getConsoleOutput", given)
    assert (answer.status_code, answer.json()) == (200, {"output": expected})


def test_the_console_shows_no_control_characters_and_survives_other_bytes(
    world: ServerWorld, server: str, launcher: RecordingLauncher
) -> None:
    launcher.console = b"\x1b[31mred\x00\x07\r\n\xff<script>\n"
    output = world.act(server, "os-getConsoleOutput").json()["output"]
    assert output == "[31mred\n\ufffd<script>\n"


def test_a_server_on_no_host_has_no_console(world: ServerWorld) -> None:
    made = world.create()
    answer = world.act(made, "os-getConsoleOutput", {})
    assert answer.status_code == 409
    assert "not ready" in answer.json()["conflictingRequest"]["message"]


def test_reading_a_console_holds_no_transaction(
    world: ServerWorld, server: str, launcher: RecordingLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(_host: str, server_id: str, _most: int) -> bytes:
        with transaction(world.engine):  # a second writer gets in meanwhile
            pass
        return b"late"

    monkeypatch.setattr(launcher, "read_console", slow)
    assert world.act(server, "os-getConsoleOutput").json() == {"output": "late"}


def test_groups_come_and_go_on_every_card_and_hosts_are_told(
    world: ServerWorld, server: str, launcher: RecordingLauncher
) -> None:
    with transaction(world.engine) as session:
        session.add(SecurityGroup(project_id="project-demo", name="web"))
        port = session.exec(select(Port).where(Port.device_id == server)).one()
        port.host = "node-1"
    assert world.act(server, "addSecurityGroup", {"name": "web"}).status_code == 202
    assert world.show(server)["security_groups"] == [{"name": "default"}, {"name": "web"}]
    assert launcher.refreshed == ["node-1"]
    assert world.act(server, "removeSecurityGroup", {"name": "web"}).status_code == 202
    assert world.show(server)["security_groups"] == [{"name": "default"}]
    assert world.act(server, "removeSecurityGroup", {"name": "web"}).status_code == 404
    assert world.act(server, "addSecurityGroup", {"name": "nosuch"}).status_code == 404


def test_an_action_on_another_projects_server_is_not_found(
    world: ServerWorld, server: str, client: TestClient
) -> None:
    for action in ("os-stop", "lock", "os-getConsoleOutput"):
        answer = world.act(server, action, who="alt")
        assert answer.status_code == 404
        message = answer.json()["itemNotFound"]["message"]
        assert message == f"Instance {server} could not be found."
