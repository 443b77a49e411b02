"""The real `openstack` command against the API served on a free port."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from api.app import build_app
from api.context import Cloud
from api.tokens import Tokens
from db.bootstrap import bootstrap
from db.session import transaction
from runtime.settings import Settings

PASSWORDS = {"admin": "admin-secret", "demo": "demo-secret", "alt": "alt-secret"}


@pytest.fixture
def url(cloud: Cloud, settings: Settings) -> Iterator[str]:
    """A served cloud with its first users; the address of its identity service."""
    with socket.create_server(("127.0.0.1", 0)) as listener:  # takes connections from now on
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        settings = settings.model_copy(update={"public_url": address})
        with transaction(cloud.engine) as session:
            bootstrap(session, PASSWORDS)
        app = build_app(
            Cloud(settings, cloud.engine, Tokens(settings), cloud.launcher, cloud.sealer)
        )
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield f"{address}/identity/v3"
        server.should_exit = True
        thread.join()


# The command's own main, once per line of arguments: loading its plug-ins costs seconds, once is enough.
DRIVER = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from openstackclient.shell import main

answers = sys.stdout
for line in sys.stdin:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            status = main(json.loads(line))
        except SystemExit as left:
            status = left.code
    print(json.dumps([status, out.getvalue(), err.getvalue()]), file=answers, flush=True)
"""


class Command:
    """The `openstack` command as one user."""

    def __init__(self, url: str, user: str) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("OS_")} | {
            "OS_AUTH_URL": url,
            "OS_USERNAME": user,
            "OS_PASSWORD": PASSWORDS[user],
            "OS_PROJECT_NAME": user,
            "OS_USER_DOMAIN_ID": "default",
            "OS_PROJECT_DOMAIN_ID": "default",
            "OS_IDENTITY_API_VERSION": "3",
            "NO_PROXY": "127.0.0.1",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def __call__(self, *words: str | Path) -> str:
        """What the command prints; it must succeed."""
        status, out, err = self._run(words)
        assert status == 0, err
        return out

    def shows(self, *words: str | Path) -> Any:
        """What a command with a result prints, as JSON."""
        return json.loads(self(*words, "-f", "json"))

    def fails(self, *words: str | Path) -> str:
        """What the command complains about; it must not succeed."""
        status, out, err = self._run(words)
        assert status != 0, out
        return err

    def _run(self, words: tuple[str | Path, ...]) -> tuple[int, str, str]:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps([str(word) for word in words]) + "\n")
        self.process.stdin.flush()
        status, out, err = json.loads(self.process.stdout.readline())
        return status, out, err


@pytest.fixture
def as_user(url: str) -> Iterator[Callable[[str], Command]]:
    """Makes the command for a user."""
    with ExitStack() as started:

        def start(user: str) -> Command:
            command = Command(url, user)
            started.enter_context(command.process)  # waits for it, once its input is closed
            return command

        yield start
