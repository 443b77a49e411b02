"""The ``duranova`` command.

Each command imports what it runs when it runs: all of it together costs seconds, and a host worker
needs neither the API nor a database.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
import uvloop
from pydantic import ValidationError
from pydantic_settings import SettingsError
from rich.console import Console

from cli.datadir import StartError
from cli.ready import say_ready
from domain.errors import DuranovaError
from runtime.sealing import host_key as derive_host_key
from runtime.settings import Settings

app = typer.Typer(
    help="Duranova: OpenStack compute on durable workflows.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
db_app = typer.Typer(help="The database.", no_args_is_help=True)
app.add_typer(db_app, name="db")
_HOSTS_DIR = Path("/var/lib/duranova/hosts")
_err = Console(stderr=True, highlight=False)

ReadyFd = Annotated[int | None, typer.Option(help="Write a line to this descriptor when ready.")]
MetricsListen = Annotated[
    str | None, typer.Option(help="HOST:PORT for metrics; default: DURANOVA_METRICS_LISTEN.")
]


def _address(text: str, default_port: int) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon:
        return text, default_port
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise typer.BadParameter(f"{text}: want HOST:PORT")
    return host.strip("[]") or "127.0.0.1", int(port)


@app.command("up")
def up_command(  # noqa: PLR0913, PLR0917  # the contract of the command
    data_dir: Annotated[Path, typer.Option(help="Everything it keeps.")] = Path(".duranova"),
    listen_on: Annotated[
        str, typer.Option("--listen", help="HOST:PORT of the API.")
    ] = "127.0.0.1:8774",
    driver: Annotated[str, typer.Option(help="libvirt or fake.")] = "libvirt",
    hosts: Annotated[int, typer.Option(min=1, max=1500, help="How many hypervisors.")] = 1,
    temporal: Annotated[str | None, typer.Option(help="Use this Temporal server.")] = None,
    database_url: Annotated[str | None, typer.Option(help="Use this database.")] = None,
    temporal_ui_port: Annotated[int, typer.Option(help="Port of the Temporal Web UI.")] = 8233,
    no_temporal_ui: Annotated[bool, typer.Option("--no-temporal-ui")] = False,
    ready_fd: ReadyFd = None,
) -> None:
    """Run the whole cloud on this machine until ctrl-C."""
    from cli.up import UpOptions, up

    if driver not in ("libvirt", "fake"):
        raise typer.BadParameter("--driver is libvirt or fake")
    options = UpOptions(
        data_dir=data_dir,
        listen=_address(listen_on, 8774),
        driver=driver,
        hosts=hosts,
        temporal=temporal,
        database_url=database_url,
        temporal_ui_port=None if no_temporal_ui else temporal_ui_port,
        ready_fd=ready_fd,
    )
    _run(up(options, lambda text: _err.print(f"[dim]duranova:[/dim] {text}", soft_wrap=True)))


@app.command("demo")
def demo_command(
    keep: Annotated[
        bool, typer.Option("--keep", envvar="KEEP", help="Leave it running until ctrl-C.")
    ] = False,
    image: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, envvar="IMAGE", help="Boot this image instead."),
    ] = None,
    user: Annotated[str, typer.Option(help="Whom the image lets in by ssh.")] = "root",
    driver: Annotated[str, typer.Option(help="libvirt or fake.")] = "libvirt",
    data_dir: Annotated[Path, typer.Option(help="Removed when all went well.")] = Path(
        ".duranova-demo"
    ),
) -> None:
    """Show a guest's whole life through the openstack client, on a cloud of its own."""
    from cli.demo import DemoOptions, demo

    if driver not in ("libvirt", "fake"):
        raise typer.BadParameter("--driver is libvirt or fake")
    options = DemoOptions(keep=keep, image=image, user=user, driver=driver, data_dir=data_dir)
    raise SystemExit(demo(options, Console(highlight=False)))


