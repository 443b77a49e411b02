"""A cloud with real tokens and the first-start records, asked in process or over a socket."""

from __future__ import annotations

import dataclasses
import socket
import threading
import time
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import uvicorn
from fastapi.testclient import TestClient

from api.app import build_app
from api.context import Cloud
from api.tokens import Tokens
from db.bootstrap import bootstrap
from db.passwords import hash_password
from db.session import transaction
from tests.asgi import app_for

PASSWORDS = {"admin": "admin-password", "demo": "demo-password", "alt": "alt-password"}


class Keystone:
    """Asks the identity service; paths are behind ``/identity/v3``."""

    def __init__(self, http: TestClient, cloud: Cloud) -> None:
        self.http = http
        self.cloud = cloud
        self.admin = self.token("admin")

    def ask(self, method: str, path: str, token: str | None = None, **given: Any) -> Any:
        headers = {"X-Auth-Token": token} if token else {}
        headers |= given.pop("headers", {})
        return self.http.request(method, f"/identity/v3{path}", headers=headers, **given)

    def as_admin(self, method: str, path: str, **given: Any) -> Any:
        return self.ask(method, path, self.admin, **given)

    def made(self, kind: str, **given: Any) -> dict[str, Any]:
        """A new domain, project, user or role, by the administrator."""
        answer = self.as_admin("POST", f"/{kind}s", json={kind: given})
        assert answer.status_code == 201, answer.text
        view: dict[str, Any] = answer.json()[kind]
        return view

    def id_of(self, kind: str, name: str) -> str:
        found = self.as_admin("GET", f"/{kind}s", params={"name": name}).json()[f"{kind}s"]
        assert len(found) == 1
        found_id: str = found[0]["id"]
        return found_id

    def grant(self, user_id: str, role: str, where: str) -> None:
        path = f"/{where}/users/{user_id}/roles/{self.id_of('role', role)}"
        assert self.as_admin("PUT", path).status_code == 204

    def login(self, user: str, password: str | None = None, scope: Any = None) -> Any:
        """The answer to a login by name; in the project of the user's name unless told."""
        scope = scope or {"project": {"name": user, "domain": {"id": "default"}}}
        password = PASSWORDS[user] if password is None else password
        who = {"name": user, "domain": {"name": "Default"}, "password": password}
        proof = {"methods": ["password"], "password": {"user": who}}
        return self.auth(proof, scope)

    def auth(self, proof: dict[str, Any], scope: Any = None) -> Any:
        body: dict[str, Any] = {"identity": proof}
        if scope is not None:
            body["scope"] = scope
        return self.ask("POST", "/auth/tokens", json={"auth": body})

    def rescope(self, token: str, scope: Any = None) -> Any:
        return self.auth({"methods": ["token"], "token": {"id": token}}, scope)

    def token(self, user: str, password: str | None = None, scope: Any = None) -> str:
        answer = self.login(user, password, scope)
        assert answer.status_code == 201, answer.text
        text: str = answer.headers["X-Subject-Token"]
        return text

    def good(self, token: str) -> bool:
        """Whether this token still opens anything."""
        status = self.ask("GET", "/auth/projects", token).status_code
        assert status in (200, 401)
        return bool(status == 200)


@cache
def hashed_once(password: str) -> str:
    """Bootstrap runs for every test; hashing the same three passwords each time would be most of it."""
    return hash_password(password)


@pytest.fixture
def real_cloud(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    monkeypatch.setattr("db.bootstrap.hash_password", hashed_once)
    with transaction(cloud.engine) as session:
        bootstrap(session, PASSWORDS)
    return dataclasses.replace(cloud, tokens=Tokens(cloud.settings))


@pytest.fixture
def keystone(real_cloud: Cloud) -> Iterator[Keystone]:
    with TestClient(app_for(real_cloud), follow_redirects=False) as http:
        yield Keystone(http, real_cloud)


@pytest.fixture
def served(real_cloud: Cloud) -> Iterator[str]:
    """The public URL of the cloud on a free port of this machine."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        settings = real_cloud.settings.model_copy(update={"public_url": url})
        app = build_app(dataclasses.replace(real_cloud, settings=settings))
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none"))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            deadline = time.monotonic() + 30
            while not server.started:
                assert thread.is_alive()
                assert time.monotonic() < deadline
                time.sleep(0.01)
            yield url
        finally:
            server.should_exit = True
            thread.join()
