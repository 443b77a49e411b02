"""``duranova db fill``: the first records of a split deployment."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sqlalchemy import Engine
from sqlmodel import select

from cli.datadir import StartError
from cli.records import fill_new_cloud
from db.flavors import Flavor
from db.identity import DEFAULT_DOMAIN, User, find
from db.network import Network
from db.passwords import verify_password
from db.session import reading
from runtime.settings import Settings


def test_a_new_cloud_gets_records_and_a_private_file_that_opens_it(
    engine: Engine, settings: Settings, tmp_path: Path
) -> None:
    file = tmp_path / "clouds.yaml"
    assert fill_new_cloud(engine, settings, file)
    assert file.stat().st_mode & 0o777 == 0o600
    auth = json.loads(file.read_text())["clouds"]["duranova-admin"]["auth"]
    with reading(engine) as session:
        admin = find(session, User, "admin", DEFAULT_DOMAIN)
        assert admin is not None
        assert verify_password(admin.password_hash, auth["password"])
        assert session.exec(select(Flavor)).first()
        assert session.exec(select(Network)).first()


def test_a_cloud_with_an_administrator_is_left_alone(
    engine: Engine, settings: Settings, tmp_path: Path
) -> None:
    fill_new_cloud(engine, settings, tmp_path / "first")
    assert not fill_new_cloud(engine, settings, tmp_path / "second")
    assert not (tmp_path / "second").exists()


@pytest.mark.parametrize("name", ["taken", "no/such/folder"])
def test_nothing_is_made_when_the_passwords_cannot_be_kept(
    engine: Engine, settings: Settings, tmp_path: Path, name: str
) -> None:
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(StartError, match="cannot write"):
        fill_new_cloud(engine, settings, tmp_path / name)
    with reading(engine) as session:
        assert find(session, User, "admin", DEFAULT_DOMAIN) is None
    assert (tmp_path / "taken").read_text() == "mine"