@app.command("doctor")
def doctor_command(
    data_dir: Annotated[Path, typer.Option(help="As for `up`.")] = Path(".duranova"),
    temporal: Annotated[str | None, typer.Option(help="As for `up`.")] = None,
    database_url: Annotated[str | None, typer.Option(help="As for `up`.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Say what this machine lacks, and what helps. Changes nothing."""
    from cli.doctor import Plan, doctor

    plan = Plan(data_dir, Settings(), temporal, database_url)
    raise SystemExit(doctor(plan, Console(highlight=False), as_json=as_json))


@app.command("audit")
def audit_command(
    data_dir: Annotated[
        Path | None, typer.Option(help="Of a running `up`: its database and Temporal server.")
    ] = None,
    database_url: Annotated[
        str | None, typer.Option(help="Default: DURANOVA_DATABASE_URL.")
    ] = None,
    temporal: Annotated[
        str | None, typer.Option(help="ADDRESS; default: DURANOVA_TEMPORAL_ADDRESS.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Hold the record, the hosts and Temporal against each other. Exit code: 0 all well, 1 violations,
    2 could not look. Changes nothing."""
    from cli.audit import AuditPlan, audit

    plan = AuditPlan(data_dir, database_url, temporal)
    _run(audit(plan, Console(highlight=False), as_json=as_json))


@app.command()
def api(
    listen_on: Annotated[str, typer.Option("--listen", help="HOST:PORT.")] = "127.0.0.1:8774",
    ready_fd: ReadyFd = None,
) -> None:
    """Run the API alone, configured by DURANOVA_… variables."""
    from cli.serve import api_server, listen
    from db.session import open_engine
    from runtime.telemetry import observed
    from runtime.temporal import connect_to

    async def serve() -> None:
        settings = Settings()
        with observed(settings, "api"):
            listening = listen(*_address(listen_on, 8774))
            client = await connect_to(settings, lazy=True)
            engine = open_engine(settings.database_url)
            async with api_server(client, engine, settings, listening, eager=False):
                say_ready(ready_fd)
                await _stopped().wait()

    _run(serve())


@app.command()
def control(metrics_listen: MetricsListen = None, ready_fd: ReadyFd = None) -> None:
    """Run a control worker alone: workflows, placement, the record."""
    from db.session import open_engine
    from runtime.telemetry import observed
    from runtime.temporal import connect_to, ensure_search_attributes
    from workers.control import control_worker
    from workers.standing import standing_work

    async def work() -> None:
        settings = Settings()
        with observed(
            settings, "control", metrics_listen=metrics_listen or settings.metrics_listen
        ):
            client = await connect_to(settings)
            await ensure_search_attributes(client)
            engine = open_engine(settings.database_url)
            async with control_worker(client, engine, settings), standing_work(client, settings):
                say_ready(ready_fd)
                await _stopped().wait()

    _run(work())


@app.command()
def host(  # noqa: PLR0913, PLR0917  # one option per fact of the host
    name: Annotated[list[str], typer.Option(help="The host's name; many only with --driver fake.")],
    driver: Annotated[str, typer.Option(help="libvirt or fake.")] = "libvirt",
    state_dir: Annotated[Path, typer.Option(help="Disks and state, below NAME.")] = _HOSTS_DIR,
    libvirt_uri: Annotated[str, typer.Option()] = "qemu:///system",
    qemu_log_dir: Annotated[Path, typer.Option()] = Path("/var/log/libvirt/qemu"),
    zone: Annotated[str | None, typer.Option(help="Availability zone.")] = None,
    host_ip: Annotated[str, typer.Option(help="Other hosts reach it there.")] = "127.0.0.1",
    metrics_listen: MetricsListen = None,
    ready_fd: ReadyFd = None,
) -> None:
    """Run the worker of one hypervisor. It needs DURANOVA_HOST_KEY, and no database."""
    from runtime.telemetry import observed
    from runtime.temporal import connect_to
    from workers.host import HostPlan, run_hosts

    if driver != "fake" and len(name) > 1:
        raise typer.BadParameter("several --name only with --driver fake")

    async def work() -> None:
        settings = Settings()
        listen_on, alone = metrics_listen or settings.metrics_listen, len(name) == 1
        with observed(settings, "host", metrics_listen=listen_on, worker_heartbeats=alone):
            client = await connect_to(settings)
            plans = [
                HostPlan(
                    name=n,
                    driver=driver,
                    state_dir=state_dir.absolute() / n,
                    key=_key(settings, n),
                    libvirt_uri=libvirt_uri,
                    qemu_log_dir=qemu_log_dir,
                    zone=zone,
                    host_ip=host_ip,
                )
                for n in name
            ]
            await run_hosts(client, plans, settings, lambda: say_ready(ready_fd), _stopped())

    _run(work())


@app.command("host-key")
def host_key(name: Annotated[str, typer.Option(help="The host's name.")]) -> None:
    """Print the key of a host, for its DURANOVA_HOST_KEY; needs DURANOVA_SECRET_KEY."""
    secret = Settings().secret_key.get_secret_value()
    if len(secret) < 32:
        _fail("DURANOVA_SECRET_KEY must have at least 32 characters")
    typer.echo(derive_host_key(secret, name))


@db_app.command("upgrade")
def db_upgrade(
    database_url: Annotated[
        str | None, typer.Option(help="Default: DURANOVA_DATABASE_URL.")
    ] = None,
) -> None:
    """Bring the database to this program's schema."""
    from db import schema

    url = database_url or Settings().database_url
    schema.upgrade(url)
    typer.echo(f"schema {schema.current(url)}")


@db_app.command("fill")
def db_fill(
    clouds: Annotated[
        Path, typer.Option(help="Where to write the clouds.yaml with the new passwords.")
    ],
) -> None:
    """Give a new database its first records: roles, users, flavors, a shared network."""
    from cli.records import fill_new_cloud
    from db.session import open_engine

    settings = Settings()
    engine = open_engine(settings.database_url)
    try:
        made = fill_new_cloud(engine, settings, clouds)
    except DuranovaError as error:
        _fail(error.message)
    finally:
        engine.dispose()
    typer.echo(f"passwords are in {clouds}" if made else "nothing to do: there is an administrator")


def _key(settings: Settings, name: str) -> str:
    key = settings.host_keys.get(name, settings.host_key).get_secret_value()
    if not key:
        raise StartError(
            f"no key for {name}: set DURANOVA_HOST_KEY (`duranova host-key` prints it)"
        )
    return key


def _stopped() -> asyncio.Event:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


def _run(coroutine: Coroutine[Any, Any, int | None]) -> None:
    try:
        code = uvloop.run(coroutine)
    except DuranovaError as error:
        _fail(error.message)
    except (ValidationError, SettingsError) as error:  # they quote no value
        _fail(f"settings: {error}")
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    if code:
        raise SystemExit(code)


def _fail(message: str) -> NoReturn:
    _err.print(f"duranova: {message}", style="red", soft_wrap=True)
    raise SystemExit(2)


def main() -> None:
    """Entry point."""
    app()


if __name__ == "__main__":
    main()
