"""Which activities an object implements: found by the contract, not by a hand-written list."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def declared(contract: type) -> list[str]:
    """The activity names a contract class declares."""
    return sorted(n for n, m in vars(contract).items() if hasattr(m, _MARK))


def implemented(subject: object, contract: type) -> list[Callable[..., Any]]:
    """The bound activities of an object. TypeError when one is missing or lacks its decorator."""
    found = [getattr(subject, name) for name in declared(contract)]
    for method in found:
        owner = getattr(type(subject), method.__name__)
        if not hasattr(owner, _MARK) or owner is getattr(contract, method.__name__):
            raise TypeError(f"{type(subject).__name__}.{method.__name__} is no activity")
    return found


_MARK = "__temporal_activity_definition"
