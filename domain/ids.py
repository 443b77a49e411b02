"""Identifiers and their spelling: one place decides what a workflow id or a device name looks like."""

from __future__ import annotations

import uuid

CONTROL_QUEUE = "control"
STATE_ATTRIBUTE = "OperationState"
"""The search attribute that tells builds which wait for an operator from the others."""
OPERATOR_DESK = "operator-desk"
"""The workflow that takes an operator's word on operations that have ended."""
SYSTEM_USER = "system"
"""The user id of what Duranova does by itself."""


def new_id() -> str:
    """A fresh resource id: a lower-case UUID with dashes."""
    return str(uuid.uuid4())


def new_request_id() -> str:
    """A fresh request id, ``req-<uuid>``."""
    return f"req-{uuid.uuid4()}"


def server_workflow_id(server_id: str) -> str:
    """The workflow id of every operation on a server; the id is the server's lock."""
    return f"server:{server_id}"


def host_queue(host: str) -> str:
    """The task queue that only this host's worker polls."""
    return f"host:{host}"


def tap_name(port_id: str) -> str:
    """The tap device of a port: 14 characters, below the kernel's 15 (the kernel's IFNAMSIZ is 16)."""
    return f"tap{port_id.replace('-', '')[:11]}"


def bridge_name(network_id: str) -> str:
    """The bridge of a network on a host."""
    return f"dnb{network_id.replace('-', '')[:11]}"


def guest_name(server_id: str) -> str:
    """The libvirt domain's name."""
    return f"duranova-{server_id}"


def webhook_workflow_id(name: str) -> str:
    """The workflow id of what serves a webhook; the id keeps a second one from serving it too."""
    return f"webhook:{name}"
