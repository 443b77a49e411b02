"""Which host is asking: proven by a short-lived JWT under that host's own key."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from api.context import cloud_of
from domain.errors import Unauthorized
from runtime.hosttoken import check_host_token
from runtime.logs import note
from runtime.sealing import host_key


async def get_host(host: str, request: Request) -> str:
    """The ``{host}`` of the path, if ``X-Host-Token`` proves that it asks. Unauthorized otherwise."""
    secret = cloud_of(request).settings.secret_key.get_secret_value()
    tokens = request.headers.getlist("x-host-token")
    # exactly one: a proxy and we must not read different ones
    if len(tokens) != 1 or not check_host_token(host_key(secret, host), host, tokens[0]):
        raise Unauthorized("A host's own token is required.")
    note(host=host)
    return host


get_host.rule = "host"  # type: ignore[attr-defined]  # read by the test that walks all routes
TheHost = Annotated[str, Depends(get_host)]
