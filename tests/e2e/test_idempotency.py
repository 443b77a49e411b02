"""Fifty equal requests under one key, and kill -9 of everything while they are on their way: one server."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.cloud import NEWEST, UpCloud
from tests.e2e.record import all_active, check_record
from tests.virt.waiting import eventually

pytestmark = pytest.mark.e2e
AT_ONCE = 50
WITHIN_S = 300.0


def until_answered(cloud: UpCloud, body: dict[str, Any], key: str) -> httpx.Response:
    """What a client does that must have its server: ask until there is an answer."""
    headers = {**NEWEST, **cloud.as_().headers, "Idempotency-Key": key}
    deadline, pause = time.monotonic() + WITHIN_S, threading.Event()
    while True:
        with suppress(httpx.TransportError):
            answer = httpx.post(
                f"http://127.0.0.1:{cloud.port}/compute/v2.1/servers",
                json={"server": body},
                headers=headers,
                timeout=60.0,
            )
            if answer.status_code < 500:
                return answer
        assert time.monotonic() < deadline
        pause.wait(0.2)


def keys_in(cloud: UpCloud) -> set[str]:
    """The keys whose requests have committed, read beside the cloud."""
    record = cloud.data_dir / "duranova.db"
    with closing(sqlite3.connect(f"file:{record}?mode=ro", uri=True)) as connection:
        return {key for (key,) in connection.execute("SELECT key FROM idempotency_key")}


@pytest.mark.timeout(900)
def test_equal_creates_make_one_server_though_everything_is_killed_between(
    tmp_path: Path, tiny_image: Path
) -> None:
    with closing(UpCloud(tmp_path / "cloud", "--driver", "fake", "--hosts", "2")) as cloud:
        cloud.start()
        image, network = cloud.upload(tiny_image), cloud.demo_net()
        body = {"imageRef": image, "flavorRef": "tiny", "networks": [{"uuid": network}]}

        def ask_and_kill(key: str, when: Callable[[], object]) -> str:
            """The id that all fifty were told."""
            with ThreadPoolExecutor(AT_ONCE) as pool:
                asked = [
                    pool.submit(until_answered, cloud, {**body, "name": key}, key)
                    for _ in range(AT_ONCE)
                ]
                eventually(lambda: when() or any(a.done() for a in asked), 60)
                assert cloud.kill_everything() > 0
                cloud.start()
                answers = [a.result() for a in asked]
            assert {a.status_code for a in answers} == {202}
            assert len({a.text for a in answers}) == 1, "the password, too, is the same for all"
            told: str = answers[0].json()["server"]["id"]
            return told

        made = {  # killed as soon as the effect is certain, or as soon as somebody has been told
            ask_and_kill("committed", lambda: "committed" in keys_in(cloud)),
            ask_and_kill("answered", lambda: False),
        }

        eventually(lambda: all_active(cloud, 2), WITHIN_S)
        assert set(cloud.servers()) == made
        check_record(cloud, 2)
