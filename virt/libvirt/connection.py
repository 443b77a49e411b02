"""One connection to one libvirt: the only module that knows the ``libvirt`` binding.

It outlives the daemon: when libvirtd dies or hangs, a keeper thread connects again and registers for
events again, and every call looks its domain up anew, since old handles stay dead for ever. "Already
there" and "already gone" are successes here; everything else becomes a domain error.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar
from xml.etree import ElementTree

import libvirt
import structlog
from opentelemetry import trace

from domain.errors import DuranovaError, GuestFailure, GuestRefused, NotFound
from domain.states import PowerState
from virt.driver import without_paths

log = structlog.get_logger(__name__)
_tracer = trace.get_tracer(__name__)
"""For what changes something. What only looks is polled, and would bury the rest."""

Result = TypeVar("Result")

KEEPALIVE_INTERVAL_S = 5
KEEPALIVE_COUNT = 3
RECONNECT_EVERY_S = 0.2
ANSWER_WITHIN_S = 10.0
"""How long a call waits for a lost connection to come back before it fails."""
CLOSE_WITHIN_S = 5.0

_POWER = {
    libvirt.VIR_DOMAIN_NOSTATE: PowerState.NOSTATE,
    libvirt.VIR_DOMAIN_RUNNING: PowerState.RUNNING,
    libvirt.VIR_DOMAIN_BLOCKED: PowerState.RUNNING,
    libvirt.VIR_DOMAIN_PAUSED: PowerState.PAUSED,
    libvirt.VIR_DOMAIN_SHUTDOWN: PowerState.RUNNING,  # QEMU is still there
    libvirt.VIR_DOMAIN_SHUTOFF: PowerState.SHUTDOWN,
    libvirt.VIR_DOMAIN_CRASHED: PowerState.CRASHED,
    libvirt.VIR_DOMAIN_PMSUSPENDED: PowerState.SUSPENDED,
}
_REFUSED = {
    libvirt.VIR_ERR_CONFIG_UNSUPPORTED,
    libvirt.VIR_ERR_INVALID_ARG,
    libvirt.VIR_ERR_NO_SUPPORT,
    libvirt.VIR_ERR_XML_DETAIL,
    libvirt.VIR_ERR_XML_ERROR,
    libvirt.VIR_ERR_XML_INVALID_SCHEMA,
}
_EVERYTHING_OF_IT = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
)


@dataclass(frozen=True, slots=True)
class Seen:
    """A domain as libvirt shows it now."""

    uuid: str
    name: str
    power: PowerState
    active: bool
    """A QEMU process exists."""


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What libvirt says of its host."""

    uuid: str
    arch: str
    cpu_model: str
    vcpus: int
    ram_mb: int
    hypervisor_type: str
    hypervisor_version: int
    security_models: tuple[str, ...]


