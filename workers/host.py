"""The host worker: one hypervisor's activities on its own queue, and its reports."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import httpx
import structlog
from temporalio.client import Client
from temporalio.worker import PollerBehaviorSimpleMaximum, Worker

from activities.host.control_plane import ControlPlane, control_http
from activities.host.guests import PARALLEL_BOOTS, Guests
from activities.host.reporter import OnPeers, Reporter
from domain.ids import host_queue, new_id
from runtime.sealing import Sealer
from runtime.settings import Settings
from virt.driver import Driver
from virt.fake import FakeDriver
from workers.alone import alone
from workers.interceptors import Context, DomainErrors
from workers.keeping import kept
from workers.registry import implemented
from workflows.contract import HostActivities

_log = structlog.get_logger(__name__)
_THREADS = PARALLEL_BOOTS * 2 + 2
"""Blocking driver calls of a host at once: boots, and as many short calls beside them."""
_MOST_THREADS = 64
_POLLS, _MOST_POLLS = 5, 100
"""Open polls of one host, and of a process as long as each of its hosts has one: each costs the Temporal
server some 0.2 MB."""


@dataclass(frozen=True, slots=True)
class HostPlan:
    """How one host is run."""

    name: str
    driver: str
    """``libvirt`` or ``fake``."""
    state_dir: Path
    key: str
    """The host's key (``runtime.sealing.host_key``)."""
    libvirt_uri: str = "qemu:///system"
    qemu_log_dir: Path = Path("/var/log/libvirt/qemu")
    zone: str | None = None
    host_ip: str = "127.0.0.1"
    """Where other hosts reach this one: the end of tunnels."""


def open_driver(
    plan: HostPlan, settings: Settings, control: ControlPlane
) -> tuple[Driver, OnPeers | None]:
    """The driver of a host, connected, and who wants to know where the other hosts are."""
    driver: Driver
    on_peers: OnPeers | None = None
    if plan.driver == "fake":
        driver = FakeDriver(plan.name, directory=plan.state_dir, supplies=control)
    else:
        driver, on_peers = _libvirt_driver(plan, settings, control)
    driver.open()
    return driver, on_peers


def _libvirt_driver(
    plan: HostPlan, settings: Settings, control: ControlPlane
) -> tuple[Driver, OnPeers]:
    # Imported here, and so is the probe: a fake host needs none of it, and it weighs 25 MB.
    from virt.libvirt.driver import LibvirtDriver, LibvirtHost
    from virt.nics import HostNetwork

    kvm = _uses_kvm(settings, plan.state_dir)
    network = HostNetwork(plan.state_dir / "network", plan.name, control.answer)
    host = LibvirtHost(
        name=plan.name,
        uri=plan.libvirt_uri,
        state_dir=plan.state_dir,
        domain_type="kvm" if kvm else "qemu",
        cpu_model="host-passthrough" if kvm else "qemu64",
        console_max_bytes=settings.console_log_max_bytes,
        qemu_log_dir=plan.qemu_log_dir,
        host_ip=plan.host_ip,
    )
    return LibvirtDriver(host, control, network), network.set_peers


def _uses_kvm(settings: Settings, state_dir: Path) -> bool:
    """What the settings say about KVM; if they leave it open, what a guest says that tries it."""
    from virt.libvirt.probe import probe

    if settings.virt_type != "auto":
        return settings.virt_type == "kvm"
    verdict = probe(settings.guest_dir, state_dir / "kvm.json")
    _log.info("kvm is used" if verdict.works else "kvm is not used", reason=verdict.reason)
    return verdict.works


@dataclass(frozen=True, slots=True)
class _Process:
    """What the hosts of one process share, so that a thousand of them fit one."""

    client: Client
    settings: Settings
    http: httpx.Client
    pool: Executor
    polls: int
    """Of each host."""


@asynccontextmanager
async def _process(client: Client, settings: Settings, hosts: int) -> AsyncIterator[_Process]:
    threads = min(_THREADS * hosts, max(_THREADS, _MOST_THREADS))
    pool = ThreadPoolExecutor(threads, thread_name_prefix="driver")
    polls = max(1, min(_POLLS, _MOST_POLLS // hosts))
    with control_http(settings.control_url) as http:
        try:
            yield _Process(client, settings, http, pool, polls)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@asynccontextmanager
async def host_worker(client: Client, plan: HostPlan, settings: Settings) -> AsyncIterator[Driver]:
    """Run one host inside the block, which gets its driver: activities are taken once the first report
    was, and the host's earlier worker has ended."""
    async with _process(client, settings, 1) as process, _host(process, plan) as driver:
        yield driver


@asynccontextmanager
async def _host(process: _Process, plan: HostPlan) -> AsyncIterator[Driver]:
    async with alone(plan.state_dir):
        control = ControlPlane(process.http, plan.name, plan.key)
        driver, on_peers = await asyncio.to_thread(open_driver, plan, process.settings, control)
        epoch = new_id()
        reporter = Reporter(driver, control, plan.zone, epoch, on_peers)
        reports = asyncio.create_task(reporter.run())
        guests = Guests(driver, process.pool, Sealer(plan.key), epoch, reporter.search)
        try:
            await reporter.reported.wait()
            async with kept(lambda: _worker(process, plan.name, guests)):
                _log.info("host runs", host=plan.name)
                yield driver
        finally:
            reports.cancel()
            with suppress(asyncio.CancelledError):
                await reports
            await guests.settled()  # before anybody else may work on this host
            await asyncio.to_thread(driver.close)


def _worker(process: _Process, name: str, guests: Guests) -> Worker:
    return Worker(
        process.client,
        task_queue=host_queue(name),
        activities=implemented(guests, HostActivities),
        interceptors=[Context(), DomainErrors()],
        # Cancels ride on heartbeats, so those must not be held back (the default throttle is 30 s).
        max_heartbeat_throttle_interval=timedelta(seconds=2),
        default_heartbeat_throttle_interval=timedelta(seconds=1),
        graceful_shutdown_timeout=timedelta(seconds=20),
        max_concurrent_activities=200,
        activity_task_poller_behavior=PollerBehaviorSimpleMaximum(process.polls),
    )


async def run_hosts(
    client: Client,
    plans: list[HostPlan],
    settings: Settings,
    ready: Callable[[], None],
    stop: asyncio.Event,
) -> None:
    """Run these hosts in this process until ``stop``; many only with the fake driver. They start and
    end beside each other; when one cannot start, all end, and its error is raised."""
    started = [asyncio.Event() for _ in plans]
    if len(plans) > 1:
        _allow_files()

    async def run(process: _Process, plan: HostPlan, running: asyncio.Event) -> None:
        async with _host(process, plan):
            running.set()
            await stop.wait()

    async with _process(client, settings, len(plans)) as process:
        try:
            async with asyncio.TaskGroup() as group:
                for plan, running in zip(plans, started, strict=True):
                    group.create_task(run(process, plan, running))
                for running in started:
                    await running.wait()
                ready()
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None


def _allow_files() -> None:
    """As many open files as the system lets us have: each host holds its lock, and the usual limit is 1024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
