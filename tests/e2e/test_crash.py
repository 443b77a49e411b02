"""Kill every process in the middle of ten creates: nothing is lost, nothing leaks, nothing is stuck."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.e2e.cloud import UpCloud
from tests.e2e.record import all_active, check_record
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
