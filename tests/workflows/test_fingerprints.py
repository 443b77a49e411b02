"""An edit that reorders, adds or drops a workflow's commands is noticed in a second, without a server."""

from __future__ import annotations

import json

from tests.workflows.fingerprints import FILE, fingerprints

ADVICE = """
The commands of a workflow changed. A run that is in flight when this program takes over would not replay.
docs/versioning-workflows.md says what to do: let running operations end before the upgrade, or keep both
ways with workflow.patched(). Then accept the change with `make histories`.
"""


def test_every_workflow_commands_what_it_did() -> None:
    assert fingerprints() == json.loads(FILE.read_text()), ADVICE


def test_every_operation_and_reconciler_has_a_fingerprint() -> None:
    assert {"create.CreateServer", "delete.DeleteServer", "power.PowerServer"} <= set(
        fingerprints()
    )
