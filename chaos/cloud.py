"""A real ``duranova up`` in processes of its own, with a data directory of its own, to use and to kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from chaos.waiting import eventually
from runtime.devserver import free_port

START_S = 240
STOP_S = 120
_MARK = "DURANOVA_TEST_CLOUD"


class UpCloud:
    """One cloud. ``start`` and ``kill_everything`` may alternate; ``close`` leaves nothing. ``env`` is added to
    its environment."""

    def __init__(self, data_dir: Path, *options: str, env: Mapping[str, str] | None = None) -> None:
        self.data_dir = data_dir
        self.port = free_port()
        self._options = options
        self._env = env or {}
        self._mark = uuid.uuid4().hex
        self._process: subprocess.Popen[bytes] | None = None
        self._http: dict[str, httpx.Client] = {}

    # --- life -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Start it and return when it says that it is ready."""
        reader, writer = os.pipe()
        line = [sys.executable, "-m", "cli.main", "up", "--data-dir", str(self.data_dir)]
        line += ["--listen", f"127.0.0.1:{self.port}", "--no-temporal-ui"]
        line += ["--ready-fd", str(writer), *self._options]
        self.data_dir.parent.mkdir(parents=True, exist_ok=True)
        with self._console.open("ab") as console:
            self._process = subprocess.Popen(
                line,
                stdout=console,
                stderr=console,
                pass_fds=(writer,),
                env={**os.environ, **self._env, _MARK: self._mark},
                start_new_session=True,
            )
        os.close(writer)
        with os.fdopen(reader, "rb") as ready:
            said = ready.readline()
        assert said.startswith(b"ready: "), self._console.read_text()

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(timeout=STOP_S)

    def restart(self, after_s: float) -> None:
        """Start it again after a while; it was killed, or ended by itself."""
        assert self._process is not None
        self._process.wait(timeout=STOP_S)
        time.sleep(after_s)  # the outage itself, as long as the plan says
        self.start()

    @property
    def pid(self) -> int | None:
        """Of ``duranova up`` itself; None when it does not run."""
        alive = self._process is not None and self._process.poll() is None
        return self._process.pid if alive and self._process is not None else None

    def find(self, words: bytes) -> int | None:
        """A process of this cloud whose command line (words joined by NUL) contains these."""
        found = (pid for pid in self._pids() if words in _command_line(pid))
        return next(found, None)

    def kill_everything(self) -> int:
        """kill -9 of every process that belongs to this cloud, guests included; returns how many."""
        killed = 0
        while pids := self._pids():
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed += 1
            if self._process is not None:
                self._process.wait(timeout=STOP_S)
            self._await_end(set(pids))
        self._process = None
        return killed

    def close(self) -> None:
        """End every process of this cloud; its files are the caller's."""
        for client in self._http.values():
            client.close()
        self.kill_everything()

    # --- use ------------------------------------------------------------------------------------

    def as_(self, cloud: str = "duranova") -> httpx.Client:
        """A client of ``clouds.yaml``'s cloud of this name, with a token."""
        if cloud not in self._http:
            base = f"http://127.0.0.1:{self.port}"
            client = httpx.Client(base_url=base, timeout=120.0)
            client.headers["X-Auth-Token"] = self._token(client, cloud)
            self._http[cloud] = client
        return self._http[cloud]

    def _token(self, client: httpx.Client, cloud: str) -> str:
        auth = json.loads((self.data_dir / "clouds.yaml").read_text())["clouds"][cloud]["auth"]
        domain = {"id": "default"}
        user = {"name": auth["username"], "domain": domain, "password": auth["password"]}
        body = {
            "auth": {
                "identity": {"methods": ["password"], "password": {"user": user}},
                "scope": {"project": {"name": auth["project_name"], "domain": domain}},
            }
        }
        answer = client.post("/identity/v3/auth/tokens", json=body)
        assert answer.status_code == 201, answer.text
        return str(answer.headers["X-Subject-Token"])

    def upload(self, image: Path) -> str:
        """A qcow2 image; returns its id."""
        client = self.as_()
        body = {"name": "tiny", "disk_format": "qcow2", "container_format": "bare"}
        made = client.post("/image/v2/images", json=body)
        assert made.status_code == 201, made.text
        image_id: str = made.json()["id"]
        headers = {"Content-Type": "application/octet-stream"}
        put = client.put(
            f"/image/v2/images/{image_id}/file", content=image.read_bytes(), headers=headers
        )
        assert put.status_code == 204, put.text
        return image_id

    def demo_net(self) -> str:
        """The id of the network every cloud starts with."""
        found = self.as_().get("/network/v2.0/networks", params={"name": "demo-net"}).json()
        network_id: str = found["networks"][0]["id"]
        return network_id

    def boot(self, image_id: str, name: str, network_id: str, **more: Any) -> str:
        """Ask for a server; returns its id."""
        server = {
            "name": name,
            "imageRef": image_id,
            "flavorRef": "tiny",
            "networks": [{"uuid": network_id}],
            **more,
        }
        answer = self.as_().post("/compute/v2.1/servers", json={"server": server}, headers=NEWEST)
        assert answer.status_code == 202, answer.text
        server_id: str = answer.json()["server"]["id"]
        return server_id

    def servers(self) -> dict[str, dict[str, Any]]:
        """Every server of the project by id."""
        answer = self.as_().get("/compute/v2.1/servers/detail", params={"limit": 1000})
        assert answer.status_code == 200, answer.text
        return {s["id"]: s for s in answer.json()["servers"]}

    def act(self, server_id: str, action: dict[str, Any]) -> httpx.Response:
        """POST an action."""
        return self.as_().post(f"/compute/v2.1/servers/{server_id}/action", json=action)

    def console(self, server_id: str) -> str:
        """The console log."""
        answer = self.act(server_id, {"os-getConsoleOutput": {}})
        assert answer.status_code == 200, answer.text
        text: str = answer.json()["output"]
        return text

    # --- inside ---------------------------------------------------------------------------------

    @property
    def _console(self) -> Path:
        return self.data_dir.with_name(f"{self.data_dir.name}.out")

    def _pids(self) -> list[int]:
        """Processes that inherited our mark, and those (QEMU, dnsmasq) that name our directory."""
        mark, place = f"{_MARK}={self._mark}".encode(), f"{self.data_dir}/".encode()

        def ours(process: Path) -> bool:
            environ = (process / "environ").read_bytes().split(b"\0")
            return mark in environ or place in (process / "cmdline").read_bytes()

        return [int(p.name) for p in _processes() if _true(partial(ours, p))]

    def _await_end(self, pids: set[int]) -> None:
        eventually(lambda: not pids & set(self._pids()), STOP_S)


NEWEST = {"OpenStack-API-Version": "compute 2.96"}


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""  # it ended while we looked


def _processes() -> Iterator[Path]:
    yield from (
        p for p in Path("/proc").iterdir() if p.name.isdigit() and p.name != str(os.getpid())
    )


def _true(question: Callable[[], bool]) -> bool:
    try:
        return question()
    except OSError:
        return False  # it ended while we looked
