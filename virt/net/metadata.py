"""The metadata service's front on a host: one listening socket in each network's namespace.

Who asks is known from where the question arrives: the socket tells the network, the source address tells
the port (the packet filter lets no guest use another's). Nothing the guest writes can change that.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol

from virt.net import kernel
from virt.net.segment import METADATA_IP

_log = logging.getLogger(__name__)

CONNECTIONS = 128
"""Open connections per network; further ones are closed at once."""
CONNECTIONS_PER_GUEST = 16
IDLE_S = 15.0
"""How long a guest may stay silent, inside a request or between two."""
HOPS = 2
"""Answers reach the guest and what runs one hop behind it (a container), nobody further away."""
MAX_HEADERS_BYTES = 16 * 1024
MAX_BODY_BYTES = 64 * 1024

_NOT_PASSED_ON = {
    "connection",
    "content-length",
    "forwarded",
    "keep-alive",
    "transfer-encoding",
    "upgrade",
    "via",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-instance-id",
    "x-instance-id-signature",
    "x-metadata-provider",
    "x-metadata-provider-signature",
    "x-real-ip",
    "x-tenant-id",
}


class Answer(Protocol):
    """Answers a guest's question about itself."""

    def __call__(
        self, server_id: str, method: str, path: str, headers: Mapping[str, str]
    ) -> tuple[int, Mapping[str, str], bytes]:
        """(status, headers, body) for a request of this server; header names come in lower case."""


class Listener:
    """The metadata socket of one network."""

    def __init__(self, netns: str, find: Callable[[str], str | None], answer: Answer) -> None:
        """``find`` tells the server id of a source address on this network, None for a stranger."""
        self._netns = netns
        self._namespace = _inode(netns)
        self._server = _Server(kernel.inside(netns, _listen), find, answer)
        self._thread = threading.Thread(
            target=self._server.serve_forever, name=f"metadata-{netns}", daemon=True
        )
        self._thread.start()

    def serves(self, netns: str) -> bool:
        """Is this socket in the namespace that has this name now?"""
        return self._netns == netns and self._namespace == _inode(netns)

    def close(self) -> None:
        """Stop listening; running answers are finished by their own threads."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _inode(netns: str) -> int:
    return (kernel.NETNS_DIR / netns).stat().st_ino


def _listen() -> socket.socket:
    listening = socket.socket()
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # A worker that is being replaced and its successor may overlap.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, HOPS)
        listening.bind((METADATA_IP, 80))
        listening.listen(64)
    except BaseException:
        listening.close()
        raise
    return listening


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(
        self, listening: socket.socket, find: Callable[[str], str | None], answer: Answer
    ) -> None:
        super().__init__((METADATA_IP, 80), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listening
        self.find = find
        self.answer = answer
        self._open: Counter[str] = Counter()
        self._lock = threading.Lock()

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Refuse a connection beyond the limits."""
        with self._lock:
            guest = client_address[0]
            full = self._open.total() >= CONNECTIONS or self._open[guest] >= CONNECTIONS_PER_GUEST
            if not full:
                self._open[guest] += 1
            return not full

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one connection and count it out."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._open[client_address[0]] -= 1
                self._open += Counter()  # forgets those at zero

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that breaks off is the guest's affair."""
        _log.debug("metadata connection from %s broke off", client_address[0], exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "duranova"
    sys_version = ""
    timeout = IDLE_S
    server: _Server

    def do_GET(self) -> None:
        """Ask for the server whose address this is."""
        if not self._take_body():
            return
        server_id = self.server.find(self.client_address[0])
        if server_id is None:
            self._reply(HTTPStatus.NOT_FOUND, {}, b"")
            return
        headers = {
            name.lower(): value
            for name, value in self.headers.items()
            if name.lower() not in _NOT_PASSED_ON
        }
        try:
            status, told, body = self.server.answer(server_id, self.command, self.path, headers)
        except Exception:
            _log.exception("metadata for server %s could not be had", server_id)
            status, told, body = HTTPStatus.SERVICE_UNAVAILABLE, {"Retry-After": "2"}, b""
        self._reply(status, told, body)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815 - http.server looks for these names

    def _take_body(self) -> bool:
        """Read the request's body away, within bounds; it means nothing to this service."""
        if sum(len(name) + len(value) for name, value in self.headers.items()) > MAX_HEADERS_BYTES:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        elif self.headers.get("Transfer-Encoding"):
            self._refuse(HTTPStatus.LENGTH_REQUIRED)
        else:
            length = self.headers.get("Content-Length", "0")
            if not (length.isascii() and length.isdigit()):
                self._refuse(HTTPStatus.BAD_REQUEST)
            elif len(length) > 9 or int(length) > MAX_BODY_BYTES:
                self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            else:
                self.rfile.read(int(length))
                return True
        return False

    def _refuse(self, status: HTTPStatus) -> None:
        self.close_connection = True
        self._reply(status, {"Connection": "close"}, b"")

    def _reply(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in {"content-length", "transfer-encoding"}:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are logged where they are answered, with the server's id."""
        _log.debug("metadata %s " + format, self.client_address[0], *args)
