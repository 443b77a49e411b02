"""What logins cost: the hash of a password, and the threads of everybody else."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from argon2 import PasswordHasher

from api.identity import login as login_module
from db import identity, passwords
from db.identity import User
from db.session import read_session
from tests.api.identity.conftest import Keystone


def test_a_login_keeps_the_password_by_todays_parameters(
    keystone: Keystone, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kept() -> str:
        with read_session(keystone.cloud.engine) as session:
            user = identity.find(session, User, "demo", "default")
            assert user is not None
            assert user.password_hash is not None
            return user.password_hash

    before = kept()
    keystone.token("demo")
    assert kept() == before
    monkeypatch.setattr(passwords, "_hasher", PasswordHasher(1, 64, 1))
    token = keystone.token("demo")
    assert "m=64,t=1,p=1" in kept()
    assert keystone.good(token)
    assert keystone.good(keystone.token("demo"))


def test_a_storm_of_logins_leaves_threads_to_other_requests(
    keystone: Keystone, monkeypatch: pytest.MonkeyPatch
) -> None:
    under_way, go_on = threading.Event(), threading.Event()

    def verify(_kept: str | None, _password: str) -> bool:
        under_way.set()
        return not go_on.wait(60)

    monkeypatch.setattr(login_module, "verify_password", verify)
    with ThreadPoolExecutor(61) as pool:
        logins = [pool.submit(keystone.login, "demo") for _ in range(60)]
        try:
            assert under_way.wait(60)
            assert pool.submit(keystone.http.get, "/healthz").result(60).status_code == 200
        finally:
            go_on.set()
        for login in logins:
            assert login.result().status_code == 401
