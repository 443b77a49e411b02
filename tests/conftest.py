"""Fixtures every test may use: settings, database, a cloud without Temporal, an HTTP client, callers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine
from sqlmodel import Session

from activities.control.retries import accept_retry
from api.context import Cloud
from api.launch import Launcher
from api.policy import Caller
from api.tokens import DENIED, Tokens
from db import tables
from db.operations import Operation
from db.servers import Server
from db.session import open_engine
from domain.errors import Unauthorized
from domain.guest import Fence
from domain.lifecycle import LIFECYCLES, check_allowed
from domain.states import VmState
from runtime.sealing import Sealer
from runtime.settings import Settings
from tests.postgres import Postgres
from tests.postgres import binaries as postgres_binaries
from tests.postgres import running as running_postgres
from workflows.contract import Order

T = TypeVar("T")
SECRET = "test-secret-" + "x" * 40


def caller(name: str, project: str, *roles: str) -> Caller:
    return Caller(
        user_id=f"user-{name}",
        user_name=name,
        project_id=f"project-{project}" if project else "",
        project_name=project,
        roles=frozenset(roles),
        token_id=name,
    )


CALLERS = {
    c.user_name: c
    for c in (
        caller("admin", "admin", "admin"),
        caller("member", "demo", "member"),
        caller("reader", "demo", "reader"),
        caller("alt", "alt", "member"),
        caller("unscoped", ""),
    )
}


class StaticTokens(Tokens):
    """The token *is* the caller's name: ``X-Auth-Token: member``."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.revoked: set[str] = set()

    def open(self, text: str) -> Any:
        if text not in CALLERS:
            raise Unauthorized(DENIED)
        return SimpleNamespace(caller=CALLERS[text])

    def check_standing(self, session: Session, token: Any) -> None:
        if token.caller.token_id in self.revoked:
            raise Unauthorized(DENIED)


class RecordingLauncher(Launcher):
    """Records what would be started and writes the operation row, without any Temporal server."""

    def __init__(self) -> None:
        self.started: list[tuple[str, str, dict[str, Any]]] = []
        """(lifecycle, server id, input)"""
        self.ordered: list[tuple[str, str, Order, str]] = []
        self.cancelled: list[str] = []
        self.refreshed: list[str] = []
        self.purged: list[tuple[str, str, int]] = []
        self.console = b""

    def _record(
        self, session: Session, who: Caller, server: Server, key: str, request_id: str, given: Any
    ) -> Operation:
        operation = Operation(
            request_id=request_id,
            action=LIFECYCLES[key].action,
            lifecycle=key,
            server_id=server.id,
            project_id=server.project_id,
            user_id=who.user_id,
            input=given,
        )
        session.add(operation)
        self.started.append((key, server.id, given))
        return operation

    def create(
        self,
        session: Session,
        who: Caller,
        servers: list[Server],
        request_id: str,
        input: dict[str, Any] | None = None,
    ) -> list[Operation]:
        session.add_all(servers)
        session.flush()
        made = [self._record(session, who, s, "create", request_id, input or {}) for s in servers]
        session.commit()
        return made

    def act(
        self,
        session: Session,
        who: Caller,
        server: Server,
        lifecycle: str,
        request_id: str,
        input: dict[str, Any] | None = None,
    ) -> Operation:
        check_allowed(LIFECYCLES[lifecycle], server.id, VmState(server.vm_state))
        operation = self._record(session, who, server, lifecycle, request_id, input or {})
        session.commit()
        return operation

    def retry(
        self,
        session: Session,
        who: Caller,
        failed: Operation,
        request_id: str,
        answer: Callable[[Operation], T],
    ) -> T:
        operation = accept_retry(session, failed, who.user_id, request_id)
        session.flush()
        answered = answer(operation)
        session.commit()
        self.started.append((operation.lifecycle, operation.server_id, operation.input))
        return answered

    def order(self, operation: Operation, verb: str, order: Order, order_id: str) -> None:
        self.ordered.append((operation.id, verb, order, order_id))

    def cancel(self, operation: Operation) -> None:
        self.cancelled.append(operation.id)

    def read_console(self, host: str, server_id: str, max_bytes: int) -> bytes:
        return self.console[-max_bytes:]

    def refresh_hosts(self, hosts: set[str]) -> bool:
        self.refreshed.extend(sorted(hosts))
        return True

    def answers(self) -> bool:
        return True

    def purge(self, host: str, server_id: str, fence: Fence) -> None:
        self.purged.append((host, server_id, fence.epoch))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests of the database house run on both databases, all others on SQLite."""
    if "database_url" not in metafunc.fixturenames:
        return
    here = metafunc.definition.path
    if here.parent.name == "db" or here.name.startswith("test_placement"):
        both = ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)]
        metafunc.parametrize("database_url", both, indirect=True)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One PostgreSQL server for the session, started when the first test asks for it."""
    bin_dir = postgres_binaries()
    if bin_dir is None:
        pytest.skip("no PostgreSQL 15 or later is installed")
    with running_postgres(bin_dir) as server:
        yield server


@pytest.fixture
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh database: SQLite, or PostgreSQL with every table in it already."""
    if getattr(request, "param", "sqlite") == "postgres":
        server: Postgres = request.getfixturevalue("postgres")
        return server.fresh()
    return f"sqlite:///{tmp_path}/duranova.db"


@pytest.fixture
def settings(tmp_path: Path, database_url: str) -> Settings:
    return Settings(
        data_dir=tmp_path / "data",
        database_url=database_url,
        secret_key=SECRET,
        public_url="http://testserver",
    )


@pytest.fixture
def engine(settings: Settings) -> Iterator[Engine]:
    engine = open_engine(settings.database_url)
    tables.metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def launcher() -> RecordingLauncher:
    return RecordingLauncher()


@pytest.fixture
def cloud(settings: Settings, engine: Engine, launcher: RecordingLauncher) -> Cloud:
    return Cloud(
        settings=settings,
        engine=engine,
        tokens=StaticTokens(settings),
        launcher=launcher,
        sealer=Sealer(SECRET),
    )


@pytest.fixture
def client(cloud: Cloud) -> Iterator[TestClient]:
    """The whole API in process, asking as ``member`` of project ``project-demo`` unless told."""
    from tests.asgi import app_for  # noqa: PLC0415  # other tests need not load every route

    with TestClient(app_for(cloud), headers={"X-Auth-Token": "member"}) as client:
        yield client


def acting_as(name: str) -> dict[str, str]:
    """Headers to ask as ``admin``, ``member``, ``reader`` (same project), ``alt`` (another one)."""
    return {"X-Auth-Token": name}
