"""Image bytes: upload, download, hostile content, and what is left when an upload goes wrong."""

from __future__ import annotations

import hashlib
import os
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi.testclient import TestClient

from api.app import build_app
from api.context import Cloud
from db.images import Image
from db.quotas import set_limit
from db.session import transaction
from runtime.imagestore import ImageStore
from runtime.settings import Settings
from tests.conftest import acting_as

IMAGES = "/image/v2/images"
OCTETS = {"Content-Type": "application/octet-stream"}
MIB = 1024**2


def qemu_img(*words: str | Path) -> None:
    subprocess.run(["qemu-img", *words], check=True, stdout=subprocess.DEVNULL)


def make(client: TestClient, disk_format: str = "raw", **fields: Any) -> str:
    body = {"name": "i", "disk_format": disk_format, "container_format": "bare", **fields}
    return str(client.post(IMAGES, json=body).json()["id"])


def put(client: TestClient, image_id: str, content: Any, **headers: str) -> Any:
    return client.put(f"{IMAGES}/{image_id}/file", content=content, headers=OCTETS | headers)


def stored_files(cloud: Cloud) -> set[str]:
    folder = cloud.settings.image_dir
    return set(os.listdir(folder)) if folder.exists() else set()


# --- the good way


def test_upload_measures_and_download_returns_every_byte(client: TestClient, cloud: Cloud) -> None:
    content = os.urandom(3 * MIB + 17)
    image_id = make(client)
    assert client.get(f"{IMAGES}/{image_id}/file").status_code == 204
    assert put(client, image_id, content).status_code == 204
    image = client.get(f"{IMAGES}/{image_id}").json()
    assert (image["status"], image["size"]) == ("active", len(content))
    assert image["virtual_size"] == len(content)
    assert image["checksum"] == hashlib.md5(content).hexdigest()
    assert image["os_hash_algo"] == "sha512"
    assert image["os_hash_value"] == hashlib.sha512(content).hexdigest()
    got = client.get(f"{IMAGES}/{image_id}/file")
    assert got.content == content
    assert got.headers["content-md5"] == image["checksum"]
    assert got.headers["content-type"] == "application/octet-stream"
    part = client.get(f"{IMAGES}/{image_id}/file", headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, content[10:20])
    beyond = client.get(f"{IMAGES}/{image_id}/file", headers={"Range": "bytes=99999999-"})
    assert beyond.status_code == 416
    assert stored_files(cloud) == {image_id}


def test_a_chunked_upload_needs_no_length(client: TestClient) -> None:
    image_id = make(client)
    pieces = [bytes([n]) * 100_000 for n in range(30)]
    assert put(client, image_id, iter(pieces)).status_code == 204
    assert client.get(f"{IMAGES}/{image_id}/file").content == b"".join(pieces)


def test_qcow2_is_taken_with_the_virtual_size_of_its_header(
    client: TestClient, tmp_path: Path
) -> None:
    qemu_img("create", "-f", "qcow2", tmp_path / "disk", "900G")
    image_id = make(client, "qcow2")
    assert put(client, image_id, (tmp_path / "disk").read_bytes()).status_code == 204
    image = client.get(f"{IMAGES}/{image_id}").json()
    assert image["virtual_size"] == 900 * 1024**3
    assert image["size"] < MIB


def test_raw_disks_with_partition_tables_and_boot_sectors_are_taken(client: TestClient) -> None:
    boot_sector = bytearray(MIB)
    boot_sector[510:512] = b"\x55\xaa"
    partitioned = bytearray(boot_sector)
    partitioned[446:462] = struct.pack("<8B2I", 0x80, 0, 2, 0, 0x83, 0, 0, 0, 2048, 1)
    for disk in (boot_sector, partitioned):
        image_id = make(client)
        assert put(client, image_id, bytes(disk)).status_code == 204


# --- who, when, how much


