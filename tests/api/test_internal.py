"""What hosts tell and are told: power states followed or restored, stale guests purged, images handed out."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine

from api.context import Cloud
from api.internal import report_interval_s
from db.hosts import Claim, Host, want_nics
from db.images import Image
from db.operations import Operation
from db.servers import Server
from db.session import now, reading, transaction
from domain.errors import Unavailable
from domain.ids import new_id
from domain.states import PowerState, VmState
from runtime.hosttoken import host_token
from runtime.sealing import host_key
from runtime.settings import Settings
from tests.api.conftest import counting
from tests.conftest import SECRET, RecordingLauncher

HOST = "host-1"
INVENTORY = {
    "vcpus": 8,
    "ram_mb": 16384,
    "disk_gb": 100,
    "hypervisor_type": "fake",
    "hypervisor_version": 1,
    "hypervisor_hostname": HOST,
    "host_ip": "192.0.2.1",
    "uuid": "0" * 36,
}


class Reports:
    """One host that reports."""

    def __init__(self, client: TestClient) -> None:
        self.client = client
        self.epoch = new_id()

    def send(
        self,
        *guests: tuple[str, PowerState, int],
        residue: list[str] | None = None,
        **changes: Any,
    ) -> Any:
        body = {
            "epoch": self.epoch,
            "inventory": {**INVENTORY, **changes},
            "guests": [
                {"server_id": s, "power_state": int(p), "epoch": epoch} for s, p, epoch in guests
            ],
            "residue": residue,
        }
        token = host_token(host_key(SECRET, HOST), HOST)
        url = f"/internal/v1/hosts/{HOST}/report"
        answer = self.client.post(url, json=body, headers={"X-Host-Token": token})
        assert answer.status_code == 200, answer.text
        return answer.json()


@pytest.fixture
def reports(client: TestClient) -> Reports:
    return Reports(client)


def add_server(engine: Engine, **given: Any) -> str:
    row = {"vm_state": VmState.ACTIVE, "host": HOST, "epoch": 1, **given}
    with transaction(engine) as session:
        server = Server(project_id="project-demo", user_id="u", name="s", **row)
        session.add(server)
        session.flush()
        return server.id


def state(engine: Engine, server_id: str) -> str:
    with reading(engine) as session:
        server = session.get(Server, server_id)
        assert server is not None
        return server.vm_state


def test_a_first_report_makes_the_host(reports: Reports, engine: Engine) -> None:
    assert reports.send()["interval_s"] > 0
    with reading(engine) as session:
        host = session.get(Host, HOST)
        assert host is not None
        assert (host.vcpus, host.epoch) == (8, reports.epoch)


def test_a_report_without_news_costs_two_statements_and_two_more_with_guests(
    reports: Reports, engine: Engine
) -> None:
    alone = "127.0.0.1"  # with an underlay, the other hosts' addresses are asked for, too
    guests = [(add_server(engine), PowerState.RUNNING, 1) for _ in range(3)]
    for told, statements in (([], 2), (guests, 4)):
        reports.send(*told, host_ip=alone, residue=[])
        with counting(engine) as seen:
            reports.send(*told, host_ip=alone, residue=[])
        assert len(seen) == statements, seen


@pytest.mark.parametrize(
    ("hosts", "interval_s"), [(1, 10.0), (500, 10.0), (900, 18.0), (1000, 20.0), (10_000, 20.0)]
)
def test_the_hosts_of_a_large_cloud_report_less_often_but_never_look_silent(
    hosts: int, interval_s: float
) -> None:
    settings = Settings(report_interval_s=10.0, host_silent_after_s=60.0)
    assert report_interval_s(settings, hosts) == interval_s


@pytest.mark.parametrize("key_of", ["host-2", None])
def test_nobody_else_reports_for_a_host(client: TestClient, key_of: str | None) -> None:
    token = host_token(host_key(SECRET, key_of), HOST) if key_of else ""
    url = f"/internal/v1/hosts/{HOST}/report"
    answer = client.post(url, json={}, headers={"X-Host-Token": token})
    assert answer.status_code == 401


def test_a_guest_that_stopped_by_itself_is_followed_after_two_reports(
    reports: Reports, engine: Engine
) -> None:
    server_id = add_server(engine)
    down = (server_id, PowerState.SHUTDOWN, 1)
    reports.send((server_id, PowerState.RUNNING, 1))
    assert reports.send(down)["interval_s"] == 0
    assert state(engine, server_id) == VmState.ACTIVE
    assert reports.send(down)["interval_s"] > 0
    assert state(engine, server_id) == VmState.STOPPED


def test_a_report_older_than_an_operations_end_changes_nothing(
    reports: Reports, engine: Engine
) -> None:
    server_id = add_server(engine)
    reports.send((server_id, PowerState.SHUTDOWN, 1))
    with transaction(engine) as session:  # an operation ended between the two
        server = session.get(Server, server_id)
        assert server is not None
        server.updated_at = now()
        session.add(server)
    reports.send((server_id, PowerState.SHUTDOWN, 1))
    assert state(engine, server_id) == VmState.ACTIVE


def test_guests_that_went_down_with_their_host_are_started_again(
    reports: Reports, engine: Engine, launcher: RecordingLauncher
) -> None:
    server_id, stopped = add_server(engine), add_server(engine, vm_state=VmState.STOPPED)
    reports.send((server_id, PowerState.RUNNING, 1), (stopped, PowerState.SHUTDOWN, 1))
    reports.epoch = new_id()
    reports.send((server_id, PowerState.SHUTDOWN, 1), (stopped, PowerState.SHUTDOWN, 1))
    assert [(key, s) for key, s, _ in launcher.started] == [("reboot_hard", server_id)]


def test_a_guest_of_a_busy_server_is_left_to_its_operation(
    reports: Reports, engine: Engine, launcher: RecordingLauncher
) -> None:
    server_id = add_server(engine)
    with transaction(engine) as session:
        session.add(
            Operation(
                request_id="r",
                action="stop",
                lifecycle="stop",
                server_id=server_id,
                project_id="project-demo",
                user_id="u",
                state="running",
            )
        )
    reports.send()
    reports.epoch = new_id()
    for _ in range(2):
        reports.send((server_id, PowerState.SHUTDOWN, 1))
    assert launcher.started == []
    assert state(engine, server_id) == VmState.ACTIVE


def test_a_guest_that_went_down_while_its_server_was_busy_is_started_again_afterwards(
    reports: Reports, engine: Engine, launcher: RecordingLauncher
) -> None:
    """Its worker spawned it and died with it; the operation ended only after the next one's first report."""
    before = new_id()
    server_id = add_server(engine, seen_by=before)
    reports.send()  # the first one: the server was not idle then
    reports.send((server_id, PowerState.SHUTDOWN, 1))
    assert [(key, s) for key, s, _ in launcher.started] == [("reboot_hard", server_id)]
    assert state(engine, server_id) == VmState.ACTIVE


