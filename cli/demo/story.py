"""What the demo does, in order: a cloud comes up, a guest lives and is gone, and so is the cloud."""

from __future__ import annotations

import re
import shlex
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.markup import escape

from cli.demo.client import OpenStack, Terminal, name, spelled
from cli.demo.cloud import DemoCloud
from cli.demo.guest import Bootable, built_image, empty_image, free_network, given_image, ssh
from cli.demo.screen import Screen
from domain.errors import DuranovaError
from domain.ids import server_workflow_id

ACTIVE_WITHIN_S = 300.0
BOOTED_WITHIN_S = 300.0
LOGIN_WITHIN_S = 300.0
GONE_WITHIN_S = 120.0
SEEN_WITHIN_S = 30.0
"""Temporal shows a workflow's end in its lists a moment later."""
_LOOK_EVERY_S = 0.5
KINDS = ("server", "keypair", "security group", "flavor", "subnet", "network", "image")
"""What the demo makes, one of each."""


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What the command line said."""

    keep: bool
    image: Path | None
    user: str
    driver: str
    data_dir: Path


@dataclass(slots=True)
class Made:
    """What the demo made in its cloud, and has to be gone at the end."""

    server_id: str = ""
    ip: str = ""
    ports: list[str] = field(default_factory=list)
    networks: list[str] = field(default_factory=list)


def demo(options: DemoOptions, console: Console) -> int:
    """Run it. Exit code 0 when all of it happened, 1 when not, 130 after ctrl-C."""
    screen = Screen(console)
    cloud = DemoCloud(options.data_dir, options.driver)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    screen.say("[bold]Duranova demo[/]: one guest's life, through the real openstack client\n")
    try:
        with console.status("looking for what an earlier demo left…"):
            cloud.prepare()
    except Exception as error:  # one line is enough: nothing has begun
        screen.say(f"[bold red]✗ {_message(error)}[/]")
        return 1
    story = Story(options, screen, cloud)
    # Where a shell started us in the background, SIGINT would be ignored for good.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        story.tell()
    except (Exception, KeyboardInterrupt) as error:  # whatever it was, all is to be stopped
        # Whoever is impatient now would leave guests behind; every step of this ends by itself.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        story.fail(error)
        return 130 if isinstance(error, KeyboardInterrupt) else 1
    screen.summary()
    screen.say("\n[bold green]All of it happened, and nothing is left of it.[/]")
    return 0


class Story:
    """The demo, step by step. Each step raises when it did not happen."""

    def __init__(self, options: DemoOptions, screen: Screen, cloud: DemoCloud) -> None:
        self._options = options
        self._screen = screen
        self._cloud = cloud
        self._made = Made()
        self._opened: Terminal | None = None

    def tell(self) -> None:
        """All of it."""
        image = self._image()
        self._start()
        self._build(image)
        self._boot(image)
        self._login()
        self._history()
        if self._options.keep:
            self._keep()
        self._delete()
        self._check_nothing_is_left()
        self._end()

    def fail(self, error: BaseException) -> None:
        """Say what is known of a failure, and stop everything; the directory stays."""
        screen, cloud, made = self._screen, self._cloud, self._made
        if isinstance(error, KeyboardInterrupt):
            screen.say("\ninterrupted: stopping everything")
        else:
            screen.say(f"\n[bold red]It failed:[/] [red]{_message(error)}[/]")
            if made.server_id and (tail := cloud.console(made.server_id)[-1500:]):
                screen.say("\nthe end of the guest's console:")
                screen.quote(tail)
            for log, lines in cloud.last_words().items():
                screen.say(f"\nthe end of {log}:")
                screen.quote("\n".join(lines))
        if self._opened is not None:
            self._opened.close()
        cloud.stop()
        try:
            cloud.clear()
        except Exception as trouble:  # the first failure is what is to be told
            screen.say(f"[red]could not remove everything: {_message(trouble)}[/]")
        if isinstance(error, KeyboardInterrupt):
            cloud.remove()
            return
        screen.say(
            f"\nEverything is stopped. Logs and database stay in {cloud.directory}; "
            "the next demo there removes them. `duranova doctor` looks for what this machine lacks."
        )

    # --- the steps ------------------------------------------------------------------------------

    def _image(self) -> Bootable:
        with self._screen.step("image file", slow=True) as step:
            if self._options.image is not None:
                image = given_image(self._options.image)
            elif self._options.driver == "fake":
                image = empty_image(self._cloud.directory / "empty.raw")
            else:
                image = built_image(self._cloud.logs / "build.txt")
            step.seen = f"{image.file}, {image.size / 1024**2:.0f} MiB"
        return image

    def _start(self) -> None:
        with self._screen.step("duranova up", slow=True) as step:
            self._cloud.start()
            step.seen = f"{self._cloud.url}, {self._options.driver} driver"
        with self._screen.step("openstack client") as step:
            self._opened = Terminal(self._cloud.clouds, self._cloud.logs, self._screen.command)
            step.seen = f"user {self._demo.show('token', 'issue')['user_id']} has a token"

    def _build(self, image: Bootable) -> None:
        """What a server stands on."""
        cidr = free_network()
        file = self._cloud.typed(image.file.absolute())
        self._create("image", "--file", file, "--disk-format", image.format)
        self._made.networks.append(self._create("network")["id"])
        self._create("subnet", "--network", name("network"), "--subnet-range", cidr)
        self._create("security group")
        for protocol in (("tcp", "--dst-port", "22"), ("icmp",)):
            words = ("--protocol", *protocol, name("security group"))
            self._terminal.show("security", "group", "rule", "create", *words)
        self._create("keypair", "--private-key", self._cloud.typed(self._key))
        size = ("--vcpus", 1, "--ram", image.ram_mb, "--disk", image.disk_gb)
        self._create("flavor", *size)

    def _create(self, kind: str, *words: object) -> Any:
        with self._screen.step(kind) as step:
            made = self._terminal.create(kind, *words)
            step.seen = made.get("cidr") or made.get("fingerprint") or made["id"]
        return made

    def _boot(self, image: Bootable) -> None:
        made = self._made
        used = [("--image", "image"), ("--flavor", "flavor"), ("--network", "network")]
        used += [("--security-group", "security group"), ("--key-name", "keypair")]
        words = [word for option, kind in used for word in (option, name(kind))]
        made.server_id = self._create("server", *words)["id"]
        with self._screen.step("server is ACTIVE", slow=True) as step:
            server = self._wait(ACTIVE_WITHIN_S, "the server is not ACTIVE", self._active)
            (made.ip,) = [ip for ips in server["addresses"].values() for ip in ips]
            ports = self._demo.show("port", "list", "--server", made.server_id)
            made.ports = [port["ID"] for port in ports]
            there = self._cloud.remains(made.server_id, made.ports, made.networks)
            if not there:
                raise DuranovaError("the server is ACTIVE, but this machine has nothing of it")
            step.seen = f"{made.ip}: {', '.join(there)}"
        with self._screen.step("guest is up", slow=True) as step:
            console, line = self._wait(
                BOOTED_WITHIN_S, "the guest does not say so", lambda: self._booted(image.is_up)
            )
            step.seen = line
            self._screen.command(spelled("console", "log", "show", name("server")))
            self._screen.quote(console, marked=line)

    def _active(self) -> Any:
        server = self._demo.show("server", "show", self._made.server_id)
        if server["status"] == "ERROR":
            fault = server.get("fault") or {}
            raise DuranovaError(f"the server is in ERROR: {fault.get('message', 'no fault')}")
        return server if server["status"] == "ACTIVE" else None

    def _booted(self, is_up: re.Pattern[str]) -> tuple[str, str] | None:
        console = self._demo.do("console", "log", "show", self._made.server_id)
        found = is_up.search(console)
        return (console, found[0].strip()) if found else None

    def _login(self) -> None:
        if self._options.driver == "fake":
            self._screen.say("[yellow]-[/] no ssh: nothing runs inside a guest of the fake driver")
            return
        with self._screen.step("ssh login", slow=True) as step:
            self._screen.command(
                f"ssh -i {self._key} {self._options.user}@{self._made.ip} uname -a"
            )
            step.seen = ssh(
                self._key, self._options.user, self._made.ip, "uname -a", LOGIN_WITHIN_S
            )
            self._screen.quote(step.seen)

    def _history(self) -> None:
        with self._screen.step("server events") as step:
            words = ("server", "event", "list", self._made.server_id)
            self._screen.command(spelled(*words))
            self._screen.quote(self._demo.do(*words, "--max-width", 100))
            actions = [event["Action"] for event in self._demo.show(*words)]
            if actions != ["create"]:
                raise DuranovaError(f"its events are {actions}, and not one create")
            step.seen = "create"
        with self._screen.step("Temporal workflow") as step:
            run = self._wait(SEEN_WITHIN_S, "Temporal shows no completed workflow", self._workflow)
            workflow = run["execution"]["workflowId"]
            step.seen = f"{run['type']['name']} {workflow} completed, {run['historyLength']} events"
            self._screen.quote(
                f"{self._cloud.ui}/namespaces/default/workflows/{workflow}/"
                f"{run['execution']['runId']}/history"
            )

    def _workflow(self) -> Any:
        """The completed run that created the server, as the Web UI's own interface shows it."""
        query = f'WorkflowId="{server_workflow_id(self._made.server_id)}"'
        answer = httpx.get(
            f"{self._cloud.ui}/api/v1/namespaces/default/workflows", params={"query": query}
        )
        runs = answer.raise_for_status().json().get("executions", [])
        return next((run for run in runs if run["status"].endswith("_COMPLETED")), None)

    def _keep(self) -> None:
        cloud, say = self._cloud, self._screen.say
        say("\n[bold]It keeps running; ctrl-C deletes everything.[/]")
        say(f"  API              {cloud.url}")
        say(f"  its description  {cloud.url}/docs")
        say(f"  Temporal Web UI  {cloud.ui}")
        say(f"  the guest        {escape(self._ssh)}")
        clouds = shlex.quote(str(cloud.clouds))
        with suppress(KeyboardInterrupt):  # from the last line on, which invites it
            say(f"  the client       export OS_CLIENT_CONFIG_FILE={clouds} OS_CLOUD=duranova\n")
            while True:
                cloud.check()
                time.sleep(1)
        say("")

    def _delete(self) -> None:
        with self._screen.step("server is deleted", slow=True) as step:
            self._terminal.delete("server")
            self._wait(GONE_WITHIN_S, "the server is still listed", self._no_server)
            step.seen = self._made.server_id
        with self._screen.step("rest is deleted") as step:
            rest = [kind for kind in KINDS if kind != "server"]
            for kind in rest:
                self._terminal.delete(kind)
            step.seen = ", ".join(rest)

    def _no_server(self) -> bool:
        return not self._demo.show("server", "list")

    def _check_nothing_is_left(self) -> None:
        made = self._made
        with self._screen.step("nothing is left") as step:
            for kind in KINDS:
                if self._terminal.lists(kind):
                    raise DuranovaError(f"{kind} {name(kind)} is still listed")
            deadline = time.monotonic() + GONE_WITHIN_S
            while left := self._cloud.remains(made.server_id, made.ports, made.networks):
                if time.monotonic() > deadline:
                    raise DuranovaError(f"this machine still has {', '.join(left)}")
                time.sleep(_LOOK_EVERY_S)
            step.seen = "none of it listed; no domain, no device, no file"

    def _end(self) -> None:
        with self._screen.step("duranova stops") as step:
            self._terminal.close()
            self._cloud.stop()
            self._cloud.clear()
            self._cloud.remove()
            step.seen = f"{self._cloud.directory} is removed"

    # --- how a step is made ---------------------------------------------------------------------

    @property
    def _key(self) -> Path:
        return self._cloud.directory / "first-key"

    @property
    def _terminal(self) -> Terminal:
        assert self._opened is not None, "the cloud has started"  # noqa: S101  # our own order
        return self._opened

    @property
    def _demo(self) -> OpenStack:
        return self._terminal.demo

    @property
    def _ssh(self) -> str:
        return shlex.join(["ssh", "-i", str(self._key), f"{self._options.user}@{self._made.ip}"])

    def _wait(self, within_s: float, otherwise: str, look: Callable[[], Any]) -> Any:
        """What ``look`` finds, as soon as it finds something. DuranovaError if it does not in time."""
        deadline = time.monotonic() + within_s
        while not (found := look()):
            self._cloud.check()
            if time.monotonic() > deadline:
                raise DuranovaError(f"{otherwise} after {within_s:.0f} s")
            time.sleep(_LOOK_EVERY_S)
        return found


def _message(error: BaseException) -> str:
    text = error.message if isinstance(error, DuranovaError) else f"{type(error).__name__}: {error}"
    return escape(text)
