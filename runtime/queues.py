"""Who polls which task queue, as Temporal sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import datetime, timedelta

from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest
from temporalio.client import Client

POLLED_WITHIN = timedelta(seconds=120)
"""One poll lasts a minute; a worker whose last one began earlier is gone."""
_AT_ONCE = 16
_RPC_TIMEOUT = timedelta(seconds=10)


async def count_pollers(client: Client, queues: Iterable[str], at: datetime) -> dict[str, int]:
    """Queue → workers that polled it lately, for activities or for workflows, whichever are more."""
    asking = asyncio.Semaphore(_AT_ONCE)

    async def count(queue: str, kind: TaskQueueType.ValueType) -> int:
        request = DescribeTaskQueueRequest(
            namespace=client.namespace, task_queue=TaskQueue(name=queue), task_queue_type=kind
        )
        async with asking:
            answer = await client.workflow_service.describe_task_queue(
                request, timeout=_RPC_TIMEOUT
            )
        since = (at - POLLED_WITHIN).timestamp()
        return len({p.identity for p in answer.pollers if p.last_access_time.seconds >= since})

    names = list(queues)
    kinds = (TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY, TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW)
    counts = [await asyncio.gather(*(count(q, kind) for q in names)) for kind in kinds]
    return {queue: max(found) for queue, *found in zip(names, *counts, strict=True)}
