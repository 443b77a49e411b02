"""Two hundred creates at concurrency twenty: all ACTIVE, spread over ten hosts, none overbooked."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from tests.e2e.cloud import UpCloud
from tests.e2e.record import all_active, check_record
from tests.virt.waiting import eventually

pytestmark = pytest.mark.e2e
CREATES, CONCURRENCY, HOSTS = 200, 20, 10
SETTLE_S = 300


@pytest.mark.timeout(900)
def test_200_creates_at_concurrency_20_are_all_active(tmp_path: Path, tiny_image: Path) -> None:
    with closing(UpCloud(tmp_path / "cloud", "--driver", "fake", "--hosts", str(HOSTS))) as cloud:
        cloud.start()
        image, network = cloud.upload(tiny_image), cloud.demo_net()
        with ThreadPoolExecutor(CONCURRENCY) as pool:
            asked = [pool.submit(cloud.boot, image, f"s{n}", network) for n in range(CREATES)]
            accepted = {a.result() for a in asked}
        eventually(lambda: all_active(cloud, CREATES), SETTLE_S)

        assert set(cloud.servers()) == accepted
        check_record(cloud, CREATES)
        guests = Counter(p.parts[-3] for p in (cloud.data_dir / "hosts").glob("*/guests/*.json"))
        assert sum(guests.values()) == CREATES
        assert max(guests.values()) <= 50, guests  # max_instances_per_host
        assert len(guests) == HOSTS, guests

        with ThreadPoolExecutor(CONCURRENCY) as pool:
            urls = [f"/compute/v2.1/servers/{i}" for i in accepted]
            assert {a.status_code for a in pool.map(cloud.as_().delete, urls)} == {204}
        eventually(lambda: cloud.servers() == {}, SETTLE_S)
        check_record(cloud, 0)