def test_a_refused_restoration_is_tried_again_with_the_next_report(
    reports: Reports, engine: Engine, launcher: RecordingLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    server_id = add_server(engine, seen_by=new_id())

    def refuse(*_: object) -> Operation:
        raise Unavailable("not now")

    with monkeypatch.context() as broken:
        broken.setattr(launcher, "act", refuse)
        reports.send((server_id, PowerState.SHUTDOWN, 1))
    assert launcher.started == []
    reports.send((server_id, PowerState.SHUTDOWN, 1))
    assert [key for key, _, _ in launcher.started] == ["reboot_hard"]


def test_a_guest_that_outlived_its_worker_and_then_stopped_is_followed(
    reports: Reports, engine: Engine, launcher: RecordingLauncher
) -> None:
    server_id = add_server(engine, seen_by=new_id())
    reports.send((server_id, PowerState.RUNNING, 1))
    for _ in range(2):
        reports.send((server_id, PowerState.SHUTDOWN, 1))
    assert launcher.started == []
    assert state(engine, server_id) == VmState.STOPPED


@pytest.mark.parametrize(
    ("row", "epoch"),
    [
        ({"deleted_at": now(), "vm_state": VmState.DELETED, "host": None, "epoch": 2}, 1),
        ({"host": "host-2", "epoch": 2}, 1),
    ],
    ids=["deleted", "elsewhere under a later epoch"],
)
def test_a_guest_the_record_moved_on_from_is_purged(
    reports: Reports, engine: Engine, launcher: RecordingLauncher, row: dict[str, Any], epoch: int
) -> None:
    server_id = add_server(engine, **row)
    reports.send((server_id, PowerState.RUNNING, epoch))
    assert launcher.purged == [(HOST, server_id, epoch)]


@pytest.mark.parametrize(("host", "epoch"), [(HOST, 1), ("host-2", 3)], ids=["at home", "newer"])
def test_a_guest_without_proof_against_it_stays(
    reports: Reports, engine: Engine, launcher: RecordingLauncher, host: str, epoch: int
) -> None:
    server_id = add_server(engine, host=host, epoch=2)
    unknown = (new_id(), PowerState.RUNNING, 1)
    reports.send((server_id, PowerState.RUNNING, epoch), unknown)
    assert launcher.purged == []


def test_a_host_is_told_to_look_at_its_filters_once_per_change(
    reports: Reports, engine: Engine, launcher: RecordingLauncher
) -> None:
    reports.send()
    with transaction(engine) as session:
        want_nics(session, [HOST])
    reports.send()
    reports.send()
    assert launcher.refreshed == [HOST]


def test_a_host_learns_where_the_others_are(reports: Reports, engine: Engine) -> None:
    with transaction(engine) as session:
        for name, address in (("host-2", "192.0.2.2"), ("alone", "127.0.0.1")):
            session.add(Host(name=name, uuid=new_id(), service_id=new_id(), host_ip=address))
    assert reports.send()["peers"] == ["192.0.2.2"]


def test_a_host_gets_only_the_images_of_its_own_servers(
    reports: Reports, client: TestClient, cloud: Cloud, engine: Engine
) -> None:
    reports.send()
    with transaction(engine) as session:
        image = Image(project_id="project-demo", status="active")
        session.add(image)
        session.flush()
        image_id = image.id
    cloud.settings.image_dir.mkdir(parents=True)
    (cloud.settings.image_dir / image_id).write_bytes(b"bits")
    server_id = add_server(engine, image_id=image_id)
    url = f"/internal/v1/hosts/{HOST}/images/{image_id}"

    def fetch() -> Any:
        token = host_token(host_key(SECRET, HOST), HOST)
        return client.get(url, headers={"X-Host-Token": token})

    assert fetch().status_code == 404
    with transaction(engine) as session:
        claim = Claim(server_id=server_id, host=HOST, operation_id="o", epoch=1)
        claim.attempt, claim.vcpus, claim.ram_mb, claim.disk_gb = 1, 1, 1, 1
        session.add(claim)
    assert fetch().content == b"bits"
