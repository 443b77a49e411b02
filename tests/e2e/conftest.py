"""What the whole-stack tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.virt.subjects import test_image


@pytest.fixture(scope="session")
def tiny_image() -> Path:
    """The bootable guest image."""
    return test_image()
