"""The interactive documentation: every service describes itself."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient

from api.observed import SERVICES


@pytest.mark.parametrize("service", SERVICES)
def test_each_service_has_an_openapi_document(client: TestClient, service: str) -> None:
    answer = client.get(f"/{service}/openapi.json")
    assert answer.status_code == 200, answer.text
    assert answer.json()["paths"]


def test_a_field_says_in_which_versions_it_exists(client: TestClient) -> None:
    schemas = client.get("/compute/openapi.json").json()["components"]["schemas"]
    hostname = schemas["UpdateServer"]["properties"]["hostname"]
    assert hostname["x-openstack"] == {"min-ver": "2.90", "max-ver": "2.96"}
