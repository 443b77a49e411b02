"""The Temporal client of every process, and how an operation becomes a workflow."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta
from typing import Any

from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import (
    AddSearchAttributesRequest,
    ListSearchAttributesRequest,
)
from temporalio.client import (
    Client,
    WorkflowExecutionStatus,
    WorkflowFailureError,
    WorkflowUpdateFailedError,
)
from temporalio.common import (
    Priority,
    SearchAttributeKey,
    SearchAttributePair,
    TypedSearchAttributes,
    WorkflowIDConflictPolicy,
)
from temporalio.contrib.opentelemetry import OpenTelemetryPlugin
from temporalio.contrib.pydantic import PydanticPayloadConverter
from temporalio.converter import CompositePayloadConverter, DataConverter
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode, TLSConfig

from domain.errors import BadRequest, Conflict, NotFound, Unavailable
from domain.ids import CONTROL_QUEUE, OPERATOR_DESK, STATE_ATTRIBUTE, server_workflow_id
from runtime.settings import Settings

SERVER_ID = SearchAttributeKey.for_keyword("ServerId")
PROJECT_ID = SearchAttributeKey.for_keyword("ProjectId")
OPERATION = SearchAttributeKey.for_keyword("Operation")
REQUEST_ID = SearchAttributeKey.for_keyword("RequestId")
HOST = SearchAttributeKey.for_keyword("Host")
STATE = SearchAttributeKey.for_keyword(STATE_ATTRIBUTE)
SEARCH_ATTRIBUTES = (SERVER_ID, PROJECT_ID, OPERATION, REQUEST_ID, HOST, STATE)

_RPC_TIMEOUT = timedelta(seconds=5)
_ORDER_TIMEOUT = timedelta(seconds=9)


_ENCODINGS = tuple(PydanticPayloadConverter().converters.values())


class _Payloads(CompositePayloadConverter):
    """Pydantic's payloads, in JSON. A worker makes one of these for each workflow: with converters of its
    own it would work out anew what each of our commands looks like."""

    def __init__(self) -> None:
        super().__init__(*_ENCODINGS)


DATA_CONVERTER = DataConverter(payload_converter_class=_Payloads)
"""How arguments and results are written into histories."""


async def connect_to(settings: Settings, *, lazy: bool = False) -> Client:
    """A client of the cluster that the settings name, by TLS if they have certificates.

    BadRequest when a certificate cannot be read, Unavailable when the cluster does not answer.
    ``lazy`` connects at the first call.
    """
    address, namespace = settings.temporal_address, settings.temporal_namespace
    try:
        traced = settings.otlp_endpoint is not None
        return await connect(address, namespace, lazy=lazy, tls=_tls(settings), spans=traced)
    except RuntimeError as error:
        raise Unavailable(f"Temporal at {address}: {error}") from error


def _tls(settings: Settings) -> TLSConfig | None:
    ca, cert, key = settings.temporal_tls_ca, settings.temporal_tls_cert, settings.temporal_tls_key
    if (cert is None) != (key is None):
        raise BadRequest("DURANOVA_TEMPORAL_TLS_CERT and DURANOVA_TEMPORAL_TLS_KEY go together")
    if ca is None and cert is None:
        return None
    try:
        return TLSConfig(
            server_root_ca_cert=ca.read_bytes() if ca else None,
            client_cert=cert.read_bytes() if cert else None,
            client_private_key=key.read_bytes() if key else None,
            domain=settings.temporal_tls_server_name,
        )
    except OSError as error:
        raise BadRequest(f"Temporal's TLS: {error.filename}: {error.strerror}") from error


async def connect(
    address: str,
    namespace: str,
    *,
    lazy: bool = False,
    tls: TLSConfig | None = None,
    spans: bool = True,
) -> Client:
    """A client with our tracing. ``lazy`` connects at the first call; without ``spans`` the trace goes
    with each call all the same, but nothing is noted of it."""
    return await Client.connect(
        address,
        namespace=namespace,
        lazy=lazy,
        tls=tls or False,
        data_converter=DATA_CONVERTER,
        plugins=[OpenTelemetryPlugin(add_temporal_spans=spans)],
    )


async def start_operation(client: Client, workflow: str, ref: Any, *, eager: bool = False) -> None:
    """Start the workflow of an operation (``ref`` is a ``workflows.contract.Ref``).

    Delete goes by signal-with-start, so it reaches a busy server too. WorkflowAlreadyStartedError when
    another operation owns the server.
    """
    delete = ref.lifecycle == "delete"
    await client.start_workflow(
        workflow,
        ref,
        id=server_workflow_id(ref.server_id),
        task_queue=CONTROL_QUEUE,
        id_conflict_policy=(
            WorkflowIDConflictPolicy.USE_EXISTING if delete else WorkflowIDConflictPolicy.FAIL
        ),
        start_signal="delete" if delete else None,
        start_signal_args=[ref] if delete else [],
        search_attributes=TypedSearchAttributes(
            [
                SearchAttributePair(SERVER_ID, ref.server_id),
                SearchAttributePair(PROJECT_ID, ref.project_id),
                SearchAttributePair(OPERATION, ref.operation_id),
                SearchAttributePair(REQUEST_ID, ref.request_id),
            ]
        ),
        static_summary=f"{ref.lifecycle} {ref.server_id}",
        request_eager_start=eager and not delete,
        priority=Priority(fairness_key=ref.project_id),
        rpc_timeout=_RPC_TIMEOUT,
    )


async def send_order(client: Client, server_id: str, verb: str, order: Any, order_id: str) -> None:
    """Send a verb to the operation of a server that waits for an operator (``order`` is an ``Order``).

    Conflict, with the reason, when it does not fit.
    """
    handle = client.get_workflow_handle(server_workflow_id(server_id))
    try:
        await handle.execute_update(verb, order, id=order_id, rpc_timeout=_ORDER_TIMEOUT)
    except WorkflowUpdateFailedError as error:
        reason = str(getattr(error.cause, "message", error.cause))
        raise Conflict(f"Instance {server_id}: {reason}") from error
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:
            raise
        raise Conflict(f"Instance {server_id}: its operation has ended") from error


async def cancel_operation(client: Client, server_id: str) -> None:
    """Ask the operation that owns a server to stop. NotFound when none is running."""
    handle = client.get_workflow_handle(server_workflow_id(server_id))
    try:
        await handle.cancel(rpc_timeout=_RPC_TIMEOUT)
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            raise NotFound(f"No operation runs on instance {server_id}") from error
        raise


async def ensure_desk(client: Client) -> None:
    """Start the operator's desk, once in a namespace."""
    await client.start_workflow(
        "OperatorDesk",
        id=OPERATOR_DESK,
        task_queue=CONTROL_QUEUE,
        id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
        static_summary="Retry failed builds from here",
        rpc_timeout=_RPC_TIMEOUT,
    )


