"""What an operator does about a build that fails: the real `openstack` command, with our plug-in, against a
whole cloud on fake hosts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from domain.errors import GuestRefused
from tests.compat.conftest import Command, signed_in
from tests.stack import Stack, password, running_stack
from tests.temporal_server import temporal_server

pytestmark = [pytest.mark.temporal, pytest.mark.timeout(180)]
HOLD = ("--hint", "duranova:hold_on_failure=true")
ENDS = ("--timeout", "60")


@pytest.fixture(scope="module")
def temporal() -> Iterator[str]:
    with temporal_server() as address:
        yield address


@pytest.fixture
async def stack(tmp_path: Path, temporal: str) -> AsyncIterator[Stack]:
    async with running_stack(tmp_path, temporal, hosts=2) as stack:
        await stack.image()
        yield stack


class Operator:
    """The command of a member of the cloud; each call in a thread, since the cloud is in this one."""

    def __init__(self, stack: Stack, command: Command) -> None:
        self._stack, self._command = stack, command

    async def run(self, *words: str, status: int = 0) -> tuple[str, str]:
        """Output and complaints of a command that ends with this status."""
        left, out, err = await asyncio.to_thread(self._command.run, *words)
        assert left == status, (out, err)
        return out, err

    async def value(self, *words: str) -> str:
        """One value that a command shows, e.g. ``*("server", "show", "web"), "status"``."""
        out, _ = await self.run(*words[:-1], "-f", "value", "-c", words[-1])
        return out.strip()

    async def boot(self, *more: str) -> str:
        """Ask for the server ``web``; the id of its operation."""
        what = ("--image", "stack", "--flavor", "tiny", "--network", "demo-net")
        await self.run("server", "create", *what, *more, "web")
        return await self.value("operation", "list", "--server", "web", "ID")

    async def host(self) -> str:
        """Where the server is, which only an admin may know."""
        shown = await self._stack.show(await self.value("server", "show", "web", "id"))
        return str(shown["OS-EXT-SRV-ATTR:host"])


@pytest.fixture
def operator(stack: Stack) -> Iterator[Operator]:
    url = f"{stack.settings.public_url}/identity/v3"
    command = Command(signed_in(url, "demo", password("demo")))
    with command.process:
        yield Operator(stack, command)


def spoil(stack: Stack, step: str = "define") -> None:
    """Make this step of every build fail, in a way that trying again does not mend."""
    for driver in stack.drivers.values():
        driver.faults.fail(step, times=99, error=GuestRefused("no space left"))


def mend(stack: Stack) -> None:
    for driver in stack.drivers.values():
        driver.faults.clear()


async def test_a_held_build_is_seen_mended_and_resumed(stack: Stack, operator: Operator) -> None:
    spoil(stack)
    held = await operator.boot(*HOLD)
    _, err = await operator.run("operation", "wait", held, *ENDS, status=3)
    assert "is held at step define" in err
    assert "no space left" in err
    assert f"{held}" in err.split("possible now: openstack operation ")[1]
    out, _ = await operator.run("operation", "watch", held, status=3)
    assert "is held at step define" in out
    listed = ("operation", "list", "--state", "running", "--state", "waiting_operator")
    assert await operator.value(*listed, "ID") == held

    mend(stack)
    await operator.run("operation", "resume", held, "--wait", *ENDS, "--reason", "made room")
    assert await operator.value("server", "show", "web", "status") == "ACTIVE"
    stages = [stage for d in stack.drivers.values() for stage in d.faults.reached]
    assert (stages.count("image"), stages.count("define")) == (1, 2)


async def test_a_failed_build_is_built_again(stack: Stack, operator: Operator) -> None:
    spoil(stack)
    failed = await operator.boot()
    server = await operator.value("server", "show", "web", "id")
    _, err = await operator.run("operation", "wait", failed, *ENDS, status=1)
    assert f"possible now: openstack operation retry {failed}" in err

    mend(stack)
    again = await operator.value("operation", "retry", failed, "--wait", *ENDS, "id")
    assert again != failed
    assert await operator.value("operation", "show", again, "retry_of") == failed
    assert await operator.value("operation", "show", again, "server_id") == server
    assert await operator.value("server", "show", "web", "status") == "ACTIVE"
    since = await operator.value("operation", "show", again, "created_at")
    newest = ("operation", "list", "--created-since", since)
    assert await operator.value(*newest, "ID") == again


async def test_a_held_build_is_placed_on_another_host(stack: Stack, operator: Operator) -> None:
    spoil(stack)
    held = await operator.boot(*HOLD)
    await operator.run("operation", "wait", held, *ENDS, status=3)
    before = await operator.host()
    mend(stack)
    await operator.run("operation", "replace", held, "--wait", *ENDS)
    assert {before, await operator.host()} == {"host-1", "host-2"}


async def test_a_held_build_is_aborted(stack: Stack, operator: Operator) -> None:
    spoil(stack)
    held = await operator.boot(*HOLD)
    await operator.run("operation", "wait", held, *ENDS, status=3)
    _, err = await operator.run("operation", "abort", held, "--wait", *ENDS, status=1)
    assert "no space left" in err
    assert await operator.value("server", "show", "web", "status") == "ERROR"
    assert [d.residue() for d in stack.drivers.values()] == [[], []]


async def test_a_running_build_is_cancelled_and_nothing_more_is_to_be_done(
    stack: Stack, operator: Operator
) -> None:
    for driver in stack.drivers.values():
        driver.faults.delay("image", 60)
    slow = await operator.boot()
    await operator.run("operation", "wait", slow, "--timeout", "0.5", status=4)
    _, err = await operator.run("operation", "cancel", slow, "--wait", *ENDS, status=1)
    assert "was cancelled" in err
    _, err = await operator.run("operation", "resume", slow, status=1)
    assert "(HTTP 409)" in err
    assert "Traceback" not in err


async def test_progress_is_told_while_a_server_is_built(stack: Stack, operator: Operator) -> None:
    for driver in stack.drivers.values():
        driver.faults.delay("image", 3)
    building = await operator.boot()
    out, _ = await operator.run("operation", "watch", building)
    assert "running" in out
    assert out.splitlines()[-1].startswith("create of server")
    assert "succeeded after" in out
