"""``duranova doctor``: what this machine lacks, in the order in which it would hurt, and what helps.

Nothing is changed: devices are tried in a network namespace that is gone at once.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path

import httpx
from rich.console import Console
from rich.markup import escape
from sqlalchemy import make_url
from sqlalchemy.exc import SQLAlchemyError

from cli.datadir import StartError, open_data_dir
from cli.hypervisors import SYSTEM_URI
from db import schema
from domain.errors import DuranovaError
from runtime.devserver import temporal_binary, wait_ready
from runtime.settings import Settings
from virt.libvirt.connection import answers
from virt.libvirt.probe import QEMU, probe

MIN_PYTHON = (3, 11)
MIN_DISK_GB, GOOD_DISK_GB = 2, 10
MIN_RAM_MB, GOOD_RAM_MB = 1024, 2048
API_PORT, TEMPORAL_UI_PORT = 8774, 8233
_TEMPORAL_WITHIN_S = 5.0
_COMMAND_WITHIN_S = 20
_SETUP = "run `make setup`"
_PRIVATE_LIBVIRTD_NEEDS = ("libvirtd", "unshare", "nsenter", "setpriv", "setsid", "mount")


class Mark(StrEnum):
    """How bad it is: ``warn`` works with less, ``fail`` does not work."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check saw, and what to do about it."""

    mark: Mark
    seen: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to run here: the same words as for ``duranova up``."""

    data_dir: Path
    settings: Settings
    temporal: str | None = None
    database_url: str | None = None


Check = Callable[[Plan], Finding]


def examine(plan: Plan, checks: Iterable[tuple[str, Check]] | None = None) -> dict[str, Finding]:
    """The finding of every check, in order, by name. A check that breaks has failed."""
    findings = {}
    for name, check in CHECKS if checks is None else checks:
        try:
            findings[name] = check(plan)
        except (OSError, subprocess.SubprocessError, DuranovaError) as error:
            findings[name] = Finding(Mark.FAIL, f"cannot be checked: {error}")
    return findings


def doctor(plan: Plan, console: Console, *, as_json: bool) -> int:
    """Print every finding. Exit code 0 when nothing failed, else 1."""
    findings = examine(plan)
    if as_json:
        rows = [{"check": name, **asdict(finding)} for name, finding in findings.items()]
        console.print_json(json.dumps(rows), indent=2)
    else:
        for name, finding in findings.items():
            console.print(_line(name, finding), soft_wrap=True)
        _conclude(findings.values(), console)
    return 1 if any(f.mark is Mark.FAIL for f in findings.values()) else 0


_SIGNS = {Mark.OK: "[green]✓[/]", Mark.WARN: "[yellow]![/]", Mark.FAIL: "[bold red]✗[/]"}


def _line(name: str, finding: Finding) -> str:
    advice = f" [bold]→ {escape(finding.advice)}[/]" if finding.advice else ""
    return f"{_SIGNS[finding.mark]} [cyan]{name:<16}[/] {escape(finding.seen)}{advice}"


def _conclude(findings: Iterable[Finding], console: Console) -> None:
    marks = [finding.mark for finding in findings]
    failed, warned = marks.count(Mark.FAIL), marks.count(Mark.WARN)
    if failed:
        console.print(f"\n[bold red]{failed} of {len(marks)} checks failed.[/]")
    else:
        rest = f", {warned} with a remark" if warned else ""
        console.print(f"\n[bold green]This machine can run Duranova[/]{rest}.")


# --- the checks: what runs it -----------------------------------------------------------------------


def check_python(_plan: Plan) -> Finding:
    """The interpreter, its environment, and the two packages that may be left out."""
    seen = f"{sys.version.split()[0]} in {sys.prefix}"
    if sys.version_info < MIN_PYTHON:
        return Finding(Mark.FAIL, seen, f"Python {'.'.join(map(str, MIN_PYTHON))} is needed")
    if find_spec("libvirt") is None:
        return Finding(Mark.FAIL, f"{seen}, without libvirt-python", _SETUP)
    if sys.prefix == sys.base_prefix:
        return Finding(Mark.WARN, f"{seen}, no virtual environment", _SETUP)
    if not (Path(sys.executable).parent / "openstack").is_file():
        return Finding(Mark.WARN, f"{seen}, without the openstack client", _SETUP)
    return Finding(Mark.OK, seen)


def check_root(_plan: Plan) -> Finding:
    """Who we are."""
    if os.geteuid() == 0:
        return Finding(Mark.OK, "root")
    return Finding(
        Mark.FAIL, "not root; bridges, taps and libvirt need it", "use sudo, or --driver fake"
    )


def check_data_dir(plan: Plan) -> Finding:
    """Whether the data directory can be used; a new one is not made."""
    where = plan.data_dir.absolute()
    if (where / "secrets.json").exists():
        try:
            os.close(open_data_dir(where).lock)
        except StartError as error:
            return Finding(Mark.WARN, error.message)
        return Finding(Mark.OK, f"{where}, from an earlier start")
    if not os.access(_existing(where), os.W_OK):
        return Finding(Mark.FAIL, f"cannot write to {where}", "choose another with --data-dir")
    return Finding(Mark.OK, f"{where}, made at the first start")


def check_disk(plan: Plan) -> Finding:
    """Room for images and the disks of guests."""
    free_gb = shutil.disk_usage(_existing(plan.data_dir.absolute())).free / 1024**3
    seen = f"{free_gb:.1f} GiB free"
    if free_gb < GOOD_DISK_GB:
        mark = Mark.FAIL if free_gb < MIN_DISK_GB else Mark.WARN
        return Finding(mark, seen, "make room, or choose another --data-dir")
    return Finding(Mark.OK, seen)


def check_memory(_plan: Plan) -> Finding:
    """Room for guests."""
    facts = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free_mb = int(facts["MemAvailable"].split()[0]) // 1024
    seen = f"{free_mb} MiB available"
    if free_mb < GOOD_RAM_MB:
        mark = Mark.FAIL if free_mb < MIN_RAM_MB else Mark.WARN
        return Finding(mark, seen, "stop something; the services need 1 GiB, guests their own")
    return Finding(Mark.OK, seen)


# --- the checks: the hypervisor ---------------------------------------------------------------------


def check_qemu(_plan: Plan) -> Finding:
    """QEMU and its image tool."""
    missing = [tool for tool in (QEMU, "qemu-img") if shutil.which(tool) is None]
    if missing:
        return Finding(Mark.FAIL, f"no {' and no '.join(missing)}", _SETUP)
    return _runs(QEMU, "--version")


def check_libvirt(_plan: Plan) -> Finding:
    """The machine's own libvirtd, or all that a private one needs."""
    if answers(SYSTEM_URI):
        return Finding(Mark.OK, f"{SYSTEM_URI} answers")
    missing = [tool for tool in _PRIVATE_LIBVIRTD_NEEDS if shutil.which(tool) is None]
    if missing:
        return Finding(
            Mark.FAIL,
            f"{SYSTEM_URI} does not answer, and for a private libvirtd {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing",
            _SETUP,
        )
    return Finding(Mark.OK, f"{SYSTEM_URI} does not answer; a private libvirtd will be started")


