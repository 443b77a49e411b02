"""Every route of the API with the policy rules on it, found by walking the built application."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute, iter_route_contexts
from starlette.routing import Mount

from api.app import build_app
from api.context import Cloud

SERVICES = ("compute", "identity", "image", "network", "operations", "internal")


@dataclass(frozen=True)
class Walked:
    """One method of one route."""

    method: str
    path: str
    """With the service's prefix."""
    endpoint: Callable[..., Any]
    rules: frozenset[str]
    """On its dependencies, at any depth."""
    needs: tuple[Any, ...] = ()
    """The functions it depends on, in the order in which they are called."""

    @property
    def service(self) -> str:
        """``compute``, …; empty for what machines ask about the process."""
        first = self.path.split("/")[1]
        return first if first in SERVICES else ""

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


def walk() -> list[Walked]:
    """Every route of every service, in the order in which they match."""
    unasked = cast("Cloud", None)  # a route needs its cloud when it answers, not before
    return list(_walk(_fastapi(build_app(unasked)), ""))


def _walk(app: FastAPI, prefix: str) -> Iterator[Walked]:
    for found in iter_route_contexts(app.routes):
        route = found.original_route
        if isinstance(route, APIRoute):
            rules = frozenset(_rules(found.dependant))
            needs = tuple(_needs(found.dependant))
            for method in sorted(found.methods or ()):
                yield Walked(method, f"{prefix}{found.path}", route.endpoint, rules, needs)
        elif isinstance(route, Mount) and route.path != "/static":
            yield from _walk(_fastapi(route.app), prefix + route.path)


def _fastapi(app: Any) -> FastAPI:
    """The application inside its ASGI layers."""
    while not isinstance(app, FastAPI):
        app = getattr(app, "app", None) or app._app
    return app


def _needs(dependant: Dependant) -> Iterator[Any]:
    for inner in dependant.dependencies:
        yield from _needs(inner)
        yield inner.call


def _rules(dependant: Dependant) -> Iterator[str]:
    rule = getattr(dependant.call, "rule", None)
    if rule is not None:
        yield rule
    for inner in dependant.dependencies:
        yield from _rules(inner)
