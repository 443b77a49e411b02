"""What a decision costs and sees when it keeps most of what it knows: counted, and held against the record."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from sqlalchemy import Engine, create_engine, event, make_url, text
from sqlmodel import Session, col, delete, select

from activities.control import snapshot
from activities.control.placement import Placement
from activities.control.snapshot import Snapshots, host_states
from db.groups import Aggregate, AggregateHost
from db.hosts import Claim, Host, list_hosts, report_host, set_allocation_ratios, usage_by_host
from db.servers import Server
from db.session import now, reading, transaction
from domain.errors import NoValidHost
from domain.guest import Inventory
from domain.ids import new_id
from runtime.settings import Settings
from tests.activities.lab import Lab
from workflows.contract import ClaimHost, ReleaseClaim

# --- what it costs -------------------------------------------------------------------------------


@dataclass
class Counts:
    """What went over one engine."""

    statements: int = 0
    rows: int = 0


@contextmanager
def counted(engine: Engine) -> Iterator[Counts]:
    counts = Counts()

    def note(_connection: Any, cursor: Any, *_more: Any) -> None:
        counts.statements += 1
        if engine.dialect.name == "postgresql":
            counts.rows += cursor.rowcount if cursor.description else 0
        else:
            cursor.row_factory = fetched  # SQLite makes rows one by one, as they are read

    def fetched(_cursor: Any, row: tuple[Any, ...]) -> tuple[Any, ...]:
        counts.rows += 1
        return row

    event.listen(engine, "after_cursor_execute", note)
    try:
        yield counts
    finally:
        event.remove(engine, "after_cursor_execute", note)


def test_a_claim_reads_as_much_of_many_hosts_as_of_few(lab: Lab) -> None:
    def cost() -> Counts:
        for _ in range(2):  # the first sees the hosts, and a claim changes one
            lab.place()
        ref = lab.add_server()
        with counted(lab.engine) as counts:
            lab.claim(ref)
        return counts

    lab.add_hosts("a", "b")
    few = cost()
    lab.add_hosts(*(f"h{n}" for n in range(40)))
    lab.add_aggregate([f"h{n}" for n in range(20)], ssd="true")
    assert cost() == few
    assert few.statements <= STATEMENTS


STATEMENTS = 22
"""Of a claim of a server without ports: BEGIN, locks and the events told of it included."""


def test_a_decision_reads_the_hosts_that_changed_and_those_that_are_down(lab: Lab) -> None:
    lab.add_hosts(*(f"h{n}" for n in range(10)))
    kept = Snapshots(lab.settings)

    def read() -> int:
        with reading(lab.engine) as session, counted(lab.engine) as counts:
            kept.hosts(session, now())
        return counts.rows

    assert read() == 10
    assert read() == 0
    lab.place()
    lab.change(Host, "h3", disabled=True)
    assert read() == 2
    assert read() == 1


def test_a_report_without_news_is_no_change(lab: Lab) -> None:
    lab.add_hosts("one")
    kept = Snapshots(lab.settings)
    with reading(lab.engine) as session:
        [before] = kept.hosts(session, now())
    with transaction(lab.engine) as session:
        uuid = session.get_one(Host, "one").uuid
        said = Inventory(4, 4608, 100, "QEMU", 9000000, "one.example", uuid=uuid)
        said = replace(said, capabilities=("COMPUTE_ACCEL_TCG",))
        report_host(session, "one", said, "e2", now(), None)
    with reading(lab.engine) as session, counted(lab.engine) as counts:
        [after] = kept.hosts(session, now())
    assert after is before
    assert counts.rows == 0


# --- what it sees --------------------------------------------------------------------------------

Change = Callable[[Session], object]
names = st.sampled_from(["a", "b", "c"])
ratios = st.sampled_from([None, 1.0, 2.0])
words = st.sampled_from(["availability_zone", "ram_allocation_ratio", "max_instances_per_host"])


def report(name: str, ram_mb: int, zone: str | None) -> Change:
    def change(session: Session) -> None:
        known = session.get(Host, name)
        uuid = known.uuid if known else new_id()
        report_host(
            session, name, Inventory(4, ram_mb, 50, "QEMU", 1, name, uuid=uuid), "e", now(), zone
        )

    return change


def set_host(name: str, values: dict[str, Any]) -> Change:
    def change(session: Session) -> None:
        if host := session.get(Host, name):
            for key, value in values.items():
                setattr(host, key, value)

    return change


def set_ratios(name: str, ratio: float | None) -> Change:
    def change(session: Session) -> None:
        if session.get(Host, name):
            set_allocation_ratios(session, name, cpu=ratio, ram=ratio, disk=ratio)

    return change


def claim(name: str, ram_mb: int) -> Change:
    def change(session: Session) -> None:
        if session.get(Host, name) is None:
            return
        server = Server(project_id="p", user_id="u", name="s")
        session.add(server)
        session.flush()
        room = {"vcpus": 1, "ram_mb": ram_mb, "disk_gb": 1}
        session.add(Claim(server_id=server.id, host=name, operation_id="o", epoch=1, **room))

    return change


def of_claims(name: str, do: Callable[[Session, Claim], object]) -> Change:
    def change(session: Session) -> None:
        for row in session.exec(select(Claim).where(Claim.host == name).limit(1)).all():
            do(session, row)

    return change


def build(_session: Session, row: Claim) -> None:
    row.building = False


def move(session: Session, row: Claim) -> None:
    row.host = session.exec(select(Host.name).order_by(Host.name)).first() or row.host


def release_all(name: str) -> Change:
    return lambda session: session.exec(delete(Claim).where(col(Claim.host) == name))


def forget_host(name: str) -> Change:
    def change(session: Session) -> None:
        session.exec(delete(Claim).where(col(Claim.host) == name))
        session.exec(delete(Host).where(col(Host.name) == name))

    return change


def group(host: str, number: int, key: str, value: str) -> Change:
    """Make the aggregate or give it this metadata, and take the host in or out."""

    def change(session: Session) -> None:
        aggregate = session.get(Aggregate, number) or Aggregate(id=number, name=str(number))
        aggregate.metadata_ = {key: value}
        session.add(aggregate)
        session.flush()
        here = (AggregateHost.host == host, AggregateHost.aggregate_id == number)
        member = session.exec(select(AggregateHost).where(*here)).first()
        if member:
            session.delete(member)
        else:
            session.add(AggregateHost(host=host, aggregate_id=number))

    return change


downs = st.sampled_from(
    [
        {"disabled": True, "disabled_reason": "fan"},
        {"disabled": False, "disabled_reason": None},
        {"forced_down": True},
        {"forced_down": False},
        {"reported_at": now() - timedelta(hours=1)},
        {"reported_at": None},
    ]
)
changes = st.one_of(
    st.builds(report, names, st.sampled_from([1024, 2048]), st.sampled_from([None, "east"])),
    st.builds(set_host, names, downs),
    st.builds(set_ratios, names, ratios),
    st.builds(claim, names, st.sampled_from([128, 256])),
    st.builds(of_claims, names, st.sampled_from([build, move, Session.delete])),
    st.builds(release_all, names),
    st.builds(forget_host, names),
    st.builds(group, names, st.integers(1, 2), words, st.sampled_from(["2", "1.5", "x"])),
)
steps = st.lists(
    st.tuples(changes, st.booleans(), st.sampled_from([(), (0,), (0, 1)])), max_size=12
)
"""A change, whether it is rolled back, and which of two readers looks then."""


class _RolledBack(Exception):
    pass


def apply(engine: Engine, change: Change, *, rolled_back: bool) -> None:
    try:
        with transaction(engine) as session:
            change(session)
            if rolled_back:
                session.flush()
                raise _RolledBack
    except _RolledBack:
        return


@examples(
    max_examples=60,
    deadline=None,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture
    ],  # every example may find any record
)
@given(steps=steps)
def test_what_is_kept_and_what_has_changed_are_together_what_is_there(
    engine: Engine, settings: Settings, steps: list[tuple[Change, bool, tuple[int, ...]]]
) -> None:
    readers = [Snapshots(settings), Snapshots(settings)]
    moment = now()
    for change, rolled_back, looking in steps:
        apply(engine, change, rolled_back=rolled_back)
        for number in looking:
            check(engine, settings, readers[number], moment)
    check(engine, settings, readers[1], moment)


def check(engine: Engine, settings: Settings, kept: Snapshots, moment: Any) -> None:
    with reading(engine) as session:
        seen = kept.hosts(session, moment)
        assert seen == host_states(session, settings, moment)
        usage = usage_by_host(session)
        assert {h.name: h.usage for h in seen if h.usage.servers} == usage
        assert [h.name for h in seen] == sorted(h.name for h in list_hosts(session))


def test_a_release_that_commits_after_later_ones_is_seen(lab: Lab) -> None:
    if lab.engine.dialect.name != "postgresql":
        pytest.skip("SQLite has one writer at a time")
    lab = lab.with_settings(max_instances_per_host=1)
    lab.add_hosts("one", "two")
    first = lab.add_server()
    host = lab.claim(first).host
    with transaction(lab.engine) as session:
        session.exec(delete(Claim).where(col(Claim.server_id) == first.server_id))
        session.flush()
        assert lab.place().host != host
        with pytest.raises(NoValidHost):
            lab.place()  # by now the claim before it, which came later, has been seen
    assert lab.place().host == host


def test_what_another_process_claimed_is_seen(lab: Lab) -> None:
    lab = lab.with_settings(max_instances_per_host=1)
    lab.add_hosts("one", "two")
    other = Placement(lab.engine, lab.settings)
    refs = [lab.add_server() for _ in range(3)]
    taken = {
        lab.claim(refs[0]).host,
        other.claim(ClaimHost(refs[1], 1)).host,
    }
    assert taken == {"one", "two"}
    other.release(ReleaseClaim(refs[1], 1))
    assert lab.claim(refs[2]).host in taken


def test_a_database_that_has_lost_commits_is_read_anew(lab: Lab) -> None:
    """As of a standby that took over: its connections are new and its record is older."""
    if lab.engine.dialect.name != "postgresql":
        pytest.skip("an SQLite file has no connections to lose")
    lab = lab.with_settings(max_instances_per_host=1)
    lab.add_hosts("one")
    ref = lab.add_server()
    lab.claim(ref)
    with pytest.raises(NoValidHost):
        lab.place()
    admin = create_engine(make_url(lab.settings.database_url))
    with admin.begin() as connection:
        connection.execute(text("SET session_replication_role = replica"))  # no triggers
        connection.execute(text("DELETE FROM claim"))
        connection.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )
    admin.dispose()
    assert lab.place().host == "one"


def test_a_connection_lost_in_the_middle_of_a_decision_counts_for_the_next(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.add_hosts("one", "two", "three")
    lab.place()
    real, losses = snapshot._down, 0

    def down(*given: Any) -> dict[str, str]:
        nonlocal losses
        losses += 1  # another thread's, just now
        return real(*given)

    kept = Snapshots(lab.settings)
    monkeypatch.setattr(snapshot, "_down", down)
    with reading(lab.engine) as session:
        for _ in range(3):
            before = losses
            assert len(kept.hosts(session, now(), before)) == 3
            assert losses == before + 1
