"""``Idempotency-Key``: a POST that is sent again under its key is told the first answer, and done once.

The key's row is the first thing that a request's session writes, and its answer the last, so both commit
with the effect or not at all. A handler needs nothing for this but ``route_class=KeyedRoute`` on its router
and ``db: Db``. One that commits by itself says its answer before, with ``keep_early``.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from datetime import timedelta
from functools import partial
from typing import Any

from fastapi import Request, Response
from pydantic import BaseModel, ConfigDict
from sqlalchemy import Connection, Engine, event
from sqlalchemy.orm import SessionTransaction
from sqlmodel import Session
from starlette.concurrency import run_in_threadpool
from starlette.types import Message, Receive

from api.answers import AnsweringRoute
from api.policy import Caller
from db.idempotency import IdempotencyKey, Keyed, Taken, claim_key, find_key, keep_answer
from db.session import now, reading
from domain.errors import BadRequest, Conflict, KeyReused, TooLarge
from runtime.logs import note
from runtime.sealing import Sealer

MAX_BODY_BYTES = 1024**2
PATIENCE = timedelta(seconds=10)
"""How long after its start a request may still be working on an answer that others wait for."""
_LOOK_EVERY_S = 0.25
_SCOPE, _INFO = "idempotency", "idempotency"
_PARAMETER = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "1 to 255 characters of your choice, new for each new request. The same request sent "
    "again under its key within 24 hours is not carried out again; it gets the first answer.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
}


class _Answer(BaseModel):
    """An answer at rest."""

    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")
    status: int
    headers: list[tuple[str, str]]
    body: bytes


class Exchange:
    """One request under a key, from its header to its kept answer."""

    def __init__(
        self, engine: Engine, sealer: Sealer, key: str, print_: str, request_id: str
    ) -> None:
        self._engine, self._sealer = engine, sealer
        self._key, self._fingerprint, self._request_id = key, print_, request_id
        self._who: Caller | None = None
        self._session: Session | None = None
        self._kept = False

    # --- what the dependencies of a handler tell it ----------------------------------------------

    def came_from(self, who: Caller) -> None:
        """The caller: a key is theirs alone, in the scope of their token."""
        self._who = who

    def look(self) -> None:
        """Taken when the key is in use, so that what was done need not be tried again. Blocks."""
        if self._who is not None and self._find() is not None:
            raise Taken

    def watch(self, session: Session) -> None:
        """Claim the key in this session's transactions, each before its first statement."""
        self._session = session
        session.info[_INFO] = self
        event.listen(session, "after_begin", self._claim)

    def _claim(self, _s: Session, begun: SessionTransaction, connection: Connection) -> None:
        if not begun.nested:
            claim_key(connection, self._asked)

    def close(self, answer: Response) -> None:
        """Keep the answer, in what will be the session's last transaction. Blocks."""
        if self._session is not None and not self._kept:
            self.keep(answer)

    # --- answers ---------------------------------------------------------------------------------

    def keep(self, answer: Response) -> None:
        """Keep this answer in the session's present transaction. Blocks."""
        assert self._session is not None  # noqa: S101  # only a session's owner asks
        headers = [
            (k, v) for k, v in answer.headers.items() if k not in ("content-length", "set-cookie")
        ]
        kept = _Answer(status=answer.status_code, headers=headers, body=bytes(answer.body))
        sealed = self._sealer.seal(kept.model_dump_json().encode())
        keep_answer(self._session, self._asked, sealed)
        self._kept = True

    async def first_answer(self) -> Response:
        """What the request that has the key was answered; waits for it a few seconds.

        KeyReused when that was another request, Conflict when its answer will never be known.
        """
        if self._session is not None:
            await run_in_threadpool(self._session.rollback)
        while (row := await run_in_threadpool(self._find)) is not None:
            if row.fingerprint != self._fingerprint:
                raise KeyReused(
                    "The Idempotency-Key was used before, for another request. Use a new key for a new "
                    "request, or repeat the first one exactly."
                )
            if row.answer_sealed is not None:
                note(replay_of=row.request_id)
                return self._opened(row.answer_sealed)
            if row.created_at + PATIENCE < now():
                raise Conflict(
                    f"The request with this Idempotency-Key was carried out as {row.request_id}, but its "
                    "answer was lost. Look for what it made before you send it again under a new key."
                )
            await asyncio.sleep(_LOOK_EVERY_S)
        raise Taken

    def _opened(self, sealed: str) -> Response:
        kept = _Answer.model_validate_json(self._sealer.unseal(sealed))
        headers = dict(kept.headers) | {"Idempotency-Replayed": "true"}
        return Response(kept.body, kept.status, headers)

    def _find(self) -> IdempotencyKey | None:
        with reading(self._engine) as session:
            return find_key(session, self._asked)

    @property
    def _asked(self) -> Keyed:
        who = self._who
        assert who is not None, "who asks is known before anything is done"  # noqa: S101  # our order
        domain, system = f"domain:{who.domain_id}", "system" if who.system else ""
        scope = who.project_id or (domain if who.domain_id else system)
        return Keyed(scope, who.user_id, self._key, self._fingerprint, self._request_id)


