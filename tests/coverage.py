"""docs/coverage.md, written from the routes: ``make coverage``. What is published and missing is listed here."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

from api.compute.actions import ACTIONS
from api.microversion import MAX, MIN, Span
from tests.routes import Walked, walk
from tests.tree import ROOT

FILE = ROOT / "docs" / "coverage.md"
TITLES = {
    "compute": "Compute v2.1",
    "identity": "Identity v3",
    "image": "Image v2",
    "network": "Network v2.0",
    "operations": "Operations v1 (Duranova's own)",
}
ABSENT: dict[str, dict[str, str]] = {
    "compute": {
        "/images": "proxy, gone since 2.36; use the image service",
        "/os-agents": "gone from Nova as well",
        "/os-aggregates/{id}/images": "2.81; hosts fetch images when they need them",
        "/os-assisted-volume-snapshots": "no volumes",
        "/os-console-auth-tokens": "no remote consoles",
        "/os-fixed-ips, /os-floating-ips, /os-networks, /os-security-groups, /os-tenant-networks": (
            "proxies, gone since 2.36; use the network service"
        ),
        "/os-hosts": "gone since 2.43; use os-hypervisors and os-services",
        "/os-instance_usage_audit_log": "no usage audit",
        "/os-migrations": "servers do not move between hosts",
        "/os-server-external-events": "the network service is embedded; nobody has to tell",
        "/os-simple-tenant-usage": "no usage reports",
        "/os-snapshots, /os-volumes, /os-volumes_boot": "no volumes",
        "/os-virtual-interfaces": "gone since 2.44",
        "/servers/{server_id}/shares": "2.97; above the newest version offered",
    },
    "identity": {
        "/OS-FEDERATION, /OS-OAUTH1, /OS-OAUTH2, /OS-TRUST, /OS-EP-FILTER": "no federation, no trusts",
        "/credentials, /policies": "no EC2 credentials, no stored policies",
        "/limits, /registered_limits": "each service keeps its own quota",
        "writing /services, /endpoints and /regions": "the catalog is what this cloud serves",
    },
    "image": {
        "/images/{image_id}/stage, /tasks": "one way in: PUT …/file",
        "/cache": "hosts cache by checksum",
        "/metadefs": "no metadata definitions",
    },
    "network": {
        "/address-groups, /address-scopes, /subnetpools": "every subnet names its prefix",
        "/auto-allocated-topology, /network-ip-availabilities, /segments, /trunks": "not part of this network model",
        "/default-security-group-rules, /rbac-policies": "sharing is a network's `shared` flag",
        "/flavors, /service-profiles, /metering, /qos, /log": "no L3 or QoS services",
    },
}
VOLUME = "Block Storage v3 is absent: this cloud has no volumes, and its catalog no such service."


def refuses(handler: Callable[..., Any]) -> bool:
    """Whether a handler ends in 501 whatever it is asked."""
    [function] = ast.parse(textwrap.dedent(inspect.getsource(handler))).body
    last = function.body[-1]  # type: ignore[attr-defined]  # a function
    call = last.exc if isinstance(last, ast.Raise) else getattr(last, "value", None)
    name = call.func.id if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) else ""
    return name in ("NotImplementedHere", "absent", "_refuse")


def _span(span: Span | None) -> str:
    since, until = (span.since, span.until) if span else (MIN, MAX)
    if until == MAX:
        return "all" if since == MIN else f"{since} –"
    return f"{since} – {until}"


def _row(route: Walked, prefix: str) -> str:
    versions = (
        f" {_span(getattr(route.endpoint, 'span', None))} |" if route.service == "compute" else ""
    )
    state = "answers 501" if refuses(route.endpoint) else "offered"
    rule = ", ".join(f"`{r}`" for r in route.rules) or "public"
    return f"| {route.method} | `{route.path.removeprefix(prefix) or '/'}` |{versions} {state} | {rule} |"


def _service(service: str, routes: list[Walked]) -> Iterator[str]:
    mine = sorted((r for r in routes if r.service == service), key=lambda r: (r.path, r.method))
    refused = sum(refuses(r.endpoint) for r in mine)
    yield f"\n## {TITLES[service]}\n"
    yield f"{len(mine) - refused} methods offered, {refused} answer 501. Paths are below `/{service}`.\n"
    compute = service == "compute"
    yield f"| method | path |{' microversions |' if compute else ''} state | rule |"
    yield f"| --- | --- |{' --- |' if compute else ''} --- | --- |"
    yield from dict.fromkeys(_row(route, f"/{service}") for route in mine)
    if compute:
        yield from _actions()
    if absent := ABSENT.get(service):
        yield "\nAbsent (404):\n"
        yield from (f"- `{path}`: {why}" for path, why in absent.items())


def _actions() -> Iterator[str]:
    yield "\n### Actions: `POST /v2.1/servers/{server_id}/action`\n"
    yield "| action | microversions | state | rule |\n| --- | --- | --- | --- |"
    for name, action in sorted(ACTIONS.items()):
        state = "answers 501" if refuses(action.handler) else "offered"
        yield f"| `{name}` | {_span(action.versions)} | {state} | `{action.rule}` |"


def coverage() -> str:
    """The text of docs/coverage.md."""
    routes = walk()
    lines = [
        "# Coverage of the published APIs\n",
        "Written by `make coverage` from the routes themselves; a test keeps it current. *Offered* does what",
        f"the published method does; microversions go from {MIN} to {MAX} and are declared field by field",
        "(`api/history.py` says what each one changed and whether Duranova has a part in it).",
    ]
    lines += [line for service in TITLES for line in _service(service, routes)]
    return "\n".join([*lines, "\n## Block Storage\n", VOLUME]) + "\n"


if __name__ == "__main__":
    FILE.write_text(coverage())
