"""Fake hosts as slow as real ones, so that a kill finds operations on their way, and as faulty as told."""

from __future__ import annotations

import json
from pathlib import Path

from chaos.plan import Failure

INJECTED = "injected by chaos"
"""In the message of every failure that is meant."""
_DELAYS_S = {
    "image": 0.1,
    "disk": 0.5,
    "define": 0.2,
    "start": 0.3,
    "destroy": 0.4,
    "stop": 0.6,
    "power_on": 0.4,
    "reboot_soft": 0.6,
    "reboot_hard": 0.6,
    "pause": 0.2,
    "unpause": 0.2,
    "suspend": 0.6,
    "resume": 0.4,
}


def slow_down(hosts_dir: Path, hosts: int) -> None:
    """Make each host take its time."""
    for number in range(1, hosts + 1):
        directory = hosts_dir / f"host-{number}"
        directory.mkdir(parents=True, exist_ok=True)
        _write(directory, None)


def break_host(hosts_dir: Path, failure: Failure) -> str:
    """Make a step of a host fail; returns the host's name."""
    hosts = sorted(p for p in hosts_dir.iterdir() if p.is_dir())
    host = hosts[int(failure.host * len(hosts))]
    _write(host, failure)
    return host.name


def mend_hosts(hosts_dir: Path) -> None:
    """No step fails any more."""
    for directory in hosts_dir.iterdir():
        _write(directory, None)


def _write(directory: Path, failure: Failure | None) -> None:
    faults: dict[str, dict[str, object]] = {s: {"delay_s": d} for s, d in _DELAYS_S.items()}
    if failure is not None:
        faults[failure.step] |= {"fail": failure.times, "message": f"{failure.step} {INJECTED}"}
    fresh = directory / "faults.json.new"
    fresh.write_text(json.dumps(faults))
    fresh.rename(directory / "faults.json")
