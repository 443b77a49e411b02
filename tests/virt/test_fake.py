"""The fake breaks on demand, at the step it is told to, and nowhere else."""

from __future__ import annotations

import json
import os
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from domain.errors import GuestFailure, GuestRefused
from domain.guest import GuestSpec, ImageRef
from domain.ids import new_id
from domain.states import PowerState
from tests.virt.subjects import fence
from virt.driver import Cancelled, Progress
from virt.fake import FakeDriver

STAGES = ["image", "disk", "config_drive", "nics", "define", "start"]


def spec() -> GuestSpec:
    return GuestSpec(new_id(), "web", "p", 1, 64, 1, ImageRef("i", "0" * 128, "raw", 1))


@pytest.fixture
def driver() -> FakeDriver:
    driver = FakeDriver("fake-1")
    driver.open()
    return driver


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("after", [False, True])
def test_a_stage_fails_as_often_as_told(driver: FakeDriver, stage: str, after: bool) -> None:
    guest, token = spec(), fence()
    times = 1 if (stage, after) == ("start", True) else 2  # a guest that runs is left alone
    driver.faults.fail(stage, times, after=after)
    for _ in range(times):
        with pytest.raises(GuestFailure, match=stage):
            driver.spawn(guest, token, Progress())
    assert driver.spawn(guest, token, Progress()) == PowerState.RUNNING


def test_the_error_is_the_one_given(driver: FakeDriver) -> None:
    driver.faults.fail("define", error=GuestRefused("never"))
    with pytest.raises(GuestRefused, match="never"):
        driver.spawn(spec(), fence(), Progress())


def test_a_failure_after_the_effect_leaves_the_effect(driver: FakeDriver) -> None:
    guest = spec()
    driver.faults.fail("define", after=True)
    with pytest.raises(GuestFailure):
        driver.spawn(guest, fence(), Progress())
    assert f"domain:duranova-{guest.server_id}" in driver.residue()


def test_methods_fail_too(driver: FakeDriver) -> None:
    guest, token = spec(), fence()
    driver.spawn(guest, token, Progress())
    driver.faults.fail("destroy")
    with pytest.raises(GuestFailure):
        driver.destroy(guest.server_id, token)
    assert driver.power_state(guest.server_id) == PowerState.RUNNING
    driver.destroy(guest.server_id, token)
    assert driver.residue() == []


def test_a_held_stage_stands_still_until_released(driver: FakeDriver) -> None:
    guest, held = spec(), driver.faults.hold("start")
    with ThreadPoolExecutor(1) as pool:
        spawning = pool.submit(driver.spawn, guest, fence(), Progress())
        assert held.reached.wait(10)
        assert driver.power_state(guest.server_id) == PowerState.NOSTATE
        held.release()
        assert spawning.result(10) == PowerState.RUNNING


def test_a_cancel_ends_a_delay_and_a_hold(driver: FakeDriver) -> None:
    driver.faults.delay("image", 3600)
    held = driver.faults.hold("start")
    for stage in ("image", "start"):
        progress, entered = Progress(), threading.Event()
        progress.on_step = lambda step, at=stage, told=entered: told.set() if step == at else None
        with ThreadPoolExecutor(1) as pool:
            spawning = pool.submit(driver.spawn, spec(), fence(), progress)
            assert entered.wait(10)
            progress.cancelled.set()
            with pytest.raises(Cancelled):
                spawning.result(10)
        driver.faults.delay("image", 0)
    assert held.reached.is_set()


def test_another_process_can_break_a_durable_fake(tmp_path: Path) -> None:
    driver = FakeDriver("fake-1", tmp_path)
    driver.open()
    (tmp_path / "faults.json").write_text(json.dumps({"nics": {"fail": 1, "message": "no tap"}}))
    guest, token = spec(), fence()
    with pytest.raises(GuestFailure, match="no tap"):
        driver.spawn(guest, token, Progress())
    assert driver.spawn(guest, token, Progress()) == PowerState.RUNNING


def test_what_a_killed_process_leaves_is_taken_up_by_the_next(tmp_path: Path) -> None:
    guest, token = spec(), fence()
    pid = os.fork()
    if pid == 0:  # a worker that dies in the middle of a spawn
        try:
            driver = FakeDriver("fake-1", tmp_path)
            driver.open()
            die = Progress(on_step=lambda step: os._exit(9) if step == "define" else None)
            driver.spawn(guest, token, die)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    driver = FakeDriver("fake-1", tmp_path)
    driver.open()
    assert f"file:instances/{guest.server_id}/root.qcow2" in driver.residue(guest.server_id)
    assert driver.guests() == []
    assert driver.spawn(guest, token, Progress()) == PowerState.RUNNING
    driver.destroy(guest.server_id, token)
    assert driver.residue() == []


def test_a_thousand_hosts_fit_one_process() -> None:
    threads = threading.active_count()
    tracemalloc.start()
    hosts = [FakeDriver(f"fake-{n}") for n in range(1000)]
    for host in hosts:
        host.open()
        host.spawn(spec(), fence(), Progress())
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used / len(hosts) < 50_000
    assert threading.active_count() == threads
