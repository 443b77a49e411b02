"""The thread that runs a handler also writes its answer.

FastAPI would send what a handler returns to a second thread, to be checked, and turn it into JSON in the
event loop, where a long list keeps every other request waiting.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction
from typing import Any

from fastapi import Response
from fastapi.datastructures import DefaultPlaceholder
from fastapi.exceptions import ResponseValidationError
from fastapi.routing import APIRoute
from pydantic_core import to_json
from sqlmodel import Session

READS = frozenset({"GET", "HEAD"})
"""Methods of requests that change nothing."""


def json_answer(content: Any) -> Response:
    """200 with this as JSON, unchecked: for a handler that makes its answer of plain values itself."""
    return Response(to_json(content), media_type="application/json")


class AnsweringRoute(APIRoute):
    """A route whose blocking handler is one visit to a thread, its answer's JSON and the end of its read
    transaction included. What goes over the wire, and the OpenAPI document, are FastAPI's."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        waits = iscoroutinefunction(endpoint) or isasyncgenfunction(endpoint)
        if not waits and not isgeneratorfunction(endpoint):
            endpoint = self._answering(endpoint)
        super().__init__(path, endpoint, **options)

    def _answering(self, endpoint: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(endpoint)
        def answer(**arguments: Any) -> Any:
            try:
                return self._written(endpoint(**arguments), arguments)
            finally:
                if (self.methods or READS) <= READS:
                    _end_reads(arguments)

        return answer

    def _written(self, result: Any, arguments: dict[str, Any]) -> Any:
        field = self.response_field
        own_class = not isinstance(self.response_class, DefaultPlaceholder)
        if field is None or own_class or isinstance(result, Response):
            return result
        value, errors = field.validate(result, {}, loc=("response",))
        if errors:
            raise ResponseValidationError(errors=errors, body=result)
        content = field.serialize_json(
            value,
            include=self.response_model_include,
            exclude=self.response_model_exclude,
            by_alias=self.response_model_by_alias,
            exclude_unset=self.response_model_exclude_unset,
            exclude_defaults=self.response_model_exclude_defaults,
            exclude_none=self.response_model_exclude_none,
        )
        # Where a handler asks for the response, it is to put headers or a status into it.
        given: Response | None = arguments.get(self.dependant.response_param_name or "")
        status = (given and given.status_code) or self.status_code or 200
        answer = Response(content, status, media_type="application/json")
        if given is not None:
            answer.headers.raw.extend(given.headers.raw)
        return answer


def _end_reads(arguments: dict[str, Any]) -> None:
    """Give connections back from here: on PostgreSQL that asks the server, which the event loop must not."""
    for value in arguments.values():
        session = getattr(value, "db", value)  # a list's arguments come with theirs
        if isinstance(session, Session):
            session.close()