def test_data_comes_once_and_only_to_the_owners_image(client: TestClient) -> None:
    image_id = make(client)
    alt = acting_as("alt")
    assert put(client, image_id, b"x", **alt).status_code == 404
    assert put(client, image_id, b"x", **acting_as("reader")).status_code == 403
    assert put(client, image_id, b"first").status_code == 204
    assert put(client, image_id, b"second").status_code == 409
    assert client.get(f"{IMAGES}/{image_id}/file").content == b"first"
    assert client.get(f"{IMAGES}/{image_id}/file", headers=alt).status_code == 404
    assert put(client, "nothing", b"x").status_code == 404
    common = make(client, visibility="community")
    assert put(client, common, b"x", **alt).status_code == 403


def test_upload_needs_octets_and_formats(client: TestClient) -> None:
    image_id = make(client)
    there = f"{IMAGES}/{image_id}/file"
    wrong = client.put(there, content=b"x", headers={"Content-Type": "application/json"})
    assert wrong.status_code == 415
    bare = client.post(IMAGES, json={"name": "formless"}).json()["id"]
    assert put(client, bare, b"x").status_code == 400
    assert client.get(f"{IMAGES}/{bare}").json()["status"] == "queued"


@pytest.mark.parametrize("announced", [True, False])
def test_an_image_larger_than_allowed_is_refused_and_leaves_nothing(
    client: TestClient, cloud: Cloud, announced: bool
) -> None:
    with transaction(cloud.engine) as session:
        set_limit(session, "project-demo", "image_size_total", 2)
    first, second = make(client), make(client)
    assert put(client, first, b"a" * MIB).status_code == 204
    content = b"b" * (MIB + 1)
    assert put(client, second, content if announced else iter([content])).status_code == 413
    assert client.get(f"{IMAGES}/{second}").json()["status"] == "queued"
    assert stored_files(cloud) == {first}
    assert put(client, second, b"b" * MIB).status_code == 204


def test_the_size_limit_of_the_service_holds(cloud: Cloud, settings: Settings) -> None:
    small = settings.model_copy(update={"image_max_bytes": 1000})
    app = build_app(Cloud(small, cloud.engine, cloud.tokens, cloud.launcher, cloud.sealer))
    with TestClient(app, headers=acting_as("member")) as client:
        assert put(client, make(client), b"x" * 1001).status_code == 413
        assert put(client, make(client), b"x" * 1000).status_code == 204


def test_a_full_disk_is_a_clean_refusal(client: TestClient, cloud: Cloud) -> None:
    image_id = make(client)
    folder = cloud.settings.image_dir
    folder.mkdir(parents=True)
    (folder / f"{image_id}.part").symlink_to("/dev/full")
    answer = put(client, image_id, b"x" * MIB * 2)
    assert answer.status_code == 413
    assert "full" in answer.json()["message"]
    assert client.get(f"{IMAGES}/{image_id}").json()["status"] == "queued"
    assert stored_files(cloud) == set()


def test_deactivated_data_is_withheld_from_all_but_admins(client: TestClient) -> None:
    image_id = make(client)
    there = f"{IMAGES}/{image_id}"
    assert client.post(f"{there}/actions/deactivate").status_code == 400
    put(client, image_id, b"data")
    for _ in range(2):
        assert client.post(f"{there}/actions/deactivate").status_code == 204
    assert client.get(there).json()["status"] == "deactivated"
    assert client.get(f"{there}/file").status_code == 403
    assert client.get(f"{there}/file", headers=acting_as("admin")).content == b"data"
    assert client.post(f"{there}/actions/reactivate").status_code == 204
    assert client.get(f"{there}/file").content == b"data"
    assert client.post(f"{there}/actions/explode").status_code == 400


def test_delete_removes_the_bytes(client: TestClient, cloud: Cloud) -> None:
    image_id = make(client)
    put(client, image_id, b"data")
    assert client.delete(f"{IMAGES}/{image_id}").status_code == 204
    assert stored_files(cloud) == set()
    assert client.get(f"{IMAGES}/{image_id}/file").status_code == 404


