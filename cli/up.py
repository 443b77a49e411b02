"""``duranova up``: the whole cloud on one machine, one port, one data directory."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import structlog
from pydantic import SecretStr
from sqlalchemy import Engine
from temporalio.client import Client
from temporalio.service import RPCError

from cli.children import Child, last_line
from cli.datadir import DataDir, Running, StartError, open_data_dir
from cli.hypervisors import Hypervisor, plan_hypervisors
from cli.ready import say_ready
from cli.records import ensure_first_records
from cli.serve import api_server, listen
from db import schema
from db.session import open_engine, transaction
from domain.errors import DuranovaError
from runtime.devserver import command as temporal_command
from runtime.devserver import free_port, wait_ready
from runtime.settings import Settings
from runtime.telemetry import observed
from runtime.temporal import connect_to, ensure_search_attributes
from workers.control import control_worker
from workers.standing import standing_work

_log = structlog.get_logger(__name__)
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class UpOptions:
    """What the command line said."""

    data_dir: Path
    listen: tuple[str, int]
    driver: str
    hosts: int
    temporal: str | None
    database_url: str | None
    temporal_ui_port: int | None
    """None leaves the Web UI off."""
    ready_fd: int | None


async def up(options: UpOptions, say: Say) -> None:
    """Run until SIGTERM or ctrl-C. StartError when it cannot start."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    data = open_data_dir(options.data_dir)
    settings = _settings(options, data)
    async with AsyncExitStack() as stack:
        stack.enter_context(observed(settings, "up", data.log("duranova")))
        starting = asyncio.create_task(_start(options, data, settings, stack, say))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            with suppress(asyncio.CancelledError):
                await starting
            return
        starting.result()
        _announce(options, settings, say)
        await stopping
        say("stopping")
    say("stopped; guests keep running, the next start finds them")


async def _start(
    options: UpOptions, data: DataDir, settings: Settings, stack: AsyncExitStack, say: Say
) -> None:
    listening = listen(*options.listen)
    stack.callback(listening.close)
    await _start_temporal(
        options, data, settings, stack
    )  # it gets up while the database is prepared
    say("database")
    engine = await asyncio.to_thread(_prepare_database, settings, data)
    stack.callback(engine.dispose)
    data.write_clouds(settings.public_url, settings.region)
    say("temporal")
    client = await _connect(options, data, settings)
    data.write_running(_running(settings))
    stack.callback(data.forget_running)
    await stack.enter_async_context(api_server(client, engine, settings, listening, eager=True))
    say(f"{options.hosts} {options.driver} host{'s' if options.hosts > 1 else ''}")
    hypervisors = await asyncio.to_thread(plan_hypervisors, options.driver, options.hosts, data)
    await _hosts(hypervisors, data, settings, stack)
    # After the hosts: resumed operations find hosts that have reported, and none looks silent.
    say("control worker")
    await stack.enter_async_context(control_worker(client, engine, settings))
    await stack.enter_async_context(standing_work(client, settings))


def _settings(options: UpOptions, data: DataDir) -> Settings:
    host, port = options.listen
    shown = "127.0.0.1" if host in ("0.0.0.0", "::") else host
    url = f"http://{f'[{shown}]' if ':' in shown else shown}:{port}"
    return Settings(
        data_dir=data.path,
        database_url=options.database_url or data.database_url,
        temporal_address=options.temporal or f"127.0.0.1:{free_port()}",
        public_url=url,
        control_url=url,
        secret_key=SecretStr(data.secrets.secret_key),
    )


def _running(settings: Settings) -> Running:
    return Running(
        pid=os.getpid(),
        database_url=settings.database_url,
        temporal_address=settings.temporal_address,
        temporal_namespace=settings.temporal_namespace,
        public_url=settings.public_url,
    )


def _prepare_database(settings: Settings, data: DataDir) -> Engine:
    url = settings.database_url
    try:
        known = schema.is_known(url)
        if known:
            schema.upgrade(url)
    except Exception as error:
        raise StartError(f"cannot use the database: {str(error).splitlines()[0]}") from error
    if not known:
        raise StartError(
            "the database was made by a newer duranova; use that one, or another --data-dir"
        )
    engine = open_engine(url)
    with transaction(engine) as session:
        ensure_first_records(session, data.secrets.passwords)
    return engine


async def _start_temporal(
    options: UpOptions, data: DataDir, settings: Settings, stack: AsyncExitStack
) -> None:
    if options.temporal is not None:
        return
    port = int(settings.temporal_address.rpartition(":")[2])
    line = temporal_command(
        port, data.temporal_db, options.temporal_ui_port, partitions=data.partitions()
    )
    if options.temporal_ui_port is not None:  # it would only say so in its log
        listen("127.0.0.1", options.temporal_ui_port, "--temporal-ui-port").close()
    child = Child("temporal", line, data.log("temporal"))
    await child.start()
    stack.push_async_callback(child.stop)


async def _connect(options: UpOptions, data: DataDir, settings: Settings) -> Client:
    try:
        await wait_ready(settings.temporal_address, settings.temporal_namespace)
        client = await connect_to(settings)
        await ensure_search_attributes(client)
    except (DuranovaError, RPCError) as error:
        hint = "" if options.temporal else f"; {last_line(data.log('temporal'))}"
        raise StartError(f"{error}{hint}") from error
    return client


async def _hosts(
    hypervisors: list[Hypervisor], data: DataDir, settings: Settings, stack: AsyncExitStack
) -> None:
    for hypervisor in hypervisors:
        if hypervisor.stop is not None:
            stack.push_async_callback(asyncio.to_thread, hypervisor.stop)
        for relay in hypervisor.relays:
            await stack.enter_async_context(relay(settings))
    children = [
        Child(
            f"host {h.name}",
            [*h.prefix, sys.executable, "-m", "cli.main", "host", *h.arguments],
            data.log(h.name),
            h.environment(settings, number),
            says_ready=True,
        )
        for number, h in enumerate(hypervisors)
    ]
    for child in children:
        stack.push_async_callback(child.stop)
    await asyncio.gather(*(child.start() for child in children))


def _announce(options: UpOptions, settings: Settings, say: Say) -> None:
    if options.temporal is None and options.temporal_ui_port is not None:
        say(f"Temporal Web UI: http://127.0.0.1:{options.temporal_ui_port}")
    say(
        f"clients: export OS_CLIENT_CONFIG_FILE={options.data_dir.absolute()}/clouds.yaml OS_CLOUD=duranova"
    )
    print(f"ready: {settings.public_url}", flush=True)  # noqa: T201  # the contract with scripts
    say_ready(options.ready_fd, f"ready: {settings.public_url}")
