"""More writing requests at once than the process has threads."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from fastapi.testclient import TestClient

from tests.conftest import acting_as

AT_ONCE, REQUESTS = 100, 200


def test_requests_that_wait_for_the_database_do_not_keep_its_holder_from_its_commit(
    client: TestClient,
) -> None:
    def make(number: int) -> int:
        flavor = {"name": f"f{number}", "vcpus": 1, "ram": 64, "disk": 1}
        answer = client.post(
            "/compute/v2.1/flavors", json={"flavor": flavor}, headers=acting_as("admin")
        )
        return answer.status_code

    with ThreadPoolExecutor(AT_ONCE) as pool:
        assert Counter(pool.map(make, range(REQUESTS))) == {200: REQUESTS}
