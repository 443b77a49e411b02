"""The API's HTTP server, in a process that may also run the control worker."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator

import uvicorn
from sqlalchemy import Engine
from temporalio.client import Client

from api.app import build_app
from api.context import Cloud
from api.launch import TemporalLauncher
from api.tokens import Tokens
from cli.datadir import StartError
from runtime.sealing import Sealer
from runtime.settings import Settings


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # the command that runs us decides about signals


def listen(host: str, port: int, option: str = "--listen") -> socket.socket:
    """A listening socket, taken before anything else starts. StartError, naming the option that would
    help, when it cannot be had."""
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise StartError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another with {option}"
        ) from error
    return listening


@contextlib.asynccontextmanager
async def api_server(
    client: Client, engine: Engine, settings: Settings, listening: socket.socket, *, eager: bool
) -> AsyncIterator[None]:
    """Serve the API inside the block."""
    loop = asyncio.get_running_loop()
    cloud = Cloud(
        settings=settings,
        engine=engine,
        tokens=Tokens(settings),
        launcher=TemporalLauncher(client, loop, settings, eager=eager),
        sealer=Sealer(settings.secret_key.get_secret_value()),
    )
    config = uvicorn.Config(
        build_app(cloud),
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=10,
        server_header=False,
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        yield
    finally:
        cloud.tail.close()  # else the server would wait for streams that have no end
        server.should_exit = True
        await serving
