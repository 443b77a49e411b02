"""Microversions: one declaration per change, no version branches in handlers.

A field or route says in which closed range of versions it exists; the engine hides it elsewhere, from
requests, responses, routing and the OpenAPI document alike.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.idempotency import KeyedRoute


class Version(NamedTuple):
    """A microversion, ordered."""

    major: int
    minor: int

    @classmethod
    def parse(cls, text: str) -> Version:
        """``2.79`` → Version(2, 79). ValueError for anything else."""
        if not (m := re.fullmatch(r"([1-9]\d*)\.(0|[1-9]\d*)", text)):
            raise ValueError(text)
        return cls(int(m[1]), int(m[2]))

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


MIN, MAX = Version(2, 1), Version(2, 96)
_UNVERSIONED = ("", "/", "/v2", "/v2/")
"""Paths under the service that answer alike in every version: documents about the versions."""
_current: ContextVar[Version] = ContextVar("microversion", default=MIN)


def current() -> Version:
    """The version this request speaks."""
    return _current.get()


@dataclass(frozen=True, slots=True)
class Span:
    """The closed range of versions in which something exists."""

    since: Version = MIN
    until: Version = MAX

    def __contains__(self, version: object) -> bool:
        return isinstance(version, Version) and self.since <= version <= self.until

    def __get_pydantic_json_schema__(
        self, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """The field in the API's documentation, with the versions it exists in: OpenStack's own keywords."""
        return {
            **handler(core),
            "x-openstack": {"min-ver": str(self.since), "max-ver": str(self.until)},
        }


def span(since: str = "2.1", until: str = str(MAX)) -> Span:
    """A range given as text; both ends belong to it."""
    return Span(Version.parse(since), Version.parse(until))


ALWAYS = Span()
"""Every version."""


class _Required:
    """Marks a field that must be sent while it exists, though the class lets it be absent."""


def since(version: str, *, until: str = str(MAX), required: bool = False) -> Any:
    """Field marker for ``Annotated``: the field exists from this version on."""
    wanted = span(version, until)
    info = Field(exclude_if=lambda _: current() not in wanted)
    info.metadata.append(wanted)
    if required:
        info.metadata.append(_Required())
    return info


def until(version: str) -> Any:
    """Field marker for ``Annotated``: the field exists up to and with this version."""
    return since("2.1", until=version)


class View(BaseModel):
    """Base of every compute response body: fields outside the version are not emitted."""

    model_config = ConfigDict(from_attributes=True, populate_by_name=True, serialize_by_alias=True)


def shown(kind: type[View], fields: dict[str, Any]) -> dict[str, Any]:
    """These fields of a view, by attribute name, as this request's version has them on the wire.

    What an instance's ``model_dump(exclude_unset=True)`` gives, without the checks and the calls for each
    field of each item, which are most of the time that a long list takes.
    """
    return {wire: fields[name] for name, wire in _wire_names(kind, current()) if name in fields}


@cache
def _wire_names(kind: type[View], version: Version) -> tuple[tuple[str, str], ...]:
    return tuple(
        (name, field.serialization_alias or field.alias or name)
        for name, field in kind.model_fields.items()
        if all(version in mark for mark in field.metadata if isinstance(mark, Span))
    )


class Body(BaseModel):
    """Base of every compute request body: fields outside the version are unknown, hence refused."""

    model_config = ConfigDict(extra="forbid")
    _spans: ClassVar[tuple[tuple[str, Span, bool], ...]] = ()

    @classmethod
    def __pydantic_on_complete__(cls) -> None:
        cls._spans = tuple(
            (field.alias or name, mark, any(isinstance(m, _Required) for m in field.metadata))
            for name, field in cls.model_fields.items()
            for mark in field.metadata
            if isinstance(mark, Span)
        )

    @model_validator(mode="before")
    @classmethod
    def _check_version(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for key, wanted, required in cls._spans:
                if key in data and current() not in wanted:
                    raise PydanticCustomError(
                        "extra_forbidden",
                        "Additional properties are not allowed ('{key}' was unexpected)",
                        {"key": key},
                    )
                if required and key not in data and current() in wanted:
                    raise PydanticCustomError(
                        "missing", "'{key}' is a required property", {"key": key}
                    )
        return data


def versions(since: str, until: str = str(MAX)) -> Callable[[Any], Any]:
    """Handler marker (below the route decorator): the route exists only in this range, else 404."""

    def mark(handler: Any) -> Any:
        handler.span = span(since, until)
        return handler

    return mark


class Route(KeyedRoute):
    """A route that is invisible outside its handler's range."""

    def dialect(self) -> str:
        """The same body may mean, and be answered, something else in another version."""
        return str(current())

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, child = super().matches(scope)
        wanted = getattr(self.endpoint, "span", None)
        if match is not Match.NONE and wanted is not None and current() not in wanted:
            return Match.NONE, {}
        return match, child


class Microversion:
    """ASGI layer of the compute service: negotiate the version, publish it, echo it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if path in _UNVERSIONED:
            await self.app(scope, receive, send)
            return
        if path.startswith("/v2/"):  # the API before microversions: today's, in its first version
            await self._serve(MIN, _renamed(scope, path), receive, send)
            return
        text = _asked(Headers(scope=scope))
        try:
            version = MAX if text == "latest" else Version.parse(text)
        except ValueError:
            message = f"API Version String {text} is of invalid format. Must be of format MajorNum.MinorNum."
            await _refuse(400, "badRequest", message)(scope, receive, send)
            return
        if not MIN <= version <= MAX:
            message = f"Version {text} is not supported by the API. Minimum is {MIN} and maximum is {MAX}."
            await _refuse(406, "computeFault", message)(scope, receive, send)
            return
        await self._serve(version, scope, receive, send)

    async def _serve(self, version: Version, scope: Scope, receive: Receive, send: Send) -> None:
        async def echo(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["OpenStack-API-Version"] = f"compute {version}"
                headers["X-OpenStack-Nova-API-Version"] = str(version)
                headers.append("Vary", "OpenStack-API-Version")
                headers.append("Vary", "X-OpenStack-Nova-API-Version")
            await send(message)

        token = _current.set(version)
        try:
            await self.app(scope, receive, echo)
        finally:
            _current.reset(token)


def _renamed(scope: Scope, path: str) -> Scope:
    new = f"{scope.get('root_path', '')}/v2.1/{path.removeprefix('/v2/')}"
    return {**scope, "path": new, "raw_path": new.encode()}


def _asked(headers: Headers) -> str:
    for part in headers.get("openstack-api-version", "").split(","):
        service, _, text = part.strip().partition(" ")
        if service == "compute":
            return text.strip()
    return headers.get("x-openstack-nova-api-version", str(MIN))


def _refuse(code: int, name: str, message: str) -> JSONResponse:
    return JSONResponse({name: {"message": message, "code": code}}, code)
