"""What `duranova up` tells of itself, as its operators' tools receive it."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from runtime.devserver import free_port
from tests.e2e.cloud import UpCloud
from tests.virt.waiting import eventually

pytestmark = pytest.mark.e2e
TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
ACTIVE_S = 60


class Collector(ThreadingHTTPServer):
    """Takes spans as an OpenTelemetry collector does."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, str, str]] = []
        """(service, trace id, span name)"""
        super().__init__(("127.0.0.1", 0), _Export)


class _Export(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        assert isinstance(self.server, Collector)
        assert self.path == "/v1/traces"
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            names = {a.key: a.value.string_value for a in resource.resource.attributes}
            for scope in resource.scope_spans:
                self.server.spans += [
                    (names["service.name"], s.trace_id.hex(), s.name) for s in scope.spans
                ]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_one_trace_one_log_and_metrics_of_every_process(
    tmp_path: Path, tiny_image: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics, sdk_metrics = (f"127.0.0.1:{free_port()}" for _ in range(2))
    monkeypatch.setenv("DURANOVA_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
    monkeypatch.setenv("DURANOVA_METRICS_LISTEN", metrics)
    monkeypatch.setenv("DURANOVA_TEMPORAL_METRICS_LISTEN", sdk_metrics)
    cloud = UpCloud(tmp_path / "cloud", "--driver", "fake")
    try:
        cloud.start()
        image_id, network_id = cloud.upload(tiny_image), cloud.demo_net()
        cloud.as_().headers.update(TRACEPARENT)
        server_id = cloud.boot(image_id, "one", network_id)
        del cloud.as_().headers["traceparent"]
        eventually(lambda: cloud.servers()[server_id]["status"] == "ACTIVE", ACTIVE_S)

        host = httpx.get(f"http://{metrics}/metrics").text
        assert 'duranova_host_step_seconds_count{activity="spawn_guest",step="start"} 1.0' in host
        api = cloud.as_().get("/metrics").text
        assert 'duranova_operations_total{lifecycle="create",outcome="succeeded"} 1.0' in api
        assert "temporal_" in httpx.get(f"http://{sdk_metrics}/metrics").text
        assert cloud.stop() == 0
    finally:
        cloud.close()

    # the ends flushed what they still had
    mine = {(service, name) for service, trace_id, name in collector.spans if trace_id == TRACE}
    assert ("duranova-up", "POST /compute/v2.1/servers") in mine
    assert ("duranova-up", "RunActivity:finish_operation") in mine
    assert ("duranova-host", "start") in mine
    log = (tmp_path / "cloud" / "log" / "duranova.log").read_text().splitlines()
    traced = [line for line in map(json.loads, log) if line.get("trace_id") == TRACE]
    assert {"request", "operation accepted", "operation ended"} <= {x["event"] for x in traced}
    # the host's request for the image is one of its own, in the same trace
    own = [x for x in traced if x.get("host") is None or x["event"] != "request"]
    assert len({x["request_id"] for x in own}) == 1


def test_a_collector_that_is_not_there_holds_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DURANOVA_OTLP_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    cloud = UpCloud(tmp_path / "cloud", "--driver", "fake")
    try:
        cloud.start()
        assert cloud.servers() == {}
        assert cloud.stop() == 0
    finally:
        cloud.close()
