"""Limits arithmetic: what exceeds what, and the sentence that says so."""

from __future__ import annotations

from collections.abc import Mapping

UNLIMITED = -1
RESOURCES = (
    "instances",
    "cores",
    "ram",
    "metadata_items",
    "key_pairs",
    "server_groups",
    "server_group_members",
)
"""Compute's resources, by Nova's names; ram is in MB."""
COUNTED_PER_USER = frozenset({"instances", "cores", "ram", "server_groups"})
"""Resources for which a user in a project may have a limit and a count of their own."""


def fits(limit: int, used: int, wanted: int) -> bool:
    """Whether ``wanted`` more can be had. Giving back, or asking for nothing, always fits."""
    return limit < 0 or wanted <= 0 or used + wanted <= limit


def overs(
    limits: Mapping[str, int], used: Mapping[str, int], wanted: Mapping[str, int]
) -> list[str]:
    """The resources that would exceed their limit, sorted by name; one without a limit has none."""
    return sorted(
        name
        for name, amount in wanted.items()
        if not fits(limits.get(name, UNLIMITED), used.get(name, 0), amount)
    )


def refusal(
    names: list[str],
    limits: Mapping[str, int],
    used: Mapping[str, int],
    wanted: Mapping[str, int],
) -> str:
    """Nova's sentence for the resources in ``names``."""

    def row(numbers: Mapping[str, int]) -> str:
        return ", ".join(str(numbers.get(n, 0)) for n in names)

    what = ", ".join(names)
    return (
        f"Quota exceeded for {what}: Requested {row(wanted)}, "
        f"but already used {row(used)} of {row(limits)} {what}"
    )


def refuse_limit(resource: str, limit: int, minimum: int, maximum: int) -> str | None:
    """Why ``limit`` may not be set, or None. -1 is infinite wherever it stands."""

    def size(value: int) -> float:
        return float("inf") if value == UNLIMITED else value

    if size(limit) < size(minimum):
        return (
            f"Quota limit {limit} for {resource} must be greater than or equal to already used and "
            f"reserved {minimum}."
        )
    if size(limit) > size(maximum):
        return f"Quota limit {limit} for {resource} must be less than or equal to {maximum}."
    return None
