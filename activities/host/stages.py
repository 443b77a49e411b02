"""The stages of one driver call, seen from outside: spans, durations, errors, and a record of each."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from time import time
from types import TracebackType

from opentelemetry import trace

from domain.errors import DuranovaError
from domain.guest import StageTaken
from runtime.metrics import DRIVER_ERRORS, STEP_SECONDS
from virt.driver import Cancelled

_tracer = trace.get_tracer(__name__)
_WHOLE = "call"
"""The step of a call that has entered none."""


class Stages:
    """A block around a blocking driver call, in the call's thread; ``enter`` is its ``Progress.on_step``.

    Each stage is a span below the activity's and a duration; libvirt's calls appear below the stage.
    """

    def __init__(self, activity: str, say: Callable[[str], None]) -> None:
        """``say`` is told each stage."""
        self._activity = activity
        self._say = say
        self._step = _WHOLE
        self._entered_at = 0.0
        self._open = ExitStack()
        self._taken: list[StageTaken] = []

    @property
    def taken(self) -> tuple[StageTaken, ...]:
        """The stages so far; complete once the block has been left."""
        return tuple(self._taken)

    def enter(self, step: str) -> None:
        """The stage before has ended well, this one begins."""
        self._open.close()
        self._note(None)
        self._step, self._entered_at = step, time()
        self._say(step)
        self._open.enter_context(_tracer.start_as_current_span(step))
        self._open.enter_context(STEP_SECONDS.labels(self._activity, step).time())

    def __enter__(self) -> Stages:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if error is not None and not isinstance(error, Cancelled):
            reason = error.kind if isinstance(error, DuranovaError) else type(error).__name__
            DRIVER_ERRORS.labels(self._activity, self._step, reason).inc()
        self._open.__exit__(kind, error, tb)
        self._note(error)

    def _note(self, error: BaseException | None) -> None:
        if self._step != _WHOLE:
            said = None if error is None else str(error) or type(error).__name__
            self._taken.append(StageTaken(self._step, self._entered_at, time(), said))
