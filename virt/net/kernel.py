"""How the host's network is read and written: ``ip``, ``bridge`` and ``nft``, in a namespace or the host's own."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pyroute2 import netns as pyroute2_netns

from domain.errors import GuestFailure

NETNS_DIR = Path("/run/netns")
COMMAND_TIMEOUT_S = 30.0

T = TypeVar("T")


def run(argv: Sequence[str], stdin: str | None = None, netns: str | None = None) -> str:
    """Run a command, inside a named network namespace if given; its output, or GuestFailure."""
    prefix = ["nsenter", f"--net={NETNS_DIR / netns}", "--"] if netns else []
    try:
        done = subprocess.run(
            [*prefix, *argv],
            input=stdin if stdin is not None else "",
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise GuestFailure(f"{argv[0]} could not run: {error}") from error
    if done.returncode:
        raise GuestFailure(f"{argv[0]} failed: {done.stderr.strip() or done.returncode}")
    return done.stdout


def ip(lines: Sequence[str], netns: str | None = None) -> None:
    """Run ``ip`` commands in order, stopping at the first that fails."""
    if lines:
        run(["ip", "-batch", "-"], "\n".join(lines) + "\n", netns)


def bridge(lines: Sequence[str]) -> None:
    """Run ``bridge`` commands in order, stopping at the first that fails."""
    if lines:
        run(["bridge", "-batch", "-"], "\n".join(lines) + "\n")


def show(*what: str, netns: str | None = None) -> list[dict[str, Any]]:
    """The rows of an ``ip … show``, such as ``show("route", "show", "table", "main")``."""
    rows: list[dict[str, Any]] = json.loads(
        run(["ip", "-details", "-json", *what], None, netns) or "[]"
    )
    return rows


def show_bridge(*what: str) -> list[dict[str, Any]]:
    """The rows of a ``bridge … show``."""
    rows: list[dict[str, Any]] = json.loads(run(["bridge", "-json", *what]) or "[]")
    return rows


def links(netns: str | None = None) -> dict[str, dict[str, Any]]:
    """The devices of a namespace by name, as ``ip -json link`` describes them."""
    return {row["ifname"]: row for row in show("link", "show", netns=netns)}


def nft(script: str, netns: str | None = None) -> None:
    """Load an nft script: all of it or nothing."""
    if script:
        run(["nft", "-f", "-"], script, netns)


def nft_chains(family: str, table: str) -> set[str]:
    """The names of the chains of a table; empty when there is no such table."""
    listed = json.loads(run(["nft", "-json", "list", "chains", family]))
    return {
        row["chain"]["name"]
        for row in listed["nftables"]
        if "chain" in row and row["chain"]["table"] == table
    }


def namespaces() -> set[str]:
    """The names of all named network namespaces of the machine."""
    return {entry.name for entry in NETNS_DIR.iterdir()} if NETNS_DIR.is_dir() else set()


def same_namespace(netns: str, pid: int) -> bool:
    """Does this process live in the namespace that now has this name?"""
    try:
        return (NETNS_DIR / netns).stat().st_ino == Path(f"/proc/{pid}/ns/net").stat().st_ino
    except OSError:
        return False


def inside(netns: str, work: Callable[[], T]) -> T:
    """Call ``work`` on a thread of its own that has entered the namespace, and return its result.

    A namespace is a property of the thread, so the caller's own stays as it is; sockets opened by
    ``work`` belong to the namespace for as long as they live.
    """
    results: list[T] = []
    failures: list[Exception] = []

    def visit() -> None:
        try:
            pyroute2_netns.setns(str(NETNS_DIR / netns), flags=0)
            results.append(work())
        except Exception as error:
            failures.append(error)

    visitor = threading.Thread(target=visit, name=f"in-{netns}")
    visitor.start()
    visitor.join()
    if failures:
        raise GuestFailure(f"In namespace {netns}: {failures[0]}") from failures[0]
    return results[0]


def set_sysctls(values: dict[str, str]) -> None:
    """Write kernel settings of the calling thread's network namespace, those that differ."""
    for name, value in values.items():
        path = Path("/proc/sys") / name
        try:
            if path.read_text().strip() != value:
                path.write_text(value)
        except OSError as error:
            raise GuestFailure(f"The kernel setting {name} cannot be set: {error}") from error