class Connection:
    """A connection that comes back; its methods may be called from any thread and block.

    ``on_event`` is called, from libvirt's thread, after each lifecycle event and after each
    reconnection (events in between are lost). It must return at once and must not call libvirt.
    """

    def __init__(self, uri: str, on_event: Callable[[], None]) -> None:
        self._uri = uri
        self._on_event = on_event
        self._connection: Any = None
        self._live = threading.Event()
        self._lost = threading.Event()
        self._closing = threading.Event()
        self._keeper: threading.Thread | None = None

    def open(self) -> None:
        """Connect and stay connected. GuestFailure when nobody answers."""
        _run_event_loop()
        try:
            self._connect()
        except libvirt.libvirtError as error:
            raise _told(error) from error
        self._keeper = threading.Thread(target=self._keep, name="libvirt-keeper", daemon=True)
        self._keeper.start()

    def close(self) -> None:
        """Let go of the connection and the keeper."""
        self._closing.set()
        self._lost.set()
        if self._keeper is not None:
            self._keeper.join(CLOSE_WITHIN_S)  # it may hang in a daemon that hangs
        self._drop()

    # --- the host -------------------------------------------------------------------------------

    def facts(self) -> HostFacts:
        """What the host is."""

        def ask(connection: Any) -> HostFacts:
            host = ElementTree.fromstring(connection.getCapabilities()).find("host")  # noqa: S314  libvirtd's own words
            assert host is not None  # noqa: S101  the schema has it
            arch, ram_mb, vcpus, *_ = connection.getInfo()
            with _unless(libvirt.VIR_ERR_NO_SUPPORT):
                # getInfo counts NUMA cells, which may lack memory that was plugged in later.
                cells = libvirt.VIR_NODE_MEMORY_STATS_ALL_CELLS
                ram_mb = connection.getMemoryStats(cells)["total"] // 1024
            return HostFacts(
                uuid=host.findtext("uuid", ""),
                arch=arch,
                cpu_model=host.findtext("cpu/model", ""),
                vcpus=vcpus,
                ram_mb=ram_mb,
                hypervisor_type=connection.getType(),
                hypervisor_version=connection.getVersion(),
                security_models=tuple(m.text or "" for m in host.findall("secmodel/model")),
            )

        return self._call(ask)

    def warm_up(self, arch: str, machine: str, domain_type: str) -> None:
        """Make the daemon look its emulators over now, not under the first guest."""

        def ask(connection: Any) -> None:
            with _unless(libvirt.VIR_ERR_NO_SUPPORT):
                connection.getDomainCapabilities(None, arch, machine, domain_type)

        self._call(ask)

    def domains(self, prefix: str) -> list[Seen]:
        """Every domain whose name starts so, running or not."""

        def ask(connection: Any) -> list[Seen]:
            found = []
            for domain in connection.listAllDomains():
                with _unless(libvirt.VIR_ERR_NO_DOMAIN):
                    if domain.name().startswith(prefix):
                        found.append(_see(domain))
            return found

        return self._call(ask)

    # --- one domain -----------------------------------------------------------------------------

    def look(self, uuid: str) -> Seen | None:
        """The domain now; ``None`` when there is none."""
        try:
            return self._on(uuid, _see)
        except NotFound:
            return None

    @_tracer.start_as_current_span("libvirt define")
    def define(self, xml: str) -> None:
        """Define a domain, or define it anew. GuestRefused for a definition libvirt cannot take."""
        self._call(lambda connection: connection.defineXML(xml))

    @_tracer.start_as_current_span("libvirt launch")
    def launch(self, uuid: str) -> None:
        """Start it, from its saved memory if there is one. No-op when it runs."""

        def start(domain: Any) -> None:
            try:
                domain.create()
            except libvirt.libvirtError:
                if not domain.isActive():  # somebody else may have started it
                    raise

        self._on(uuid, start)

    @_tracer.start_as_current_span("libvirt kill")
    def kill(self, uuid: str) -> None:
        """Pull the plug. No-op when it does not run or does not exist."""
        with suppress(NotFound):
            self._on(uuid, _when_active(lambda domain: domain.destroy()))

    @_tracer.start_as_current_span("libvirt press_power_button")
    def press_power_button(self, uuid: str) -> None:
        """Ask what runs inside to shut down: through its agent if it has one, else by ACPI."""
        self._on(uuid, _when_active(lambda domain: domain.shutdown()))

    @_tracer.start_as_current_span("libvirt freeze")
    def freeze(self, uuid: str) -> None:
        """Stop the vCPUs."""
        self._on(uuid, lambda domain: domain.suspend())

    @_tracer.start_as_current_span("libvirt thaw")
    def thaw(self, uuid: str) -> None:
        """Let the vCPUs go on."""
        self._on(uuid, lambda domain: domain.resume())

    @_tracer.start_as_current_span("libvirt save")
    def save(self, uuid: str) -> None:
        """Save its memory and end it; the next ``launch`` goes on there, running."""
        self._on(uuid, lambda domain: domain.managedSave(libvirt.VIR_DOMAIN_SAVE_RUNNING))

    @_tracer.start_as_current_span("libvirt drop_saved")
    def drop_saved(self, uuid: str) -> None:
        """Forget its saved memory. No-op when there is none, or no such domain."""

        def drop(domain: Any) -> None:
            if domain.hasManagedSaveImage():
                domain.managedSaveRemove()

        with suppress(NotFound):
            self._on(uuid, drop)

    @_tracer.start_as_current_span("libvirt undefine")
    def undefine(self, uuid: str) -> None:
        """Forget a domain that does not run, and all libvirt keeps of it. No-op when there is none."""

        def forget(domain: Any) -> None:
            try:
                domain.undefineFlags(_EVERYTHING_OF_IT)
            except libvirt.libvirtError as error:
                if error.get_error_code() not in (
                    libvirt.VIR_ERR_INVALID_ARG,
                    libvirt.VIR_ERR_NO_SUPPORT,
                ):
                    raise
                domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE)  # a simpler driver

        with suppress(NotFound):
            self._on(uuid, forget)

    # --- how it is done -------------------------------------------------------------------------

    def _on(self, uuid: str, act: Callable[[Any], Result]) -> Result:
        return self._call(lambda connection: act(connection.lookupByUUIDString(uuid)))

    def _call(self, act: Callable[[Any], Result]) -> Result:
        if not self._live.wait(ANSWER_WITHIN_S):
            raise GuestFailure("the hypervisor does not answer")
        connection = self._connection
        try:
            return act(connection)
        except libvirt.libvirtError as error:
            if not _alive(connection):
                self._lose(connection)
                raise GuestFailure("the connection to the hypervisor was lost") from error
            told = _told(error)
            if not isinstance(told, NotFound):
                log.warning("libvirt_error", error=str(error), code=error.get_error_code())
            raise told from error

    def _connect(self) -> None:
        connection = libvirt.open(self._uri)
        self._connection = connection
        self._lost.clear()
        with _unless(libvirt.VIR_ERR_NO_SUPPORT):  # an in-process driver has no socket to lose
            connection.setKeepAlive(KEEPALIVE_INTERVAL_S, KEEPALIVE_COUNT)
            connection.registerCloseCallback(lambda *_: self._lose(connection), None)
        connection.domainEventRegisterAny(
            None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, lambda *_: self._on_event(), None
        )
        self._live.set()

    def _lose(self, connection: Any) -> None:
        if connection is self._connection:
            self._live.clear()
            self._lost.set()

    def _keep(self) -> None:
        while True:
            self._lost.wait()
            if self._closing.is_set():
                return
            self._drop()
            try:
                self._connect()
            except libvirt.libvirtError:
                self._closing.wait(RECONNECT_EVERY_S)
            else:
                log.info("libvirt_reconnected", uri=self._uri)
                self._on_event()

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(libvirt.libvirtError):
                connection.unregisterCloseCallback()
            with suppress(libvirt.libvirtError):
                connection.close()


