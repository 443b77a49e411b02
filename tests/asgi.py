"""The API in process, built once: an app works its routes out at its first request, which takes as long
as many tests. The tests of a process share one and put their cloud into it."""

from __future__ import annotations

from functools import cache
from typing import Any, cast

from fastapi import FastAPI
from starlette.routing import Mount

from api.app import build_app
from api.context import Cloud


@cache
def _built() -> tuple[Any, tuple[FastAPI, ...]]:
    api: Any = build_app(cast("Cloud", None))
    root = _inner(api)
    mounted = (_inner(r.app) for r in root.routes if isinstance(r, Mount))
    return api, (root, *(m for m in mounted if isinstance(m, FastAPI)))


def _inner(app: Any) -> Any:
    while hasattr(app, "app"):
        app = app.app
    return app


def app_for(cloud: Cloud) -> Any:
    """The shared app, serving this cloud from now on."""
    api, services = _built()
    for service in services:
        service.state.cloud = cloud
    return api
