"""THE deep one: guard → record → commit → start the workflow → 202 or 409.

A crash between commit and start leaves an *accepted* operation; the sweep starts it again under the
same workflow id, so twice is once.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any, TypeVar

import structlog
from sqlmodel import Session
from temporalio.client import ActivityFailureError, Client
from temporalio.exceptions import ApplicationError, WorkflowAlreadyStartedError
from temporalio.service import RPCError

from activities.control.records import ref_of
from activities.control.retries import accept_retry
from api.policy import Caller, permits
from db.operations import Operation, accept_operation, live_operations
from db.servers import Server
from db.session import now
from domain.errors import Conflict, DuranovaError, Kind, NotFound, ServerBusy, Unavailable
from domain.guest import Fence
from domain.ids import host_queue
from domain.lifecycle import LIFECYCLES, Lifecycle, check_allowed
from domain.states import VmState
from runtime.sealing import Sealer, host_key
from runtime.settings import Settings
from runtime.temporal import (
    cancel_operation,
    nudge_host,
    purge_guest,
    send_order,
    start_after_current,
    start_operation,
)
from workflows.contract import HostActivities, HostRef, Order, PurgeGuest, ReadConsole

_log = structlog.get_logger(__name__)
_CONSOLE_S = 10.0
T = TypeVar("T")


class Launcher(ABC):
    """Turns an accepted request into a running workflow. Called from handlers that run in a thread."""

    @abstractmethod
    def create(
        self,
        session: Session,
        who: Caller,
        servers: list[Server],
        request_id: str,
        input: dict[str, Any] | None = None,
    ) -> list[Operation]:
        """Record a ``create`` operation per new server row (already added, with ports), commit, start.

        ``input`` holds what counts for this operation only: ``host`` and ``hypervisor_hostname``, where
        one was asked for. Commits the session. The servers are BUILD/scheduling afterwards.
        """

    @abstractmethod
    def act(
        self,
        session: Session,
        who: Caller,
        server: Server,
        lifecycle: str,
        request_id: str,
        input: dict[str, Any] | None = None,
    ) -> Operation:
        """Record and start one operation on an existing server: guard by the lifecycle table, refuse
        while another operation owns the server (ServerBusy) or it is locked for this caller (Conflict).

        Commits the session. ``delete`` is accepted in every state and wins over a running operation.
        """

    @abstractmethod
    def retry(
        self,
        session: Session,
        who: Caller,
        failed: Operation,
        request_id: str,
        answer: Callable[[Operation], T],
    ) -> T:
        """Record and start a new operation that builds again what this failed create left in ERROR.

        Commits the session, after ``answer`` has made of the new operation what is returned. Conflict,
        saying why, when it cannot be retried.
        """

    @abstractmethod
    def order(self, operation: Operation, verb: str, order: Order, order_id: str) -> None:
        """Send an operator's verb to the operation that waits for one; back when the record shows that it
        goes on. The same ``order_id`` again is the same order. Conflict, with the reason, when the verb does
        not fit."""

    @abstractmethod
    def cancel(self, operation: Operation) -> None:
        """Ask a running operation to stop: it reaches the hypervisor, waits for its end there and undoes."""

    @abstractmethod
    def read_console(self, host: str, server_id: str, max_bytes: int) -> bytes:
        """The tail of a guest's console from its host. Unavailable when the host does not answer."""

    @abstractmethod
    def refresh_hosts(self, hosts: set[str]) -> bool:
        """Tell these hosts that filtering rules of their ports changed; call after commit. Returns whether
        all could be told."""

    @abstractmethod
    def answers(self) -> bool:
        """Whether the Temporal server can be reached now."""

    @abstractmethod
    def purge(self, host: str, server_id: str, fence: Fence) -> None:
        """Have a host remove a guest that the record has provably moved on from."""


