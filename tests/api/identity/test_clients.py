"""The clients people use, against a served cloud: keystoneauth1 and the openstack command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
from keystoneauth1 import exceptions, session
from keystoneauth1.identity import v3
from keystoneauth1.identity.generic import Password as AnyPassword

from cli.clouds import clouds_yaml
from tests.api.identity.conftest import PASSWORDS

WHO = {
    "username": "demo",
    "password": PASSWORDS["demo"],
    "user_domain_id": "default",
    "project_name": "demo",
    "project_domain_id": "default",
}


@contextmanager
def session_with(auth: Any) -> Iterator[Any]:
    with requests.Session() as http:
        yield session.Session(auth=auth, session=http)


@pytest.mark.parametrize("path", ["/identity", "/identity/", "/identity/v3", "/identity/v3/"])
def test_keystoneauth_discovers_the_service_from_every_spelling(served: str, path: str) -> None:
    with session_with(AnyPassword(auth_url=served + path, **WHO)) as s:
        assert s.get_endpoint(service_type="identity", interface="public") == f"{served}/identity"
        data = s.get_endpoint_data(service_type="identity", min_version="3", max_version="3.latest")
        assert data is not None
        assert data.url == f"{served}/identity/v3/"
        assert data.api_version == (3, 14)
        for service in ("compute", "image", "network"):
            url = s.get_endpoint(service_type=service, skip_discovery=True)
            assert url is not None
            assert url.startswith(served)
        project_id = s.get_project_id()
        shown = s.get(f"/v3/projects/{project_id}", endpoint_filter={"service_type": "identity"})
        assert shown.json()["project"]["name"] == "demo"


def test_keystoneauth_logs_in_by_password_token_and_application_credential(served: str) -> None:
    url = f"{served}/identity/v3"
    identity: Any = {"endpoint_filter": {"service_type": "identity", "interface": "public"}}
    with session_with(v3.Password(url, unscoped=True, **_without_project())) as s:
        unscoped = s.get_token()
        assert s.get_project_id() is None
    with session_with(
        v3.Token(url, unscoped, project_name="demo", project_domain_name="Default")
    ) as s:
        access = s.auth.get_access(s)
        assert access.project_name == "demo"
        assert access.role_names == ["member", "reader"]
        path = f"/v3/users/{s.get_user_id()}/application_credentials"
        # A token got with a token would do as well, but this is the longest chain.
        made = s.post(path, json={"application_credential": {"name": "robot"}}, **identity)
        credential = made.json()["application_credential"]
    auth = v3.ApplicationCredential(
        url,
        application_credential_id=credential["id"],
        application_credential_secret=credential["secret"],
    )
    with session_with(auth) as s:
        assert s.get_project_id() == credential["project_id"]
        with pytest.raises(exceptions.Forbidden):
            s.post(path, json={"application_credential": {"name": "second"}}, **identity)
    with (
        session_with(v3.Password(url, **(WHO | {"password": "wrong"}))) as s,
        pytest.raises(exceptions.Unauthorized, match="requires authentication"),
    ):
        s.get_token()


def test_keystoneauth_logs_in_again_when_its_token_was_revoked(served: str) -> None:
    identity: Any = {"endpoint_filter": {"service_type": "identity"}}
    with session_with(v3.Password(f"{served}/identity/v3", **WHO)) as s:
        first = s.get_token()
        assert first is not None
        revoked = s.delete("/v3/auth/tokens", headers={"X-Subject-Token": first}, **identity)
        assert revoked.status_code == 204
        assert s.get("/v3/auth/projects", **identity).status_code == 200
        assert s.get_token() != first


def _without_project() -> dict[str, str]:
    return {k: v for k, v in WHO.items() if not k.startswith("project")}


class Command:
    """The ``openstack`` command with a clouds.yaml of this cloud."""

    def __init__(self, url: str, directory: Path) -> None:
        self.directory = directory
        text = clouds_yaml(url, "RegionOne", PASSWORDS)
        (directory / "clouds.yaml").write_text(text)
        kept = {k: v for k, v in os.environ.items() if not k.startswith("OS_")}
        self.env = kept | {"HOME": str(directory)}

    def __call__(self, cloud: str, *words: str) -> subprocess.CompletedProcess[str]:
        program = Path(sys.executable).with_name("openstack")
        return subprocess.run(
            [program, "--os-cloud", cloud, *words],
            env=self.env,
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def json(self, cloud: str, *words: str) -> Any:
        done = self(cloud, *words, "-f", "json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture
def openstack(served: str, tmp_path: Path) -> Command:
    home = tmp_path / "home"
    home.mkdir()
    return Command(served, home)


@pytest.mark.timeout(600)
def test_the_openstack_command_runs_an_identity_day(openstack: Command) -> None:
    admin, demo = "duranova-admin", "duranova"
    token = openstack.json(demo, "token", "issue")
    assert token["project_id"]
    assert token["id"].count(".") == 2

    names = [p["Name"] for p in openstack.json(admin, "project", "list")]
    assert names == ["admin", "alt", "demo"]
    # Others are shown their own projects.
    assert [p["Name"] for p in openstack.json(demo, "project", "list")] == ["demo"]

    user = openstack.json(
        admin, "user", "create", "eve", "--password", "pw", "--project", "alt", "--email", "e@x"
    )
    assert user["name"] == "eve"
    assert "password" not in user
    added = openstack(admin, "role", "add", "--user", "eve", "--project", "alt", "member")
    assert added.returncode == 0, added.stderr
    assignments = openstack.json(admin, "role", "assignment", "list", "--names")
    assert {(a["Role"], a["User"], a["Project"], a["System"]) for a in assignments} == {
        ("admin", "admin@Default", "", "all"),
        ("admin", "admin@Default", "admin@Default", ""),
        ("member", "alt@Default", "alt@Default", ""),
        ("member", "demo@Default", "demo@Default", ""),
        ("member", "eve@Default", "alt@Default", ""),
    }
    credential = openstack.json(demo, "application", "credential", "create", "robot")
    assert credential["Secret"]
    denied = openstack(demo, "user", "list")
    assert denied.returncode != 0
    assert "403" in denied.stderr
