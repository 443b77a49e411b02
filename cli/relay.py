"""Loopback ports of the machine, made reachable inside a host's own network namespace."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

from virt.net.kernel import inside

_CHUNK = 65536


@asynccontextmanager
async def relayed(netns: str, ports: list[int]) -> AsyncIterator[None]:
    """Inside the block, ``127.0.0.1:port`` in the namespace is the machine's own ``127.0.0.1:port``."""
    async with AsyncExitStack() as stack:
        for port in ports:
            listening = await asyncio.to_thread(inside, netns, lambda p=port: _listen(p))
            server = await asyncio.start_server(_Relay(port).serve, sock=listening)
            await stack.enter_async_context(server)
        yield


def _listen(port: int) -> socket.socket:
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("127.0.0.1", port))
    return listening


class _Relay:
    def __init__(self, port: int) -> None:
        self._port = port

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(_pump(reader, there_writer), _pump(there_reader, writer))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()
    with suppress(OSError):
        writer.close()
