"""``openstack server placement show``: why a server is on its host, or on none."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from typing import Any

from osc_lib.command.command import Lister

from osc_duranova.columns import Field, Moment, Weights
from osc_duranova.operation import Row, operations
from osc_duranova.servers import server_id

_ONE_A_DECISION = ("Decided At", "Attempt", "Summary", "Operation ID")
_ONE_A_HOST = ("Decided At", "Attempt", "Host", "Verdict", "Weight", "Reason", "Operation ID")


class ShowPlacement(Lister):
    """Show why a server is on its host, or on none: its placement decisions, newest first.

    An admin sees each host with its weight or the reason for which it was refused.
    """

    def get_parser(self, prog_name: str) -> ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument("server", metavar="<server>", help="The server (name or ID)")
        return parser

    def take_action(self, parsed_args: Namespace) -> tuple[Sequence[str], list[Row]]:
        chosen = server_id(self.app.client_manager, parsed_args.server)
        decisions = operations(self).placements(chosen)
        if any(d["weights"] or d["refusals"] for d in decisions):
            return _ONE_A_HOST, [row for d in decisions for row in _hosts(d)]
        return _ONE_A_DECISION, [
            (Moment(d["created_at"]), d["attempt"], d["summary"], d["operation_id"])
            for d in decisions
        ]


def _hosts(decision: dict[str, Any]) -> Iterator[Row]:
    """The decision itself, then each host: chosen, passed from the heaviest to the lightest, refused."""
    start = (Moment(decision["created_at"]), decision["attempt"])
    end = (decision["operation_id"],)
    verdict = "decision" if decision["host"] else "no host"
    yield (*start, Field(None), verdict, Field(None), decision["summary"], *end)
    ranked = sorted(
        decision["weights"].items(),
        key=lambda host: (host[0] != decision["host"], -host[1].get("total", 0.0), host[0]),
    )
    for host, weights in ranked:
        verdict = "chosen" if host == decision["host"] else "passed"
        total = Field(round(weights.get("total", 0.0), 3))
        yield (*start, Field(host), verdict, total, Weights(weights), *end)
    for host, reason in sorted(decision["refusals"].items()):
        yield (*start, Field(host), "refused", Field(None), reason, *end)
