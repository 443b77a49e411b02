"""The real ``openstack`` command, started once for each user and told one command after another.

Starting it costs seconds of Python; fed through its standard input, as in its interactive mode, each
command costs a tenth of one.
"""

from __future__ import annotations

import json
import os
import selectors
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from domain.errors import DuranovaError


class CommandFailed(DuranovaError):
    """The ``openstack`` command refused or said what nobody understands; the message tells which."""


class OpenStack:
    """One user's running ``openstack`` command."""

    def __init__(self, clouds: Path, cloud: str, log: Path) -> None:
        """``cloud`` names the entry of the clouds.yaml; what goes wrong is also written to ``log``.
        Relative names of files are meant from where the clouds.yaml is."""
        program = Path(sys.executable).parent / "openstack"
        if not program.is_file():
            raise CommandFailed(
                "there is no `openstack` command beside our Python: run `make setup`"
            )
        self.cloud = cloud
        self._log = log
        self._complaints = log.open("wb")
        own = {"OS_CLIENT_CONFIG_FILE": str(clouds), "OS_CLOUD": cloud}
        others = {k: v for k, v in os.environ.items() if not k.startswith("OS_")}
        self._process = subprocess.Popen(
            [str(program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            cwd=clouds.parent,
            env={**others, **own, "PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "ignore"},
            umask=0o077,  # it writes the private key
            start_new_session=True,  # ctrl-C is the demo's, which still has to clean up
        )
        self._asked = 0

    def show(self, *words: object, within_s: float = 120.0) -> Any:
        """Run a command and return what it shows. CommandFailed when it shows nothing."""
        said, complaint = self._run([*words, "-f", "json"], within_s)
        try:
            return json.loads(said)
        except ValueError:
            raise CommandFailed(f"{spelled(*words)}: {complaint or said or 'no answer'}") from None

    def do(self, *words: object, within_s: float = 120.0) -> str:
        """Run a command that says nothing but complaints, or shows plain text. CommandFailed on any."""
        said, complaint = self._run(words, within_s)
        if complaint:
            raise CommandFailed(f"{spelled(*words)}: {complaint}")
        return said

    def spelled(self, *words: object) -> str:
        """A command as one would type it, with OS_CLOUD=duranova in the environment."""
        other = () if self.cloud == "duranova" else ("--os-cloud", self.cloud)
        return spelled(*other, *words)

    def close(self) -> None:
        """End the process."""
        with suppress(OSError):
            self._process.communicate(b"exit\n", timeout=5)
        self._process.kill()
        self._process.wait()
        self._complaints.close()

    def _run(self, words: Any, within_s: float) -> tuple[str, str]:
        """(what it printed, what it complained about)."""
        self._asked += 1
        end = f"--- {self._asked} ---\n"
        before = self._log.stat().st_size
        line = " ".join(str(word) for word in words)
        if line != shlex.join(str(word) for word in words):  # it takes a line apart twice
            raise CommandFailed(f"{spelled(*words)}: only words without quotes can be passed on")
        assert self._process.stdin is not None  # noqa: S101  # it is a pipe
        with suppress(BrokenPipeError):  # it has ended; reading tells what it said
            self._process.stdin.write(f"{line}\n!echo '{end.strip()}'\n".encode())
            self._process.stdin.flush()
        said = self._read_until(end.encode(), time.monotonic() + within_s)
        complaint = self._log.read_bytes()[before:].decode(errors="replace").strip()
        if not said.endswith(end):
            raise CommandFailed(f"{spelled(*words)}: {complaint or 'no answer in time'}")
        return said.removesuffix(end).strip(), complaint

    def _read_until(self, end: bytes, deadline: float) -> str:
        said = b""
        assert self._process.stdout is not None  # noqa: S101  # it is a pipe
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while not said.endswith(end):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    break
                chunk = os.read(self._process.stdout.fileno(), 65536)
                if not chunk:
                    break
                said += chunk
        return said.decode(errors="replace")


class Terminal:
    """Where the demo types: it shows each command, and each kind of thing has the user who may make it."""

    def __init__(self, clouds: Path, logs: Path, show: Callable[[str], None]) -> None:
        """Start the client once for each user. ``show`` gets every command before it runs."""
        self._tell = show
        self.demo, self._admin = (
            OpenStack(clouds, cloud, logs / f"openstack-{cloud}.txt")
            for cloud in ("duranova", "duranova-admin")
        )

    def create(self, kind: str, *words: object) -> Any:
        """Create the demo's one thing of this kind and return what is shown of it."""
        words = (*kind.split(), "create", *words, name(kind))
        self._tell(self._user(kind).spelled(*words))
        return self._user(kind).show(*words)

    def delete(self, kind: str) -> None:
        """Delete the demo's one thing of this kind."""
        words = (*kind.split(), "delete", name(kind))
        self._tell(self._user(kind).spelled(*words))
        self._user(kind).do(*words)

    def lists(self, kind: str) -> bool:
        """Whether the demo's thing of this kind is listed."""
        return name(kind) in [one["Name"] for one in self._user(kind).show(*kind.split(), "list")]

    def show(self, *words: object) -> Any:
        """Run any other command and return what it shows."""
        self._tell(self.demo.spelled(*words))
        return self.demo.show(*words)

    def close(self) -> None:
        """End both."""
        self.demo.close()
        self._admin.close()

    def _user(self, kind: str) -> OpenStack:
        return self._admin if kind == "flavor" else self.demo


def name(kind: str) -> str:
    """What the demo calls its one thing of a kind."""
    return f"first-{kind.rpartition(' ')[2]}"


def spelled(*words: object) -> str:
    """A command as one would type it."""
    return shlex.join(["openstack", *(str(word) for word in words)])
