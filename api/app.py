"""build_app: services, middleware order and error formats on one screen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fastapi import APIRouter, FastAPI
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import (
    errors,
    events,
    health,
    identity,
    image,
    internal,
    metadata,
    network,
    operations,
    orphans,
    power_policy,
    verbs,
)
from api.compute import routers as compute_routers
from api.context import Cloud
from api.microversion import Microversion
from api.observed import TRACING, Observed
from domain.ids import new_request_id


def service(
    title: str, version: str, routers: Sequence[APIRouter], fault: errors.Formatter, cloud: Cloud
) -> FastAPI:
    """One embedded service: its routers under one error format, with its own OpenAPI document."""
    app = FastAPI(title=title, version=version, docs_url=None, redoc_url=None)
    app.state.cloud = cloud
    for router in routers:
        app.router.routes.extend(router.routes)  # include_router would look for each match twice
    errors.install(app, fault)
    return app


class RequestId:
    """ASGI layer: every request has an id, in ``scope["request_id"]`` and the answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = new_request_id()
        scope["request_id"] = request_id

        async def stamp(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-openstack-request-id"] = request_id
            await send(message)

        await self.app(scope, receive, stamp)


class Slashes:
    """ASGI layer: the root of a service answers with and without a slash at its end, and the identity
    service at every path; a redirect would lose the body of some clients' requests."""

    def __init__(self, app: ASGIApp, roots: Iterable[str]) -> None:
        self.app = app
        self._roots = frozenset(roots)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if path in self._roots:
            scope = {**scope, "path": f"{path}/"}
        elif path.startswith("/identity/v3") and path.endswith("/"):
            scope = {**scope, "path": path.rstrip("/")}
        await self.app(scope, receive, send)


def build_app(cloud: Cloud) -> ASGIApp:
    """The whole API on one port, by path."""
    root = FastAPI(title="Duranova", docs_url=None, redoc_url=None, telemetry=TRACING)
    root.add_middleware(Observed)
    root.state.cloud = cloud
    ours = [
        events.router,
        operations.router,
        orphans.router,
        power_policy.router,
        verbs.router,
    ]
    services: dict[str, ASGIApp] = {
        "/compute": Microversion(
            service("Compute", "2.1", compute_routers, errors.compute_fault, cloud)
        ),
        "/identity": service("Identity", "3", identity.routers, errors.identity_fault, cloud),
        "/image": service("Image", "2", [image.router], errors.image_fault, cloud),
        "/network": service("Network", "2.0", [network.router], errors.network_fault, cloud),
        "/operations": service("Operations", "1", ours, errors.plain_fault, cloud),
        "/internal": service(
            "Internal", "1", [internal.router, metadata.router], errors.plain_fault, cloud
        ),
    }
    for path, app in services.items():
        root.mount(path, app)
    root.include_router(health.router)
    health.mount_static(root)
    return RequestId(Slashes(root, services))
