"""``openstack operation list|show|wait`` and the verbs."""

from __future__ import annotations

import argparse
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, ClassVar

from osc_lib.command.command import Command, Lister, ShowOne

from osc_duranova.client import MOVING, STATES, Operation, Operations
from osc_duranova.columns import Field, Moment, Seconds, Steps, Words, seconds_of
from osc_duranova.outcome import exit_code, sentence
from osc_duranova.servers import project_id, server_id

Row = tuple[Any, ...]
_LISTED = ("ID", "Action", "Server ID", "State", "Step", "Created At", "Duration")
_LONG = ("Host", "Attempt", "Percent", "Error", "Project ID", "User ID", "Request ID", "Started At")
_SHOWN = (
    *("id", "action", "state", "server_id", "host", "step", "percent", "attempt", "error"),
    *("verbs", "retry_of", "deadline_at", "steps", "created_at", "started_at", "finished_at"),
    *("duration", "project_id", "user_id", "request_id"),
)
_FILTERS = ("action", "created_before", "created_since", "host", "marker", "request_id", "state")
"""Options of the list that the API knows by the same name."""
_OPTIONAL = {"verbs", "retry_of", "deadline_at"}
"""Fields that an older API does not have."""


def column(name: str, shown: Operation) -> Field:
    """One value, dressed for its column; ``duration`` is worked out here."""
    key = name.lower().replace(" ", "_")
    if key == "duration":
        running = shown["state"] in MOVING
        return Seconds(seconds_of(shown, datetime.now(UTC) if running else None))
    if key.endswith("_at"):
        return Moment(shown[key])
    dress = {"steps": Steps, "verbs": Words}.get(key, Field)
    return dress(shown[key])


def row_of(shown: Operation) -> tuple[Sequence[str], Row]:
    """An operation for ShowOne."""
    names = [n for n in _SHOWN if n == "duration" or n in shown or n not in _OPTIONAL]
    shown = {"steps": None, **shown}
    return names, tuple(column(name, shown) for name in names)


def operations(command: Command) -> Operations:
    """The client of a command that is running."""
    client: Operations = command.app.client_manager.duranova  # type: ignore[attr-defined]  # plugin.API_NAME
    return client


class ListOperations(Lister):
    """List operations, newest first: your project's, or as an admin everybody's."""

    def get_parser(self, prog_name: str) -> ArgumentParser:
        parser = super().get_parser(prog_name)
        add = parser.add_argument
        add("--server", metavar="<server>", help="Only those of this server (name or ID)")
        add(
            *("--state",),
            metavar="<state>",
            action="append",
            choices=STATES,
            help=f"Only those: {', '.join(STATES)}; repeat for any of several",
        )
        add("--action", metavar="<action>", help="Only those: create, delete, stop, …")
        add("--request-id", metavar="<request>", help="Only those that this request started")
        add("--created-since", metavar="<time>", help="Only those accepted at this time or later")
        add("--created-before", metavar="<time>", help="… or earlier (ISO 8601 with a zone)")
        add("--host", metavar="<host>", help="Only those on this host (admin only)")
        add("--project", metavar="<project>", help="Only this project's (name or ID, admin only)")
        add("--marker", metavar="<operation>", help="Begin behind the operation with this ID")
        add(
            *("--limit",),
            metavar="<limit>",
            type=count,
            default=100,
            help="At most so many, -1 for all (default: 100)",
        )
        add("--long", action="store_true", help="List more fields")
        return parser

    def take_action(self, parsed_args: Namespace) -> tuple[Sequence[str], list[Row]]:
        clients, given = self.app.client_manager, parsed_args
        filters = {key: getattr(given, key) for key in _FILTERS}
        filters["server_id"] = given.server and server_id(clients, given.server)
        filters["project_id"] = given.project and project_id(clients, given.project)
        wanted = {key: value for key, value in filters.items() if value}
        found = operations(self).find(wanted, given.limit)
        names = (*_LISTED, *_LONG) if given.long else _LISTED
        return names, [tuple(column(name, shown) for name in names) for shown in found]


