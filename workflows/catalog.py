"""Every workflow a control worker runs."""

from __future__ import annotations

from workflows.create import CreateServer
from workflows.delete import DeleteServer
from workflows.desk import OperatorDesk
from workflows.power import PowerServer
from workflows.reconcile import PurgeStaleGuest, Reconcile, SweepOperations, SyncHostNics
from workflows.webhooks import DeliverEvents, PruneEvents

WORKFLOWS = [
    CreateServer,
    DeleteServer,
    DeliverEvents,
    OperatorDesk,
    PowerServer,
    PruneEvents,
    PurgeStaleGuest,
    Reconcile,
    SweepOperations,
    SyncHostNics,
]
