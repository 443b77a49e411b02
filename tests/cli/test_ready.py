"""A process that is ready says so once, to whoever waits, and keeps what it has."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest

from cli.ready import say_ready


@pytest.fixture(autouse=True)
def thaw() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_whoever_waits_gets_a_line_and_the_end() -> None:
    reader, writer = os.pipe()
    say_ready(writer, "ready: http://127.0.0.1:1")
    with os.fdopen(reader) as said:
        assert said.read() == "ready: http://127.0.0.1:1\n"


def test_nobody_needs_to_wait() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    say_ready(writer)
    say_ready(None)


def test_the_collector_leaves_alone_what_was_there() -> None:
    before = gc.get_freeze_count()
    say_ready(None)
    assert gc.get_freeze_count() > before