def check_kvm(plan: Plan) -> Finding:
    """What guests run on."""
    if plan.settings.virt_type != "auto":
        return Finding(Mark.OK, f"DURANOVA_VIRT_TYPE={plan.settings.virt_type} decides")
    if shutil.which(QEMU) is None:
        return Finding(Mark.FAIL, "cannot be tried without QEMU", _SETUP)
    verdict = probe(plan.settings.guest_dir)
    if verdict.works:
        return Finding(Mark.OK, f"works: {verdict.reason}")
    return Finding(
        Mark.WARN,
        f"guests are emulated (TCG): {verdict.reason}",
        "good for trying things; for speed use a machine with hardware virtualisation",
    )


def check_guest_image(plan: Plan) -> Finding:
    """The tiny guest of the demo, the tests and the KVM probe."""
    image = plan.settings.guest_dir / "tiny.qcow2"
    if not image.exists():
        return Finding(Mark.WARN, f"no {image}", "`make demo` builds it, deploy/guest/build.sh too")
    return Finding(Mark.OK, f"{image}, {image.stat().st_size / 1024**2:.0f} MiB")


# --- the checks: networks ---------------------------------------------------------------------------


def check_ip(_plan: Plan) -> Finding:
    """Network namespaces can be made."""
    if shutil.which("ip") is None:
        return Finding(Mark.FAIL, "no ip", _SETUP)
    return _works("network namespaces", "ip", "link", "set", "lo", "up")


def check_taps(_plan: Plan) -> Finding:
    """Tap devices and bridges can be made."""
    made = _works("bridges", "ip", "link", "add", "doctor0", "type", "bridge")
    if made.mark is not Mark.OK:
        return made
    return _works("taps and bridges", "ip", "tuntap", "add", "dev", "doctor1", "mode", "tap")


def check_nft(_plan: Plan) -> Finding:
    """Packet filters can be loaded."""
    if shutil.which("nft") is None:
        return Finding(Mark.FAIL, "no nft", _SETUP)
    return _works("nftables", "nft", "add", "table", "bridge", "doctor")


def check_dnsmasq(_plan: Plan) -> Finding:
    """DHCP for guests."""
    if shutil.which("dnsmasq") is None:
        return Finding(Mark.FAIL, "no dnsmasq", _SETUP)
    return _runs("dnsmasq", "--version")


def check_br_netfilter(_plan: Plan) -> Finding:
    """Security groups filter what bridges carry."""
    if Path("/proc/sys/net/bridge").exists():
        return Finding(Mark.OK, "loaded")
    if _run("modprobe", "--dry-run", "br_netfilter").returncode == 0:
        return Finding(Mark.OK, "will be loaded")
    return Finding(
        Mark.FAIL, "this kernel has no br_netfilter", "security groups need it: another kernel"
    )


def check_vxlan(_plan: Plan) -> Finding:
    """Networks that span hosts are tunnels."""
    made = _works("tunnels", "ip", "link", "add", "doctor2", "type", "vxlan", "id", "1", "dstport", "0")  # fmt: skip
    if made.mark is Mark.OK:
        return made
    return Finding(Mark.WARN, made.seen, "one host works without; several need the module vxlan")


