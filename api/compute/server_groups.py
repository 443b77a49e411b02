"""Being written."""

from __future__ import annotations

from fastapi import APIRouter

from api.microversion import Route

router = APIRouter(route_class=Route)
