"""A Temporal server for each file of workflow tests, and a stage on it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.temporal_server import temporal_server
from tests.workflows.stage import Stage, staged


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with temporal_server() as address:
        yield address


@pytest.fixture
async def stage(address: str) -> AsyncIterator[Stage]:
    async with staged(address) as stage:
        yield stage
