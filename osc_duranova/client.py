"""The operations API as a client sees it: found by the catalog, asked through the command's session."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import requests
from keystoneauth1 import exceptions as refused
from keystoneauth1.adapter import Adapter
from keystoneauth1.session import Session
from openstack.config.cloud_region import CloudRegion
from osc_lib.exceptions import CommandError

LOG = logging.getLogger(__name__)
"""Says so when the API does not answer and is tried again."""
Operation = dict[str, Any]
"""An operation as the API shows it: ``id``, ``action``, ``server_id``, ``state``, …"""

MOVING = ("accepted", "running")
"""States that end by themselves."""
HELD = "waiting_operator"
STATES = (*MOVING, HELD, "succeeded", "failed", "cancelled")
PAGE = 1000
"""The most operations that one answer holds."""
SLICE_S = 20.0
"""How long one request waits; the API allows a minute, and a proxy often less."""
_LOOK_AGAIN_S = 0.5
_RETRIES = 6
"""Tries after the first while the API does not answer or says 503: about half a minute in all."""
_STREAM_TIMEOUT_S = (10.0, 60.0)
"""(connect, silence): a stream that says nothing at all for this long, no comment either, is dead."""


class Operations:
    """Every call returns what the API answers and raises CommandError with its sentence."""

    def __init__(self, adapter: Adapter) -> None:
        self._api = adapter

    @classmethod
    def of(cls, session: Session, config: CloudRegion) -> Operations:
        """The API that this cloud's catalog names, in the configured region and interface."""
        kind = "operations"
        return cls(
            Adapter(
                session,
                service_type=kind,
                service_name=config.get_service_name(kind),
                interface=config.get_interface(kind),
                region_name=config.get_region_name(kind),
                endpoint_override=config.get_endpoint(kind),
                logger=LOG,
                connect_retries=_RETRIES,
                status_code_retries=_RETRIES,
            )
        )

    def find(self, filters: dict[str, Any], limit: int = -1) -> list[Operation]:
        """The newest ``limit`` operations (-1: all), newest first; ``filters`` may hold a ``marker``."""
        found: list[Operation] = []
        filters = dict(filters)
        while limit < 0 or len(found) < limit:
            size = PAGE if limit < 0 else min(PAGE, limit - len(found))
            page = self._get("/operations", {**filters, "limit": size})
            found += page["operations"]
            if not page["next"]:
                break
            filters["marker"] = found[-1]["id"]
        return found

    def show(self, operation_id: str) -> Operation:
        """One operation with its ``steps``."""
        return self._get(_path(operation_id))

    def wait(
        self, operation_id: str, timeout_s: float | None = None, held_at: str | None = None
    ) -> Operation:
        """The operation once it has ended or is held, or as it is after ``timeout_s``.

        ``held_at``: the ``updated_at`` of a hold that is known, and not to be told again.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left = SLICE_S if deadline is None else max(0.0, deadline - time.monotonic())
            shown = self._get(f"{_path(operation_id)}/wait", {"timeout": min(left, SLICE_S)})
            known = shown["state"] == HELD and shown["updated_at"] == held_at
            if not known and shown["state"] not in MOVING:
                return shown
            if deadline is not None and time.monotonic() >= deadline:
                return shown
            if known:
                time.sleep(_LOOK_AGAIN_S)  # the verb was accepted and has not been acted on yet

    def tell(self, operation_id: str, verb: str, reason: str | None = None) -> Operation:
        """Send a verb; returns the operation, or the new one if the verb has started one."""
        # one key for every try of this call: a try whose answer was lost is not done twice
        headers = {"Idempotency-Key": str(uuid.uuid4())}
        body = {} if reason is None else {"reason": reason}
        with _sentences():
            answer = self._api.post(f"{_path(operation_id)}/{verb}", json=body, headers=headers)
        return _object(answer)

    def placements(self, server_id: str) -> list[dict[str, Any]]:
        """Every placement decision about a server, newest first."""
        answer = self._get(f"/servers/{quote(server_id, safe='')}/placement")
        decisions: list[dict[str, Any]] = answer["placements"]
        return decisions

    def stream(self, wanted: dict[str, str], after: str | None) -> requests.Response | None:
        """The open event stream, going on behind the event ``after``; None if this API has none."""
        with _sentences():
            try:
                return self._stream(wanted, {"Last-Event-ID": after} if after else {})
            except refused.NotFound:
                return None
            except refused.Gone:  # that event is no longer kept: go on from now
                return self._stream(wanted, {})

    def _stream(self, wanted: dict[str, str], headers: dict[str, str]) -> requests.Response:
        return self._api.get(
            "/events",
            params=wanted,
            headers={"Accept": "text/event-stream", **headers},
            stream=True,
            timeout=_STREAM_TIMEOUT_S,
            log=False,  # logging an answer would read it to its end
        )

    def _get(self, path: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
        with _sentences():
            return _object(self._api.get(path, params=params or {}))


@contextmanager
def _sentences() -> Iterator[None]:
    """Turn refusals into the API's own sentence: what went wrong is the user's to read, not a trace."""
    try:
        yield
    except (refused.EndpointNotFound, refused.EmptyCatalog) as absent:
        raise CommandError(
            "This cloud's catalog has no operations service here: it does not run Duranova, "
            f"or not in this region. ({absent})"
        ) from absent
    except refused.Unauthorized:
        raise
    except refused.HTTPClientError as answer:
        raise CommandError(answer.message or str(answer)) from answer
    except refused.ClientException as other:  # with its status and request id
        raise CommandError(str(other)) from other


def _path(operation_id: str) -> str:
    return f"/operations/{quote(operation_id, safe='')}"


def _object(answer: requests.Response) -> dict[str, Any]:
    content: dict[str, Any] = answer.json()
    return content
