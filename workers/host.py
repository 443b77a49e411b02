"""The host worker: one hypervisor's activities on its own queue, and its reports."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import structlog
from temporalio.client import Client
from temporalio.worker import Worker

from activities.host.control_plane import ControlPlane
from activities.host.guests import PARALLEL_BOOTS, Guests
from activities.host.reporter import OnPeers, Reporter
from domain.ids import host_queue, new_id
from runtime.sealing import Sealer
from runtime.settings import Settings
from virt.driver import Driver
from virt.fake import FakeDriver
from virt.libvirt.driver import LibvirtDriver, LibvirtHost
from virt.libvirt.probe import probe
from virt.nics import HostNetwork
from workers.alone import alone
from workers.interceptors import Context, DomainErrors
from workers.keeping import kept
from workers.registry import implemented
from workflows.contract import HostActivities

_log = structlog.get_logger(__name__)
_THREADS = PARALLEL_BOOTS * 2 + 2
"""Blocking driver calls at once: boots, and as many short calls beside them."""


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
        driver, on_peers = LibvirtDriver(host, control, network), network.set_peers
    driver.open()
    return driver, on_peers


def _uses_kvm(settings: Settings, state_dir: Path) -> bool:
    """What the settings say about KVM; if they leave it open, what a guest says that tries it."""
    if settings.virt_type != "auto":
        return settings.virt_type == "kvm"
    verdict = probe(settings.guest_dir, state_dir / "kvm.json")
    _log.info("kvm is used" if verdict.works else "kvm is not used", reason=verdict.reason)
    return verdict.works


@asynccontextmanager
async def host_worker(client: Client, plan: HostPlan, settings: Settings) -> AsyncIterator[Driver]:
    """Run one host inside the block, which gets its driver: activities are taken once the first report
    was, and the host's earlier worker has ended."""
    async with alone(plan.state_dir), _host(client, plan, settings) as driver:
        yield driver


@asynccontextmanager
async def _host(client: Client, plan: HostPlan, settings: Settings) -> AsyncIterator[Driver]:
    control = ControlPlane(settings.control_url, plan.name, plan.key)
    driver, on_peers = await asyncio.to_thread(open_driver, plan, settings, control)
    pool = ThreadPoolExecutor(_THREADS, thread_name_prefix=plan.name)
    epoch = new_id()
    reporter = Reporter(driver, control, plan.zone, epoch, on_peers)
    reports = asyncio.create_task(reporter.run())
    guests = Guests(driver, pool, Sealer(plan.key), epoch, reporter.search)
    try:
        await reporter.reported.wait()
        async with kept(lambda: _worker(client, plan.name, guests)):
            _log.info("host runs", host=plan.name)
            yield driver
    finally:
        reports.cancel()
        with suppress(asyncio.CancelledError):
            await reports
        pool.shutdown(wait=True, cancel_futures=True)
        await asyncio.to_thread(driver.close)
        control.close()


def _worker(client: Client, name: str, guests: Guests) -> Worker:
    return Worker(
        client,
        task_queue=host_queue(name),
        activities=implemented(guests, HostActivities),
        interceptors=[Context(), DomainErrors()],
        # Cancels ride on heartbeats, so those must not be held back (the default throttle is 30 s).
        max_heartbeat_throttle_interval=timedelta(seconds=2),
        default_heartbeat_throttle_interval=timedelta(seconds=1),
        graceful_shutdown_timeout=timedelta(seconds=20),
        max_concurrent_activities=200,
    )


async def run_hosts(
    client: Client,
    plans: list[HostPlan],
    settings: Settings,
    ready: Callable[[], None],
    stop: asyncio.Event,
) -> None:
    """Run these hosts in this process until ``stop``; many only with the fake driver."""
    async with AsyncExitStack() as stack:
        starts = [stack.enter_async_context(host_worker(client, p, settings)) for p in plans]
        await asyncio.gather(*starts)
        ready()
        await stop.wait()