def exchange_of(request: Request) -> Exchange | None:
    """The exchange of a request under a key."""
    found: Exchange | None = request.scope.get(_SCOPE)
    return found


def keep_early(session: Session, answer: Response) -> Response:
    """For a handler whose effect is committed before it returns: keep its answer with the effect."""
    exchange: Exchange | None = session.info.get(_INFO)
    if exchange is not None:
        exchange.keep(answer)
    return answer


class KeyedRoute(AnsweringRoute):
    """A route whose POST may come under an ``Idempotency-Key``."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        if "POST" in (options.get("methods") or ()):
            options["openapi_extra"] = {"parameters": [_PARAMETER]}
        super().__init__(path, endpoint, **options)

    def dialect(self) -> str:
        """What, beside the request itself, gives it its meaning: a version of the API."""
        return ""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        return partial(self._keyed, handle) if "POST" in (self.methods or ()) else handle

    async def _keyed(
        self, handle: Callable[[Request], Coroutine[Any, Any, Response]], request: Request
    ) -> Response:
        keys = request.headers.getlist("idempotency-key")
        if not keys:
            return await handle(request)
        if len(keys) > 1 or not 1 <= len(keys[0]) <= 255:
            raise BadRequest("Idempotency-Key must be given once, with 1 to 255 characters.")
        cloud = request.app.state.cloud
        bounded = Request(request.scope, _bounded(request.receive))
        print_ = cloud.sealer.fingerprint(await _identity(bounded, self.dialect()))
        exchange = Exchange(
            cloud.engine, cloud.sealer, keys[0], print_, request.scope["request_id"]
        )
        request.scope[_SCOPE] = exchange
        try:
            answer = await handle(bounded)
            await run_in_threadpool(exchange.close, answer)
        except Taken:
            return await exchange.first_answer()
        return answer


def _bounded(receive: Receive) -> Receive:
    """TooLarge once more has come than a request under a key may have."""
    come = 0

    async def limited() -> Message:
        nonlocal come
        message = await receive()
        come += len(message.get("body", b""))
        if come > MAX_BODY_BYTES:
            raise TooLarge(f"A request with an Idempotency-Key may have {MAX_BODY_BYTES} bytes.")
        return message

    return limited


async def _identity(request: Request, dialect: str) -> bytes:
    """Everything that makes a request this one; two spellings of the same JSON are the same."""
    sent = await request.body()
    try:
        body = json.loads(sent)
    except (ValueError, RecursionError):
        body = sent.hex()
    query = sorted(request.query_params.multi_items())
    ours = sorted(h for h in request.headers.items() if h[0].startswith("x-duranova-"))
    return json.dumps([request.url.path, query, ours, dialect, body], sort_keys=True).encode()
