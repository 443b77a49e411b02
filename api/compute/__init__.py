"""Compute v2.1: one module per resource, each with its bodies, views and handlers."""

from __future__ import annotations

from api.compute import (
    actions,
    aggregates,
    details,
    flavors,
    hosts,
    hypervisors,
    instance_actions,
    keypairs,
    labels,
    quotas,
    server_groups,
    servers,
    versions,
)

routers = (
    servers.router,  # first: matching is linear and these are the hot paths
    actions.router,
    details.router,
    labels.router,
    instance_actions.router,
    flavors.router,
    keypairs.router,
    server_groups.router,
    aggregates.router,
    hosts.router,
    hypervisors.router,
    quotas.router,
    versions.router,
)
