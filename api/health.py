"""What machines ask about the process itself: alive, ready, metrics; and the API's own documentation."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from fastapi import APIRouter, FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import select
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.staticfiles import StaticFiles

from api.answers import AnsweringRoute
from api.context import TheCloud
from api.gauges import RecordGauges
from db.hosts import Host
from db.session import reading

router = APIRouter(route_class=AnsweringRoute)
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
    """Prometheus text: what this process counted, and the record as it stands now."""
    record = CollectorRegistry(auto_describe=False)
    record.register(RecordGauges(cloud.engine, cloud.settings))
    return Response(generate_latest() + generate_latest(record), media_type=CONTENT_TYPE_LATEST)


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
