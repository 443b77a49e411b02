"""The real cloud-init reads our metadata service and our config drive."""

from __future__ import annotations

import base64
import json
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine
from sqlmodel import select

from db.hosts import Host
from db.network import PortRequest, allocate_server_ports, ensure_demo_network
from db.network.tables import Subnet
from db.servers import Server
from db.session import transaction
from runtime.hosttoken import host_token
from runtime.sealing import host_key
from tests.conftest import SECRET

PYTHON = "/usr/bin/python3"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBzEA me@example"
USER_DATA = "#cloud-config\npackages: [vim]\n"
_READER = """
import json, sys
from cloudinit.sources import DataSourceConfigDrive as drive, DataSourceOpenStack as service
from cloudinit.sources.helpers.openstack import convert_net_json
from cloudinit.sources.helpers import ec2
kind, where, mac = sys.argv[1:]
if kind == "service":
    base = where
    real = ec2.get_instance_metadata
    ec2.get_instance_metadata = lambda **kw: real(metadata_address=base, **kw)
    found = service.read_metadata_service(where, timeout=10, retries=1)
else:
    found = drive.read_config_drive(where)
found["config"] = convert_net_json(found["networkdata"], known_macs={mac: "eth0"})
print(json.dumps(found, default=lambda raw: raw.decode("latin-1")))
"""


def _has_cloud_init() -> bool:
    check = [PYTHON, "-c", "import cloudinit"]
    return (
        Path(PYTHON).exists()
        and subprocess.run(check, capture_output=True, check=False).returncode == 0
    )


pytestmark = pytest.mark.skipif(not _has_cloud_init(), reason="cloud-init is not installed")


def read_as_guest(kind: str, where: str, mac: str) -> Any:
    """What cloud-init's own data source makes of it."""
    done = subprocess.run(
        [PYTHON, "-c", _READER, kind, where, mac],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class Guest:
    """A server on ``host-1`` and the way its host asks about it."""

    def __init__(self, client: TestClient, engine: Engine, *, dhcp: bool) -> None:
        self.client = client
        self.headers = {"X-Host-Token": host_token(host_key(SECRET, "host-1"), "host-1")}
        with transaction(engine) as session:
            session.add(Host(name="host-1", uuid="h", service_id="s", availability_zone="az1"))
            network = ensure_demo_network(session, "project-admin")
            self.server = Server(
                project_id="project-demo",
                user_id="u",
                name="Web 1",
                hostname="web-1",
                host="host-1",
                key_name="mine",
                public_key=KEY,
                user_data=base64.b64encode(USER_DATA.encode()).decode(),
            )
            session.add(self.server)
            for subnet in session.exec(select(Subnet)):
                subnet.enable_dhcp = dhcp
                self.subnet = subnet
            session.flush()
            (self.port,) = allocate_server_ports(
                session,
                server_id=self.server.id,
                project_id="project-demo",
                az="az1",
                requests=[PortRequest(network_id=network.id, fixed_ip="10.213.64.9")],
                security_groups=[],
            )

    def ask(self, path: str) -> Any:
        base = f"/internal/v1/hosts/host-1/servers/{self.server.id}"
        return self.client.get(f"{base}/{path.lstrip('/')}", headers=self.headers)

    def check(self, found: Any) -> None:
        """What cloud-init found is what the server is."""
        meta = found["metadata"]
        assert found["version"] == 2
        assert meta["instance-id"] == meta["uuid"] == self.server.id
        assert meta["local-hostname"] == meta["hostname"] == "web-1"
        assert meta["availability_zone"] == "az1"
        assert meta["public_keys"] == {"mine": KEY}
        assert found["userdata"] == USER_DATA
        assert found["ec2-metadata"]["hostname"] == "web-1"


@pytest.fixture(params=[True, False], ids=["dhcp", "static"])
def guest(request: pytest.FixtureRequest, client: TestClient, engine: Engine) -> Guest:
    return Guest(client, engine, dhcp=request.param)


@pytest.fixture
def service(guest: Guest) -> Iterator[str]:
    """The metadata service of the one guest, as a host answers it: real HTTP, ``/`` is the tree."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_args: Any) -> None:
            """Be quiet."""

        def do_GET(self) -> None:
            answer = guest.ask(f"metadata{self.path}")
            self.send_response(answer.status_code)
            self.send_header("Content-Type", answer.headers["content-type"])
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def check_network(guest: Guest, config: Any) -> None:
    """The network configuration cloud-init derives for the card."""
    (card,) = [entry for entry in config["config"] if entry["type"] == "physical"]
    assert (card["mac_address"], card["mtu"], card["name"]) == (guest.port.mac, 1450, "eth0")
    names = [entry["address"] for entry in config["config"] if entry["type"] == "nameserver"]
    assert names == ["10.213.64.1"]
    (subnet,) = card["subnets"]
    if guest.subnet.enable_dhcp:
        assert subnet["type"] == "dhcp4"
        return
    assert subnet["type"] == "static"
    assert subnet["address"] == "10.213.64.9"
    assert subnet["netmask"] == "255.255.240.0"
    assert subnet["routes"] == [
        {"network": "0.0.0.0", "netmask": "0.0.0.0", "gateway": "10.213.64.1"}
    ]


def test_cloud_init_reads_the_metadata_service(guest: Guest, service: str) -> None:
    found = read_as_guest("service", service, guest.port.mac)
    guest.check(found)
    assert found["ec2-metadata"]["public-keys"] == {"mine": KEY}
    check_network(guest, found["config"])


def test_cloud_init_reads_the_config_drive(guest: Guest, tmp_path: Path) -> None:
    drive = tmp_path / "drive"
    for path, content in guest.ask("config-drive").json().items():
        target = drive / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(base64.b64decode(content))
    found = read_as_guest("drive", str(drive), guest.port.mac)
    guest.check(found)
    check_network(guest, found["config"])
