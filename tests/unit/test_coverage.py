"""docs/coverage.md says what is true."""

from __future__ import annotations

import re

from tests.coverage import ABSENT, FILE, coverage
from tests.routes import walk


def test_the_document_is_what_the_routes_say() -> None:
    assert FILE.read_text() == coverage(), "run `make coverage`"


def shape(path: str) -> str:
    """Without the service, its version and the names of parameters."""
    return re.sub(r"{[^}]*}", "{}", re.sub(r"^/[a-z]+/v[0-9.]+", "", path))


def test_nothing_that_is_listed_as_absent_is_served() -> None:
    for service, absent in ABSENT.items():
        served = {shape(route.path) for route in walk() if route.service == service}
        listed = {p for paths in absent if paths[0] == "/" for p in paths.split(", ")}
        assert {shape(path) for path in listed} & served == set()
