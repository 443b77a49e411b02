"""An image's bytes: upload and download. The event loop never waits for the disk or the database."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Annotated

import anyio
from anyio.to_thread import run_sync
from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse
from starlette.requests import ClientDisconnect

from api.answers import AnsweringRoute
from api.context import Cloud, Db, TheCloud, allow
from api.policy import Caller
from db.images import Image, get_own_image, get_visible_image, project_usage, save_image
from db.quotas import limits_of, lock_quota
from db.session import transaction
from domain.errors import BadRequest, Conflict, Forbidden, NotFound, TooLarge, UnsupportedMedia
from runtime.imagestore import ImageStore, Incoming, Stored

router = APIRouter(prefix="/v2", route_class=AnsweringRoute)
BUFFER_BYTES = 1024**2
"""Written at once; smaller pieces would cost a change of thread each."""


@router.put("/images/{image_id}/file", status_code=204)
async def upload(
    image_id: str,
    request: Request,
    who: Annotated[Caller, allow("images:write")],
    cloud: TheCloud,
) -> Response:
    """Take the bytes of a queued image; it is active afterwards, or queued again if anything fails."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/octet-stream":
        raise UnsupportedMedia("Image data must be sent as application/octet-stream.")
    announced = int(request.headers.get("content-length", "0"))
    upload = Upload(cloud, who, image_id)
    try:
        await run_sync(upload.begin, announced)
        buffer = bytearray()
        async for chunk in request.stream():
            buffer += chunk
            if len(buffer) >= BUFFER_BYTES:
                await run_sync(upload.write, bytes(buffer))
                buffer.clear()
        await run_sync(upload.write, bytes(buffer))
        await run_sync(upload.complete)
    except ClientDisconnect:
        raise BadRequest("The client left before all data had come.") from None
    finally:
        with anyio.CancelScope(shield=True):
            await run_sync(upload.end)
    return Response(status_code=204)


class Upload:
    """One upload from claim to end; methods block and are called one after the other."""

    def __init__(self, cloud: Cloud, who: Caller, image_id: str) -> None:
        self._cloud, self._who, self._image_id = cloud, who, image_id
        self._store = ImageStore(cloud.settings.image_dir)
        self._held = ExitStack()
        self._incoming: Incoming | None = None
        self._claimed = False

    def begin(self, announced: int) -> None:
        """Claim the image and open the store. ``announced`` is the expected size in bytes, or 0.

        Conflict when it has data or another upload is under way. A claim whose process died is taken over.
        """
        with transaction(self._cloud.engine) as session:
            self._own(session)  # nobody makes us lock what is not theirs
        self._held.enter_context(self._store.lock(self._image_id))
        with transaction(self._cloud.engine) as session:
            image = self._own(session)
            if image.status not in ("queued", "saving"):
                raise Conflict(
                    f"Image status transition from {image.status} to saving is not allowed"
                )
            if not image.disk_format or not image.container_format:
                raise BadRequest(
                    "Properties disk_format, container_format must be set prior to saving data."
                )
            limit = self._room(session, image)
            if announced > limit:
                raise TooLarge(f"Image exceeds the storage quota: {limit} bytes are left.")
            image.status = "saving"
            save_image(session, image)
            disk_format = image.disk_format
        self._claimed = True
        self._incoming = self._store.receive(self._image_id, disk_format, limit)

    def write(self, chunk: bytes) -> None:
        """The next bytes."""
        assert self._incoming is not None  # noqa: S101  # begin() has returned
        if chunk:
            self._incoming.write(chunk)

    def complete(self) -> None:
        """All bytes have come: judge, store, and say so."""
        assert self._incoming is not None  # noqa: S101  # begin() has returned
        stored = self._incoming.finish()
        try:
            self._record(stored)
        except BaseException:
            self._store.remove(self._image_id)
            raise
        self._claimed = False

    def end(self) -> None:
        """Let go; after a failure nothing is left and the image waits for data again."""
        with self._held:
            if self._incoming is not None:
                self._incoming.discard()
            if self._claimed:
                with transaction(self._cloud.engine) as session:
                    image = session.get(Image, self._image_id, with_for_update=True)
                    if image is not None and image.status == "saving":
                        image.status = "queued"
                        save_image(session, image)

    def _own(self, session: Db) -> Image:
        return get_own_image(session, self._image_id, self._who.project_id, self._who.is_admin)

    def _room(self, session: Db, image: Image) -> int:
        """How many bytes this image may have."""
        settings = self._cloud.settings
        limits = limits_of(session, image.project_id, settings.image_quota_defaults)
        total_mib = limits["image_size_total"]
        if total_mib < 0:
            return settings.image_max_bytes
        left = total_mib * 1024**2 - project_usage(session, image.project_id)[1]
        return max(0, min(settings.image_max_bytes, left))

    def _record(self, stored: Stored) -> None:
        with transaction(self._cloud.engine) as session:
            image = self._own(session)  # NotFound when it was deleted meanwhile
            lock_quota(session, image.project_id)
            if stored.size > self._room(session, image):
                raise TooLarge("Image exceeds the storage quota of its project.")
            image.status = "active"
            image.size, image.virtual_size = stored.size, stored.virtual_size
            image.checksum, image.sha512 = stored.md5, stored.sha512
            save_image(session, image)


@router.get("/images/{image_id}/file", response_class=FileResponse)
def download(
    image_id: str, who: Annotated[Caller, allow("images:read")], db: Db, cloud: TheCloud
) -> Response:
    """The bytes, or a range of them; 204 while there are none."""
    image = get_visible_image(db, image_id, who.project_id, who.is_admin)
    if image.status == "deactivated" and not who.is_admin:
        raise Forbidden(
            "The requested image has been deactivated. Image data download is forbidden."
        )
    if image.status not in ("active", "deactivated"):
        return Response(status_code=204)
    path = ImageStore(cloud.settings.image_dir).path(image_id)
    try:
        found = path.stat()
    except FileNotFoundError:
        raise NotFound(f"The data of image {image_id} is not in the store.") from None
    return FileResponse(
        path,
        media_type="application/octet-stream",
        headers={"Content-MD5": image.checksum or ""},
        stat_result=found,
    )
