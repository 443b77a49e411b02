"""The chaos runner, briefly: two seeded rounds on the fake driver; and that it finds what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from chaos.load import Asked
from chaos.plan import Pace, plan_round
from chaos.verdict import Seen, judge
from db.hosts import Claim
from db.network.tables import Port
from db.operations import Operation
from db.servers import Server
from domain.states import PowerState
from tests.tree import ROOT

PARTS = ("temporal", "api", "control", "host-1")


@pytest.mark.e2e
def test_two_rounds_of_kills_lose_nothing(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "chaos", "--seed", "12", "--rounds", "2", "--seconds", "5"]
    line += ["--requests", "14", "--kills", "3", "--hosts", "2"]
    line += ["--data-dir", str(tmp_path / "cloud"), "--report", str(tmp_path / "report.json")]
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, check=False, timeout=170)
    assert done.returncode == 0, done.stdout + done.stderr
    *rounds, emptied = json.loads((tmp_path / "report.json").read_text())["rounds"]
    assert [sum(r["kills"].values()) for r in rounds] == [3, 3]
    assert sum(sum(r["accepted"].values()) for r in rounds) > 0
    assert emptied["violations"] == []


def test_the_same_seed_decides_the_same() -> None:
    pace = Pace()
    rounds = [[plan_round(seed, n, PARTS, pace) for n in (1, 2)] for seed in (1, 1, 2)]
    assert rounds[0] == rounds[1]
    assert rounds[0] != rounds[2]
    assert rounds[0][0] != rounds[0][1]
    for one in rounds[0]:
        assert len(one.decisions) == pace.requests
        assert len(one.kills) == pace.kills


def test_every_part_is_killed_in_its_turn() -> None:
    killed = {plan_round(1, n, PARTS, Pace(kills=1)).kills[0].part for n in range(1, 5)}
    assert killed == set(PARTS)


def settled() -> Seen:
    """One ACTIVE server as it should be."""
    server = Server(id="s", project_id="p", user_id="u", name="one", vm_state="active", host="h")
    create = Operation(
        id="o",
        request_id="req",
        action="create",
        lifecycle="create",
        server_id="s",
        project_id="p",
        user_id="u",
        state="succeeded",
    )
    claim = Claim(server_id="s", host="h", operation_id="o", epoch=1, vcpus=1, ram_mb=1, disk_gb=1)
    port = Port(network_id="n", project_id="p", mac="m", device_id="s")
    guests = {"h": {"s": PowerState.RUNNING}}
    return Seen({"s": server}, {"s": [create]}, [claim], [port], guests)


ASKED = Asked(1, 0.0, "create", "one", "s", 202, "req")


def test_a_settled_cloud_violates_nothing() -> None:
    assert judge(settled(), [ASKED]) == []


def another(seen: Seen, lifecycle: str, state: str) -> Asked:
    """A second operation, and who asked for it."""
    change = {"id": "o2", "request_id": "req2", "lifecycle": lifecycle, "state": state}
    seen.operations["s"].append(seen.operations["s"][0].model_copy(update=change))
    return Asked(1, 0.0, lifecycle, "one", "s", 202, "req2")


def break_it(rule: str, seen: Seen) -> list[Asked]:  # noqa: C901  # one case for each rule
    asked = [ASKED]
    match rule:
        case "stuck":
            asked.append(another(seen, "pause", "running"))
        case "task state":
            seen.servers["s"].task_state = "spawning"
        case "state":
            seen.servers["s"].vm_state = "stopped"
            seen.guests["h"]["s"] = PowerState.SHUTDOWN
        case "failed":
            asked.append(another(seen, "reboot_hard", "failed"))
        case "claims":
            seen.claims.clear()
        case "ports":
            seen.ports.clear()
        case "guests":
            seen.guests["elsewhere"] = {"s": PowerState.RUNNING}
        case "power":
            seen.guests["h"]["s"] = PowerState.PAUSED
        case "lost":
            asked.append(Asked(1, 0.0, "stop", "one", "s", 202, "req3"))
        case "unasked":
            asked.clear()
    return asked


@pytest.mark.parametrize(
    "rule",
    ["stuck", "task state", "state", "failed", "claims", "ports", "guests", "power", "lost", "unasked"],
)  # fmt: skip
def test_each_broken_promise_is_found(rule: str) -> None:
    seen = settled()
    asked = break_it(rule, seen)
    assert {v.rule for v in judge(seen, asked)} == {rule}


def test_a_request_whose_answer_was_lost_explains_an_operation() -> None:
    lost = Asked(1, 0.0, "create", "one", None, None)
    assert judge(settled(), [lost]) == []