class ShowOperation(ShowOne):
    """Show an operation: how it stands, its steps, and what may be done about it."""

    def get_parser(self, prog_name: str) -> ArgumentParser:
        parser = super().get_parser(prog_name)
        add_operation(parser)
        return parser

    def take_action(self, parsed_args: Namespace) -> tuple[Sequence[str], Row]:
        return row_of(operations(self).show(parsed_args.operation))


class Settling(ShowOne):
    """A command that shows an operation and tells by its exit code how it stands."""

    _status = 0

    def run(self, parsed_args: Namespace) -> int:
        return super().run(parsed_args) or self._status

    def settled(self, shown: Operation) -> tuple[Sequence[str], Row]:
        """The operation for ShowOne; what is to be said about it goes to standard error."""
        self._status = exit_code(shown)
        print(sentence(shown), file=self.app.stderr)  # beside the table, which may be JSON
        return row_of(shown)


class WaitOperation(Settling):
    """Wait until an operation has ended, or is held.

    Exit codes: 0 it has succeeded; 1 it has failed or was cancelled; 3 it is held and waits for an
    operator; 4 it was still going on after --timeout.
    """

    def get_parser(self, prog_name: str) -> ArgumentParser:
        parser = super().get_parser(prog_name)
        add_operation(parser)
        add_timeout(parser)
        return parser

    def take_action(self, parsed_args: Namespace) -> tuple[Sequence[str], Row]:
        given = parsed_args
        return self.settled(operations(self).wait(given.operation, given.timeout))


class Verb(Settling):
    """A verb of an operator on an operation."""

    verb: ClassVar[str]

    def get_parser(self, prog_name: str) -> ArgumentParser:
        parser = super().get_parser(prog_name)
        add_operation(parser)
        parser.add_argument("--reason", metavar="<text>", help="Why; kept with the operation")
        parser.add_argument(
            "--wait", action="store_true", help="Wait for the end; exit codes as of operation wait"
        )
        add_timeout(parser, "With --wait: ")
        return parser

    def take_action(self, parsed_args: Namespace) -> tuple[Sequence[str], Row]:
        client, given = operations(self), parsed_args
        before = client.show(given.operation) if given.wait else None
        told = client.tell(given.operation, self.verb, given.reason)
        if before is None:
            return row_of(told)
        return self.settled(client.wait(told["id"], given.timeout, before["updated_at"]))


class RetryOperation(Verb):
    """Try again: the step at which an operation is held, or a failed create from its stored request.

    The retry of a create that has ended is a new operation, which is what is shown.
    """

    verb = "retry"


class ResumeOperation(Verb):
    """Let a held operation go on, after its cause was mended; the steps before are not done again."""

    verb = "resume"


class SkipOperation(Verb):
    """Let a held operation go on without the step at which it stands, where the step allows that."""

    verb = "skip"


class ReplaceOperation(Verb):
    """Undo what a held operation has done on its host, and place the server on another one."""

    verb = "replace"


class AbortOperation(Verb):
    """End a held operation as failed: what it has done is undone, and the server is in ERROR."""

    verb = "abort"


class CancelOperation(Verb):
    """Stop an operation that is going on; what it has done is undone."""

    verb = "cancel"


def add_operation(parser: ArgumentParser) -> None:
    """The operation that a command is about."""
    parser.add_argument("operation", metavar="<operation>", help="The ID of the operation")


def add_timeout(parser: ArgumentParser, when: str = "") -> None:
    """How long to wait."""
    parser.add_argument(
        "--timeout",
        metavar="<seconds>",
        type=seconds,
        help=f"{when}Wait no longer than this, and exit with 4 (default: as long as it takes)",
    )


def count(text: str) -> int:
    """A number of operations: positive, or -1 for all."""
    number = int(text)
    if number == 0 or number < -1:
        raise argparse.ArgumentTypeError("must be positive, or -1 for all")
    return number


def seconds(text: str) -> float:
    """A time to wait."""
    number = float(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError("must be 0 or more")
    return number
