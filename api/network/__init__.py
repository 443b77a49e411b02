"""Network v2.0 (Neutron): one module per resource, each with its bodies, views and handlers."""

from __future__ import annotations

from fastapi import APIRouter, Depends

from api.network import (
    cloud_wide,
    networks,
    ports,
    quotas,
    security_groups,
    subnets,
    tags,
    versions,
)
from api.network.wire import refuse_nul

router = APIRouter(dependencies=[Depends(refuse_nul)])
for _module in (networks, subnets, ports, security_groups, tags, quotas, cloud_wide, versions):
    router.include_router(_module.router)
