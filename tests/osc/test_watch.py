"""Watching: the stream and its breaks, lines and drawings."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress

import pytest

from tests.compat.conftest import Command, environment
from tests.osc.conftest import HOLD, ID, Api, Told, ended, step, view

WITHIN_S = 60.0
RUNS = view(steps=[step()])
FAILED = view(steps=[step("Error", details="no space left")])
AGAIN = view(attempt=2, host="node-2", steps=[*FAILED["steps"], step(host="node-2")])
DONE = ended(attempt=2, steps=[*FAILED["steps"], step("Success", host="node-2")])


def test_progress_is_told_in_lines_as_the_events_come(openstack: Command, api: Api) -> None:
    api.shows(view(state="accepted", step=None, started_at=None))
    happens = enumerate([("step", RUNS), ("step", FAILED), ("step", AGAIN), ("ended", DONE)], 1)
    api.streams = [[Told(n, kind, shown) for n, (kind, shown) in happens]]
    lines = openstack("operation", "watch", ID).splitlines()
    assert [line.split("  ", 1)[1].strip() for line in lines if line.startswith("03:04")] == [
        "running    build on node-1",
        "Error  1.5 s  build on node-1: no space left",
        "running    build on node-2",
        "Success  1.5 s  build on node-2",
    ]
    assert lines[-1].endswith("succeeded after 2.0 s")


def test_a_broken_stream_goes_on_behind_the_last_event(openstack: Command, api: Api) -> None:
    api.shows(view())
    api.streams = [[Told(7, "step", RUNS)], [Told(8, "ended", DONE)]]
    assert "succeeded" in openstack("operation", "watch", ID)
    assert api.streamed == [None, "7"]


def test_what_happened_while_the_stream_was_broken_is_found_on_record(
    openstack: Command, api: Api
) -> None:
    api.shows(view())
    api.streams = [[Told(6, "step", RUNS)], []]
    api.meanwhile = DONE  # whose event never comes
    assert "succeeded" in openstack("operation", "watch", ID)


def test_an_event_that_is_no_longer_kept_does_not_end_the_watching(
    openstack: Command, api: Api
) -> None:
    api.shows(view())
    api.streams = [[Told(7, "step", RUNS)], 410, [Told(90, "ended", DONE)]]
    assert "succeeded" in openstack("operation", "watch", ID)
    assert api.streamed == [None, "7", None]


def test_without_a_stream_the_record_is_looked_at(openstack: Command, api: Api) -> None:
    api.shows(DONE)
    assert "succeeded after 2.0 s" in openstack("operation", "watch", ID)


@pytest.mark.parametrize(
    ("shown", "status", "said"),
    [
        (view(**HOLD), 3, "is held at step define: no space left"),
        (ended("failed", error="no space left"), 1, "failed after 2.0 s: no space left"),
        (ended("cancelled", error="Deleted meanwhile"), 1, "was cancelled after 2.0 s"),
    ],
)
def test_watching_ends_with_the_exit_code_of_waiting(
    openstack: Command, api: Api, shown: dict[str, object], status: int, said: str
) -> None:
    api.shows(shown)
    left, out, _ = openstack.run("operation", "watch", ID)
    assert (left, said in out) == (status, True)


def test_what_is_not_there_is_refused_before_anything_is_drawn(openstack: Command) -> None:
    assert "Operation nosuch could not be found" in openstack.fails("operation", "watch", "nosuch")


class Terminal:
    """The command on a terminal of its own."""

    def __init__(self, variables: dict[str, str], *words: str) -> None:
        ours, theirs = pty.openpty()
        self.screen = b""
        self._ours = ours
        self.process = subprocess.Popen(
            [sys.executable, "-m", "openstackclient.shell", *words],
            env=environment(variables) | {"TERM": "xterm-256color", "COLUMNS": "150"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)

    def until(self, seen: Callable[[str], bool]) -> str:
        """Everything on the screen so far, as soon as it satisfies this."""
        deadline = time.monotonic() + WITHIN_S
        while not seen(self.screen.decode(errors="replace")):
            assert time.monotonic() < deadline, self.screen.decode(errors="replace")
            if select.select([self._ours], [], [], 1.0)[0]:
                with suppress(OSError):  # it has ended, and nothing more is to be read
                    self.screen += os.read(self._ours, 65536)
        return self.screen.decode(errors="replace")

    def end(self) -> int:
        """Its exit code."""
        return self.process.wait(WITHIN_S)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


@pytest.fixture
def terminal(variables: dict[str, str]) -> Iterator[Callable[..., Terminal]]:
    """Starts the command with these words on a terminal."""
    with ExitStack() as started:

        def start(*words: str) -> Terminal:
            return started.enter_context(closing(Terminal(variables, *words)))

        yield start


def test_on_a_terminal_progress_is_drawn_and_the_last_picture_stays(
    terminal: Callable[..., Terminal], api: Api
) -> None:
    api.shows(RUNS)
    held = view(steps=[step("Error", details="no space left")], **HOLD)
    api.streams = [[], [Told(8, "waiting", held)]]  # a second apart
    command = terminal("operation", "watch", ID)
    command.until(lambda text: text.count("⠋") + text.count("⠙") > 1)  # it turns
    text = command.until(lambda text: "possible now" in text)

    picture = text[text.rindex("⏸") :]
    assert "held" in picture
    assert "no space left" in picture
    assert command.end() == 3


def test_an_interrupt_ends_the_watching_of_all_without_a_complaint(
    terminal: Callable[..., Terminal], api: Api
) -> None:
    api.shows(RUNS, ended(id="0c6e02a2-0d4d-4a5f-9a4f-7ab5a0b7f3a1"))
    api.streams = [[Told(7, "step", AGAIN)]]
    command = terminal("operation", "watch", "--all")
    command.until(lambda text: "node-2" in text)
    command.process.send_signal(signal.SIGINT)
    assert command.end() == 0
    assert "Traceback" not in command.screen.decode(errors="replace")
