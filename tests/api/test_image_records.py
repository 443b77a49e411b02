"""The image API's records: create, list, show, patch, delete, tags, versions, schemas."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from fastapi.testclient import TestClient
from sqlmodel import Session

from api.context import Cloud
from api.image.schemas import IMAGE
from api.image.wire import view
from db.images import Image
from db.quotas import set_limit
from db.session import transaction
from tests.conftest import acting_as

IMAGES = "/image/v2/images"
PATCH = "application/openstack-images-v2.1-json-patch"
ADMIN = acting_as("admin")
ALT = acting_as("alt")


def make(client: TestClient, as_: str = "member", **fields: Any) -> dict[str, Any]:
    answer = client.post(IMAGES, json=fields, headers=acting_as(as_))
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def patch(
    client: TestClient, image_id: str, *operations: Any, as_: str = "member", kind: str = PATCH
) -> Any:
    headers = acting_as(as_) | {"Content-Type": kind}
    return client.patch(f"{IMAGES}/{image_id}", content=json.dumps(operations), headers=headers)


def names(client: TestClient, query: str = "", as_: str = "member") -> list[str]:
    answer = client.get(f"{IMAGES}?{query}", headers=acting_as(as_))
    assert answer.status_code == 200, answer.text
    return [image["name"] for image in answer.json()["images"]]


# --- versions and schemas


def test_version_documents_offer_v2_and_make_the_nameless_choose(client: TestClient) -> None:
    chosen = client.get("/image/versions", headers={"X-Auth-Token": ""})
    asked = client.get("/image/")
    assert (chosen.status_code, asked.status_code) == (200, 300)
    assert chosen.json() == asked.json()
    newest = asked.json()["versions"][0]
    assert newest["id"] == "v2.7"
    assert newest["status"] == "CURRENT"
    assert newest["links"] == [{"rel": "self", "href": "http://testserver/image/v2/"}]


def test_every_shown_attribute_is_in_the_schema(client: TestClient) -> None:
    assert client.get("/image/v2/schemas/image").json() == IMAGE
    assert set(view(Image(project_id="p"))) == set(IMAGE["properties"])
    for name in ("images", "member", "members"):
        assert client.get(f"/image/v2/schemas/{name}").json()["name"] == name
    assert client.get("/image/v2/schemas/task").status_code == 404


def test_import_has_no_methods_and_there_is_one_store(client: TestClient) -> None:
    assert client.get("/image/v2/info/import").json()["import-methods"]["value"] == []
    assert client.get("/image/v2/info/stores").status_code == 404


# --- create


def test_create_keeps_what_the_client_says_and_flattens_properties(client: TestClient) -> None:
    chosen = "0f6ac8e0-5bd5-4aca-9b5b-9b9f9b1f0001"
    answer = client.post(
        IMAGES,
        json={
            "id": chosen,
            "name": "été",
            "min_disk": 2,
            "min_ram": 96,
            "protected": True,
            "os_hidden": True,
            "visibility": "community",
            "disk_format": "qcow2",
            "container_format": "bare",
            "tags": ["b", "a", "b"],
            "os_distro": "debian",
        },
    )
    image = answer.json()
    assert answer.status_code == 201
    assert answer.headers["location"] == f"http://testserver{IMAGES}/{chosen}"
    assert image["os_distro"] == "debian"
    assert image["tags"] == ["a", "b"]
    assert (image["status"], image["owner"]) == ("queued", "project-demo")
    assert (image["size"], image["checksum"], image["os_hash_algo"]) == (None, None, None)
    assert image == client.get(f"{IMAGES}/{chosen}").json()
    assert client.post(IMAGES, json={"id": chosen}).status_code == 409


@pytest.mark.parametrize(
    "fields",
    [
        {"disk_format": "vmdk"},
        {"disk_format": "iso"},
        {"container_format": "ovf"},
        {"visibility": "secret"},
        {"id": "../../etc/passwd"},
        {"id": 5},
        {"name": "n" * 256},
        {"name": "nul\x00"},
        {"min_disk": -1},
        {"min_ram": 2**40},
        {"min_ram": "96"},
        {"protected": "yes"},
        {"tags": "a"},
        {"tags": [""]},
        {"tags": ["t" * 256]},
        {"os_distro": 5},
        {"os_distro": None},
        {"os_distro": "\ud800"},
        {"\ud800": "x"},
        {"": "x"},
        {"p" * 256: "x"},
    ],
)
def test_create_refuses_what_an_image_cannot_be(client: TestClient, fields: Any) -> None:
    content = json.dumps(fields)
    answer = client.post(IMAGES, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert answer.json()["title"] == "Bad Request"
    assert answer.json()["message"]


@pytest.mark.parametrize("name", ["status", "checksum", "size", "locations", "os_glance_x"])
def test_attributes_of_the_service_are_not_the_clients_to_set(
    client: TestClient, name: str
) -> None:
    assert client.post(IMAGES, json={name: "x"}).status_code == 403
    image = make(client)
    change = {"op": "add", "path": f"/{name}", "value": "x"}
    assert patch(client, image["id"], change).status_code == 403


def test_only_admins_publish_or_create_for_others(client: TestClient) -> None:
    assert client.post(IMAGES, json={"visibility": "public"}).status_code == 403
    assert client.post(IMAGES, json={"owner": "project-alt"}).status_code == 403
    assert make(client, "admin", owner="project-alt", visibility="public")["owner"] == "project-alt"
    mine = make(client)
    publish = {"op": "replace", "path": "/visibility", "value": "public"}
    assert patch(client, mine["id"], publish).status_code == 403
    assert patch(client, mine["id"], publish, as_="admin").json()["visibility"] == "public"
    rename = {"op": "replace", "path": "/name", "value": "still mine"}
    assert patch(client, mine["id"], rename).status_code == 200
    assert client.post(IMAGES, json={}, headers=acting_as("reader")).status_code == 403


def test_a_project_may_have_no_more_images_than_its_quota(client: TestClient, cloud: Cloud) -> None:
    with transaction(cloud.engine) as session:
        set_limit(session, "project-demo", "image_count_total", 2)
    first = make(client)
    make(client)
    assert client.post(IMAGES, json={}).status_code == 413
    client.delete(f"{IMAGES}/{first['id']}")
    make(client)


def test_properties_and_tags_are_limited_in_number(client: TestClient) -> None:
    assert client.post(IMAGES, json={f"p{i}": "" for i in range(129)}).status_code == 413
    assert client.post(IMAGES, json={"tags": [f"t{i}" for i in range(129)]}).status_code == 413


# --- who sees and changes what


@pytest.mark.parametrize(
    ("visibility", "status"), [("private", 404), ("shared", 404), ("community", 200)]
)
def test_another_projects_image_shows_only_if_its_visibility_says_so(
    client: TestClient, visibility: str, status: int
) -> None:
    image = make(client, visibility=visibility)
    there = f"{IMAGES}/{image['id']}"
    assert client.get(there, headers=ALT).status_code == status
    assert client.get(there, headers=ADMIN).status_code == 200
    refused = 404 if status == 404 else 403
    assert client.delete(there, headers=ALT).status_code == refused
    change = {"op": "add", "path": "/x", "value": "y"}
    assert patch(client, image["id"], change, as_="alt").status_code == refused
    assert client.put(f"{there}/tags/x", headers=ALT).status_code == refused


def test_lists_show_own_and_public_but_community_only_on_request(client: TestClient) -> None:
    for visibility in ("private", "shared", "community"):
        make(client, "alt", name=f"alt-{visibility}", visibility=visibility)
    make(client, "admin", name="everyones", visibility="public")
    make(client, name="mine", visibility="private")
    make(client, name="hidden", os_hidden=True)
    assert names(client, "sort=name:asc") == ["everyones", "mine"]
    assert names(client, "visibility=community") == ["alt-community"]
    assert names(client, "visibility=all&sort=name:asc") == ["alt-community", "everyones", "mine"]
    assert names(client, "visibility=private") == ["mine"]
    assert names(client, "visibility=private&sort=name", as_="admin") == ["mine", "alt-private"]
    assert names(client, "os_hidden=true") == ["hidden"]


def test_protected_images_stay_until_unprotected(client: TestClient) -> None:
    image = make(client, protected=True)
    there = f"{IMAGES}/{image['id']}"
    assert client.delete(there).status_code == 403
    patch(client, image["id"], {"op": "replace", "path": "/protected", "value": False})
    assert client.delete(there).status_code == 204
    assert client.get(there).status_code == 404
    assert client.delete(there).status_code == 404
    assert client.post(IMAGES, json={"id": image["id"]}).status_code == 409


# --- patch


def test_patch_adds_replaces_and_removes(client: TestClient) -> None:
    image = make(client, os_distro="debian", gone="x", tags=["a"])
    answer = patch(
        client,
        image["id"],
        {"op": "replace", "path": "/name", "value": "new"},
        {"op": "replace", "path": "/os_distro", "value": "ubuntu"},
        {"op": "add", "path": "/a~1b~0c", "value": "y"},
        {"op": "remove", "path": "/gone"},
        {"op": "add", "path": "/tags/-", "value": "b"},
        {"op": "add", "path": "/min_ram", "value": 96},
    )
    assert answer.status_code == 200, answer.text
    changed = answer.json()
    assert (changed["name"], changed["os_distro"], changed["a/b~c"]) == ("new", "ubuntu", "y")
    assert (changed["tags"], changed["min_ram"]) == (["a", "b"], 96)
    assert "gone" not in changed
    assert changed == client.get(f"{IMAGES}/{image['id']}").json()


def test_the_early_patch_dialect_works_too(client: TestClient) -> None:
    image = make(client, old="x")
    kind = PATCH.replace("2.1", "2.0")
    changes = {"replace": "/name", "value": "new"}, {"remove": "/old"}, {"add": "/k", "value": "v"}
    changed = patch(client, image["id"], *changes, kind=kind).json()
    assert (changed["name"], changed["k"], "old" in changed) == ("new", "v", False)
    both = {"add": "/x", "remove": "/y", "value": "z"}
    assert patch(client, image["id"], both, kind=kind).status_code == 400


@pytest.mark.parametrize(
    ("status", "operation"),
    [
        (400, "not an object"),
        (400, {"op": "test", "path": "/name", "value": "x"}),
        (400, {"op": "move", "path": "/name", "from": "/k"}),
        (400, {"op": "add", "path": "/name"}),
        (400, {"op": "add", "path": "name", "value": "x"}),
        (400, {"op": "add", "path": "/", "value": "x"}),
        (400, {"op": "add", "path": 5, "value": "x"}),
        (400, {"op": "add", "path": "/name/deeper", "value": "x"}),
        (400, {"op": "add", "path": "/tags/9", "value": "x"}),
        (400, {"op": "add", "path": "/tags/x", "value": "x"}),
        (400, {"op": "add", "path": "/tags/0/0", "value": "x"}),
        (400, {"op": "add", "path": "/number", "value": 5}),
        (400, {"op": "replace", "path": "/visibility", "value": "secret"}),
        (400, {"op": "replace", "path": "/disk_format", "value": "vhd"}),
        (400, {"op": "add", "path": "/bad~2escape", "value": "x"}),
        (403, {"op": "replace", "path": "/id", "value": "x"}),
        (403, {"op": "remove", "path": "/name"}),
        (403, {"op": "replace", "path": "/owner", "value": "project-alt"}),
        (403, {"op": "replace", "path": "/self", "value": "x"}),
        (409, {"op": "add", "path": "/k", "value": "again"}),
        (409, {"op": "replace", "path": "/absent", "value": "x"}),
        (409, {"op": "remove", "path": "/absent"}),
    ],
)
def test_patch_refuses_and_changes_nothing(client: TestClient, status: int, operation: Any) -> None:
    image = make(client, name="old", k="v")
    first = {"op": "replace", "path": "/name", "value": "half done"}
    answer = patch(client, image["id"], first, operation)
    assert answer.status_code == status, answer.text
    assert client.get(f"{IMAGES}/{image['id']}").json() == image


@pytest.mark.parametrize("kind", ["application/json", "text/plain", ""])
def test_patch_takes_only_glances_media_types(client: TestClient, kind: str) -> None:
    assert patch(client, make(client)["id"], kind=kind).status_code == 415


@pytest.mark.parametrize("body", ["", "{", "{}", "[" * 100_000, '"x"', "\xff"])
def test_patch_refuses_bodies_that_are_no_list(client: TestClient, body: str) -> None:
    there = f"{IMAGES}/{make(client)['id']}"
    answer = client.patch(there, content=body.encode("latin-1"), headers={"Content-Type": PATCH})
    assert answer.status_code == 400


def test_formats_are_fixed_once_there_is_data(client: TestClient, cloud: Cloud) -> None:
    image = make(client, disk_format="raw", container_format="bare")
    there = f"{IMAGES}/{image['id']}"
    octets = {"Content-Type": "application/octet-stream"}
    assert client.put(f"{there}/file", content=b"x" * 512, headers=octets).status_code == 204
    change = {"op": "replace", "path": "/disk_format", "value": "qcow2"}
    assert patch(client, image["id"], change).status_code == 403
    assert client.get(there).json()["disk_format"] == "raw"


# --- tags


def test_tags_come_and_go_one_by_one(client: TestClient) -> None:
    there = f"{IMAGES}/{make(client)['id']}"
    assert client.put(f"{there}/tags/web server").status_code == 204
    assert client.put(f"{there}/tags/web server").status_code == 204
    assert client.get(there).json()["tags"] == ["web server"]
    assert client.delete(f"{there}/tags/web server").status_code == 204
    assert client.delete(f"{there}/tags/web server").status_code == 404
    assert client.put(f"{there}/tags/{'x' * 256}").status_code == 400
    assert client.put(f"{there}/tags/%00").status_code == 400


# --- lists


@pytest.fixture
def shelf(client: TestClient, cloud: Cloud) -> list[str]:
    """Five images: a to e, sizes none, 1, 2, 2, 3 bytes."""
    ids = []
    for name, size in zip("abcde", (None, 1, 2, 2, 3), strict=True):
        image = make(client, name=name, os_distro=f"distro-{name}", tags=[name, 'q"uo,te'])
        ids.append(image["id"])
        with Session(cloud.engine) as session:
            row = session.get_one(Image, image["id"])
            row.size, row.status = size, "queued" if size is None else "active"
            session.add(row)
            session.commit()
    return ids


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("sort=name:asc", "abcde"),
        ("sort_key=name&sort_dir=desc", "edcba"),
        ("sort=size:desc,name:asc", "aecdb"),
        ("sort_key=size&sort_key=name&sort_dir=asc", "bcdea"),
        ("", "edcba"),
        ("name=b", "b"),
        ("name=in:a,c&sort=name:asc", "ac"),
        ('name=in:"a","e"&sort=name:asc', "ae"),
        ("status=queued", "a"),
        ("status=in:queued,saving", "a"),
        ("size_min=2&sort=name:asc", "cde"),
        ("size_min=1&size_max=2&sort=name:asc", "bcd"),
        ("tag=c", "c"),
        ("tag=C", ""),
        ("tag=c&tag=d", ""),
        ("tag=te", ""),
        ("tag=q%22uo,te&sort=name:asc", "abcde"),
        ("os_distro=distro-d", "d"),
        ("os_distro=distro", ""),
        ("x%22]=1", ""),
        ("owner=project-demo&limit=1&sort=name:asc", "a"),
        ("owner=elsewhere", ""),
        ("limit=0", ""),
        ("protected=false&min_ram=0&name=a", "a"),
        ("protected=true", ""),
        ("created_at=gt:2000-01-01T00:00:00Z&name=a", "a"),
        ("created_at=lt:2000-01-01T00:00:00Z", ""),
        ("disk_format=raw", ""),
        ("os_hash_algo=sha512&name=a", "a"),
        ("os_hash_algo=md5", ""),
    ],
)
def test_lists_filter_and_sort(
    client: TestClient, shelf: list[str], query: str, expected: str
) -> None:
    assert "".join(names(client, query)) == expected


@pytest.mark.parametrize("key", ["name", "size", "created_at", "status", "disk_format", "id"])
@pytest.mark.parametrize("direction", ["asc", "desc"])
def test_pages_follow_each_other_without_loss_or_repetition(
    client: TestClient, shelf: list[str], key: str, direction: str
) -> None:
    whole = client.get(f"{IMAGES}?sort={key}:{direction}").json()["images"]
    page = client.get(f"{IMAGES}?sort={key}:{direction}&limit=2").json()
    assert page["first"].startswith("/v2/images?")
    assert page["schema"] == "/v2/schemas/images"
    seen = page["images"]
    while "next" in page:
        assert dict(parse_qsl(urlsplit(page["next"]).query))["marker"] == seen[-1]["id"]
        page = client.get(f"/image{page['next']}").json()
        seen += page["images"]
    assert seen == whole
    assert {image["id"] for image in seen} == set(shelf)


@pytest.mark.parametrize("query", ["id=in:", "id=in:x"])
def test_lists_by_id(client: TestClient, shelf: list[str], query: str) -> None:
    assert names(client, query) == []
    assert sorted(names(client, f"id=in:{shelf[0]},{shelf[1]},x")) == ["a", "b"]


@pytest.mark.parametrize(
    "query",
    [
        "limit=-1",
        "limit=x",
        "limit=99999999999999999999",
        "marker=nothing",
        "sort_key=checksum",
        "sort=name:up",
        "sort_key=name&sort_dir=up",
        "sort_key=name&sort_dir=asc&sort_dir=asc",
        "sort=name&sort_key=name",
        "visibility=x",
        "member_status=x",
        "status=x",
        "size_min=x",
        "size_max=-1",
        "min_ram=x",
        "protected=maybe",
        "created_at=gt:yesterday",
        'name=in:"a',
        "name=%00",
    ],
)
def test_lists_refuse_queries_that_mean_nothing(client: TestClient, query: str) -> None:
    assert client.get(f"{IMAGES}?{query}").status_code == 400


def test_a_page_has_at_most_25_images_unless_told(client: TestClient) -> None:
    for _ in range(26):
        make(client)
    page = client.get(IMAGES).json()
    assert len(page["images"]) == 25
    rest = client.get(f"/image{page['next']}").json()
    assert len(rest["images"]) == 1
    assert "next" not in rest


def test_unknown_images_are_not_found(client: TestClient) -> None:
    for name in ("nothing", "%00", "x" * 300):
        assert client.get(f"{IMAGES}/{name}").status_code == 404
        assert client.delete(f"{IMAGES}/{name}").status_code == 404
    assert client.get(f"{IMAGES}/x", headers={"X-Auth-Token": "forged"}).status_code == 401
