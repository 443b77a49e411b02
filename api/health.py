"""What machines ask about the process itself: alive, ready, metrics; and the API's own documentation."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from time import perf_counter

from fastapi import APIRouter, FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import select
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.context import TheCloud
from db.hosts import Host, is_up, list_hosts, usage_by_host
from db.session import now, reading
from runtime.telemetry import API_REQUESTS, HOST_TOTAL, HOST_UP, HOST_USED

router = APIRouter()
DOCUMENTED = ("compute", "identity", "image", "network", "operations")


@router.get("/healthz")
def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz")
def readyz(cloud: TheCloud) -> JSONResponse:
    """The process can do its work: 200, or 503 naming what is missing."""
    missing = {}
    try:
        with reading(cloud.engine) as session:
            session.exec(select(Host).limit(1)).first()
    except SQLAlchemyError as error:
        missing["database"] = type(error).__name__
    if not cloud.launcher.answers():
        missing["temporal"] = "does not answer"
    body = {"status": "ok" if not missing else "unavailable", "missing": missing}
    return JSONResponse(body, 503 if missing else 200)


@router.get("/metrics")
def metrics(cloud: TheCloud) -> Response:
    """Prometheus text: API requests, operations, hosts."""
    with reading(cloud.engine) as session:
        used = usage_by_host(session)
        for host in list_hosts(session):
            HOST_UP.labels(host.name).set(is_up(host, cloud.settings, now()))
            taken = used.get(host.name)
            for what in ("vcpus", "ram_mb", "disk_gb"):
                HOST_TOTAL.labels(host.name, what).set(getattr(host, what))
                HOST_USED.labels(host.name, what).set(getattr(taken, what) if taken else 0)
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


@router.get("/docs", include_in_schema=False)
def docs(service: str = "compute") -> HTMLResponse:
    """Swagger UI of one service, with links to the others."""
    chosen = service if service in DOCUMENTED else "compute"
    page = get_swagger_ui_html(
        openapi_url=f"/{chosen}/openapi.json",
        title=f"Duranova {chosen}",
        swagger_js_url="/static/swagger-ui-bundle.js",
        swagger_css_url="/static/swagger-ui.css",
        swagger_favicon_url="/static/favicon.png",
    )
    links = " · ".join(f'<a href="/docs?service={s}">{s}</a>' for s in DOCUMENTED)
    bar = f'<body><nav style="font-family:sans-serif;padding:1em">Duranova API: {links}</nav>'
    return HTMLResponse(bytes(page.body).decode().replace("<body>", bar, 1))


def mount_static(app: FastAPI) -> None:
    """Serve the documentation's assets ourselves: the page works without the internet."""
    static = Path(str(files("fastapi_offline"))) / "static"
    app.mount("/static", StaticFiles(directory=static))


class Measured:
    """ASGI layer: how long each request took, by service, method and status."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = perf_counter()
        path = scope["path"]

        async def count(message: Message) -> None:
            if message["type"] == "http.response.start":
                first = path.split("/", 2)[1]
                service = first if first in (*DOCUMENTED, "internal") else "other"
                labels = (service, scope["method"], str(message["status"]))
                API_REQUESTS.labels(*labels).observe(perf_counter() - started)
            await send(message)

        await self.app(scope, receive, count)
