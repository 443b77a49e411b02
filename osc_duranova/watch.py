"""``openstack operation watch``: live progress, drawn on a terminal and told in lines elsewhere."""

from __future__ import annotations

import logging
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from osc_lib.command.command import Command
from osc_lib.exceptions import CommandError
from rich.console import Console
from rich.live import Live

from osc_duranova.board import KEPT, Board, Story
from osc_duranova.client import LOG, MOVING, Operation, Operations
from osc_duranova.drawing import Drawing
from osc_duranova.operation import operations
from osc_duranova.outcome import Exit, exit_code
from osc_duranova.servers import server_id
from osc_duranova.stream import follow

_FRAMES_PER_S = 8


class WatchOperations(Command):
    """Watch an operation until it ends or is held, or those of a server or of all until ctrl-C.

    Of one operation the exit code is that of operation wait.
    """

    def get_parser(self, prog_name: str) -> ArgumentParser:
        parser = super().get_parser(prog_name)
        what = parser.add_mutually_exclusive_group(required=True)
        what.add_argument(
            "operation", metavar="<operation>", nargs="?", help="The ID of the operation"
        )
        what.add_argument("--server", metavar="<server>", help="Those of this server (name or ID)")
        what.add_argument(
            "--all", action="store_true", help="Your project's; as an admin everybody's"
        )
        return parser

    def take_action(self, parsed_args: Namespace) -> int:
        client, given = operations(self), parsed_args
        screen = Screen(Console(file=self.app.stdout, highlight=False, soft_wrap=True))
        if given.operation:
            return exit_code(watch_one(client, given.operation, screen))
        wanted = {}
        if given.server:
            wanted["server_id"] = server_id(self.app.client_manager, given.server)
        with suppress(KeyboardInterrupt):  # which is how it ends
            watch_many(client, wanted, screen)
        return Exit.SUCCEEDED


class Screen:
    """Where progress goes: a drawing if it is a terminal, else lines."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self.drawing = Drawing()

    @contextmanager
    def open(self) -> Iterator[None]:
        """Draw, if this is a terminal, and leave the last drawing on it."""
        if not self._console.is_terminal:
            yield
            return
        drawn = Console(file=self._console.file, highlight=False)
        with (
            _noted(self.drawing),
            Live(self.drawing, console=drawn, refresh_per_second=_FRAMES_PER_S),
        ):
            yield

    def tell(self, lines: list[str]) -> None:
        """Print lines, if this is no terminal."""
        if not self._console.is_terminal:
            for words in lines:
                self._console.print(words, markup=False)


class _Notes(logging.Handler):
    """Puts what the client would log into the drawing, which a line of text would break."""

    def __init__(self, drawing: Drawing) -> None:
        super().__init__(logging.WARNING)
        self._drawing = drawing

    def emit(self, record: logging.LogRecord) -> None:
        self._drawing.note = "The API does not answer; trying again."


@contextmanager
def _noted(drawing: Drawing) -> Iterator[None]:
    notes, passes_on = _Notes(drawing), LOG.propagate
    LOG.addHandler(notes)
    LOG.propagate = False
    try:
        yield
    finally:
        LOG.removeHandler(notes)
        LOG.propagate = passes_on


def watch_one(client: Operations, operation_id: str, screen: Screen) -> Operation:
    """Show the operation until it does not go on by itself; returns it as it is then."""
    story = Story()
    screen.drawing.one = client.show(operation_id)  # refused before anything is drawn
    with screen.open():
        for _ in follow(client, {"operation_id": operation_id}):
            # an event only says that there is something to see: the record knows every step's times
            shown = screen.drawing.one = client.show(operation_id)
            screen.drawing.note = ""
            screen.tell(story.go_on(shown))
            if shown["state"] not in MOVING:
                return shown
    raise CommandError("The events have ended before the operation.")


def watch_many(client: Operations, wanted: dict[str, str], screen: Screen) -> None:
    """Show operations, as they come and go, until interrupted."""
    board = Board()
    screen.drawing.many = board
    with screen.open():
        for event in follow(client, wanted):
            news = [board.apply(event)] if event else board.load(client.find(wanted, KEPT))
            screen.drawing.note = ""
            screen.tell([words for row in news for words in board.line(row)])
