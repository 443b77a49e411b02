"""A whole cloud on PostgreSQL: builds, a kill of everything, power, an audit, deletes."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from tests.e2e.cloud import UpCloud
from tests.postgres import Postgres
from tests.virt.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.postgres, pytest.mark.timeout(600)]
SERVERS = 10
WITHIN_S = 120


def statuses(cloud: UpCloud) -> list[str]:
    return [server["status"] for server in cloud.servers().values()]


def test_a_cloud_on_postgresql_survives_kill_9_and_passes_its_audit(
    postgres: Postgres, tmp_path: Path, tiny_image: Path
) -> None:
    url = postgres.fresh(empty=True)
    options = ("--driver", "fake", "--hosts", "3", "--database-url", url)
    with closing(UpCloud(tmp_path / "cloud", *options)) as cloud:
        cloud.start()
        image, network = cloud.upload(tiny_image), cloud.demo_net()
        with ThreadPoolExecutor(5) as pool:
            ids = list(pool.map(lambda n: cloud.boot(image, f"s{n}", network), range(SERVERS)))
        eventually(lambda: "ACTIVE" in statuses(cloud), WITHIN_S)
        assert cloud.kill_everything() > 0

        cloud.start()
        eventually(lambda: statuses(cloud) == ["ACTIVE"] * SERVERS, WITHIN_S)
        for server_id in ids:
            assert cloud.act(server_id, {"os-stop": None}).status_code == 202
        eventually(lambda: statuses(cloud) == ["SHUTOFF"] * SERVERS, WITHIN_S)
        audit = [sys.executable, "-m", "cli.main", "audit", "--data-dir", str(cloud.data_dir)]
        looked = subprocess.run(audit, capture_output=True, text=True, check=False)
        assert looked.returncode == 0, looked.stdout + looked.stderr
        for server_id in ids:
            assert cloud.as_().delete(f"/compute/v2.1/servers/{server_id}").status_code == 204
        eventually(lambda: statuses(cloud) == [], WITHIN_S)
