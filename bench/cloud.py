"""The cloud that is measured: one that is given by its auth URL, or a ``duranova up`` of our own."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.client import Credentials, OpenStack
from bench.processes import Find, of_family
from chaos.cloud import UpCloud

_IMAGE = b"not a bootable image, which the fake driver does not mind"
_QUOTAS = {"instances": -1, "cores": -1, "ram": -1}


@dataclass(frozen=True, slots=True)
class Target:
    """A cloud and what to ask of it."""

    api: OpenStack
    """Logged in."""
    flavor: str
    image: str
    network: str
    """Ids; the network's may be ``none``."""
    find: Find
    """Its processes."""
    own: OwnCloud | None = None
    """None for a cloud that is somebody else's."""

    def body(self, name: str, **more: object) -> dict[str, object]:
        """The body of a create; ``more`` goes into the server."""
        networks: object = "none" if self.network == "none" else [{"uuid": self.network}]
        server = {"name": name, "flavorRef": self.flavor, "imageRef": self.image}
        return {"server": {**server, "networks": networks, **more}}


class NotStarted(Exception):
    """Our own cloud did not start; the message says what it said."""


class OwnCloud:
    """A ``duranova up`` with a data directory of its own. ``start`` and ``stop`` may alternate."""

    def __init__(self, data_dir: Path, *options: str, env: Mapping[str, str] | None = None) -> None:
        self.data_dir = data_dir
        self._up = UpCloud(data_dir, *options, env=env)

    async def start(self) -> float:
        """Start it; returns the seconds until it said that it is ready. NotStarted with what it said instead."""
        began = time.perf_counter()
        try:
            await asyncio.to_thread(self._up.start)
        except AssertionError as error:
            raise NotStarted(str(error)) from None
        return time.perf_counter() - began

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL to whatever is there afterwards; nothing if it does not run."""
        if self._up.pid is not None:
            await asyncio.to_thread(self._up.stop)
        await asyncio.to_thread(self._up.close)

    @property
    def find(self) -> Find:
        """Its processes."""
        assert self._up.pid is not None
        return of_family(self._up.pid)

    @property
    def database(self) -> Path:
        """Its SQLite file."""
        return self.data_dir / "duranova.db"

    def credentials(self, name: str = "duranova") -> Credentials:
        """Of clouds.yaml: ``duranova``, ``duranova-alt`` or ``duranova-admin``."""
        clouds = json.loads((self.data_dir / "clouds.yaml").read_text())["clouds"]
        auth = clouds[name]["auth"]
        return Credentials(
            auth["auth_url"], auth["username"], auth["password"], auth["project_name"]
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """A cloud of our own that is to be started."""

    options: Sequence[str]
    """Of ``duranova up``."""
    microversion: str
    env: Mapping[str, str] = field(default_factory=dict)
    image: Path | None = None
    """A qcow2 image to boot; None will do for the fake driver."""
    clean: Callable[[Path], object] = lambda _data_dir: None
    """Removes, after the stop, what a stop leaves running."""


@asynccontextmanager
async def own_cloud(plan: Plan) -> AsyncIterator[Target]:
    """A fresh cloud with an image and a project that no quota stops; stopped and removed at the end."""
    place = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="duranova-bench-"))
    cloud = OwnCloud(place / "cloud", *plan.options, env=plan.env)
    async with AsyncExitStack() as ending:
        ending.push_async_callback(asyncio.to_thread, shutil.rmtree, place, ignore_errors=True)
        ending.push_async_callback(asyncio.to_thread, plan.clean, cloud.data_dir)
        ending.push_async_callback(cloud.stop)
        await cloud.start()
        admin = OpenStack(cloud.credentials("duranova-admin"), plan.microversion)
        api = OpenStack(cloud.credentials(), plan.microversion)
        for each in (admin, api):
            await ending.enter_async_context(each)
            await each.log_in()
        await admin.ask(
            "PUT", "compute", f"/os-quota-sets/{api.project_id}", {"quota_set": _QUOTAS}
        )
        image = await _upload(admin, plan.image)
        network = await _id_of(api, "network", "/networks", "demo-net")
        yield Target(api, "tiny", image, network, cloud.find, cloud)


@asynccontextmanager
async def foreign_cloud(
    credentials: Credentials, words: Mapping[str, str], find: Find, microversion: str
) -> AsyncIterator[Target]:
    """A cloud that runs already; ``words`` has the names or ids of ``flavor``, ``image`` and ``network``."""
    async with OpenStack(credentials, microversion) as api:
        await api.log_in()
        network = words["network"]
        if network != "none":
            network = await _id_of(api, "network", "/networks", network)
        yield Target(
            api,
            await _id_of(api, "compute", "/flavors", words["flavor"]),
            await _id_of(api, "image", "/images", words["image"]),
            network,
            find,
        )


async def _upload(api: OpenStack, image: Path | None) -> str:
    content = _IMAGE if image is None else await asyncio.to_thread(image.read_bytes)
    body = {"name": "bench", "container_format": "bare", "visibility": "public"}
    body["disk_format"] = "raw" if image is None else "qcow2"
    made = (await api.ask("POST", "image", "/images", body, (201,))).json()
    await api.upload(f"/images/{made['id']}/file", content)
    return str(made["id"])


async def _id_of(api: OpenStack, service: str, path: str, wanted: str) -> str:
    answer = (await api.get(service, f"{path}?limit=1000")).json()
    rows = answer[path.strip("/")]
    for row in rows:
        if wanted in (row["id"], row["name"]):
            return str(row["id"])
    raise LookupError(f"the cloud has no {path.strip('/')[:-1]} called {wanted}")