async def start_after_current(client: Client, workflow: str, ref: Any) -> None:
    """Start an operation whose predecessor has written its end but not closed its workflow yet."""
    while True:
        try:
            await start_operation(client, workflow, ref)
            return
        except WorkflowAlreadyStartedError as busy:
            handle = client.get_workflow_handle(busy.workflow_id, run_id=busy.run_id)
            with suppress(WorkflowFailureError):  # how it ended is not our business
                await handle.result(follow_runs=False)


async def run_status(client: Client, server_id: str) -> WorkflowExecutionStatus | None:
    """How the newest run of a server's workflow stands; None when there is none any more."""
    handle = client.get_workflow_handle(server_workflow_id(server_id))
    try:
        description = await handle.describe(rpc_timeout=_RPC_TIMEOUT)
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            return None
        raise
    return description.status


async def nudge_host(client: Client, workflow: str, ref: Any) -> None:
    """Run a reconciler of a host, or one more round of it if it runs (``ref`` is a ``HostRef``)."""
    await client.start_workflow(
        workflow,
        ref,
        id=f"nics:{ref.host}",
        task_queue=CONTROL_QUEUE,
        id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
        start_signal="nudge",
        rpc_timeout=_RPC_TIMEOUT,
    )


async def purge_guest(client: Client, workflow: str, cmd: Any) -> None:
    """Have a host remove a stale guest (``cmd`` is a ``PurgeGuest``); once at a time."""
    await client.start_workflow(
        workflow,
        cmd,
        id=f"purge:{cmd.host}:{cmd.server_id}",
        task_queue=CONTROL_QUEUE,
        id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
        rpc_timeout=_RPC_TIMEOUT,
    )


async def ensure_search_attributes(client: Client) -> None:
    """Register those of our search attributes that the client's namespace lacks.

    Unavailable, saying which, when the cluster does not let us.
    """
    listed = await client.operator_service.list_search_attributes(
        ListSearchAttributesRequest(namespace=client.namespace)
    )
    missing = {k.name for k in SEARCH_ATTRIBUTES} - set(listed.custom_attributes)
    if not missing:
        return
    wanted = dict.fromkeys(missing, IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD)
    request = AddSearchAttributesRequest(namespace=client.namespace, search_attributes=wanted)
    try:
        await client.operator_service.add_search_attributes(request)
    except RPCError as error:
        if error.status is not RPCStatusCode.ALREADY_EXISTS:  # another process was quicker
            raise Unavailable(
                f"Temporal lacks search attributes of type Keyword: {', '.join(sorted(missing))}; "
                f"they could not be registered: {error.message}"
            ) from error
