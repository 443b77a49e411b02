"""A small client of any OpenStack cloud: password auth, the token's catalog, timed requests on kept connections.

It does as little as it can for each request: on a small machine the client takes its processor time from
the cloud that it measures.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any, Self

import aiohttp

TIMEOUT_S = 300.0
"""Of one request; what takes longer counts as an error."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What ``OS_AUTH_URL`` and its like say; domains by name or id."""

    auth_url: str
    username: str
    password: str
    project: str
    user_domain: str = "default"
    project_domain: str = "default"
    region: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, and how many seconds it took from sending to the last byte."""

    status: int
    body: bytes
    headers: Any
    took_s: float

    def json(self) -> Any:
        """The body, read."""
        return json.loads(self.body)


class Refused(Exception):
    """The cloud answered with a status that was not expected, or not at all."""


class OpenStack:
    """One user in one project.

    async with OpenStack(credentials) as cloud:
        await cloud.log_in()
        answer = await cloud.get("compute", "/servers/detail?limit=100")
    """

    def __init__(self, credentials: Credentials, microversion: str = "2.96") -> None:
        self.credentials = credentials
        self.connections = aiohttp.TCPConnector(limit=0, keepalive_timeout=60)
        self._http: aiohttp.ClientSession | None = None
        self._headers = {"OpenStack-API-Version": f"compute {microversion}"}
        self._endpoints: dict[str, str] = {}
        self.project_id = ""
        self.user_id = ""

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        self._http = aiohttp.ClientSession(connector=self.connections, timeout=timeout)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._http is not None:
            await self._http.close()

    async def log_in(self) -> None:
        """Get a token and the catalog that comes with it."""
        answer = await self.token()
        token = answer.json()["token"]
        self._headers["X-Auth-Token"] = answer.headers["X-Subject-Token"]
        self.project_id, self.user_id = token["project"]["id"], token["user"]["id"]
        self._endpoints = endpoints(token["catalog"], self.credentials.region)

    async def token(self) -> Answer:
        """Ask for a new token, which is not used."""
        url = f"{self.credentials.auth_url.rstrip('/').removesuffix('/v3')}/v3/auth/tokens"
        return await self._send("POST", url, _login(self.credentials), (201,))

    async def get(self, service: str, path: str, *ok: int) -> Answer:
        """GET from a service (``compute``, ``image``, ``network``); Refused unless 200 or one of ``ok``."""
        return await self.ask("GET", service, path, None, ok or (200,))

    async def ask(
        self, method: str, service: str, path: str, body: Any = None, ok: tuple[int, ...] = (200,)
    ) -> Answer:
        """A request with a JSON body; Refused when the answer is not one of ``ok``."""
        return await self._send(method, self._endpoints[service] + path, body, ok)

    async def upload(self, path: str, content: bytes) -> None:
        """PUT bytes to the image service."""
        assert self._http is not None
        headers = {**self._headers, "Content-Type": "application/octet-stream"}
        url = self._endpoints["image"] + path
        async with self._http.put(url, data=content, headers=headers) as answer:
            if answer.status != 204:
                raise Refused(f"PUT {path}: {answer.status} {(await answer.text())[:300]}")

    async def _send(self, method: str, url: str, body: Any, ok: tuple[int, ...]) -> Answer:
        assert self._http is not None
        began = time.perf_counter()
        try:
            async with self._http.request(method, url, json=body, headers=self._headers) as answer:
                content = await answer.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Refused(f"{method} {url}: {type(error).__name__} {error}") from error
        took_s = time.perf_counter() - began
        if answer.status not in ok:
            said = content[:300].decode(errors="replace")
            raise Refused(f"{method} {url}: {answer.status} {said}")
        return Answer(answer.status, content, answer.headers, took_s)


_SUFFIXES = {"image": "/v2", "network": "/v2.0"}
"""What catalogs leave out of the URLs of services."""


def endpoints(catalog: list[dict[str, Any]], region: str | None) -> dict[str, str]:
    """Service type → public URL with its version, of this region or of the first one listed."""
    found: dict[str, str] = {}
    for service in catalog:
        for endpoint in service["endpoints"]:
            here = region is None or region in (endpoint.get("region"), endpoint.get("region_id"))
            if endpoint["interface"] == "public" and here:
                url, suffix = endpoint["url"].rstrip("/"), _SUFFIXES.get(service["type"], "")
                found.setdefault(service["type"], url.removesuffix(suffix) + suffix)
    return found


def _login(who: Credentials) -> dict[str, Any]:
    user = {"name": who.username, "password": who.password, "domain": _domain(who.user_domain)}
    project = {"name": who.project, "domain": _domain(who.project_domain)}
    identity = {"methods": ["password"], "password": {"user": user}}
    return {"auth": {"identity": identity, "scope": {"project": project}}}


def _domain(text: str) -> dict[str, str]:
    """``default`` is an id, as is whatever looks like one; anything else is a name."""
    is_id = text == "default" or (len(text) == 32 and all(c in "0123456789abcdef" for c in text))
    return {"id": text} if is_id else {"name": text}
