"""What deploy/ gives to an operator fits the program."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.main import get_command

from cli.main import app
from runtime.settings import Settings
from tests.tree import ROOT

UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))
OF_UNITS = {"DURANOVA_HOST_IP", "DURANOVA_LISTEN"}
"""Become options on a unit's command line."""
NEEDED = {
    "CONTROL_URL", "DATABASE_URL", "DATA_DIR", "HOST_KEY", "PUBLIC_URL", "REGION", "SECRET_KEY",
    "TEMPORAL_ADDRESS", "TEMPORAL_NAMESPACE", "TEMPORAL_TLS_CA", "TEMPORAL_TLS_CERT", "TEMPORAL_TLS_KEY",
}  # fmt: skip


def example() -> set[str]:
    text = (ROOT / "deploy" / "env.example").read_text()
    return set(re.findall(r"^#?(DURANOVA_\w+)=", text, re.MULTILINE))


def test_the_example_names_settings_and_all_that_a_deployment_needs() -> None:
    known = {f"DURANOVA_{name.upper()}" for name in Settings.model_fields} | OF_UNITS
    assert example() - known == set()
    assert {f"DURANOVA_{name}" for name in NEEDED} - example() == set()


@pytest.mark.parametrize("unit", UNITS, ids=[u.name for u in UNITS])
def test_a_unit_starts_a_command_that_there_is(unit: Path) -> None:
    text = unit.read_text()
    line = re.search(r"^ExecStart=(\S+) (\w+)((?:.*\\\n)*.*)$", text, re.MULTILINE)
    assert line is not None
    command = get_command(app).commands[line[2]]  # type: ignore[attr-defined]  # a group
    options = {option for parameter in command.params for option in parameter.opts}
    assert set(re.findall(r"--[\w-]+", line[3])) <= options
    assert set(re.findall(r"\${(\w+)}", text)) <= example()
