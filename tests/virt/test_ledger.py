"""Fencing and memory of a host, without any guest."""

from __future__ import annotations

import multiprocessing
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.errors import Fenced, GuestFailure, GuestRefused
from domain.guest import Fence, GuestSpec, ImageRef, NicSpec, SecurityRule, SubnetSpec
from virt.ledger import Ledger, Remembered, recall, remember, safe_id, write_atomic

SPEC = GuestSpec(
    "s1",
    "näme",
    "p",
    1,
    64,
    0,
    ImageRef("i", "0" * 128, "raw", 1, {"hw_disk_bus": "scsi"}),
    nics=(
        NicSpec(
            "port",
            "net",
            7,
            "fa:16:3e:00:00:01",
            "10.0.0.2",
            SubnetSpec("sub", "10.0.0.0/24", None, ("9.9.9.9",), (("10.1.0.0/16", "10.0.0.9"),)),
            rules=(SecurityRule("ingress", "tcp", 22, 22, remote_ips=("10.0.0.3",)),),
        ),
    ),
)


@pytest.fixture(params=["memory", "files"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger" if request.param == "files" else None)


def test_a_tombstone_fences_its_own_epoch_and_every_earlier_one(ledger: Ledger) -> None:
    assert ledger.bury("s1", Fence(3, "op"))
    for stale in (0, 2, 3):
        with pytest.raises(Fenced):
            ledger.admit("s1", Fence(stale, "op"))
    ledger.admit("s1", Fence(4, "op"))
    assert not ledger.is_buried("s1")


def test_a_late_destroy_does_not_lower_the_tombstone(ledger: Ledger) -> None:
    ledger.bury("s1", Fence(5, "op"))
    ledger.bury("s1", Fence(2, "op"))
    with pytest.raises(Fenced):
        ledger.admit("s1", Fence(4, "op"))


def test_a_destroy_of_an_earlier_epoch_spares_a_later_guest(ledger: Ledger) -> None:
    ledger.admit("s1", Fence(5, "op"))
    assert not ledger.bury("s1", Fence(4, "op"))
    ledger.check("s1", Fence(5, "op"))
    assert ledger.bury("s1", Fence(5, "op"))
    assert ledger.is_buried("s1")


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6)), max_size=12))
def test_no_order_of_commands_lets_a_destroyed_epoch_in_again(
    commands: list[tuple[bool, int]],
) -> None:
    ledger, destroyed = Ledger(None), -1
    for is_spawn, epoch in commands:
        if not is_spawn:
            ledger.bury("s1", Fence(epoch, "op"))
            destroyed = max(destroyed, epoch)
        elif epoch <= destroyed:
            with pytest.raises(Fenced):
                ledger.admit("s1", Fence(epoch, "op"))


def test_only_old_tombstones_of_absent_servers_are_forgotten(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for server_id in ("old", "here", "fresh"):
        ledger.bury(server_id, Fence(1, "op"))
    for server_id in ("old", "here"):
        os.utime(tmp_path / f"{server_id}.json", (1, 1))
    assert ledger.forget(3600, keep={"here"}) == ["old"]
    with pytest.raises(Fenced):
        ledger.admit("fresh", Fence(1, "op"))


def _bury_many(directory: Path, first: int) -> None:
    ledger = Ledger(directory, durable=False)
    for epoch in range(first, 200, 2):
        ledger.bury("s1", Fence(epoch, "op"))


def test_two_processes_share_one_ledger(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_bury_many, args=(tmp_path, n)) for n in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert Ledger(tmp_path).entry("s1").buried == 199


@pytest.mark.parametrize("bad", ["", "../etc", "a/b", ".hidden", "x" * 65, "a\0b"])
def test_an_id_that_is_no_file_name_is_refused(bad: str, ledger: Ledger) -> None:
    with pytest.raises(GuestRefused):
        safe_id(bad)


def test_a_specification_is_remembered_whole(tmp_path: Path) -> None:
    path = tmp_path / "guest.json"
    assert recall(path) is None
    remember(path, Remembered(SPEC, 3))
    assert recall(path) == Remembered(SPEC, 3)
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_damaged_record_is_a_failure_not_an_absence(tmp_path: Path) -> None:
    path = tmp_path / "guest.json"
    path.write_text('{"spec": ')
    with pytest.raises(GuestFailure):
        recall(path)
    (tmp_path / "s1.json").write_text("{")
    with pytest.raises(GuestFailure):
        Ledger(tmp_path).entry("s1")


def test_readers_never_see_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"a" * 10_000)
    stop = threading.Event()
    seen: set[bytes] = set()

    def read() -> None:
        while not stop.is_set():
            seen.add(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for letter in (b"b", b"a") * 50:
        write_atomic(path, letter * 10_000, durable=False)
    stop.set()
    reader.join()
    assert seen <= {b"a" * 10_000, b"b" * 10_000}
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
