"""Operations as people look at them: the real `openstack` command, with our plug-in, against a real server."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta

import pytest
from sqlalchemy import Engine
from sqlmodel import select

from db.operations import Decision, Operation, OperationEvent, end_operation
from db.session import now, transaction
from domain.states import OperationState
from tests.compat.conftest import Command

SUMMARY = "node-1 was chosen: 1 of 2 hosts passed."


def boot(demo: Command, name: str) -> tuple[str, str]:
    """A server whose operation stands still, accepted: its id and the operation's."""
    what = ("--image", "cirros", "--flavor", "m1.tiny", "--network", "blue")
    server = demo.shows("server", "create", *what, name)["id"]
    [operation] = demo.shows("operation", "list", "--server", server)
    return server, operation["ID"]


def end(engine: Engine, operation_id: str, state: OperationState, error: str | None = None) -> None:
    """Let it have run for two seconds on node-1."""
    with transaction(engine) as session:
        operation = session.get(Operation, operation_id)
        assert operation
        operation.started_at, operation.host, operation.attempt = operation.created_at, "node-1", 1
        event = OperationEvent(
            operation_id=operation_id,
            name="compute__do_build_and_run_instance",
            host="node-1",
            started_at=now() - timedelta(seconds=2),
        )
        session.add(event)
        session.flush()
        end_operation(session, operation, state, error)


def hold(engine: Engine, operation_id: str) -> None:
    with transaction(engine) as session:
        operation = session.get(Operation, operation_id)
        assert operation
        operation.state, operation.step = OperationState.WAITING_OPERATOR, "define"
        operation.error = "no space left"
        session.add(operation)


@pytest.mark.timeout(300)
def test_operations_are_listed_and_shown_to_those_who_may_see_them(
    demo: Command, as_user: Callable[[str], Command], engine: Engine
) -> None:
    web, built = boot(demo, "web")
    _db, broken = boot(demo, "db")
    end(engine, built, OperationState.SUCCEEDED)
    end(engine, broken, OperationState.FAILED, "no space left")

    both = demo.shows("operation", "list")
    assert [(o["ID"], o["State"]) for o in both] == [(broken, "failed"), (built, "succeeded")]
    [named] = demo.shows("operation", "list", "--server", "web", "--long")
    assert (named["Server ID"], named["Action"], named["Attempt"]) == (web, "create", 1)
    [failed] = demo.shows("operation", "list", "--state", "failed", "--action", "create", "--long")
    assert (failed["ID"], failed["Error"]) == (broken, "no space left")
    assert [o["ID"] for o in demo.shows("operation", "list", "--limit", "1")] == [broken]
    assert [o["ID"] for o in demo.shows("operation", "list", "--marker", broken)] == [built]
    sorted_up = ("operation", "list", "--sort-column", "State", "-f", "value", "-c", "State")
    assert demo(*sorted_up).split() == ["failed", "succeeded"]
    assert demo("operation", "list", "--action", "stop", "-f", "csv").count("\n") == 1

    admin, alt = as_user("admin"), as_user("alt")
    assert alt.shows("operation", "list") == []
    assert len(admin.shows("operation", "list", "--project", "demo", "--host", "node-1")) == 2
    assert [o["ID"] for o in admin.shows("operation", "list", "--server", "web")] == [built]
    assert admin.shows("operation", "list", "--host", "node-2") == []

    shown = demo.shows("operation", "show", broken)
    assert (shown["id"], shown["state"], shown["attempt"]) == (broken, "failed", 1)
    [step] = shown["steps"]
    assert (step["result"], step["details"]) == ("Error", "no space left")
    table = admin("operation", "show", broken)
    said = "2.0 s  compute__do_build_and_run_instance on node-1: no space left"
    assert said in table, table

    assert f"Operation {built} could not be found" in alt.fails("operation", "show", built)
    nowhere = alt.fails("server", "placement", "show", web)
    assert f"Instance {web} could not be found" in nowhere
    assert "(HTTP 403)" in demo.fails("operation", "list", "--host", "node-1")
    nobody = demo.fails("operation", "list", "--server", "nosuch")
    assert "No server with a name or ID of 'nosuch'" in nobody


@pytest.mark.timeout(300)
def test_waiting_tells_by_its_exit_code_how_the_operation_stands(
    demo: Command, engine: Engine
) -> None:
    ids = [boot(demo, name)[1] for name in ("good", "bad", "held", "slow")]
    good, bad, held, slow = ids
    end(engine, bad, OperationState.FAILED, "no space left")
    hold(engine, held)
    ending = threading.Timer(1.0, end, (engine, good, OperationState.SUCCEEDED))
    ending.start()
    status, out, _ = demo.run("operation", "wait", good, "-f", "value", "-c", "state")
    ending.join()
    assert (status, out) == (0, "succeeded\n")
    status, _, err = demo.run("operation", "wait", bad)
    assert (status, "failed after" in err, "no space left" in err) == (1, True, True)
    status, _, err = demo.run("operation", "wait", held)
    assert (status, "is held at step define: no space left" in err) == (3, True)
    status, _, err = demo.run("operation", "wait", "--timeout", "0.1", slow)
    assert (status, "is accepted" in err) == (4, True)


@pytest.mark.timeout(300)
def test_a_placement_is_explained_and_its_hosts_to_admins_only(
    demo: Command, as_user: Callable[[str], Command], engine: Engine
) -> None:
    server, operation = boot(demo, "web")
    with transaction(engine) as session:
        made = session.exec(select(Operation).where(Operation.id == operation)).one()
        decision = Decision(
            operation_id=made.id, server_id=server, attempt=1, host="node-1", summary=SUMMARY,
            weights={"node-1": {"RAMWeigher": 1.5, "total": 1.5}},
            refusals={"node-2": "ComputeFilter: it is disabled"},
        )  # fmt: skip
        session.add(decision)
    [mine] = demo.shows("server", "placement", "show", "web")
    assert (mine["Summary"], "Host" in mine) == (SUMMARY, False)
    whole = as_user("admin").shows("server", "placement", "show", "web")
    assert [(row["Host"], row["Verdict"], row["Weight"]) for row in whole] == [
        (None, "decision", None),
        ("node-1", "chosen", 1.5),
        ("node-2", "refused", None),
    ]
    assert [row["Reason"] for row in whole[::2]] == [SUMMARY, "ComputeFilter: it is disabled"]


@pytest.mark.timeout(300)
def test_the_api_is_looked_for_in_the_region_that_was_named(
    as_user: Callable[[str], Command],
) -> None:
    said = as_user("demo").fails("--os-region-name", "Elsewhere", "operation", "list")
    assert "catalog has no operations service" in said
    assert "Traceback" not in said
