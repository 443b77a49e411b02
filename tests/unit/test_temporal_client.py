"""Connecting to Temporal: what goes wrong is said in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from domain.errors import BadRequest, Unavailable
from runtime.devserver import free_port
from runtime.settings import Settings
from runtime.temporal import connect_to


async def test_a_certificate_goes_with_its_key(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="go together"):
        await connect_to(Settings(temporal_tls_cert=tmp_path / "c.pem"), lazy=True)


async def test_a_certificate_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "ca.pem"
    with pytest.raises(BadRequest, match=str(missing)):
        await connect_to(Settings(temporal_tls_ca=missing), lazy=True)


async def test_a_cluster_that_does_not_answer_is_named() -> None:
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(Unavailable, match=address):
        await connect_to(Settings(temporal_address=address))
