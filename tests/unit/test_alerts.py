"""The alert rules ask for metrics that there are, and each says what to do."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.tree import ROOT, sources

FILE = ROOT / "deploy" / "prometheus" / "alerts.yml"
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load(FILE.read_text())["groups"] for rule in group["rules"]
]
METRIC = re.compile(r"\bduranova_\w+")
SUFFIXES = re.compile(r"_(count|sum|bucket|total)$")


def metrics() -> set[str]:
    """Every metric that the program names, without the suffixes that Prometheus adds."""
    named = {
        match
        for source in sources()
        if source.name in ("runtime/metrics.py", "api/gauges.py")
        for match in METRIC.findall(source.text)
    }
    return {SUFFIXES.sub("", name) for name in named}


def anchors() -> Iterator[str]:
    for line in (ROOT / "docs" / "operations.md").read_text().splitlines():
        if line.startswith("#"):
            yield re.sub(r"[^\w -]", "", line.lstrip("# ")).lower().replace(" ", "-")


@pytest.mark.parametrize("rule", RULES, ids=[rule["alert"] for rule in RULES])
def test_a_rule_asks_for_metrics_that_there_are(rule: dict[str, Any]) -> None:
    asked = {SUFFIXES.sub("", name) for name in METRIC.findall(rule["expr"])}
    assert asked
    assert asked - metrics() == set()


@pytest.mark.parametrize("rule", RULES, ids=[rule["alert"] for rule in RULES])
def test_a_rule_says_what_is_wrong_and_where_to_read_what_to_do(rule: dict[str, Any]) -> None:
    assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert re.fullmatch(r"\d+m", rule["for"])
    page, _, anchor = rule["annotations"]["runbook"].partition("#")
    assert page == "docs/operations.md"
    assert anchor in set(anchors())
    assert rule["annotations"]["summary"]
    assert rule["annotations"]["description"]


def test_names_of_alerts_are_unique() -> None:
    names = [rule["alert"] for rule in RULES]
    assert len(names) == len(set(names))


@pytest.mark.skipif(shutil.which("promtool") is None, reason="Prometheus is not installed")
def test_prometheus_takes_the_rules() -> None:
    checked = subprocess.run(
        ["promtool", "check", "rules", str(FILE)], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
