"""What the verbs send, show, and exit with."""

from __future__ import annotations

import pytest

from tests.compat.conftest import Command
from tests.osc.conftest import HOLD, ID, Api, ended, view

NEW = "0c6e02a2-0d4d-4a5f-9a4f-7ab5a0b7f3a1"
LATER = "2026-01-02T03:05:00.000000Z"


@pytest.mark.parametrize("verb", ["retry", "resume", "skip", "replace", "abort", "cancel"])
def test_a_verb_is_sent_once_with_its_reason_and_a_key(
    openstack: Command, api: Api, verb: str
) -> None:
    api.answers[verb] = (202, view())
    shown = openstack.shows("operation", verb, ID, "--reason", "mended the pool")
    assert shown["state"] == "running"
    [(path, body, key)] = api.sent
    assert (path, body) == (f"{ID}/{verb}", {"reason": "mended the pool"})
    assert key


def test_every_call_has_a_key_of_its_own(openstack: Command, api: Api) -> None:
    api.answers["retry"] = (202, view())
    openstack("operation", "retry", ID)
    openstack("operation", "retry", ID)
    first, second = (key for _path, _body, key in api.sent)
    assert first != second


def test_a_retried_create_shows_and_waits_for_the_new_operation(
    openstack: Command, api: Api
) -> None:
    api.shows(ended("failed", error="no space left"))
    api.answers["retry"] = (202, view(id=NEW, retry_of=ID))
    api.then[NEW] = [ended(id=NEW, retry_of=ID)]
    status, out, err = openstack.run("operation", "retry", ID, "--wait", "-f", "value", "-c", "id")
    assert (status, out) == (0, f"{NEW}\n")
    assert "succeeded after 2.0 s" in err


def test_a_hold_that_was_known_before_the_verb_is_waited_out(openstack: Command, api: Api) -> None:
    api.shows(view(**HOLD))
    api.answers["resume"] = (202, view(**HOLD))
    api.then[ID] = [view(**HOLD), view(), ended()]
    status, out, _ = openstack.run(
        "operation", "resume", ID, "--wait", "-f", "value", "-c", "state"
    )
    assert (status, out) == (0, "succeeded\n")


def test_a_new_hold_is_told_with_its_verbs_and_its_deadline(openstack: Command, api: Api) -> None:
    api.shows(view(**HOLD))
    api.answers["retry"] = (202, view())
    api.then[ID] = [view(**HOLD, updated_at=LATER)]
    status, _, err = openstack.run("operation", "retry", ID, "--wait")
    assert status == 3
    assert "is held at step define: no space left" in err
    assert f"possible now: openstack operation retry|resume|skip|abort|replace {ID}" in err
    assert "without a decision it is aborted at 2026-01-09T03:04:05Z" in err


def test_a_failure_after_a_verb_is_told(openstack: Command, api: Api) -> None:
    api.shows(view(**HOLD))
    api.answers["abort"] = (202, view())
    api.then[ID] = [ended("failed", error="no space left", verbs=["retry"])]
    status, _, err = openstack.run("operation", "abort", ID, "--wait")
    assert status == 1
    assert "failed after 2.0 s: no space left" in err
    assert f"possible now: openstack operation retry {ID}" in err


def test_a_verb_that_does_not_fit_is_refused_in_the_words_of_the_api(
    openstack: Command, api: Api
) -> None:
    sentence = "Operation x has ended: nothing is left to resume."
    api.answers["resume"] = (409, {"error": {"code": 409, "kind": "conflict", "message": sentence}})
    status, out, err = openstack.run("operation", "resume", ID)
    assert (status, out) == (1, "")
    assert err.startswith(sentence)
    assert "Traceback" not in err


def test_an_api_that_knows_no_verbs_yet_can_still_be_asked(openstack: Command, api: Api) -> None:
    old = {k: v for k, v in view().items() if k not in ("verbs", "retry_of", "deadline_at")}
    api.shows(old)
    assert "verbs" not in openstack.shows("operation", "show", ID)
