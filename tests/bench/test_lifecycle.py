"""The bench against a whole cloud in one process: what it says is what happened."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from bench import lifecycle
from bench.client import Credentials, OpenStack
from bench.cloud import Target
from bench.figures import FIGURES
from bench.measure import Results
from bench.processes import of_family
from domain.errors import GuestRefused
from tests.stack import Stack, password, running_stack
from tests.temporal_server import temporal_server

SMALL = lifecycle.Load(alone=2, batch=4, at_once=2, settle_s=0.0)
pytestmark = pytest.mark.temporal


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with temporal_server() as address:
        yield address


@pytest.fixture
async def stack(address: str, tmp_path: Path) -> AsyncIterator[Stack]:
    async with running_stack(tmp_path, address) as stack:
        yield stack


@pytest.fixture
async def target(stack: Stack) -> AsyncIterator[Target]:
    url = f"{stack.settings.public_url}/identity"
    async with OpenStack(Credentials(url, "demo", password("demo"), "demo")) as api:
        await api.log_in()
        image, network = await stack.image(), await stack.network()
        yield Target(api, "tiny", image, network, of_family(1))


async def test_a_round_has_every_figure_and_leaves_no_server(target: Target) -> None:
    results = Results()
    await lifecycle.rounds(target, 1, results, SMALL)
    measured = {name: values[0] for name, values in results.figures["lifecycle"].items()}
    assert measured.keys() == FIGURES["lifecycle"].keys()
    assert measured["errors"] == 0
    assert measured["post_p50"] < measured["active_p50"]
    assert measured["creates_rate"] > 0
    assert (await target.api.get("compute", "/servers")).json() == {"servers": []}


async def test_servers_that_fail_are_errors_and_no_figures(target: Target, stack: Stack) -> None:
    stack.drivers["host-1"].faults.fail("disk", error=GuestRefused("the disk is odd"))
    batch = lifecycle.Batch(target, "bad-", SMALL)
    await batch.create()
    assert len(batch.errors) == 1
    assert "ERROR" in batch.errors[0]
    assert batch.details["create"]["servers"] == 3
    await batch.delete()
    assert (await target.api.get("compute", "/servers")).json() == {"servers": []}
