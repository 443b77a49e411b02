"""What can go wrong, each with a kind; the API turns kinds into faults, workers into retry rules."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar


class Kind(StrEnum):
    """The stable name of a class of failure; it crosses process borders as an error type."""

    BAD_REQUEST = "BadRequest"
    UNAUTHORIZED = "Unauthorized"
    FORBIDDEN = "Forbidden"
    NOT_FOUND = "NotFound"
    CONFLICT = "Conflict"
    GONE = "Gone"
    TOO_LARGE = "TooLarge"
    UNSUPPORTED_MEDIA = "UnsupportedMedia"
    UNPROCESSABLE = "Unprocessable"
    QUOTA = "QuotaExceeded"
    NOT_IMPLEMENTED = "NotImplemented"
    UNAVAILABLE = "Unavailable"
    NO_VALID_HOST = "NoValidHost"
    FENCED = "Fenced"
    GUEST = "GuestFailure"


class DuranovaError(Exception):
    """Base: a message a user may read, and a kind.

    ``retryable`` says whether the same call, tried again a moment later, can succeed.
    """

    kind: ClassVar[Kind] = Kind.GUEST
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, wire_name: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.wire_name = wire_name
        """The published API's own name of this error, where it has one (Neutron's ``type``)."""
        self.details: tuple[object, ...] = ()
        """What a program may want to know beside the message; goes with it across processes."""


class BadRequest(DuranovaError):
    """The request cannot be carried out as it is written."""

    kind = Kind.BAD_REQUEST


class Unauthorized(DuranovaError):
    """No valid credential came with the request."""

    kind = Kind.UNAUTHORIZED


class Forbidden(DuranovaError):
    """The caller's roles do not allow this."""

    kind = Kind.FORBIDDEN


class NotFound(DuranovaError):
    """The thing does not exist for this caller."""

    kind = Kind.NOT_FOUND


class Conflict(DuranovaError):
    """The thing is in a state that does not allow this now."""

    kind = Kind.CONFLICT


class Gone(DuranovaError):
    """What was asked for is no longer kept."""

    kind = Kind.GONE


class TooLarge(DuranovaError):
    """The body is larger than allowed."""

    kind = Kind.TOO_LARGE


class UnsupportedMedia(DuranovaError):
    """The body's content type is not one this route takes."""

    kind = Kind.UNSUPPORTED_MEDIA


class KeyReused(DuranovaError):
    """An idempotency key came with another request than its first."""

    kind = Kind.UNPROCESSABLE


class ServerBusy(Conflict):
    """Another operation owns the server; the message names it."""


class QuotaExceeded(DuranovaError):
    """The project's limit does not allow one more."""

    kind = Kind.QUOTA


class NotImplementedHere(DuranovaError):
    """Part of the published API that Duranova does not have."""

    kind = Kind.NOT_IMPLEMENTED


class Unavailable(DuranovaError):
    """A dependency is down; try again later."""

    kind = Kind.UNAVAILABLE
    retryable = True


class NoValidHost(DuranovaError):
    """No host passes the filters; the message names filters, counts and the nearest fix."""

    kind = Kind.NO_VALID_HOST


class Fenced(DuranovaError):
    """A late or stale command for a guest that has moved on; never retried."""

    kind = Kind.FENCED


class GuestFailure(DuranovaError):
    """The hypervisor could not do it; trying again may help."""

    kind = Kind.GUEST
    retryable = True


class GuestRefused(DuranovaError):
    """The hypervisor will never do this (bad image, unsupported request); not retried."""

    kind = Kind.GUEST
