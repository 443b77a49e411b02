from __future__ import annotations

import pytest

from api.policy import RULES
from domain.errors import Conflict
from domain.lifecycle import LIFECYCLES, check_allowed
from domain.states import TaskState, VmState, status


def test_every_lifecycle_names_a_policy_rule() -> None:
    assert {row.rule for row in LIFECYCLES.values()} <= set(RULES)


def test_delete_is_allowed_in_every_state_but_deleted() -> None:
    assert set(LIFECYCLES["delete"].allowed) == set(VmState) - {VmState.DELETED}


def test_an_action_in_a_wrong_state_is_a_conflict_in_novas_words() -> None:
    with pytest.raises(Conflict, match="Cannot 'start' instance s1 while it is in vm_state active"):
        check_allowed(LIFECYCLES["start"], "s1", VmState.ACTIVE)


def test_status_shows_a_reboot_and_hides_other_tasks() -> None:
    assert status(VmState.ACTIVE, TaskState.REBOOTING) == "REBOOT"
    assert status(VmState.ACTIVE, TaskState.POWERING_OFF) == "ACTIVE"
