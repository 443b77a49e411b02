"""The image service: Glance v2, as far as disk images that boot need it."""

from __future__ import annotations

from fastapi import APIRouter

from api.image import data, images, members, schemas, versions

router = APIRouter()
for part in (versions, schemas, data, members, images):
    router.include_router(part.router)
