"""Guests that a host's worker left running: removed as the worker would have done it."""

from __future__ import annotations

from pathlib import Path

from activities.host.control_plane import ControlPlane, control_http
from domain.guest import Fence
from runtime.logs import configure_logs
from runtime.settings import Settings
from workers.host import HostPlan, open_driver

_LAST_EPOCH = 2**62
"""Above every epoch a claim will ever have: nothing may come after this destroy."""


def destroy_guests(name: str, state_dir: Path, libvirt_uri: str, log: Path) -> None:
    """Destroy every guest of a libvirt host whose worker does not run."""
    configure_logs(Settings(), log)
    plan = HostPlan(name, "libvirt", state_dir, key="", libvirt_uri=libvirt_uri)
    with control_http("http://127.0.0.1:9") as http:  # a destroy asks it nothing
        driver, _ = open_driver(plan, Settings(virt_type="qemu"), ControlPlane(http, name, ""))
        try:
            for folder in sorted((state_dir / "instances").iterdir()):
                driver.destroy(folder.name, Fence(_LAST_EPOCH, "removed"))
        finally:
            driver.close()