class TemporalLauncher(Launcher):
    """Records in the database and starts on the Temporal server."""

    def __init__(
        self, client: Client, loop: asyncio.AbstractEventLoop, settings: Settings, *, eager: bool
    ) -> None:
        self._client = client
        self._loop = loop
        self._settings = settings
        self._eager = eager
        """Whether the control worker shares this client, so that a start can skip a dispatch."""

    def create(
        self,
        session: Session,
        who: Caller,
        servers: list[Server],
        request_id: str,
        input: dict[str, Any] | None = None,
    ) -> list[Operation]:
        session.add_all(servers)
        session.flush()  # the rows the operations refer to
        operations = [
            accept_operation(session, s, "create", who.user_id, request_id, input or {})
            for s in servers
        ]
        session.commit()
        for operation in operations:
            if not self._start(operation):
                break  # each further one would wait as long; the sweep starts them all
        return operations

    def act(
        self,
        session: Session,
        who: Caller,
        server: Server,
        lifecycle: str,
        request_id: str,
        input: dict[str, Any] | None = None,
    ) -> Operation:
        session.refresh(server, with_for_update=True)
        live = live_operations(session, server.id)
        if lifecycle == "delete" and (again := [o for o in live if o.lifecycle == "delete"]):
            return again[0]
        _guard(who, server, LIFECYCLES[lifecycle], live)
        server.task_state = LIFECYCLES[lifecycle].task_state
        server.updated_at = now()
        session.add(server)
        operation = accept_operation(
            session, server, lifecycle, who.user_id, request_id, input or {}
        )
        session.commit()
        self._start(operation)
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
        self._start(operation)
        return answered

    def order(self, operation: Operation, verb: str, order: Order, order_id: str) -> None:
        try:
            self._wait(send_order(self._client, operation.server_id, verb, order, order_id))
        except (RPCError, TimeoutError) as error:
            raise Unavailable(f"Operation {operation.id} did not answer: {error}") from error

    def cancel(self, operation: Operation) -> None:
        try:
            try:
                self._wait(cancel_operation(self._client, operation.server_id))
            except NotFound:
                # Accepted, and not started yet: it is started to be cancelled, so that its end is written.
                self._start(operation)
                self._wait(cancel_operation(self._client, operation.server_id))
        except (NotFound, RPCError, TimeoutError) as error:
            raise Unavailable(f"Temporal did not take the cancel: {error}") from error

    def read_console(self, host: str, server_id: str, max_bytes: int) -> bytes:
        call: Coroutine[Any, Any, Any] = self._client.execute_activity_method(
            HostActivities.read_console,
            ReadConsole(server_id, max_bytes),
            id=f"console:{server_id}:{now().timestamp()}",
            task_queue=host_queue(host),
            schedule_to_close_timeout=timedelta(seconds=_CONSOLE_S),
        )
        try:
            sealed = self._wait(call, _CONSOLE_S + 2)
        except ActivityFailureError as error:
            if isinstance(error.cause, ApplicationError) and error.cause.type == Kind.NOT_FOUND:
                raise NotFound(f"Instance {server_id} could not be found.") from error
            raise Unavailable(f"Host {host} did not answer") from error
        except (RPCError, TimeoutError) as error:
            raise Unavailable(f"Host {host} did not answer") from error
        return Sealer(host_key(self._secret, host)).unseal(sealed.sealed)

    def refresh_hosts(self, hosts: set[str]) -> bool:
        calls = [
            self._try(nudge_host(self._client, "SyncHostNics", HostRef(host)), host=host)
            for host in sorted(hosts)
        ]
        return all(calls)

    def purge(self, host: str, server_id: str, fence: Fence) -> None:
        cmd = PurgeGuest(host, server_id, fence)
        self._try(purge_guest(self._client, "PurgeStaleGuest", cmd), host=host, server=server_id)

    def answers(self) -> bool:
        try:
            return bool(self._wait(self._client.service_client.check_health(), 2.0))
        except (RPCError, RuntimeError, TimeoutError):
            return False

    @property
    def _secret(self) -> str:
        return self._settings.secret_key.get_secret_value()

    def _start(self, operation: Operation) -> bool:
        """Returns whether Temporal answered."""
        ref = ref_of(operation)
        workflow = LIFECYCLES[operation.lifecycle].workflow
        _log.info(
            "operation accepted",
            operation_id=ref.operation_id,
            lifecycle=ref.lifecycle,
            server_id=ref.server_id,
        )
        try:
            self._wait(start_operation(self._client, workflow, ref, eager=self._eager))
        except WorkflowAlreadyStartedError:
            # The record says nobody owns the server, so its last workflow is just closing.
            asyncio.run_coroutine_threadsafe(
                start_after_current(self._client, workflow, ref), self._loop
            )
        except (RPCError, TimeoutError) as error:
            # The request is accepted and recorded; the sweep starts it when Temporal answers again.
            _log.warning("start left to the sweep", operation_id=operation.id, error=str(error))
            return False
        return True

    def _try(self, call: Coroutine[Any, Any, None], **context: str) -> bool:
        try:
            self._wait(call)
            return True
        except (RPCError, TimeoutError) as error:
            _log.warning("Temporal did not take a nudge", error=str(error), **context)
            return False

    def _wait(self, call: Coroutine[Any, Any, Any], timeout_s: float = 10.0) -> Any:
        return asyncio.run_coroutine_threadsafe(call, self._loop).result(timeout_s)


def _guard(who: Caller, server: Server, row: Lifecycle, live: list[Operation]) -> None:
    deleting = row.success is VmState.DELETED
    if server.locked and not row.locked_ok and not permits(who, "servers:unlock:override"):
        raise Conflict(f"Instance {server.id} is locked")
    if live and not deleting:
        busy = live[0]
        raise ServerBusy(
            f"Cannot '{row.action}' instance {server.id} while operation {busy.id} "
            f"({busy.action}) is {busy.state}: it is in task_state {server.task_state}"
        )
    try:
        check_allowed(row, server.id, VmState(server.vm_state))
    except DuranovaError:
        if deleting:  # already gone
            raise NotFound(f"Instance {server.id} could not be found.") from None
        raise
