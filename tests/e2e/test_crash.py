"""Kill every process in the middle of ten creates: nothing is lost, nothing leaks, nothing is stuck."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlmodel import select

from db.hosts import Claim
from db.network.tables import Port
from db.operations import Operation
from db.servers import Server
from db.session import open_engine, reading
from domain.states import LIVE_OPERATION_STATES
from tests.e2e.cloud import UpCloud
from tests.virt.waiting import eventually

pytestmark = pytest.mark.e2e
CREATES = 10
SETTLE_S = 420


@pytest.fixture
def fake_cloud(tmp_path: Path) -> Iterator[UpCloud]:
    cloud = UpCloud(tmp_path / "cloud", "--driver", "fake", "--hosts", "3")
    with closing(cloud):
        yield cloud


def slow_down(cloud: UpCloud, hosts: int) -> None:
    """Make each fake host take two seconds over a guest's disk, so that a kill finds it at work."""
    for number in range(1, hosts + 1):
        directory = cloud.data_dir / "hosts" / f"host-{number}"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "faults.json").write_text('{"disk": {"delay_s": 2}}')


def all_active(cloud: UpCloud, count: int) -> bool:
    found = cloud.servers()
    failed = {i: s.get("fault") for i, s in found.items() if s["status"] == "ERROR"}
    assert not failed, failed
    return len(found) == count and all(s["status"] == "ACTIVE" for s in found.values())


def check_record(cloud: UpCloud, count: int) -> None:
    """Claims are the servers, each port belongs to a server, no operation is live."""
    engine = open_engine(f"sqlite:///{cloud.data_dir}/duranova.db")
    with reading(engine) as session:
        servers = {s.id: s for s in session.exec(select(Server)) if s.deleted_at is None}
        claims = {c.server_id: c.host for c in session.exec(select(Claim))}
        ports = {p.device_id for p in session.exec(select(Port)) if p.device_id}
        live = [o for o in session.exec(select(Operation)) if o.state in LIVE_OPERATION_STATES]
    engine.dispose()
    assert len(servers) == count
    assert claims == {i: s.host for i, s in servers.items()}
    assert ports == set(servers)
    assert live == []


def test_ten_creates_survive_kill_9_of_everything_on_the_fake_driver(
    fake_cloud: UpCloud, tiny_image: Path
) -> None:
    slow_down(fake_cloud, 3)
    fake_cloud.start()
    image, network = fake_cloud.upload(tiny_image), fake_cloud.demo_net()
    accepted = {fake_cloud.boot(image, f"s{n}", network) for n in range(CREATES)}
    eventually(lambda: any(s["status"] == "ACTIVE" for s in fake_cloud.servers().values()), 120)
    assert fake_cloud.kill_everything() > 0

    fake_cloud.start()
    eventually(lambda: all_active(fake_cloud, CREATES), SETTLE_S)

    assert set(fake_cloud.servers()) == accepted
    check_record(fake_cloud, CREATES)
    guests = [p.stem for p in (fake_cloud.data_dir / "hosts").glob("*/guests/*.json")]
    assert sorted(guests) == sorted(accepted)


def test_a_clean_stop_and_start_keeps_everything(fake_cloud: UpCloud, tiny_image: Path) -> None:
    fake_cloud.start()
    image, network = fake_cloud.upload(tiny_image), fake_cloud.demo_net()
    server_id = fake_cloud.boot(image, "kept", network)
    eventually(lambda: all_active(fake_cloud, 1), 120)
    assert fake_cloud.stop() == 0

    fake_cloud.start()

    assert fake_cloud.servers()[server_id]["status"] == "ACTIVE"
    gone = fake_cloud.as_().delete(f"/compute/v2.1/servers/{server_id}")
    assert gone.status_code == 204
    eventually(lambda: fake_cloud.servers() == {}, 60)
    check_record(fake_cloud, 0)
