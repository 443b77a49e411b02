"""Servers as people use them: the real `openstack` command against a real server."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from sqlmodel import Session

from api.policy import Caller
from db.operations import Operation
from db.servers import Server
from db.session import now
from domain.lifecycle import LIFECYCLES
from domain.states import VmState
from tests.compat.conftest import Command
from tests.conftest import RecordingLauncher


class InstantLauncher(RecordingLauncher):
    """Every operation has succeeded by the time its request is answered."""

    def create(
        self,
        session: Session,
        who: Caller,
        servers: list[Server],
        request_id: str,
        input: dict[str, Any] | None = None,
    ) -> list[Operation]:
        for server in servers:
            server.host, server.power_state, server.launched_at = "node-1", 1, now()
            server.vm_state, server.task_state = VmState.ACTIVE, None
        return super().create(session, who, servers, request_id, input)

    def act(
        self,
        session: Session,
        who: Caller,
        server: Server,
        lifecycle: str,
        request_id: str,
        input: dict[str, Any] | None = None,
    ) -> Operation:
        operation = super().act(session, who, server, lifecycle, request_id, input)
        server.vm_state = LIFECYCLES[lifecycle].success
        if server.vm_state == VmState.DELETED:
            server.deleted_at = now()
        session.add(server)
        session.commit()
        return operation


@pytest.fixture
def launcher() -> RecordingLauncher:
    instant = InstantLauncher()
    instant.console = b"booting\nlogin: "
    return instant


@pytest.mark.timeout(600)
def test_openstack_command_runs_a_server_from_create_to_delete(
    demo: Command, launcher: RecordingLauncher
) -> None:
    made = demo.shows(
        *("server", "create", "--image", "cirros", "--flavor", "m1.tiny", "--network", "blue"),
        *("--property", "role=web", "--tag", "front", "--os-compute-api-version", "2.96"),
        *("--config-drive", "True", "--wait", "web"),
    )
    assert (made["name"], made["status"]) == ("web", "ACTIVE")
    assert made["adminPass"]
    [listed] = demo.shows("server", "list", "--name", "^w", "--status", "ACTIVE", "--long")
    assert (listed["ID"], listed["Image Name"]) == (made["id"], "cirros")
    assert listed["Networks"]["blue"][0].startswith("10.0.1.")
    shown = demo.shows("server", "show", "web")
    assert (shown["id"], shown["properties"]) == (made["id"], {"role": "web"})
    demo("server", "set", "--name", "db", "--property", "role=db", "web")
    demo("server", "unset", "--property", "role", "db")
    demo("server", "stop", "db")
    assert demo.shows("server", "show", "db")["status"] == "SHUTOFF"
    demo("server", "start", "db")
    demo("server", "reboot", "--hard", "--wait", "db")
    demo("server", "lock", "--reason", "mine", "db", "--os-compute-api-version", "2.73")
    demo("server", "unlock", "db")
    assert demo("console", "log", "show", "db").strip().endswith("login:")
    events = demo.shows("server", "event", "list", "db")
    assert [e["Action"] for e in events] == ["reboot", "start", "stop", "create"]
    first = demo.shows("server", "event", "show", "db", events[-1]["Request ID"])
    assert first["action"] == "create"
    demo("server", "delete", "--wait", "db")
    assert demo.shows("server", "list") == []
    keys = ["create", "stop", "start", "reboot_hard", "delete"]
    assert [key for key, _, _ in launcher.started] == keys


@pytest.mark.timeout(600)
def test_openstack_command_tells_what_is_wrong(
    demo: Command, as_user: Callable[[str], Command]
) -> None:
    body = ("server", "create", "--image", "cirros", "--network", "blue")
    assert "m9.huge" in demo.fails(*body, "--flavor", "m9.huge", "web")
    assert "Invalid key_name" in demo.fails(
        *body, "--flavor", "m1.tiny", "--key-name", "nosuch", "web"
    )
    mine = demo.shows(*body, "--flavor", "m1.tiny", "--min", "2", "--max", "2", "web")
    names = {s["Name"] for s in demo.shows("server", "list", "--limit", "1000")}
    assert names == {"web-1", "web-2"}
    assert "Cannot 'start'" in demo.fails("server", "start", "web-1")
    assert "not offered" in demo.fails("server", "resize", "--flavor", "m1.tiny", "web-1")
    alt, admin = as_user("alt"), as_user("admin")
    assert "No Server found" in alt.fails("server", "show", mine["id"])
    assert alt.shows("server", "list") == []
    everybody = admin.shows("server", "list", "--all-projects", "--long", "--host", "node-1")
    assert {s["Host"] for s in everybody} == {"node-1"}
    assert len(everybody) == 2
    assert json.loads(demo("server", "list", "-f", "json", "--marker", mine["id"])) is not None
