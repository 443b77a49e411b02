"""One trace from the HTTP request to the hypervisor."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode

from domain.errors import GuestRefused
from tests.stack import Stack
from tests.telemetry.conftest import Spans

pytestmark = pytest.mark.temporal
TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
TRACEPARENT = {"traceparent": f"00-{TRACE}-{PARENT}-01"}


def tree(spans: list[ReadableSpan]) -> dict[str, str]:
    """Span name → its parent's name; ``""`` for what has its parent elsewhere."""
    names = {s.get_span_context().span_id: s.name for s in spans}
    return {s.name: names.get(s.parent.span_id, "") if s.parent else "" for s in spans}


async def test_a_create_is_one_trace_from_the_request_to_the_driver(
    stack: Stack, spans: Spans
) -> None:
    answer = await stack.boot("one", headers=TRACEPARENT)
    server = await stack.until(answer.json()["server"]["id"], "ACTIVE")

    seen = spans.of(int(TRACE, 16))
    by_name = {s.name: s for s in seen}
    parents = tree(seen)
    request = by_name["POST /compute/v2.1/servers"]
    assert request.kind is SpanKind.SERVER
    assert request.parent
    assert request.parent.span_id == int(PARENT, 16)
    assert parents["StartWorkflow:CreateServer"] == "POST /compute/v2.1/servers"
    assert parents["RunWorkflow:CreateServer"] == "StartWorkflow:CreateServer"
    for name in ("claim_host", "spawn_guest", "finish_operation"):
        assert parents[f"StartActivity:{name}"] == "RunWorkflow:CreateServer"
        assert parents[f"RunActivity:{name}"] == f"StartActivity:{name}"
    for step in ("image", "disk", "config_drive", "nics", "define", "start"):
        assert parents[step] == "RunActivity:spawn_guest"
    # the host's own requests to the control plane belong to the step that made them
    assert parents["GET /internal/v1/hosts/{host}/images/{image_id}"] == "image"

    claim = by_name["RunActivity:claim_host"].attributes or {}
    assert claim["duranova.host"] == server["OS-EXT-SRV-ATTR:host"]
    assert claim["duranova.attempt"] == 1
    ids = {answer.headers["x-openstack-request-id"]}
    for name in ("RunActivity:claim_host", "RunActivity:spawn_guest", "POST /compute/v2.1/servers"):
        assert {(by_name[name].attributes or {})["duranova.request_id"]} == ids


async def test_requests_without_a_trace_begin_one_each(stack: Stack, spans: Spans) -> None:
    headers = await stack.headers()
    await stack.client.get("/compute/v2.1/servers", headers=headers)
    await stack.client.get("/compute/v2.1/servers", headers=headers)
    await stack.client.get("/compute/v2.1/nothing", headers=headers)
    asked = [s for s in spans.all() if s.name == "GET /compute/v2.1/servers"]
    assert len(asked) == 2
    assert asked[0].get_span_context().trace_id != asked[1].get_span_context().trace_id
    # a path without a route gives its span no name of the client's making
    assert "GET /compute/{path}" in {s.name for s in spans.all()}


async def test_a_query_stays_out_of_the_span(stack: Stack, spans: Spans) -> None:
    headers = await stack.headers()
    answer = await stack.client.get(
        "/compute/v2.1/servers", params={"name": "confidential"}, headers=headers
    )
    assert answer.status_code == 200
    (span,) = [s for s in spans.all() if s.name == "GET /compute/v2.1/servers"]
    assert (span.attributes or {})["url.query"] == "REDACTED"
    assert "confidential" not in span.to_json()


async def test_what_machines_ask_all_the_time_leaves_no_span(stack: Stack, spans: Spans) -> None:
    for path in ("/healthz", "/readyz", "/metrics"):
        assert (await stack.client.get(path, headers=TRACEPARENT)).status_code == 200
    assert spans.of(int(TRACE, 16)) == []
    assert not [s for s in spans.all() if "report" in s.name]


async def test_headers_that_no_tracer_can_read_are_no_error(stack: Stack) -> None:
    hostile = [(b"host", b"\xff\\"), (b"traceparent", b"\xff\\x"), (b"user-agent", b"\xfe\\u1")]
    for header in hostile:
        answer = await stack.client.get("/compute/v2.1/", headers=[header])
        assert answer.status_code == 200
    answer = await stack.client.get("/compute/?q=%ff%00")
    assert answer.status_code == 200


async def test_the_step_that_failed_and_the_next_host_are_in_the_same_trace(
    stack: Stack, spans: Spans
) -> None:
    for driver in stack.drivers.values():
        driver.faults.fail("define", times=99, error=GuestRefused("the hypervisor says no"))
    answer = await stack.boot("one", headers=TRACEPARENT)
    await stack.until(answer.json()["server"]["id"], "ERROR")

    seen = spans.of(int(TRACE, 16))
    failed = [s for s in seen if s.name == "define"]
    assert failed
    assert all(s.status.status_code is StatusCode.ERROR for s in failed)
    assert all(s.status.status_code is not StatusCode.ERROR for s in seen if s.name == "nics")
    assert "RunActivity:destroy_guest" in {s.name for s in seen}


async def test_a_delete_is_traced_from_its_own_request(stack: Stack, spans: Spans) -> None:
    answer = await stack.boot("one")
    server_id = answer.json()["server"]["id"]
    await stack.until(server_id, "ACTIVE")
    headers = {**await stack.headers(), **TRACEPARENT}
    gone = await stack.client.delete(f"/compute/v2.1/servers/{server_id}", headers=headers)
    assert gone.status_code == 204
    await stack.until(server_id, "DELETED")
    parents = tree(spans.of(int(TRACE, 16)))
    assert parents["RunWorkflow:DeleteServer"] == "SignalWithStartWorkflow:DeleteServer"
    assert parents["RunActivity:destroy_guest"] == "StartActivity:destroy_guest"
