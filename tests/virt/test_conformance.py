"""What every driver must do, whatever is behind it."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from domain.errors import Fenced, GuestRefused, NotFound
from domain.guest import STAGES, Fence, GuestSpec
from domain.ids import new_id, tap_name
from domain.states import PowerState
from tests.virt.subjects import BOOT_TIMEOUT_S, Subject, fence, nic
from tests.virt.waiting import eventually
from virt.driver import Cancelled, Progress


def steps_of(subject: Subject, spec: GuestSpec, token: Fence) -> list[str]:
    seen: list[str] = []
    subject.driver.spawn(spec, token, Progress(on_step=seen.append))
    return seen


def cancel_at(stage: str) -> Progress:
    cancelled = threading.Event()
    return Progress(cancelled, lambda step: cancelled.set() if step == stage else None)


def needs(subject: Subject, capability: str) -> None:
    if capability not in subject.can:
        pytest.skip(f"{subject.kind} cannot show this: it has no {capability!r}")


def states(subject: Subject) -> dict[str, int]:
    return {report.server_id: report.power_state for report in subject.driver.guests()}


# --- being built ----------------------------------------------------------------------------------


def test_spawn_goes_through_its_stages_and_runs(subject: Subject) -> None:
    spec = subject.spec(config_drive=True)
    assert steps_of(subject, spec, fence()) == [*STAGES]
    assert subject.driver.power_state(spec.server_id) == PowerState.RUNNING


def test_spawning_twice_is_spawning_once(subject: Subject) -> None:
    spec, token = subject.spawned()
    before = subject.driver.residue(spec.server_id)
    assert subject.driver.spawn(spec, token, Progress()) == PowerState.RUNNING
    assert subject.driver.residue(spec.server_id) == before
    assert [r.server_id for r in subject.driver.guests()].count(spec.server_id) == 1


def test_spawn_starts_a_guest_that_was_built_but_does_not_run(subject: Subject) -> None:
    spec, token = subject.spawned()
    subject.driver.stop(spec.server_id, 0, Progress())
    assert subject.driver.spawn(spec, token, Progress()) == PowerState.RUNNING


@pytest.mark.parametrize("stage", STAGES)
def test_a_cancel_leaves_only_what_destroy_removes(subject: Subject, stage: str) -> None:
    spec, token = subject.spec(config_drive=True), fence()
    with pytest.raises(Cancelled):
        subject.driver.spawn(spec, token, cancel_at_next(stage))
    assert subject.driver.power_state(spec.server_id) != PowerState.RUNNING
    subject.driver.destroy(spec.server_id, token)
    assert subject.driver.residue(spec.server_id) == []


def cancel_at_next(stage: str) -> Progress:
    """A caller that gives up just before this stage is entered."""
    before = STAGES[STAGES.index(stage) - 1] if stage != STAGES[0] else None
    progress = cancel_at(before) if before else Progress()
    if before is None:
        progress.cancelled.set()
    return progress


def test_a_cancelled_spawn_can_be_taken_up_again(subject: Subject) -> None:
    spec, token = subject.spec(config_drive=True), fence()
    with pytest.raises(Cancelled):
        subject.driver.spawn(spec, token, cancel_at("nics"))
    assert subject.driver.spawn(spec, token, Progress()) == PowerState.RUNNING


def test_the_image_is_fetched_once_for_many_guests(subject: Subject) -> None:
    subject.spawned()
    subject.spawned()
    assert subject.supplies.images_served <= 1


# --- being removed and fenced -----------------------------------------------------------------------


def test_destroy_leaves_nothing(subject: Subject) -> None:
    spec, token = subject.spawned(config_drive=True)
    assert subject.driver.residue(spec.server_id) != []
    subject.driver.destroy(spec.server_id, token)
    assert subject.driver.residue(spec.server_id) == []
    assert subject.driver.power_state(spec.server_id) == PowerState.NOSTATE
    assert spec.server_id not in states(subject)


def test_destroying_twice_is_destroying_once(subject: Subject) -> None:
    spec, token = subject.spawned()
    subject.driver.destroy(spec.server_id, token)
    subject.driver.destroy(spec.server_id, token)
    assert subject.driver.residue(spec.server_id) == []


def test_destroying_what_never_was_succeeds(subject: Subject) -> None:
    subject.driver.destroy(new_id(), fence())


def test_a_late_spawn_is_fenced_and_leaves_nothing(subject: Subject) -> None:
    spec, token = subject.spawned()
    subject.driver.destroy(spec.server_id, token)
    with pytest.raises(Fenced):
        subject.driver.spawn(spec, token, Progress())
    assert subject.driver.residue(spec.server_id) == []


def test_a_spawn_that_comes_after_the_destroy_of_what_never_was_is_fenced(
    subject: Subject,
) -> None:
    spec, token = subject.spec(), fence()
    subject.driver.destroy(spec.server_id, token)
    with pytest.raises(Fenced):
        subject.driver.spawn(spec, token, Progress())


def test_a_later_epoch_may_build_again(subject: Subject) -> None:
    spec, token = subject.spawned()
    subject.driver.destroy(spec.server_id, token)
    assert subject.driver.spawn(spec, fence(), Progress()) == PowerState.RUNNING


def test_a_late_destroy_leaves_a_later_guest_alone(subject: Subject) -> None:
    early, late = fence(), fence()
    spec = subject.spec()
    subject.driver.spawn(spec, late, Progress())
    subject.driver.destroy(spec.server_id, early)
    assert subject.driver.power_state(spec.server_id) == PowerState.RUNNING


def test_a_spawn_overtaken_by_a_later_one_is_fenced(subject: Subject) -> None:
    early, late = fence(), fence()
    spec = subject.spec()
    subject.driver.spawn(spec, late, Progress())
    with pytest.raises(Fenced):
        subject.driver.spawn(spec, early, Progress())


def test_a_destroy_in_the_middle_of_a_spawn_wins(subject: Subject) -> None:
    spec, token = subject.spec(), fence()

    def destroy_at_start(step: str) -> None:
        if step == "start":
            subject.driver.destroy(spec.server_id, token)

    with pytest.raises(Fenced):
        subject.driver.spawn(spec, token, Progress(on_step=destroy_at_start))
    assert subject.driver.residue(spec.server_id) == []


# --- power ------------------------------------------------------------------------------------------


def test_stop_and_start(subject: Subject) -> None:
    spec, _ = subject.spawned()
    driver = subject.driver
    assert driver.stop(spec.server_id, 0, Progress()) == PowerState.SHUTDOWN
    assert driver.stop(spec.server_id, 0, Progress()) == PowerState.SHUTDOWN
    assert states(subject)[spec.server_id] == PowerState.SHUTDOWN
    assert driver.start(spec) == PowerState.RUNNING
    assert driver.start(spec) == PowerState.RUNNING
    assert states(subject)[spec.server_id] == PowerState.RUNNING


def test_pause_and_unpause(subject: Subject) -> None:
    spec, _ = subject.spawned()
    driver = subject.driver
    assert driver.pause(spec.server_id) == PowerState.PAUSED
    assert driver.pause(spec.server_id) == PowerState.PAUSED
    assert driver.power_state(spec.server_id) == PowerState.PAUSED
    assert driver.unpause(spec.server_id) == PowerState.RUNNING
    assert driver.unpause(spec.server_id) == PowerState.RUNNING


def test_suspend_and_resume(subject: Subject) -> None:
    spec, _ = subject.spawned()
    driver = subject.driver
    assert driver.suspend(spec.server_id) == PowerState.SUSPENDED
    assert driver.suspend(spec.server_id) == PowerState.SUSPENDED
    assert states(subject)[spec.server_id] == PowerState.SUSPENDED
    assert driver.resume(spec) == PowerState.RUNNING
    assert driver.resume(spec) == PowerState.RUNNING


def test_destroying_a_suspended_guest_leaves_nothing(subject: Subject) -> None:
    spec, token = subject.spawned()
    subject.driver.suspend(spec.server_id)
    subject.driver.destroy(spec.server_id, token)
    assert subject.driver.residue(spec.server_id) == []


@pytest.mark.parametrize("state", ["running", "paused", "suspended", "stopped"])
def test_a_hard_reboot_works_from_every_power_state(subject: Subject, state: str) -> None:
    spec, _ = subject.spawned()
    driver = subject.driver
    into = {
        "running": lambda: None,
        "paused": lambda: driver.pause(spec.server_id),
        "suspended": lambda: driver.suspend(spec.server_id),
        "stopped": lambda: driver.stop(spec.server_id, 0, Progress()),
    }
    into[state]()
    assert driver.reboot_hard(spec, Progress()) == PowerState.RUNNING
    assert driver.power_state(spec.server_id) == PowerState.RUNNING


def test_a_soft_reboot_of_a_deaf_guest_falls_back_to_the_hard_one(subject: Subject) -> None:
    spec, _ = subject.spawned()  # just started: nobody inside listens yet
    assert subject.driver.reboot_soft(spec, 0.1, Progress()) == PowerState.RUNNING


def test_a_guest_that_does_not_run_cannot_be_paused_or_suspended(subject: Subject) -> None:
    spec, _ = subject.spawned()
    subject.driver.stop(spec.server_id, 0, Progress())
    with pytest.raises(GuestRefused):
        subject.driver.pause(spec.server_id)
    with pytest.raises(GuestRefused):
        subject.driver.suspend(spec.server_id)


def test_what_is_not_there_is_not_found(subject: Subject) -> None:
    spec = subject.spec()
    driver = subject.driver
    for call in (
        lambda: driver.start(spec),
        lambda: driver.stop(spec.server_id, 0, Progress()),
        lambda: driver.reboot_soft(spec, 0, Progress()),
        lambda: driver.reboot_hard(spec, Progress()),
        lambda: driver.pause(spec.server_id),
        lambda: driver.unpause(spec.server_id),
        lambda: driver.suspend(spec.server_id),
        lambda: driver.resume(spec),
        lambda: driver.console_log(spec.server_id, 100),
    ):
        with pytest.raises(NotFound):
            call()
    assert driver.power_state(spec.server_id) == PowerState.NOSTATE
    assert driver.residue(spec.server_id) == []


# --- what it tells ------------------------------------------------------------------------------------


def test_guests_reports_state_and_epoch(subject: Subject) -> None:
    spec, token = subject.spawned()
    (report,) = [r for r in subject.driver.guests() if r.server_id == spec.server_id]
    assert (report.power_state, report.epoch) == (PowerState.RUNNING, token.epoch)


def test_the_inventory_is_plausible(subject: Subject) -> None:
    inventory = subject.driver.inventory()
    assert inventory.vcpus > 0
    assert inventory.ram_mb > 256
    assert inventory.disk_gb > 0
    assert inventory.uuid
    assert inventory.hypervisor_version > 0


def test_the_console_shows_the_guest_booting(subject: Subject) -> None:
    needs(subject, "console")
    spec, _ = subject.spawned(hostname="console-1", config_drive=True)

    def text() -> bytes:
        return subject.driver.console_log(spec.server_id, 65536)

    wanted = b"BOOT-OK" if "boot" in subject.can else b"console-1"
    eventually(lambda: wanted in text(), BOOT_TIMEOUT_S)
    assert len(subject.driver.console_log(spec.server_id, 10)) == 10
    assert text().endswith(subject.driver.console_log(spec.server_id, 10)[-3:])


def test_a_change_behind_our_back_is_announced(subject: Subject) -> None:
    needs(subject, "announces")
    spec, _ = subject.spawned()
    told = threading.Event()
    subject.driver.on_change(told.set)
    subject.pull_the_plug(subject.driver, spec.server_id)
    assert told.wait(30)
    eventually(lambda: states(subject)[spec.server_id] != PowerState.RUNNING, 10)


def test_nics_are_plugged_changed_and_removed(subject: Subject) -> None:
    needs(subject, "nics")
    network_id = new_id()
    spec, token = subject.spawned(nics=(nic(network_id),))
    driver = subject.driver
    assert driver.networks() == [network_id]
    wires = {part for part in driver.residue(spec.server_id) if part.startswith("rules:")}
    assert wires == {f"rules:{tap_name(spec.nics[0].port_id)}"}
    driver.apply_nics(spec.server_id, [replace(spec.nics[0], port_security=False)])
    driver.apply_nics(new_id(), [nic(network_id)])  # a guest that has just gone
    assert driver.networks() == [network_id]
    driver.destroy(spec.server_id, token)
    assert driver.networks() == []


def test_whatever_is_on_the_host_has_an_owner_until_it_is_gone(subject: Subject) -> None:
    before = subject.driver.owners()
    spec, token = subject.spawned(config_drive=True)
    assert subject.driver.owners() - before == {spec.server_id}
    subject.driver.destroy(spec.server_id, token)
    assert subject.driver.owners() == before


def test_residue_of_the_host_is_that_of_its_guests(subject: Subject) -> None:
    before = set(subject.driver.residue())
    spec, token = subject.spawned(config_drive=True)
    assert set(subject.driver.residue()) - before == set(subject.driver.residue(spec.server_id))
    subject.driver.destroy(spec.server_id, token)
    assert set(subject.driver.residue()) == before


# --- a new worker ---------------------------------------------------------------------------------------


def test_guests_fences_and_specs_survive_the_worker(subject: Subject) -> None:
    needs(subject, "durable")
    (kept, token), (gone, gone_token) = subject.spawned(), subject.spawned()
    subject.driver.destroy(gone.server_id, gone_token)
    subject.restart()
    driver = subject.driver
    reports = {r.server_id: r for r in driver.guests()}
    assert reports[kept.server_id].power_state == PowerState.RUNNING
    assert reports[kept.server_id].epoch == token.epoch
    assert gone.server_id not in reports
    with pytest.raises(Fenced):
        driver.spawn(gone, gone_token, Progress())
    assert driver.spawn(kept, token, Progress()) == PowerState.RUNNING
    driver.destroy(kept.server_id, token)
    assert driver.residue(kept.server_id) == []


def test_a_half_built_guest_is_finished_by_the_next_worker(subject: Subject) -> None:
    needs(subject, "durable")
    spec, token = subject.spec(config_drive=True), fence()
    with pytest.raises(Cancelled):
        subject.driver.spawn(spec, token, cancel_at("define"))
    subject.restart()
    assert subject.driver.spawn(spec, token, Progress()) == PowerState.RUNNING


@pytest.mark.parametrize("at", STAGES[:-1])
def test_a_build_goes_on_at_the_stage_where_it_stopped(subject: Subject, at: str) -> None:
    spec, token, steps = subject.spec(config_drive=True), fence(), list[str]()
    with pytest.raises(Cancelled):
        subject.driver.spawn(spec, token, cancel_at(at))
    going_on = Progress(on_step=steps.append)
    assert subject.driver.spawn(spec, token, going_on, resume_at=at) == PowerState.RUNNING
    assert steps == [*STAGES[STAGES.index(at) :]]


def test_a_build_under_a_later_fence_goes_on_with_nothing(subject: Subject) -> None:
    spec, steps = subject.spec(), list[str]()
    with pytest.raises(Cancelled):
        subject.driver.spawn(spec, fence(), cancel_at("define"))
    subject.driver.spawn(spec, fence(), Progress(on_step=steps.append), resume_at="define")
    assert steps == [*STAGES]
