"""What the fault tests share: a cloud in one process over a real Temporal server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.stack import Stack, running_stack
from tests.temporal_server import temporal_server


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with temporal_server() as address:
        yield address


@pytest.fixture
async def stack(address: str, tmp_path: Path) -> AsyncIterator[Stack]:
    """Two fake hosts."""
    async with running_stack(tmp_path, address, hosts=2) as stack:
        yield stack
