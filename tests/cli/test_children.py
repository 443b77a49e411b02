"""A child that dies comes back, more slowly each time; one that is stopped does not."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from cli import children
from cli.children import Child
from cli.datadir import StartError

WITHIN_S = 30.0
LIVES = "echo begin; exec sleep 600"


@pytest.fixture
async def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Child]:
    monkeypatch.setattr(children, "_FIRST_PAUSE_S", 0.01)
    child = Child("sleeper", ["sh", "-c", LIVES], tmp_path / "sleeper.log")
    yield child
    await child.stop()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not condition():  # noqa: ASYNC110  # only polls
            await asyncio.sleep(0.01)


async def test_a_killed_child_is_started_again_and_the_log_says_why(child: Child) -> None:
    with capture_logs() as said:
        await child.start()
        first = child.pid
        assert first
        os.kill(first, signal.SIGKILL)
        await until(lambda: child.pid not in (None, first))
    [ended] = [line for line in said if line["event"] == "child ended, starting it again"]
    assert (ended["child"], ended["ended"]) == ("sleeper", "signal 9 (Killed)")
    assert str(ended["log"]).endswith("sleeper.log")
    assert any(line["event"] == "child started again" for line in said)


async def test_a_child_that_keeps_dying_is_started_at_longer_and_longer_intervals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(children, "_LONGEST_PAUSE_S", 0.04)
    child = Child("broken", ["sh", "-c", "exit 3"], tmp_path / "broken.log")
    with capture_logs() as said:
        await child.start()
        await until(lambda: sum("pause_s" in line for line in said) >= 4)
        await child.stop()
    pauses = [line["pause_s"] for line in said if "pause_s" in line]
    assert pauses[:4] == [0.01, 0.02, 0.04, 0.04]
    assert said[0]["ended"] == "exit code 3"


async def test_a_child_that_lived_long_is_started_again_soon(
    child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "_YOUNG_S", 0.0)
    with capture_logs() as said:
        await child.start()
        for _ in range(3):
            last = child.pid
            assert last
            os.kill(last, signal.SIGKILL)
            await until(lambda last=last: child.pid not in (None, last))
    assert [line["pause_s"] for line in said if "pause_s" in line] == [0.01] * 3


async def test_a_child_killed_on_purpose_stays_dead_until_it_is_started(child: Child) -> None:
    await child.start()
    with capture_logs() as said:
        await child.kill()
    assert child.pid is None
    assert said == []
    await child.start()
    assert child.pid is not None


async def test_a_child_that_ends_before_it_is_ready_says_why(tmp_path: Path) -> None:
    line = ["sh", "-c", "echo no disk; exit 2"]
    child = Child("early", line, tmp_path / "early.log", says_ready=True)
    with pytest.raises(StartError, match="early did not start: no disk"):
        await child.start()
