"""Every line of a request and of its operation says which one it belongs to."""

from __future__ import annotations

import logging

import pytest
import structlog
from temporalio import workflow

from domain.errors import GuestRefused
from runtime.logs import note, request_facts
from tests.stack import Stack
from tests.telemetry.conftest import Log

TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}


@pytest.mark.temporal
async def test_the_lines_of_a_request_and_its_operation_share_their_ids(
    log: Log, stack: Stack
) -> None:
    answer = await stack.boot("one", headers=TRACEPARENT)
    request_id = answer.headers["x-openstack-request-id"]
    await stack.until(answer.json()["server"]["id"], "ACTIVE")

    (accepted,) = log.lines(event="operation accepted")
    (ended,) = log.lines(event="operation ended")
    (asked,) = log.lines(event="request", method="POST", path="/compute/v2.1/servers")
    for line in (accepted, ended, asked):
        assert line["request_id"] == request_id
        assert line["trace_id"] == TRACE
    assert ended["operation_id"] == accepted["operation_id"]
    assert (ended["state"], ended["lifecycle"]) == ("succeeded", "create")
    assert asked["status"] == 202
    assert asked["ms"] > 0
    assert asked["project_id"] == ended["project_id"]
    assert asked["level"] == "info"


@pytest.mark.temporal
async def test_a_failed_step_is_told_with_the_ids_of_its_operation_on_the_host_too(
    log: Log, stack: Stack
) -> None:
    for driver in stack.drivers.values():
        driver.faults.fail("define", times=99, error=GuestRefused("the hypervisor says no"))
    answer = await stack.boot("one", headers=TRACEPARENT)
    server_id = answer.json()["server"]["id"]
    await stack.until(server_id, "ERROR")

    (accepted,) = log.lines(event="operation accepted")
    (failed,) = log.lines(event="activity failed", activity="spawn_guest")
    assert failed["error"] == "the hypervisor says no"
    assert failed["operation_id"] == accepted["operation_id"]
    assert failed["request_id"] == answer.headers["x-openstack-request-id"]
    assert failed["server_id"] == server_id
    assert failed["trace_id"] == TRACE
    assert "Completing activity as failed" not in log.text()  # the SDK's words for the same


@pytest.mark.temporal
async def test_what_machines_ask_all_the_time_is_only_told_at_level_debug(
    log: Log, stack: Stack
) -> None:
    await stack.client.get("/healthz")
    assert {line["level"] for line in log.lines(event="request", path="/healthz")} == {"debug"}
    reports = [x for x in log.lines(event="request") if x["path"].endswith("/report")]
    assert reports
    assert {(line["level"], line["host"]) for line in reports} <= {
        ("debug", "host-1"),
        ("debug", "host-2"),
    }


def test_lines_of_libraries_go_the_same_way(log: Log) -> None:
    with structlog.contextvars.bound_contextvars(operation_id="op-1"):
        logging.getLogger("uvicorn.error").info("Started %s", "server")
    (line,) = log.lines(logger="uvicorn.error")
    assert (line["event"], line["operation_id"]) == ("Started server", "op-1")


def test_the_sdk_s_description_of_a_workflow_becomes_fields(log: Log) -> None:
    info = {"workflow_id": "server:1", "workflow_type": "CreateServer", "namespace": "default"}
    logging.getLogger("temporalio.workflow").warning("left", extra={"temporal_workflow": info})
    (line,) = log.lines(event="left")
    assert (line["workflow_id"], line["workflow_type"]) == ("server:1", "CreateServer")
    assert "namespace" not in line
    assert workflow.logger.workflow_info_on_message is False


def test_facts_end_with_their_request(log: Log) -> None:
    say = structlog.get_logger("test").info
    with request_facts(request_id="req-1"):
        note(project_id="p-1")
        say("inside")
    note(project_id="nobody's")
    say("outside")
    assert (
        log.lines(event="inside")[0].items() >= {"request_id": "req-1", "project_id": "p-1"}.items()
    )
    assert not {"request_id", "project_id"} & set(log.lines(event="outside")[0])


def test_an_exception_is_a_field_of_its_line(log: Log) -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        structlog.get_logger("test").exception("it failed")
    (line,) = log.lines(event="it failed")
    assert "ValueError: broken" in line["exception"]


def test_a_log_that_cannot_be_written_stops_nobody(
    log: Log, capsys: pytest.CaptureFixture[str]
) -> None:
    away = log.path.parent.rename(log.path.parent.with_name("away"))
    logging.getLogger("library").info("lost")
    assert "FileNotFoundError" in capsys.readouterr().err
    away.rename(log.path.parent)
    logging.getLogger("library").info("told")
    assert log.lines(event="told")
