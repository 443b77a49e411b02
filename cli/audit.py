"""``duranova audit``: what must hold and does not, for people and for programs."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from sqlalchemy.exc import SQLAlchemyError
from temporalio.service import RPCError

from activities.control.audit import Auditor, Reach
from cli.datadir import StartError, read_running
from db import schema
from db.session import now, open_engine
from domain.audit import INVARIANTS, Finding
from runtime.settings import Settings
from runtime.temporal import connect_to

REACH = Reach(back=timedelta(hours=1), compared=1000, fresh=True)


@dataclass(frozen=True, slots=True)
class AuditPlan:
    """What the command line said."""

    data_dir: Path | None
    database_url: str | None
    temporal: str | None


def settings_for(plan: AuditPlan) -> Settings:
    """Which database and Temporal server to look at. StartError when no cloud runs in the data directory."""
    given: dict[str, Any] = {}
    if plan.data_dir is not None:
        running = read_running(plan.data_dir)
        given = {
            "database_url": running.database_url,
            "temporal_address": running.temporal_address,
            "temporal_namespace": running.temporal_namespace,
        }
    if plan.database_url is not None:
        given["database_url"] = plan.database_url
    if plan.temporal is not None:
        given["temporal_address"] = plan.temporal
    return Settings(**given)


async def audit(plan: AuditPlan, console: Console, *, as_json: bool) -> int:
    """Look at everything and say what is wrong. 0 when nothing is, else 1.

    StartError or Unavailable when it cannot look.
    """
    settings = settings_for(plan)
    started = now()
    findings = await _look(settings)
    if as_json:
        print(json.dumps(_report(findings, started)))  # noqa: T201  # the contract with programs
    else:
        _say(findings, console)
    return 1 if any(f.violations for f in findings) else 0


async def _look(settings: Settings) -> list[Finding]:
    await asyncio.to_thread(_check_schema, settings.database_url)
    client = await connect_to(settings)
    engine = open_engine(settings.database_url)
    auditor = Auditor(client, engine, settings.host_silent_after_s, REACH)
    try:
        return await auditor.run()
    except (SQLAlchemyError, RPCError) as error:
        raise StartError(f"the audit could not look: {str(error).splitlines()[0]}") from error
    finally:
        engine.dispose()


def _check_schema(url: str) -> None:
    try:
        found = schema.current(url)
    except SQLAlchemyError as error:
        raise StartError(f"cannot read the database: {str(error).splitlines()[0]}") from error
    if found != schema.head():
        raise StartError(
            f"the database has schema {found}, this program needs {schema.head()}: "
            "use the program that runs the cloud, or `duranova db upgrade`"
        )


def _report(findings: list[Finding], at: datetime) -> dict[str, Any]:
    return {
        "checked_at": at.isoformat(),
        "invariants": [
            {
                "id": f.invariant,
                "title": INVARIANTS[f.invariant].title,
                "checked": f.checked,
                "violations": [asdict(v) for v in f.violations],
            }
            for f in findings
        ],
        "ok": not any(f.violations for f in findings),
    }


def _say(findings: list[Finding], console: Console) -> None:
    for found in findings:
        row = INVARIANTS[found.invariant]
        verdict = f"{len(found.violations)} violated" if found.violations else "ok"
        colour = "red" if found.violations else "green"
        console.print(
            f"[{colour}]{row.id}[/{colour}] {row.title}: {verdict} ({found.checked} looked at)",
            soft_wrap=True,
        )
        for each in found.violations:
            console.print(f"   {escape(each.subject)}: {escape(each.detail)}", soft_wrap=True)
        if found.violations:
            console.print(f"   [dim]→ {escape(row.advice)}[/dim]", soft_wrap=True)
