"""The load: requests through the public API, and what became of each in the client's eyes."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from chaos.plan import Decision, Verb
from domain.lifecycle import LIFECYCLES
from domain.states import VmState, status

MAX_SERVERS = 12
"""With so many the load deletes instead of creating."""
_ANSWER_S = 45.0
_UPLOAD_WITHIN_S = 60.0
_BODIES: dict[str, dict[str, Any]] = {
    "pause": {"pause": None},
    "reboot_hard": {"reboot": {"type": "HARD"}},
    "reboot_soft": {"reboot": {"type": "SOFT"}},
    "resume": {"resume": None},
    "start": {"os-start": None},
    "stop": {"os-stop": None},
    "suspend": {"suspend": None},
    "unpause": {"unpause": None},
}


@dataclass(slots=True)
class Asked:
    """One request. ``answer`` is the HTTP status; None when no answer came: it may have been accepted."""

    round: int
    at_s: float
    lifecycle: str
    name: str
    """Of the server; a lost create is found by it."""
    server_id: str | None
    answer: int | None = None
    request_id: str | None = None
    said: str = ""
    """What a refusal or a lost answer said."""
    sent: bool = True
    """False when there was nobody to take it."""
    took_s: float = 0.0

    @property
    def accepted(self) -> bool:
        """Answered 2xx."""
        return self.answer is not None and 200 <= self.answer < 300

    @property
    def may_be_accepted(self) -> bool:
        """The answer was lost, or the server failed on the way."""
        return self.sent and (self.answer is None or self.answer >= 500)


@dataclass(slots=True)
class Load:
    """A client of the cloud, with everything that it ever asked for."""

    url: str
    clouds: Path
    """The cloud's clouds.yaml."""
    asked: list[Asked] = field(default_factory=list)
    _http: httpx.AsyncClient = field(init=False)
    _image_id: str = ""
    _network_id: str = ""

    def __post_init__(self) -> None:
        limits = httpx.Limits(max_keepalive_connections=0)  # a dead API's connections are no use
        self._http = httpx.AsyncClient(base_url=self.url, timeout=_ANSWER_S, limits=limits)

    async def prepare(self, image: Path) -> None:
        """Get a token, upload an image (qcow2 by its name, else raw), find the network."""
        await self._log_in()
        disk_format = "qcow2" if image.suffix == ".qcow2" else "raw"
        body = {"name": "chaos", "disk_format": disk_format, "container_format": "bare"}
        made = (await self._http.post("/image/v2/images", json=body)).raise_for_status().json()
        put = await self._http.put(
            f"/image/v2/images/{made['id']}/file",
            content=await asyncio.to_thread(image.read_bytes),
            headers={"Content-Type": "application/octet-stream"},
            timeout=_UPLOAD_WITHIN_S,
        )
        put.raise_for_status()
        networks = await self._http.get("/network/v2.0/networks", params={"name": "demo-net"})
        self._image_id = made["id"]
        self._network_id = networks.raise_for_status().json()["networks"][0]["id"]

    async def close(self) -> None:
        """Let go of the connections."""
        await self._http.aclose()

    async def servers(self) -> dict[str, str]:
        """id → status of every server; HTTPError when the API does not answer."""
        answer = await self._get("/compute/v2.1/servers/detail", limit=1000)
        return {s["id"]: s["status"] for s in answer["servers"]}

    async def carry_out(self, number: int, decision: Decision) -> Asked | None:
        """Do what was decided, with a server that fits; None when there is none, or nobody answers."""
        try:
            known = await self.servers()
        except httpx.HTTPError:
            known = None
        verb: Verb = decision.verb
        if verb == "create" and known is not None and len(known) >= MAX_SERVERS:
            verb = "delete"
        if verb == "create":
            return await self._create(number, decision)
        if not known:
            return None
        server_id = sorted(known)[int(decision.which * len(known))]
        if verb == "delete":
            return await self.delete(number, decision.at_s, server_id)
        fitting = actions_of(known[server_id])
        if not fitting:
            return None
        lifecycle = fitting[int(decision.what * len(fitting))]
        one = Asked(number, decision.at_s, lifecycle, self.name_of(server_id), server_id)
        path = f"/compute/v2.1/servers/{server_id}/action"
        return await self._ask(one, "POST", path, _BODIES[lifecycle])

    async def delete(self, number: int, at_s: float, server_id: str) -> Asked:
        """Ask for the end of a server."""
        one = Asked(number, at_s, "delete", self.name_of(server_id), server_id)
        return await self._ask(one, "DELETE", f"/compute/v2.1/servers/{server_id}")

    def name_of(self, server_id: str) -> str:
        """The name under which a server was asked for; its id for one whose answer was lost."""
        mine = (a.name for a in self.asked if a.server_id == server_id)
        return next(mine, server_id)

    async def _create(self, number: int, decision: Decision) -> Asked:
        one = Asked(number, decision.at_s, "create", f"r{number}-{len(self.asked)}", None)
        server = {
            "name": one.name,
            "imageRef": self._image_id,
            "flavorRef": "tiny",
            "networks": [{"uuid": self._network_id}],
        }
        return await self._ask(one, "POST", "/compute/v2.1/servers", {"server": server})

    async def _ask(
        self, one: Asked, method: str, path: str, body: dict[str, Any] | None = None
    ) -> Asked:
        self.asked.append(one)
        began = time.monotonic()
        try:
            answer = await self._http.request(method, path, json=body)
        except httpx.HTTPError as error:
            one.said = f"{type(error).__name__}: {error}"
            one.sent = not isinstance(error, httpx.ConnectError)
            return one
        finally:
            one.took_s = round(time.monotonic() - began, 2)
        one.answer = answer.status_code
        one.request_id = answer.headers.get("x-openstack-request-id")
        if one.lifecycle == "create" and one.accepted:
            one.server_id = answer.json()["server"]["id"]
        if not one.accepted:
            one.said = answer.text[:300]
        if answer.status_code == 401:
            await self._log_in()
        return one

    async def _get(self, path: str, **params: Any) -> dict[str, Any]:
        answer = await self._http.get(path, params=params)
        if answer.status_code == 401:
            await self._log_in()
            answer = await self._http.get(path, params=params)
        found: dict[str, Any] = answer.raise_for_status().json()
        return found

    async def _log_in(self) -> None:
        clouds = json.loads(await asyncio.to_thread(self.clouds.read_text))["clouds"]
        auth = clouds["duranova"]["auth"]
        domain = {"id": "default"}
        user = {"name": auth["username"], "domain": domain, "password": auth["password"]}
        body = {
            "identity": {"methods": ["password"], "password": {"user": user}},
            "scope": {"project": {"name": auth["project_name"], "domain": domain}},
        }
        answer = await self._http.post("/identity/v3/auth/tokens", json={"auth": body})
        token = answer.raise_for_status().headers["X-Subject-Token"]
        self._http.headers["X-Auth-Token"] = token


def actions_of(shown: str) -> list[str]:
    """The power operations that a server with this status takes, by name."""
    states = [s for s in VmState if status(s, None) == shown and s is not VmState.ERROR]
    return [n for n in sorted(_BODIES) if any(s in LIFECYCLES[n].allowed for s in states)]
