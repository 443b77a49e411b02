"""What happens to operations, as it happens: the event stream, or a look every second where there is none."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import requests
from sseclient import SSEClient

from osc_duranova.client import Operations

_CHUNK_BYTES = 4096
"""The most that is taken at once; less is taken as it comes."""
_PAUSE_S = 1.0
"""Between two looks, and before a stream that has ended is opened again."""


@dataclass(frozen=True, slots=True)
class Event:
    """One CloudEvent of an operation."""

    kind: str
    """The end of its type: ``accepted``, ``started``, ``step``, ``waiting``, ``resumed``, ``ended``."""
    time: str
    data: dict[str, Any]

    @property
    def operation_id(self) -> str:
        return str(self.data["operation_id"])


def follow(client: Operations, wanted: dict[str, str]) -> Iterator[Event | None]:
    """Events without end, each once; None means: look at the record now.

    That is so at the start, after the stream was lost (it then goes on behind the last event, so that none
    is missed), after words that are no event of an operation, and every second when the API has no stream.
    CommandError when the API stays out of reach.
    """
    last: str | None = None
    while True:
        response = client.stream(wanted, last)
        if response is None:
            yield from _looks()
            return
        yield None  # only now: what happens from here on comes by the stream
        try:
            with closing(response):
                for message in SSEClient(response.iter_content(_CHUNK_BYTES)).events():
                    last = message.id or last
                    yield _event(message.data)
        except requests.RequestException:
            pass  # the server went away: open it again, the adapter tries for half a minute
        time.sleep(_PAUSE_S)


def _looks() -> Iterator[None]:
    while True:
        yield None
        time.sleep(_PAUSE_S)


def _event(text: str) -> Event | None:
    """None for what is not an event of an operation: half an event of a broken line, a kind of the future."""
    try:
        content = json.loads(text)
        data = content["data"]
        if not isinstance(data, dict) or "operation_id" not in data:
            return None
        return Event(str(content["type"]).rpartition(".")[2], str(content["time"]), data)
    except (ValueError, KeyError, TypeError):
        return None
