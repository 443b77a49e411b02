"""`duranova demo`: all of a guest's life on a cloud of its own, and nothing left of either."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from domain.ids import bridge_name

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

DONE = "All of it happened, and nothing is left of it."


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "cli.main", "demo", *map(str, words)]


def environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k not in ("KEEP", "IMAGE")}


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*words), capture_output=True, text=True, env=environment(), check=False, timeout=800
    )


def processes_naming(directory: Path) -> list[str]:
    """The command lines in which a directory is named."""
    lines = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(directory) in line:
            lines.append(line)
    return lines


def test_demo_on_the_fake_driver_tells_the_whole_story_and_cleans_up(tmp_path: Path) -> None:
    ours = tmp_path / "a demo"
    told = run("--driver", "fake", "--data-dir", ours)
    assert told.returncode == 0, told.stdout + told.stderr
    assert told.stdout.rstrip().endswith(DONE)
    assert "no ssh: nothing runs inside" in told.stdout
    server_id = re.search(r"openstack server event list (\S+)", told.stdout)
    assert server_id
    assert f"CreateServer server:{server_id[1]} completed" in told.stdout
    assert "first-server login:" in told.stdout
    assert not ours.exists()
    assert processes_naming(ours) == []


def test_interrupted_demo_stops_what_it_started_and_removes_it(tmp_path: Path) -> None:
    ours = tmp_path / "demo"
    with subprocess.Popen(
        command("--driver", "fake", "--data-dir", ours, "--keep"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
    ) as demo:
        assert demo.stdout
        said = ""
        for line in demo.stdout:
            said += line
            if "export OS_CLIENT_CONFIG_FILE=" in line:
                break
        assert f"{ours}/clouds.yaml OS_CLOUD=duranova" in said, said
        assert processes_naming(ours)
        demo.send_signal(signal.SIGINT)
        said += demo.stdout.read()
        assert demo.wait() == 0, said
    assert said.rstrip().endswith(DONE)
    assert not ours.exists()
    assert processes_naming(ours) == []


def test_demo_whose_cloud_dies_fails_says_so_and_leaves_only_its_logs(tmp_path: Path) -> None:
    ours = tmp_path / "demo"
    with subprocess.Popen(
        command("--driver", "fake", "--data-dir", ours, "--keep"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
    ) as demo:
        assert demo.stdout
        for line in demo.stdout:
            if "export OS_CLIENT_CONFIG_FILE=" in line:
                break
        os.kill(_pid_of_up(ours), signal.SIGTERM)
        said = demo.stdout.read()
        assert demo.wait() == 1, said
    assert "`duranova up` ended" in said
    assert DONE not in said
    assert (ours / "log" / "up.log").exists()
    deadline = time.monotonic() + 60
    while processes_naming(ours) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert processes_naming(ours) == []


def _pid_of_up(directory: Path) -> int:
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = file.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"up" in words and str(directory).encode() in words:
            return int(file.parent.name)
    pytest.fail("no `duranova up` runs")


def test_directory_that_is_no_demos_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    told = run("--driver", "fake", "--data-dir", tmp_path)
    assert told.returncode == 1
    assert "is not a demo's" in told.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.libvirt
def test_demo_boots_a_real_guest_and_nothing_is_left(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    ours = tmp_path / "demo"
    told = run("--data-dir", ours)
    assert told.returncode == 0, told.stdout + told.stderr
    assert told.stdout.rstrip().endswith(DONE)
    assert re.search(r"^  │ BOOT-OK first-server \S+ md=http", told.stdout, re.MULTILINE)
    assert re.search(r"^  │ Linux first-server .* x86_64", told.stdout, re.MULTILINE)
    network = re.search(r"✓ network \S+ s  (\S+)", told.stdout)
    assert network
    assert not Path("/sys/class/net", bridge_name(network[1])).exists()
    assert not ours.exists()
    assert processes_naming(ours) == []