# --- the checks: what it leans on -------------------------------------------------------------------


def check_temporal(plan: Plan) -> Finding:
    """The Temporal server: the one given, or the program of the embedded one."""
    if plan.temporal is None:
        return _runs(temporal_binary(), "--version")
    try:
        asyncio.run(wait_ready(plan.temporal, plan.settings.temporal_namespace, _TEMPORAL_WITHIN_S))
    except DuranovaError as error:
        return Finding(Mark.FAIL, error.message, "start it, or leave --temporal out")
    return Finding(Mark.OK, f"{plan.temporal} answers")


def check_database(plan: Plan) -> Finding:
    """The database can be read, and was not made by a newer program."""
    try:
        url = make_url(plan.database_url or f"sqlite:///{plan.data_dir.absolute()}/duranova.db")
        shown = url.render_as_string(hide_password=True)
        if url.get_backend_name() == "sqlite" and not Path(url.database or "").exists():
            return Finding(Mark.OK, f"{shown} is made at the first start")
        text = url.render_as_string(hide_password=False)
        known, revision = schema.is_known(text), schema.current(text)
    except (SQLAlchemyError, ImportError) as error:
        why = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        return Finding(Mark.FAIL, why, "check the address of the database, or that it runs")
    if not known:
        advice = "use that one, or another database"
        return Finding(Mark.FAIL, f"{shown} was made by a newer duranova", advice)
    if revision is None:
        return Finding(Mark.OK, f"{shown} is empty; the first start makes the tables")
    older = "" if revision == schema.head() else ", the next start upgrades it"
    return Finding(Mark.OK, f"{shown}, revision {revision}{older}")


def check_api_port(_plan: Plan) -> Finding:
    """The API's usual port."""
    if _is_free(API_PORT):
        return Finding(Mark.OK, f"{API_PORT} is free")
    if _duranova_listens():
        return Finding(Mark.OK, f"a duranova answers on {API_PORT}")
    return Finding(Mark.FAIL, f"{API_PORT} is taken", "choose another with --listen HOST:PORT")


def check_temporal_ui_port(_plan: Plan) -> Finding:
    """The usual port of Temporal's Web UI."""
    if _is_free(TEMPORAL_UI_PORT):
        return Finding(Mark.OK, f"{TEMPORAL_UI_PORT} is free")
    if _duranova_listens():
        return Finding(Mark.OK, f"{TEMPORAL_UI_PORT} is taken, and a duranova runs here")
    return Finding(
        Mark.FAIL, f"{TEMPORAL_UI_PORT} is taken", "choose another with --temporal-ui-port"
    )


CHECKS: tuple[tuple[str, Check], ...] = (
    ("python", check_python),
    ("root", check_root),
    ("data directory", check_data_dir),
    ("disk", check_disk),
    ("memory", check_memory),
    ("qemu", check_qemu),
    ("libvirt", check_libvirt),
    ("kvm", check_kvm),
    ("guest image", check_guest_image),
    ("namespaces", check_ip),
    ("taps, bridges", check_taps),
    ("nftables", check_nft),
    ("dnsmasq", check_dnsmasq),
    ("br_netfilter", check_br_netfilter),
    ("vxlan", check_vxlan),
    ("temporal", check_temporal),
    ("database", check_database),
    ("API port", check_api_port),
    ("Web UI port", check_temporal_ui_port),
)


# --- how a check looks ------------------------------------------------------------------------------


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run it without raising for its exit code, or for a program that is not there (127)."""
    try:
        return subprocess.run(
            command,
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_COMMAND_WITHIN_S,
        )
    except FileNotFoundError:
        return subprocess.CompletedProcess(command, 127, "", f"no {command[0]}")


def _runs(*command: str) -> Finding:
    """A program that says its version."""
    told = _run(*command)
    if told.returncode != 0:
        return Finding(Mark.FAIL, f"{command[0]}: {_last(told.stderr)}", _SETUP)
    return Finding(Mark.OK, told.stdout.strip().splitlines()[0])


def _works(what: str, *command: str) -> Finding:
    """A command that succeeds in a network namespace of its own, where it leaves nothing."""
    told = _run("unshare", "--net", *command)
    if told.returncode == 0:
        return Finding(Mark.OK, f"{what} can be made")
    why = "needs root" if os.geteuid() != 0 else _last(told.stderr)
    return Finding(Mark.FAIL, f"{what} cannot be made: {why}", "check kernel and privileges")


def _last(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "failed without a word"


def _existing(path: Path) -> Path:
    """The directory itself, or the one in which it would be made."""
    return next(p for p in (path, *path.parents) if p.is_dir())


def _is_free(port: int) -> bool:
    with socket.socket() as probed:
        probed.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probed.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _duranova_listens() -> bool:
    try:
        answer = httpx.get(f"http://127.0.0.1:{API_PORT}/readyz", timeout=5)
        return "status" in answer.json()
    except (httpx.HTTPError, ValueError):
        return False