class _unless:  # noqa: N801  reads as the statement it makes
    """Let one libvirt error pass as if nothing had happened."""

    def __init__(self, *codes: int) -> None:
        self._codes = codes

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        return isinstance(error, libvirt.libvirtError) and error.get_error_code() in self._codes


def _when_active(act: Callable[[Any], object]) -> Callable[[Any], None]:
    """Act on a running domain; one that has just ended by itself is as good."""

    def guarded(domain: Any) -> None:
        try:
            if domain.isActive():
                act(domain)
        except libvirt.libvirtError:
            if domain.isActive():
                raise

    return guarded


def _see(domain: Any) -> Seen:
    state, reason = domain.state()
    active = bool(domain.isActive())
    power = _POWER.get(state, PowerState.NOSTATE)
    if state == libvirt.VIR_DOMAIN_PAUSED and reason == libvirt.VIR_DOMAIN_PAUSED_STARTING_UP:
        power = PowerState.NOSTATE
    if not active:
        if domain.hasManagedSaveImage():
            power = PowerState.SUSPENDED
        elif reason == libvirt.VIR_DOMAIN_SHUTOFF_CRASHED:
            power = PowerState.CRASHED
    return Seen(domain.UUIDString(), domain.name(), power, active)


def _alive(connection: Any) -> bool:
    try:
        return bool(connection.isAlive())
    except libvirt.libvirtError:
        return False


def _told(error: libvirt.libvirtError) -> DuranovaError:
    """A libvirt error as one of ours, in words a user may read."""
    text = without_paths(error.get_error_message() or str(error))
    if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
        return NotFound(text)
    if error.get_error_code() in _REFUSED:
        return GuestRefused(f"the hypervisor refuses this: {text}")
    return GuestFailure(f"the hypervisor failed: {text}")


_loop_lock = threading.Lock()
_loop: threading.Thread | None = None


def _run_event_loop() -> None:
    """Start libvirt's event loop, once in a process and before the first connection."""
    global _loop  # noqa: PLW0603  libvirt has one loop in a process, too
    with _loop_lock:
        if _loop is not None:
            return
        _raise_and_do_not_print()
        libvirt.virEventRegisterDefaultImpl()

        def loop() -> None:
            while True:
                libvirt.virEventRunDefaultImpl()

        _loop = threading.Thread(target=loop, name="libvirt-events", daemon=True)
        _loop.start()


def _raise_and_do_not_print() -> None:
    libvirt.registerErrorHandler(lambda *_: None, None)


def answers(uri: str) -> bool:
    """Whether a libvirt daemon can be reached there now."""
    _raise_and_do_not_print()
    try:
        connection = libvirt.open(uri)
    except libvirt.libvirtError:
        return False
    connection.close()
    return True
