"""What a cloud tells about its operations: the types of its events."""

from __future__ import annotations

from enum import StrEnum


class EventType(StrEnum):
    """The ``type`` of a CloudEvent about an operation, in the order of its life."""

    ACCEPTED = "duranova.operation.accepted"
    STARTED = "duranova.operation.started"
    STEP = "duranova.operation.step"
    """A step began, or ended with a result."""
    WAITING = "duranova.operation.waiting"
    """It waits for an operator."""
    RESUMED = "duranova.operation.resumed"
    ENDED = "duranova.operation.ended"
