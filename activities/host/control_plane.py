"""What a host asks of the control plane, over HTTP, proven by its own key: it holds no other credential."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from urllib.parse import quote

import httpx
from opentelemetry import propagate
from pydantic import Base64Bytes, TypeAdapter

from domain.errors import GuestFailure, Unavailable
from domain.guest import GuestReport, Inventory
from runtime.hosttoken import host_token
from virt.driver import Supplies

_CHUNK = 1024 * 1024
_FILES = TypeAdapter(dict[str, Base64Bytes])
_TIMEOUT = httpx.Timeout(30.0, connect=5.0)


@dataclass(frozen=True, slots=True)
class Told:
    """What the control plane says to a report."""

    interval_s: float
    """Until the next one is wanted."""
    peers: tuple[str, ...]
    """Underlay addresses of the other hosts."""


def control_http(control_url: str) -> httpx.Client:
    """Connections to the control plane, for all hosts of a process; the caller closes it."""
    return httpx.Client(base_url=f"{control_url.rstrip('/')}/internal/v1/hosts/", timeout=_TIMEOUT)


class ControlPlane(Supplies):
    """A blocking client for one host; may be used from several threads."""

    def __init__(self, http: httpx.Client, host: str, key: str) -> None:
        self._http = http
        self._host = host
        self._key = key

    def image(self, image_id: str) -> Iterator[bytes]:
        try:
            with self._http.stream(
                "GET", self._url(f"images/{image_id}"), headers=self._proof()
            ) as response:
                if response.status_code != 200:
                    raise GuestFailure(f"image {image_id}: HTTP {response.status_code}")
                yield from response.iter_bytes(_CHUNK)
        except httpx.TransportError as error:
            raise GuestFailure(f"image {image_id}: {error}") from error

    def config_drive(self, server_id: str) -> dict[str, bytes]:
        status, body = self._get(f"servers/{server_id}/config-drive")
        if status != 200:
            raise GuestFailure(f"config drive of {server_id}: HTTP {status}")
        return _FILES.validate_json(body)

    def answer(
        self, server_id: str, method: str, path: str, headers: Mapping[str, str]
    ) -> tuple[int, Mapping[str, str], bytes]:
        """What the metadata service says to this server (see ``virt.net.metadata.Answer``)."""
        if method not in ("GET", "HEAD"):
            return 405, {}, b""
        try:
            url = self._url(f"servers/{server_id}/metadata/{path.lstrip('/')}")
            response = self._http.get(url, headers=self._proof())
        except httpx.TransportError:
            return 503, {"Retry-After": "5"}, b""
        kind = response.headers.get("content-type", "text/plain")
        return response.status_code, {"Content-Type": kind}, response.content

    def report(
        self,
        epoch: str,
        zone: str | None,
        inventory: Inventory,
        guests: list[GuestReport],
        residue: list[str] | None = None,
    ) -> Told:
        """Tell what this host has and runs, and what is left on it without a guest (None: not looked).

        Unavailable when the control plane does not take it.
        """
        body: dict[str, object] = {
            "epoch": epoch,
            "availability_zone": zone,
            "inventory": asdict(inventory),
            "guests": [asdict(g) for g in guests],
        }
        if residue is not None:
            body["residue"] = residue
        try:
            response = self._http.post(self._url("report"), json=body, headers=self._proof())
        except httpx.TransportError as error:
            raise Unavailable(f"control plane: {error}") from error
        if response.status_code != 200:
            raise Unavailable(f"control plane: HTTP {response.status_code} {response.text[:200]}")
        answer = response.json()
        return Told(float(answer["interval_s"]), tuple(answer["peers"]))

    def _get(self, path: str) -> tuple[int, bytes]:
        try:
            response = self._http.get(self._url(path), headers=self._proof())
        except httpx.TransportError as error:
            raise GuestFailure(f"control plane: {error}") from error
        return response.status_code, response.content

    def _url(self, path: str) -> str:
        return f"{quote(self._host, safe='')}/{path}"

    def _proof(self) -> dict[str, str]:
        headers = {"X-Host-Token": host_token(self._key, self._host)}
        propagate.inject(headers)  # the request belongs to our trace
        return headers
