"""One table: error kind → status; one formatter per service: how its clients expect a fault to look."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import DataError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from domain.errors import DuranovaError, Kind

STATUS: dict[Kind, int] = {
    Kind.BAD_REQUEST: 400,
    Kind.UNAUTHORIZED: 401,
    Kind.FORBIDDEN: 403,
    Kind.QUOTA: 403,
    Kind.NOT_FOUND: 404,
    Kind.CONFLICT: 409,
    Kind.GONE: 410,
    Kind.TOO_LARGE: 413,
    Kind.UNSUPPORTED_MEDIA: 415,
    Kind.UNPROCESSABLE: 422,
    Kind.NOT_IMPLEMENTED: 501,
    Kind.UNAVAILABLE: 503,
    Kind.NO_VALID_HOST: 500,
    Kind.FENCED: 500,
    Kind.GUEST: 500,
}
_NOVA_NAMES = {
    400: "badRequest",
    401: "unauthorized",
    403: "forbidden",
    404: "itemNotFound",
    405: "badMethod",
    409: "conflictingRequest",
    413: "overLimit",
    415: "badMediaType",
    422: "unprocessableEntity",
    501: "notImplemented",
    503: "serviceUnavailable",
}
_TITLES = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    409: "Conflict",
    410: "Gone",
    413: "Request Entity Too Large",
    415: "Unsupported Media Type",
    422: "Unprocessable Entity",
    501: "Not Implemented",
    503: "Service Unavailable",
}
_SECRET = {"adminPass", "original_password", "password", "secret"}
"""Fields whose values no answer repeats."""
_NEUTRON_TYPES = {
    400: "BadRequest",
    401: "HTTPUnauthorized",
    403: "PolicyNotAuthorized",
    404: "HTTPNotFound",
    409: "Conflict",
    413: "HTTPRequestEntityTooLarge",
    422: "HTTPUnprocessableEntity",
    501: "HTTPNotImplemented",
    503: "ServiceUnavailable",
}

Formatter = Callable[[int, str, str | None], dict[str, Any]]
"""(status, message, error's own name) → JSON body."""
_log = structlog.get_logger(__name__)


def compute_fault(status: int, message: str, _name: str | None) -> dict[str, Any]:
    """Nova's: ``{"itemNotFound": {"code": 404, "message": …}}``."""
    return {_NOVA_NAMES.get(status, "computeFault"): {"code": status, "message": message}}


def identity_fault(status: int, message: str, _name: str | None) -> dict[str, Any]:
    """Keystone's: ``{"error": {"code", "message", "title"}}``."""
    title = _TITLES.get(status, "Internal Server Error")
    return {"error": {"code": status, "message": message, "title": title}}


def image_fault(status: int, message: str, _name: str | None) -> dict[str, Any]:
    """The shape openstacksdk and glanceclient read: ``{"code", "title", "message"}``."""
    title = _TITLES.get(status, "Internal Server Error")
    return {"code": status, "title": title, "message": message}


def network_fault(status: int, message: str, name: str | None) -> dict[str, Any]:
    """Neutron's: ``{"NeutronError": {"type", "message", "detail"}}``."""
    kind = name or _NEUTRON_TYPES.get(status, "HTTPInternalServerError")
    return {"NeutronError": {"type": kind, "message": message, "detail": ""}}


def plain_fault(status: int, message: str, name: str | None) -> dict[str, Any]:
    """Our own prefix: ``{"error": {"code", "kind", "message"}}``."""
    return {"error": {"code": status, "kind": name or "error", "message": message}}


def install(app: FastAPI, fault: Formatter) -> None:
    """Make every error of this service leave in its own format."""

    def answer(status: int, message: str, name: str | None = None) -> Response:
        headers = {"Retry-After": "5"} if status == 503 else {}
        if status == 401:
            headers["WWW-Authenticate"] = "Keystone uri='/identity/v3'"
        message = message.encode(errors="replace").decode()  # it may quote what came
        return JSONResponse(fault(status, message, name), status, headers)

    @app.exception_handler(DuranovaError)
    async def _ours(_request: Request, exc: DuranovaError) -> Response:
        name = getattr(exc, "wire_name", None)
        return answer(STATUS[exc.kind], exc.message, name)

    @app.exception_handler(RequestValidationError)
    async def _invalid(_request: Request, exc: RequestValidationError) -> Response:
        return answer(400, explain(exc.errors()))

    @app.exception_handler(UnicodeEncodeError)  # half a surrogate pair, which JSON can spell
    @app.exception_handler(DataError)  # PostgreSQL on a NUL, or on a number no column holds
    async def _unstorable(_request: Request, _exc: Exception) -> Response:
        return answer(400, "Malformed request: it holds a value that no record can have.")

    @app.exception_handler(HTTPException)
    async def _http(_request: Request, exc: HTTPException) -> Response:
        message = str(exc.detail)
        if exc.status_code == 404 and message == "Not Found":
            message = "The resource could not be found."
        return answer(exc.status_code, message)

    @app.exception_handler(Exception)
    async def _unexpected(request: Request, exc: Exception) -> Response:
        _log.exception("unexpected API error", path=request.url.path, exc_info=exc)
        return answer(
            500,
            "Unexpected API Error. The request id in the x-openstack-request-id header finds it in the log. "
            f"({type(exc).__name__})",
        )


def explain(errors: Any) -> str:
    """Pydantic's errors as one sentence in Nova's style, e.g.
    ``Invalid input for field/attribute name. Value: 5. Input should be a valid string``."""
    first = errors[0]
    path = [str(p) for p in first["loc"] if p not in ("body", "query", "path")]
    if first["type"] == "extra_forbidden" and path and "Additional" not in first["msg"]:
        return f"Additional properties are not allowed ('{path[-1]}' was unexpected)"
    if first["type"] == "missing" and path and first["msg"] == "Field required":
        return f"Invalid input for field/attribute {'.'.join(path[:-1]) or 'body'}. '{path[-1]}' is a required property"
    if first["type"] == "json_invalid":
        return "Malformed request body"
    where = f"Invalid input for field/attribute {path[-1]}. " if path else ""
    value = first.get("input")
    showable = isinstance(value, str | int | float | None) and path and path[-1] not in _SECRET
    shown = f"Value: {value!s:.80}. " if showable else ""
    return f"{where}{shown}{first['msg']}"
