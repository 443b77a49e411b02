"""The compute API's field grammars, as Nova checks them: names, numbers that may come as text, booleans.

Each is an ``Annotated`` type for the fields of a ``Body``; a value outside the grammar is a 400.
"""

from __future__ import annotations

import re
import unicodedata
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, StringConstraints
from pydantic_core import PydanticCustomError

MAX_INT = 0x7FFFFFFF
_SURROGATE = re.compile("[\ud800-\udfff]")
_TRUE = {"True", "TRUE", "true", "1", "ON", "On", "on", "YES", "Yes", "yes"}
_FALSE = {"False", "FALSE", "false", "0", "OFF", "Off", "off", "NO", "No", "no"}


def _printable(text: str) -> bool:
    return all((c := unicodedata.category(char)) == "Zs" or c[0] not in "CZ" for char in text)


def _check_name(value: str) -> str:
    if not _printable(value) or value != value.strip():
        raise PydanticCustomError(
            "name", "It must be printable characters. Can not start or end with whitespace."
        )
    return value


def _check_az(value: str) -> str:
    if ":" in value:
        raise PydanticCustomError("az_name", "It must be printable characters except :.")
    return _check_name(value)


def _check_description(value: str) -> str:
    if not _printable(value):
        raise PydanticCustomError("description", "It must be printable characters.")
    return value


def _check_integer(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,18}", value, re.ASCII):
        return int(value)
    raise PydanticCustomError("integer", "It is not of type 'integer'.")


def _check_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value in _TRUE | _FALSE:
        return value in _TRUE
    raise PydanticCustomError("boolean", "It is not one of True, False or their usual spellings.")


def _check_text(value: Any) -> Any:
    if isinstance(value, str) and ("\x00" in value or _SURROGATE.search(value)):
        raise PydanticCustomError("text", "It may not hold NUL characters or lone surrogates.")
    return value


Text = Annotated[str, AfterValidator(_check_text)]
"""Any text a database can keep."""
Name = Annotated[str, StringConstraints(min_length=1, max_length=255), AfterValidator(_check_name)]
"""1 to 255 printable characters, no whitespace at the ends."""
AzName = Annotated[str, StringConstraints(min_length=1, max_length=255), AfterValidator(_check_az)]
"""A Name without a colon."""
Description = Annotated[
    str, StringConstraints(max_length=65535), AfterValidator(_check_description)
]
HostName = Annotated[
    str, StringConstraints(min_length=1, max_length=255, pattern=r"^[a-zA-Z0-9._-]+$")
]
"""A host's name, underscores included."""
Integer = Annotated[int, BeforeValidator(_check_integer)]
"""A whole number or its decimal text; no boolean, no fraction."""
NonNegative = Annotated[Integer, Field(ge=0, le=MAX_INT)]
Positive = Annotated[Integer, Field(ge=1, le=MAX_INT)]
Limit = Annotated[Integer, Field(ge=-1, le=MAX_INT)]
"""A quota; -1 is unlimited."""
Boolean = Annotated[bool, BeforeValidator(_check_boolean)]
"""True, False, or one of their spellings Nova takes, such as ``"on"``."""


def _stamp(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")


Stamp = Annotated[datetime, PlainSerializer(_stamp, return_type=str)]
"""A view's instant as Nova writes most of them: UTC without a zone, with microseconds. (Servers and
versions have their own form, with ``Z``.)"""
