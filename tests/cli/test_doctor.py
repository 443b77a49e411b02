"""`duranova doctor`: each finding says what is wrong and what helps, and nothing is changed."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from cli import doctor
from cli.doctor import CHECKS, Finding, Mark, Plan, examine
from cli.main import app
from db import schema
from runtime.settings import Settings
from virt.libvirt.probe import Verdict

MakePlan = Callable[..., Plan]


@pytest.fixture
def plan(tmp_path: Path) -> MakePlan:
    def make(**said: str) -> Plan:
        return Plan(tmp_path / "data", Settings(guest_dir=tmp_path / "guest"), **said)

    return make


@pytest.fixture
def no_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


def taken_port() -> tuple[socket.socket, int]:
    listening = socket.create_server(("127.0.0.1", 0))
    return listening, int(listening.getsockname()[1])


def test_every_check_has_its_own_name_and_sees_something(plan: MakePlan) -> None:
    findings = examine(plan())
    assert list(findings) == [name for name, _ in CHECKS]
    assert all(finding.seen for finding in findings.values())


def test_whatever_failed_says_what_helps(plan: MakePlan, no_programs: None) -> None:
    for name, finding in examine(plan()).items():
        helpless = finding.mark is Mark.FAIL and not finding.advice
        assert not helpless or "cannot be checked" in finding.seen, (name, finding)


def test_nothing_is_made_by_looking(plan: MakePlan, tmp_path: Path) -> None:
    links = sorted(os.listdir("/sys/class/net"))
    examine(plan(database_url=f"sqlite:///{tmp_path}/other.db"))
    assert list(tmp_path.iterdir()) == []
    assert sorted(os.listdir("/sys/class/net")) == links


@pytest.mark.parametrize("name", ["qemu", "namespaces", "nftables", "dnsmasq", "taps, bridges"])
def test_missing_program_fails_and_names_the_remedy(
    name: str, plan: MakePlan, no_programs: None
) -> None:
    finding = dict(CHECKS)[name](plan())
    assert finding.mark is Mark.FAIL
    assert finding.advice


def test_without_any_libvirtd_its_parts_are_named(
    plan: MakePlan, no_programs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "answers", lambda _uri: False)
    finding = doctor.check_libvirt(plan())
    assert finding.mark is Mark.FAIL
    assert "libvirtd" in finding.seen
    monkeypatch.setattr(doctor, "answers", lambda _uri: True)
    assert doctor.check_libvirt(plan()).mark is Mark.OK


@pytest.mark.parametrize(
    ("verdict", "mark"),
    [(Verdict(True, "it booted"), Mark.OK), (Verdict(False, "it hung"), Mark.WARN)],
)
def test_kvm_is_welcome_and_not_required(
    verdict: Verdict, mark: Mark, plan: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "probe", lambda _guest_dir: verdict)
    monkeypatch.setattr(doctor, "QEMU", "true")
    finding = doctor.check_kvm(plan())
    assert finding.mark is mark
    assert verdict.reason in finding.seen


def test_without_root_only_the_fake_driver_is_left(
    plan: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    finding = doctor.check_root(plan())
    assert finding.mark is Mark.FAIL
    assert "--driver fake" in finding.advice


@pytest.mark.parametrize(("free_gb", "mark"), [(1.0, Mark.FAIL), (5.0, Mark.WARN), (50.0, Mark.OK)])
def test_disk_is_measured_where_the_data_will_be(
    free_gb: float, mark: Mark, plan: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    class Usage:
        free = int(free_gb * 1024**3)

    def usage(path: Path) -> Usage:
        asked.append(path)
        return Usage()

    monkeypatch.setattr("shutil.disk_usage", usage)
    assert doctor.check_disk(plan()).mark is mark
    assert asked == [plan().data_dir.parent], "the directory itself is not there yet"


def test_taken_port_fails_unless_a_duranova_has_it(
    plan: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    listening, port = taken_port()
    with listening:
        monkeypatch.setattr(doctor, "API_PORT", port)
        monkeypatch.setattr(doctor, "_duranova_listens", lambda: False)
        finding = doctor.check_api_port(plan())
        assert finding.mark is Mark.FAIL
        assert "--listen" in finding.advice
        monkeypatch.setattr(doctor, "_duranova_listens", lambda: True)
        assert doctor.check_api_port(plan()).mark is Mark.OK
    assert doctor.check_api_port(plan()).seen == f"{port} is free"


def test_temporal_that_does_not_answer_fails(
    plan: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_TEMPORAL_WITHIN_S", 0.2)
    listening, port = taken_port()
    listening.close()
    finding = doctor.check_temporal(plan(temporal=f"127.0.0.1:{port}"))
    assert finding.mark is Mark.FAIL
    assert "did not answer" in finding.seen


def test_embedded_temporal_tells_its_version(plan: MakePlan) -> None:
    finding = doctor.check_temporal(plan())
    assert finding.mark is Mark.OK
    assert "version" in finding.seen


def test_database_is_new_current_or_from_the_future(plan: MakePlan, tmp_path: Path) -> None:
    file = tmp_path / "some.db"
    this = plan(database_url=f"sqlite:///{file}")
    assert "made at the first start" in doctor.check_database(this).seen
    schema.upgrade(f"sqlite:///{file}")
    assert schema.head() in doctor.check_database(this).seen
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'f00d'")
    connection.close()
    finding = doctor.check_database(this)
    assert finding.mark is Mark.FAIL
    assert "newer duranova" in finding.seen


@pytest.mark.parametrize(
    "url", ["nonsense", "postgresql+psycopg://me:secret@127.0.0.1:1/nova", "mysql://a@b/c"]
)
def test_database_that_cannot_be_used_fails_without_telling_its_password(
    url: str, plan: MakePlan
) -> None:
    finding = doctor.check_database(plan(database_url=url))
    assert finding.mark is Mark.FAIL
    assert "secret" not in finding.seen + finding.advice


def test_check_that_breaks_has_failed(plan: MakePlan) -> None:
    def breaks(_plan: Plan) -> Finding:
        raise PermissionError("not yours")

    findings = examine(plan(), [("this", breaks)])
    assert findings["this"].mark is Mark.FAIL
    assert "not yours" in findings["this"].seen


@pytest.mark.parametrize(
    ("marks", "code"), [((Mark.OK, Mark.WARN), 0), ((Mark.OK, Mark.WARN, Mark.FAIL), 1)]
)
def test_exit_code_says_whether_something_failed(
    marks: tuple[Mark, ...], code: int, plan: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tuple((f"c{n}", lambda _plan, m=mark: Finding(m, "x")) for n, mark in enumerate(marks))
    monkeypatch.setattr(doctor, "CHECKS", table)
    console = Console(record=True, width=200)
    assert doctor.doctor(plan(), console, as_json=False) == code
    assert "c0" in console.export_text()


def test_json_output_is_one_row_for_each_check(tmp_path: Path) -> None:
    told = CliRunner().invoke(app, ["doctor", "--json", "--data-dir", str(tmp_path / "new")])
    rows = json.loads(told.stdout)
    assert [row["check"] for row in rows] == [name for name, _ in CHECKS]
    assert told.exit_code == int(any(row["mark"] == "fail" for row in rows))
    assert all(row.keys() == {"check", "mark", "seen", "advice"} for row in rows)
