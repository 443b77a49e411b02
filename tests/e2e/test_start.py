"""What stops ``duranova up`` from starting is one clear line and exit code 2."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from runtime.devserver import free_port
from tests.e2e.cloud import UpCloud

pytestmark = pytest.mark.e2e


def refused(data_dir: Path, *options: str) -> str:
    """The line it says when it refuses to start."""
    line = [sys.executable, "-m", "cli.main", "up", "--driver", "fake", "--data-dir", str(data_dir)]
    done = subprocess.run(
        [*line, *options], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return [text for text in done.stderr.splitlines() if "duranova:" in text][-1]


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        yield busy.getsockname()[1]


def test_a_port_in_use_is_named(tmp_path: Path, taken: int) -> None:
    said = refused(tmp_path / "d", "--listen", f"127.0.0.1:{taken}", "--no-temporal-ui")
    assert f"127.0.0.1:{taken}" in said
    assert "--listen" in said


def test_a_web_ui_port_in_use_is_named(tmp_path: Path, taken: int) -> None:
    said = refused(
        tmp_path / "d", "--listen", f"127.0.0.1:{free_port()}", "--temporal-ui-port", str(taken)
    )
    assert "--temporal-ui-port" in said


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "--data-dir" in refused(tmp_path / "file" / "d", "--no-temporal-ui")


def test_a_directory_of_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secrets.json").write_text(json.dumps({"format": 99, "secret_key": "k"}))
    assert "format 99" in refused(tmp_path, "--no-temporal-ui")


def test_a_directory_has_one_owner_and_private_secrets(tmp_path: Path) -> None:
    with closing(UpCloud(tmp_path / "d", "--driver", "fake")) as cloud:
        cloud.start()
        said = refused(tmp_path / "d", "--listen", f"127.0.0.1:{free_port()}", "--no-temporal-ui")
        assert "another duranova" in said
        for name in ("clouds.yaml", "secrets.json"):
            assert (cloud.data_dir / name).stat().st_mode & 0o777 == 0o600
        http = cloud.as_()
        assert http.get("/readyz").json()["status"] == "ok"
        assert "duranova_host_up" in http.get("/metrics").text
        page = http.get("/docs?service=network").text
        assert "/network/openapi.json" in page
        assert http.get("/network/openapi.json").status_code == 200
        assert http.get("/static/swagger-ui-bundle.js").status_code == 200
        assert cloud.stop() == 0
