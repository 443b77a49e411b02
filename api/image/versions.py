"""Which versions of the image API there are; clients discover the endpoint from this."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from api.answers import AnsweringRoute
from api.context import TheCloud

router = APIRouter(route_class=AnsweringRoute)
CURRENT = 7
"""Minor version 2.7: hidden images and multihash. Later ones are about several stores and caches."""


def _document(cloud: TheCloud) -> dict[str, Any]:
    href = f"{cloud.settings.public_url.rstrip('/')}/image/v2/"
    return {
        "versions": [
            {
                "id": f"v2.{minor}",
                "status": "CURRENT" if minor == CURRENT else "SUPPORTED",
                "links": [{"rel": "self", "href": href}],
            }
            for minor in range(CURRENT, -1, -1)
        ]
    }


@router.get("/versions")
@router.get("/versions/", include_in_schema=False)
def list_versions(cloud: TheCloud) -> dict[str, Any]:
    """The versions, for whoever asks for them by name."""
    return _document(cloud)


@router.get("/", status_code=300)
@router.get("/v2", status_code=300, include_in_schema=False)
@router.get("/v2/", status_code=300, include_in_schema=False)
def choose_version(cloud: TheCloud) -> JSONResponse:
    """The versions, for those who named none: they are to choose."""
    return JSONResponse(_document(cloud), 300)
