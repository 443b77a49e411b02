"""What the activity tests share."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine

from runtime.settings import Settings
from tests.activities.lab import Lab


@pytest.fixture
def lab(engine: Engine, settings: Settings) -> Lab:
    return Lab(engine, settings)
