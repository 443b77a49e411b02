"""What the processes of a cloud use of the machine, as the operating system counts it."""

from __future__ import annotations

import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import psutil

Find = Callable[[], dict[psutil.Process, str]]
"""The processes there are now, each with what it is called."""
_GONE = (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess)
_OURS = (("cli.main host", "hosts"), ("cli.main up", "up"), ("temporal", "temporal"))
"""Words of a command line → what the process is called."""


def of_family(pid: int) -> Find:
    """Every process that ``duranova up`` with this pid has started, and itself."""

    def find() -> dict[psutil.Process, str]:
        with suppress(*_GONE):
            first = psutil.Process(pid)
            return {p: _name(p) for p in (first, *first.children(recursive=True))}
        return {}

    return find


def matching(pattern: str) -> Find:
    """Every process whose command line has this regular expression in it; called as what matched."""
    wanted = re.compile(pattern)

    def find() -> dict[psutil.Process, str]:
        own = psutil.Process()
        found = {}
        for process in psutil.process_iter():
            with suppress(*_GONE):
                match = wanted.search(" ".join(process.cmdline()))
                if match and process != own:
                    found[process] = match.group().strip() or "other"
        return found

    return find


def _name(process: psutil.Process) -> str:
    with suppress(*_GONE):
        line = " ".join(process.cmdline())
        return next((name for words, name in _OURS if words in line), process.name())
    return "ended"


@dataclass(frozen=True, slots=True)
class Cpu:
    """CPU-seconds (user and system) of the cloud by name of process, and of this process, its client."""

    by_name: dict[str, float]
    client: float

    @property
    def total(self) -> float:
        """Of the cloud."""
        return max(0.0, sum(self.by_name.values()))

    def each(self, count: int) -> dict[str, float]:
        """By name, divided by ``count``."""
        return {name: round(used / count, 5) for name, used in sorted(self.by_name.items())}


@dataclass(frozen=True, slots=True)
class _Clock:
    name: str
    used: float
    """With children that have ended and that it has waited for."""
    parent: int


@dataclass(frozen=True, slots=True)
class CpuClocks:
    """What all processes have used since they began."""

    clocks: dict[psutil.Process, _Clock]
    client: float

    @property
    def total(self) -> float:
        """Of the cloud, all of it."""
        return sum(clock.used for clock in self.clocks.values())

    def since(self, before: CpuClocks) -> Cpu:
        """What was used between two looks. Of a process that ended in between it is what its parent was told,
        if that is one of those that are looked at, and else nothing."""
        used: dict[str, float] = defaultdict(float)
        for clock in self.clocks.values():
            used[clock.name] += clock.used
        parents = {process.pid: clock for process, clock in self.clocks.items()}
        for process, clock in before.clocks.items():
            if process in self.clocks:
                used[clock.name] -= clock.used
            elif parent := parents.get(clock.parent):
                used[parent.name] -= clock.used  # its parent has taken over all it ever used
        return Cpu(used, self.client - before.client)


def cpu_now(find: Find) -> CpuClocks:
    """Look at the clocks of all processes. Their resolution is 10 ms each."""
    clocks = {}
    for process, name in find().items():
        with suppress(*_GONE):
            t = process.cpu_times()
            used = t.user + t.system + t.children_user + t.children_system
            clocks[process] = _Clock(name, used, process.ppid())
    mine = psutil.Process().cpu_times()
    return CpuClocks(clocks, mine.user + mine.system)


class Others:
    """How much of the machine programs use that are neither the cloud nor its client: they make every time that is
    measured longer."""

    def __init__(self, find: Find) -> None:
        """``find`` is of a cloud that runs already; what we start ourselves is known by itself."""
        self._find = find
        self._began = self._look()

    def percent(self) -> float:
        """Of all processors, since this was made."""
        at, busy, ours = self._look()
        began, busy_before, ours_before = self._began
        others = (busy - busy_before) - (ours - ours_before)
        return max(0.0, 100 * others / ((at - began) * (psutil.cpu_count() or 1)))

    def _look(self) -> tuple[float, float, float]:
        every = psutil.cpu_times()
        mine = psutil.Process().cpu_times()
        ours = sum(mine[:4]) + cpu_now(self._find).total  # with children that have ended
        return time.monotonic(), sum(every) - every.idle - every.iowait - every.guest, ours


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes, by name of process. RSS counts pages that processes share once for each; PSS shares them out."""

    processes: int
    rss: Counter[str]
    pss: Counter[str]


def memory_now(find: Find) -> Memory:
    """What all processes have in memory; other users' only for root."""
    rss: Counter[str] = Counter()
    pss: Counter[str] = Counter()
    count = 0
    for name, full in _maps(find):
        count += 1
        rss[name] += full.rss
        pss[name] += full.pss
    return Memory(count, rss, pss)


def _maps(find: Find) -> Iterator[tuple[str, psutil.pfullmem]]:
    for process, name in find().items():
        with suppress(*_GONE):
            yield name, process.memory_full_info()