def test_bytes_lost_from_the_store_are_a_404_not_a_crash(client: TestClient, cloud: Cloud) -> None:
    image_id = make(client)
    put(client, image_id, b"data")
    ImageStore(cloud.settings.image_dir).remove(image_id)
    assert client.get(f"{IMAGES}/{image_id}/file").status_code == 404


# --- hostile content


def backing_file(folder: Path) -> Path:
    path = folder / "backing"
    qemu_img("create", "-f", "qcow2", "-u", "-F", "raw", "-b", "/etc/shadow", path, "1M")
    return path


def json_backing_file(folder: Path) -> Path:
    path = folder / "json"
    name = 'json:{"driver":"raw","file":{"driver":"file","filename":"/etc/shadow"}}'
    qemu_img("create", "-f", "qcow2", "-u", "-F", "raw", "-b", name, path, "1M")
    return path


def data_file(folder: Path) -> Path:
    path = folder / "referring"
    qemu_img("create", "-f", "qcow2", "-o", f"data_file={folder}/outside", path, "1M")
    return path


def unknown_feature(folder: Path) -> Path:
    path = folder / "feature"
    qemu_img("create", "-f", "qcow2", path, "1M")
    content = bytearray(path.read_bytes())
    content[72] |= 0x80  # the highest incompatible feature bit
    path.write_bytes(content)
    return path


def endless(folder: Path) -> Path:
    path = folder / "endless"
    qemu_img("create", "-f", "qcow2", path, "1M")
    content = bytearray(path.read_bytes())
    content[24:32] = b"\xff" * 8  # the virtual size
    path.write_bytes(content)
    return path


def as_format(name: str, *options: str) -> Any:
    def build(folder: Path) -> Path:
        path = folder / name
        qemu_img("create", "-f", name, *options, path, "1M")
        return path

    build.__name__ = "_".join([name, *options])
    return build


def flat_vmdk(folder: Path) -> Path:
    path = folder / "flat.vmdk"
    path.write_text(
        "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n"
        'createType="monolithicFlat"\n\nRW 2048 FLAT "/etc/shadow" 0\n'.ljust(2048, "\n")
    )
    return path


HOSTILE = [
    ("qcow2", backing_file, "backing file"),
    ("qcow2", json_backing_file, "backing file"),
    ("qcow2", data_file, "data_file"),
    ("qcow2", unknown_feature, "features"),
    ("qcow2", endless, "out of range"),
    ("qcow2", as_format("vmdk"), "vmdk"),
    ("qcow2", as_format("raw"), "raw"),
    ("qcow2", flat_vmdk, "vmdk"),
    ("raw", as_format("qcow2"), "qcow2"),
    ("raw", as_format("vmdk"), "vmdk"),
    ("raw", as_format("vmdk", "-o", "subformat=streamOptimized"), "vmdk"),
    ("raw", as_format("vdi"), "vdi"),
    ("raw", as_format("vhdx"), "vhdx"),
    ("raw", as_format("qed"), "qed"),
    ("raw", flat_vmdk, "vmdk"),
    ("raw", backing_file, "qcow2"),
]


@pytest.mark.parametrize(("declared", "build", "reason"), HOSTILE)
def test_content_that_is_hostile_or_not_what_it_claims_is_refused(
    client: TestClient, cloud: Cloud, tmp_path: Path, declared: str, build: Any, reason: str
) -> None:
    image_id = make(client, declared)
    answer = put(client, image_id, build(tmp_path).read_bytes())
    assert answer.status_code == 400, answer.text
    assert reason in answer.json()["message"]
    image = client.get(f"{IMAGES}/{image_id}").json()
    assert (image["status"], image["size"], image["checksum"]) == ("queued", None, None)
    assert stored_files(cloud) == set()


