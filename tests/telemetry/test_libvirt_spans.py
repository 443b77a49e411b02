"""A stage's span has libvirt's calls below it, across the thread pool."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

import pytest
from opentelemetry import trace

from activities.host.stages import Stages
from domain.errors import GuestRefused
from tests.telemetry.conftest import Spans

Connection = pytest.importorskip("virt.libvirt.connection").Connection
pytestmark = pytest.mark.libvirt
UUID = "0b6ff9bd-8a6e-4f04-8b5f-5f0b7f8f3c11"
DOMAIN = f"""<domain type='test'><name>duranova-{UUID}</name><uuid>{UUID}</uuid>
<memory unit='MiB'>8</memory><os><type>hvm</type></os></domain>"""


def test_calls_that_change_something_are_spans_below_their_stage(spans: Spans) -> None:
    connection = Connection("test:///default", lambda: None)  # libvirt's own mock, in this process
    connection.open()

    def work() -> None:
        with Stages("spawn_guest", lambda _: None) as stages:
            stages.enter("define")
            connection.define(DOMAIN)
            stages.enter("start")
            connection.launch(UUID)
            assert connection.look(UUID).active
            connection.kill(UUID)
            connection.undefine(UUID)
            with pytest.raises(GuestRefused):
                connection.define("<nonsense/>")

    try:
        tracer = trace.get_tracer(__name__)
        with tracer.start_as_current_span("activity") as activity, ThreadPoolExecutor() as pool:
            pool.submit(copy_context().run, work).result()
    finally:
        connection.close()

    seen = spans.of(activity.get_span_context().trace_id)
    names = {s.get_span_context().span_id: s.name for s in seen}
    below = [(s.name, names[s.parent.span_id]) for s in seen if s.parent]
    assert sorted(below) == [
        ("define", "activity"),
        ("libvirt define", "define"),
        ("libvirt define", "start"),
        ("libvirt kill", "start"),
        ("libvirt launch", "start"),
        ("libvirt undefine", "start"),
        ("start", "activity"),
    ]
    failed = [s for s in seen if s.status.status_code is trace.StatusCode.ERROR]
    assert [s.name for s in failed] == ["libvirt define"]
