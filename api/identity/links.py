"""What every Keystone answer shares: links, lists, and attributes the API does not know."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Annotated, Any, ClassVar

from fastapi import Depends, Request
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from api.context import TheCloud
from api.fields import Text
from api.policy import Caller, authorize
from db.identity import Domain, Project, Role, User
from domain.errors import Forbidden, NotImplementedHere

_FALSE = {"0", "false", "f", "no", "n", "off"}


def _not_blank(value: str) -> str:
    if not value.strip():
        raise ValueError("It must have a character that is not white space.")
    return value


Name64 = Annotated[Text, Field(min_length=1, max_length=64), AfterValidator(_not_blank)]
Name255 = Annotated[Text, Field(min_length=1, max_length=255), AfterValidator(_not_blank)]
Id = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[a-zA-Z0-9-]+$")]


class Attributes(BaseModel):
    """Base of the bodies that make or change a thing; attributes the API does not know are kept."""

    model_config = ConfigDict(extra="allow")
    known_options: ClassVar[dict[str, type]] = {"immutable": bool}
    description: Text | None = None
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_options(self) -> Attributes:
        for name, value in self.options.items():
            if name not in self.known_options:
                raise ValueError(f"Unknown option: {name}.")
            if value is not None and not isinstance(value, self.known_options[name]):
                raise ValueError(f"The option {name} is of another type.")
        return self

    @model_validator(mode="after")
    def _check_extra(self) -> Attributes:
        try:
            json.dumps([self.model_extra, self.options], ensure_ascii=False).encode()
        except (ValueError, RecursionError):
            raise ValueError("An attribute cannot be written as JSON.") from None
        return self

    def write(self, row: Domain | Project | User | Role, *names: str) -> None:
        """Copy to the row what was sent of ``names`` and of the attributes every kind has."""
        for name in self.model_fields_set & {"name", *names}:
            setattr(row, name, getattr(self, name))
        if "description" in self.model_fields_set:
            row.description = self.description or ""
        if "options" in self.model_fields_set:
            merged = {**row.options, **self.options}
            row.options = {k: v for k, v in merged.items() if v is not None}
        hidden = {"id", "links", "password", "original_password"}
        extra = {k: v for k, v in (self.model_extra or {}).items() if k not in hidden}
        if extra:
            row.extra = {**row.extra, **extra}


class Links:
    """Builds the identity API's absolute URLs for one request."""

    def __init__(self, request: Request, cloud: TheCloud) -> None:
        self._request = request
        self.root = f"{cloud.settings.public_url.rstrip('/')}/identity/v3"

    def href(self, *path: str) -> str:
        """The URL of a resource, e.g. ``href("projects", id)``."""
        return "/".join((self.root, *path))

    def of(self, *path: str) -> dict[str, str]:
        """The ``links`` of one resource."""
        return {"self": self.href(*path)}

    def listing(self, name: str, items: Iterable[dict[str, Any]]) -> dict[str, Any]:
        """A whole list under its name; Keystone's lists have one page."""
        path = self._request.scope["path"].partition("/v3")[2]
        query = self._request.url.query
        here = f"{self.root}{path}" + (f"?{query}" if query else "")
        return {name: list(items), "links": {"next": None, "self": here, "previous": None}}


async def _links(request: Request, cloud: TheCloud) -> Links:
    return Links(request, cloud)


TheLinks = Annotated[Links, Depends(_links)]


def flag(value: str | None) -> bool | None:
    """A query parameter as Keystone reads it: absent → None, ``0`` or ``false`` → False, anything
    else, the empty text included → True."""
    return None if value is None else value.strip().lower() not in _FALSE


def check_mutable(row: Domain | Project | Role, given: Attributes | None = None) -> None:
    """Forbidden to change or delete a resource with the option ``immutable``, unless the change takes
    that option away."""
    lifts = given is not None and given.options.get("immutable", True) in (False, None)
    if row.options.get("immutable") and not lifts:
        kind = type(row).__name__.lower()
        raise Forbidden(f"Cannot change or delete {kind} {row.id}: resource is immutable.")


def owner_or_reader(who: Caller, own: bool) -> None:
    """Forbidden unless it is the caller's own or the caller may read the whole identity service."""
    if not own:
        authorize(who, "identity:read")


def absent(what: str) -> NotImplementedHere:
    """The error for a part of Keystone that is not here."""
    return NotImplementedHere(f"This identity service has no {what}.")