def test_a_header_in_pieces_hides_nothing(client: TestClient, tmp_path: Path) -> None:
    content = backing_file(tmp_path).read_bytes()
    image_id = make(client, "qcow2")
    assert put(client, image_id, (bytes([b]) for b in content[:2000])).status_code == 400
    assert put(client, image_id, b"").status_code == 400
    assert put(client, image_id, content[:100]).status_code == 400


def test_after_a_refusal_the_image_takes_good_data(client: TestClient, tmp_path: Path) -> None:
    image_id = make(client, "qcow2")
    assert put(client, image_id, backing_file(tmp_path).read_bytes()).status_code == 400
    qemu_img("create", "-f", "qcow2", tmp_path / "good", "1M")
    assert put(client, image_id, (tmp_path / "good").read_bytes()).status_code == 204


# --- interruptions: these need a real server


@pytest.fixture
def address(cloud: Cloud) -> Iterator[tuple[str, int]]:
    """A real server on a free port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:  # takes connections from now on
        config = uvicorn.Config(build_app(cloud), log_config=None, lifespan="off")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield listener.getsockname()
        server.should_exit = True
        thread.join()


def until(condition: Any) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


def begin_upload(address: tuple[str, int], image_id: str, announced: int) -> socket.socket:
    connection = socket.create_connection(address)
    head = f"PUT {IMAGES}/{image_id}/file HTTP/1.1\r\nHost: x\r\nX-Auth-Token: member\r\n"
    head += f"Content-Type: application/octet-stream\r\nContent-Length: {announced}\r\n\r\n"
    connection.sendall(head.encode() + b"x" * MIB)
    return connection


def status(cloud: Cloud, image_id: str) -> str:
    with transaction(cloud.engine) as session:
        return session.get_one(Image, image_id).status


def test_a_client_that_leaves_returns_the_image_to_the_queue(
    client: TestClient, cloud: Cloud, address: tuple[str, int]
) -> None:
    image_id = make(client)
    connection = begin_upload(address, image_id, 10 * MIB)
    until(lambda: status(cloud, image_id) == "saving")
    connection.close()
    until(lambda: status(cloud, image_id) == "queued")
    until(lambda: stored_files(cloud) == set())
    assert put(client, image_id, b"again").status_code == 204


def test_a_second_upload_is_a_conflict_while_the_first_runs(
    client: TestClient, cloud: Cloud, address: tuple[str, int]
) -> None:
    image_id = make(client)
    with begin_upload(address, image_id, 2 * MIB) as connection:
        until(lambda: status(cloud, image_id) == "saving")
        assert put(client, image_id, b"second").status_code == 409
        connection.sendall(b"y" * MIB)
        assert connection.recv(4096).startswith(b"HTTP/1.1 204")
    assert client.get(f"{IMAGES}/{image_id}/file").content == b"x" * MIB + b"y" * MIB


def test_an_image_deleted_during_its_upload_stays_deleted(
    client: TestClient, cloud: Cloud, address: tuple[str, int]
) -> None:
    image_id = make(client)
    with begin_upload(address, image_id, 2 * MIB) as connection:
        until(lambda: status(cloud, image_id) == "saving")
        assert client.delete(f"{IMAGES}/{image_id}").status_code == 204
        connection.sendall(b"y" * MIB)
        assert connection.recv(4096).startswith(b"HTTP/1.1 404")
    assert status(cloud, image_id) == "deleted"
    until(lambda: stored_files(cloud) == set())


def test_an_upload_whose_server_died_can_be_repeated(client: TestClient, cloud: Cloud) -> None:
    image_id = make(client)
    with transaction(cloud.engine) as session:  # what a killed process leaves behind
        image = session.get_one(Image, image_id)
        image.status = "saving"
        session.add(image)
    folder = cloud.settings.image_dir
    folder.mkdir(parents=True)
    for leftover in ("part", "lock"):
        (folder / f"{image_id}.{leftover}").write_bytes(b"half")
    assert put(client, image_id, b"whole").status_code == 204
    assert client.get(f"{IMAGES}/{image_id}/file").content == b"whole"
    assert stored_files(cloud) == {image_id}
