"""Histories of every released version replay under today's workflows, run as a control worker runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer, UnsandboxedWorkflowRunner

from runtime.temporal import DATA_CONVERTER
from tests.workflows.record import HISTORIES
from workflows.catalog import WORKFLOWS
from workflows.create import CreateServer
from workflows.delete import DeleteServer

RECORDED = sorted(HISTORIES.rglob("*.json"))


def workflow_type(path: Path) -> str:
    started = json.loads(path.read_text())["events"][0]
    return str(started["workflowExecutionStartedEventAttributes"]["workflowType"]["name"])


def history(path: Path) -> WorkflowHistory:
    return WorkflowHistory.from_json(f"server:{path.stem}", path.read_text())


@pytest.mark.parametrize("path", RECORDED, ids=[f"{p.parent.name}/{p.stem}" for p in RECORDED])
async def test_a_recorded_run_replays(path: Path) -> None:
    replayer = Replayer(
        workflows=WORKFLOWS,
        workflow_runner=UnsandboxedWorkflowRunner(),
        data_converter=DATA_CONVERTER,
    )
    await replayer.replay_workflow(history(path))


def test_every_workflow_has_a_history_of_some_version() -> None:
    assert {workflow_type(path) for path in RECORDED} == {w.__name__ for w in WORKFLOWS}


async def test_a_run_that_would_go_another_way_is_found() -> None:
    """The guard itself: a history of create does not replay under the story of delete."""
    [path, *_] = [p for p in RECORDED if p.stem == "create"]
    altered = path.read_text().replace(CreateServer.__name__, DeleteServer.__name__)
    with pytest.raises(Exception, match=r"(?i)nondeterminism|mismatch"):
        await Replayer(workflows=WORKFLOWS).replay_workflow(
            WorkflowHistory.from_json("server:altered", altered)
        )
