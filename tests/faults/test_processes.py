"""Processes that die in the middle of operations: real ones, killed by kill -9."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from chaos.cloud import UpCloud
from chaos.guests import fake_guests
from chaos.verdict import judge, read_record
from chaos.waiting import eventually
from domain.states import PowerState

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
WITHIN_S = 120
SLOW_S = 2.0
HOST, TEMPORAL = b"cli.main\0host\0", b"start-dev"
STEPS = ("disk", "stop", "pause", "suspend", "reboot_soft", "reboot_hard")
IMAGE = b"no bootable image, which the fake driver does not mind"
ACTIONS: dict[str, tuple[dict[str, Any], str, PowerState]] = {
    "stop": ({"os-stop": None}, "SHUTOFF", PowerState.SHUTDOWN),
    "pause": ({"pause": None}, "PAUSED", PowerState.PAUSED),
    "suspend": ({"suspend": None}, "SUSPENDED", PowerState.SUSPENDED),
    "reboot_soft": ({"reboot": {"type": "SOFT"}}, "ACTIVE", PowerState.RUNNING),
    "reboot_hard": ({"reboot": {"type": "HARD"}}, "ACTIVE", PowerState.RUNNING),
}


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UpCloud]:
    """One host whose every step takes its time."""
    cloud = UpCloud(tmp_path_factory.mktemp("processes") / "cloud", "--driver", "fake")
    host = cloud.data_dir / "hosts" / "host-1"
    host.mkdir(parents=True)
    (host / "faults.json").write_text(json.dumps({s: {"delay_s": SLOW_S} for s in STEPS}))
    with closing(cloud):
        cloud.start()
        yield cloud


@pytest.fixture(scope="module")
def image(cloud: UpCloud) -> str:
    client = cloud.as_()
    body = {"name": "raw", "disk_format": "raw", "container_format": "bare"}
    image_id: str = client.post("/image/v2/images", json=body).raise_for_status().json()["id"]
    headers = {"Content-Type": "application/octet-stream"}
    put = client.put(f"/image/v2/images/{image_id}/file", content=IMAGE, headers=headers)
    put.raise_for_status()
    return image_id


def kill(cloud: UpCloud, words: bytes) -> None:
    """kill -9 of one process; returns when another one is in its place."""
    pid = cloud.find(words)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: cloud.find(words) not in (None, pid), WITHIN_S)


def operation(cloud: UpCloud, server_id: str) -> dict[str, Any]:
    """The newest operation of a server, through the API."""
    answer = cloud.as_().get("/operations/v1/operations", params={"server_id": server_id})
    found: dict[str, Any] = answer.raise_for_status().json()["operations"][0]
    return found


def ended(cloud: UpCloud, operation_id: str) -> dict[str, Any]:
    """The operation when it has ended."""
    url = f"/operations/v1/operations/{operation_id}"
    eventually(lambda: cloud.as_().get(url).json()["finished_at"], WITHIN_S)
    found: dict[str, Any] = cloud.as_().get(url).json()
    return found


def working(cloud: UpCloud, server_ids: list[str]) -> bool:
    """Whether a host is at work on each of these."""
    return all(operation(cloud, i)["state"] == "running" for i in server_ids)


def check_settled(cloud: UpCloud) -> None:
    """Nothing is stuck, leaked or doubled, whatever was asked for."""

    def wrong() -> list[str]:
        seen = read_record(f"sqlite:///{cloud.data_dir}/duranova.db")
        seen.guests = fake_guests(cloud.data_dir / "hosts")
        return [f"{v.rule} {v.detail}" for v in judge(seen, []) if v.rule != "unasked"]

    eventually(lambda: wrong() == [], WITHIN_S)


def test_a_build_goes_on_when_its_host_worker_or_temporal_was_killed(
    cloud: UpCloud, image: str
) -> None:
    network = cloud.demo_net()
    for victim in (HOST, TEMPORAL):
        server_id = cloud.boot(image, "one", network)
        eventually(lambda i=server_id: working(cloud, [i]), WITHIN_S)
        kill(cloud, victim)
        create = ended(cloud, operation(cloud, server_id)["id"])
        assert (create["state"], create["attempt"], create["error"]) == ("succeeded", 1, None)
        assert cloud.servers()[server_id]["status"] == "ACTIVE"
    check_settled(cloud)


def test_every_power_operation_ends_as_asked_when_its_host_worker_was_killed(
    cloud: UpCloud, image: str
) -> None:
    network = cloud.demo_net()
    servers = {name: cloud.boot(image, name, network) for name in ACTIONS}
    eventually(lambda: all(s["status"] == "ACTIVE" for s in cloud.servers().values()), WITHIN_S)
    for name, (body, _status, _power) in ACTIONS.items():
        assert cloud.act(servers[name], body).status_code == 202
    eventually(lambda: working(cloud, list(servers.values())), WITHIN_S)
    kill(cloud, HOST)
    for name, (_body, status, power) in ACTIONS.items():
        done = ended(cloud, operation(cloud, servers[name])["id"])
        assert (done["state"], done["error"]) == ("succeeded", None), name
        assert cloud.servers()[servers[name]]["status"] == status
        assert fake_guests(cloud.data_dir / "hosts")["host-1"][servers[name]] is power
    check_settled(cloud)


def test_operations_are_known_by_their_ids_after_everything_was_killed(
    cloud: UpCloud, image: str
) -> None:
    network = cloud.demo_net()
    stopping = next(i for i, s in cloud.servers().items() if s["status"] == "ACTIVE")
    deleting = next(i for i, s in cloud.servers().items() if s["status"] == "SUSPENDED")
    assert cloud.act(stopping, {"os-stop": None}).status_code == 202
    built = cloud.boot(image, "built", network)
    eventually(lambda: working(cloud, [stopping, built]), WITHIN_S)
    assert cloud.as_().delete(f"/compute/v2.1/servers/{deleting}").status_code == 204
    handles = [operation(cloud, i)["id"] for i in (stopping, built, deleting)]
    assert cloud.kill_everything() > 0
    cloud.start()
    for handle in handles:
        assert ended(cloud, handle)["state"] == "succeeded"
    assert cloud.servers()[stopping]["status"] == "SHUTOFF"
    assert cloud.servers()[built]["status"] == "ACTIVE"
    assert deleting not in cloud.servers()
    check_settled(cloud)
    assert cloud.act(stopping, {"os-start": None}).status_code == 202  # nothing holds it
