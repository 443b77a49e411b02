"""The records a new cloud starts with, and the clouds.yaml that opens it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from sqlalchemy import Engine
from sqlmodel import Session

from cli.clouds import CLOUDS, clouds_yaml
from cli.datadir import StartError
from db.bootstrap import bootstrap
from db.flavors import ensure_default_flavors
from db.identity import DEFAULT_DOMAIN, Project, User, find
from db.network import ensure_demo_network
from db.session import transaction
from runtime.settings import Settings


def ensure_first_records(session: Session, passwords: Mapping[str, str]) -> None:
    """Roles, projects, users, flavors and a shared network, as far as they are missing."""
    bootstrap(session, passwords)
    ensure_default_flavors(session)
    admin = find(session, Project, "admin", DEFAULT_DOMAIN)
    assert admin is not None, "bootstrap made it"  # noqa: S101  # a programming error
    ensure_demo_network(session, admin.id)


def fill_new_cloud(engine: Engine, settings: Settings, clouds: Path) -> bool:
    """Make the first records with fresh passwords and write those to ``clouds`` (0600).

    False, with nothing changed, when the cloud has an administrator already. StartError when the file
    exists or cannot be written; nothing is changed then either.
    """
    passwords = {user: secrets.token_urlsafe(18) for user in CLOUDS.values()}
    with transaction(engine) as session:
        admin = find(session, User, "admin", DEFAULT_DOMAIN)
        if admin is not None and admin.password_hash is not None:
            return False
        ensure_first_records(session, passwords)
        session.flush()
        try:  # before the commit: a cloud whose passwords nobody knows would be no use
            descriptor = os.open(clouds, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise StartError(f"cannot write {clouds}: {error.strerror}") from error
        with os.fdopen(descriptor, "w") as file:
            file.write(clouds_yaml(settings.public_url, settings.region, passwords))
    return True
