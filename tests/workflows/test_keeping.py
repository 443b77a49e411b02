"""A worker that failed for good is replaced; the block's end ends the one that runs."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from temporalio import activity
from temporalio.client import Client
from temporalio.worker import Worker

from domain.ids import new_id
from runtime.temporal import connect
from workers import keeping
from workers.keeping import kept

pytestmark = pytest.mark.temporal
WITHIN = timedelta(seconds=30)


@pytest.fixture
async def client(address: str) -> Client:
    return await connect(address, "default")


@activity.defn
async def answer() -> int:
    return 42


async def test_a_worker_that_failed_is_replaced_and_its_queue_is_served_again(
    client: Client, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "PAUSE_S", 0.05)
    refused = await connect(address, "a-namespace-that-there-is-not")
    queue, made = new_id(), []

    def make() -> Worker:
        made.append(client if made else refused)
        return Worker(made[-1], task_queue=queue, activities=[answer])

    async with asyncio.timeout(WITHIN.total_seconds()), kept(make):
        result = await client.execute_activity(
            answer, id=new_id(), task_queue=queue, schedule_to_close_timeout=WITHIN
        )
    assert result == 42
    assert made == [refused, client]


async def test_the_end_of_the_block_ends_the_worker(client: Client) -> None:
    worker = Worker(client, task_queue=new_id(), activities=[answer])
    async with asyncio.timeout(WITHIN.total_seconds()):
        async with kept(lambda: worker):
            while not worker.is_running:  # noqa: ASYNC110  # only polls
                await asyncio.sleep(0.01)
        assert worker.is_shutdown


async def test_a_worker_that_never_ends_does_not_keep_its_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(keeping, "STOP_S", 0.05)
    running = asyncio.Event()

    async def run() -> None:
        running.set()
        await asyncio.Event().wait()

    worker: Any = SimpleNamespace(run=run, shutdown=asyncio.Event().wait, task_queue="queue")
    async with asyncio.timeout(WITHIN.total_seconds()), kept(lambda: worker):
        await running.wait()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_worker_whose_end_failed_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "STOP_S", 10 * WITHIN.total_seconds())
    running, asked = asyncio.Event(), asyncio.Event()

    async def run() -> None:
        running.set()
        await asked.wait()
        raise RuntimeError("half-way")

    async def shutdown() -> None:  # as the SDK's, which waits for what that error passed over
        asked.set()
        await asyncio.Event().wait()

    worker: Any = SimpleNamespace(run=run, shutdown=shutdown, task_queue="queue")
    async with asyncio.timeout(WITHIN.total_seconds()), kept(lambda: worker):
        await running.wait()
    assert asyncio.all_tasks() == {asyncio.current_task()}
