"""Every table, imported once, so that the metadata is complete wherever it is used."""

from __future__ import annotations

from sqlmodel import SQLModel

from db import (
    events,
    flavors,
    groups,
    host_changes,
    hosts,
    idempotency,
    identity,
    images,
    keypairs,
    network,
    operations,
    quotas,
    reconcilers,
    servers,
    sightings,
)

MODULES = (
    events,
    flavors,
    groups,
    host_changes,
    hosts,
    idempotency,
    identity,
    images,
    keypairs,
    network,
    operations,
    quotas,
    reconcilers,
    servers,
    sightings,
)
metadata = SQLModel.metadata
