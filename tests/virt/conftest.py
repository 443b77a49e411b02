"""The drivers under test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from domain.states import PowerState
from tests.virt.subjects import FileSupplies, Subject, image_ref
from virt.fake import FakeDriver


def fake_subject(tmp_path: Path) -> Subject:
    images = tmp_path / "supplies"
    images.mkdir()
    (images / "disk.raw").write_bytes(b"\0" * 4096)
    supplies = FileSupplies(images)
    return Subject(
        kind="the fake",
        make=lambda: FakeDriver("fake-1", tmp_path / "host", supplies),
        image=image_ref(images / "disk.raw", "raw"),
        supplies=supplies,
        pull_the_plug=lambda driver, server_id: driver.set_power(server_id, PowerState.SHUTDOWN),  # type: ignore[attr-defined]  # the fake's own
        can=frozenset({"console", "durable", "nics", "announces"}),
    )


@pytest.fixture(params=["fake"])
def subject(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Subject]:
    subject = fake_subject(tmp_path)
    yield subject
    subject.clean()
