"""The check that every create goes through."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine, event
from sqlmodel import func, select

from db.groups import ServerGroup
from db.quotas import check_quota, forget_limits, limits_of, set_class_limit, set_limit, usage_of
from db.servers import Server
from db.session import now, reading, transaction
from domain.errors import QuotaExceeded
from runtime.settings import Settings


def server(user: str = "member") -> Server:
    return Server(project_id="project-demo", user_id=f"user-{user}", name="s", vcpus=2, ram_mb=512)


def wanted(servers: int) -> dict[str, int]:
    return {"instances": servers, "cores": 2 * servers, "ram": 512 * servers}


def test_the_refusal_names_what_is_over_in_novas_words(engine: Engine, settings: Settings) -> None:
    with transaction(engine) as session:
        session.add_all([server(), server()])
        set_limit(session, "project-demo", "instances", 2)
        set_limit(session, "project-demo", "cores", 5)
    with transaction(engine) as session, pytest.raises(QuotaExceeded) as caught:
        check_quota(session, "project-demo", "user-member", wanted(1), settings.quota_defaults)
    assert caught.value.message == (
        "Quota exceeded for cores, instances: Requested 2, 1, but already used 4, 2 of 5, 2 cores, instances"
    )


def test_a_users_own_limit_holds_inside_the_projects(engine: Engine, settings: Settings) -> None:
    with transaction(engine) as session:
        session.add(server())
        set_limit(session, "project-demo", "instances", 1, "user-member")
    with transaction(engine) as session:
        check_quota(session, "project-demo", "user-other", wanted(1), settings.quota_defaults)
        with pytest.raises(QuotaExceeded, match="but already used 1 of 1 instances"):
            check_quota(session, "project-demo", "user-member", wanted(1), settings.quota_defaults)


def test_unlimited_lets_everything_pass(engine: Engine, settings: Settings) -> None:
    with transaction(engine) as session:
        for name in ("instances", "cores", "ram"):
            set_limit(session, "project-demo", name, -1)
        check_quota(session, "project-demo", "user-member", wanted(10**6), settings.quota_defaults)


def test_parallel_creates_at_the_limit_give_exactly_the_limit(
    engine: Engine, settings: Settings
) -> None:
    with transaction(engine) as session:
        set_limit(session, "project-demo", "instances", 5)

    def create(_: int) -> bool:
        try:
            with transaction(engine) as session:
                check_quota(
                    session, "project-demo", "user-member", wanted(1), settings.quota_defaults
                )
                session.add(server())
        except QuotaExceeded:
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(create, range(40)))
    assert sum(won) == 5
    with reading(engine) as session:
        assert session.exec(select(func.count()).select_from(Server)).one() == 5


def test_a_users_limit_counts_before_the_projects_and_that_before_the_class(
    engine: Engine, settings: Settings
) -> None:
    defaults = settings.quota_defaults
    with transaction(engine) as session:
        set_class_limit(session, "default", "cores", 30)
        set_limit(session, "project-demo", "cores", 20)
        set_limit(session, "project-demo", "cores", 10, "user-member")
    with transaction(engine) as session:
        assert limits_of(session, "project-demo", defaults, "user-member")["cores"] == 10
        assert limits_of(session, "project-demo", defaults, "user-other")["cores"] == 20
        assert limits_of(session, "project-alt", defaults)["cores"] == 30
        forget_limits(session, "project-demo", ("cores",))
        assert limits_of(session, "project-demo", defaults, "user-member")["cores"] == 30


def test_usage_leaves_out_deleted_servers_and_other_projects(engine: Engine) -> None:
    with transaction(engine) as session:
        gone, elsewhere = server(), server()
        gone.deleted_at = now()
        elsewhere.project_id = "project-alt"
        session.add_all([server(), server("other"), gone, elsewhere])
        session.add(
            ServerGroup(
                project_id="project-demo", user_id="user-member", name="g", policy="affinity"
            )
        )
    with reading(engine) as session:
        assert usage_of(session, "project-demo") == {
            "instances": 2, "cores": 4, "ram": 1024, "server_groups": 1,
        }  # fmt: skip
        assert usage_of(session, "project-demo", "user-other") == {
            "instances": 1, "cores": 2, "ram": 512, "server_groups": 0,
        }  # fmt: skip
        assert usage_of(session, "project-none")["ram"] == 0


def test_what_has_no_limit_is_not_counted(engine: Engine, settings: Settings) -> None:
    asked: list[str] = []
    limits = dict.fromkeys(settings.quota_defaults, -1)
    event.listen(engine, "before_cursor_execute", lambda *given: asked.append(given[2]))
    with transaction(engine) as session:
        check_quota(session, "p", "u", {"instances": 1, "cores": 1, "ram": 512}, limits)
    assert not [statement for statement in asked if "FROM server" in statement]
