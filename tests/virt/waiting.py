"""Wait for a condition, never for time."""

from chaos.waiting import eventually

__all__ = ["eventually"]
