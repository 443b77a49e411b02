"""What the whole-stack tests share."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.virt.subjects import REPO, test_image

BUILD_S = 600


@pytest.fixture(scope="session")
def tiny_image() -> Path:
    """The bootable guest image; built from the distribution's packages where there is none yet."""
    if not test_image().is_file():
        subprocess.run([REPO / "deploy/guest/build.sh"], check=True, timeout=BUILD_S)
    return test_image()
