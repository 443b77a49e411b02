"""What the operating system says of processes."""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Iterator

import psutil
import pytest

from bench.processes import CpuClocks, Others, _Clock, cpu_now, matching, memory_now, of_family

BUSY_S = 0.15


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process with a mark in its command line, that works a little and then waits for its input to end."""
    mark = uuid.uuid4().hex
    work = f"import time\nwhile time.process_time() < {BUSY_S}: pass\nprint('{mark}', flush=True)\ninput()"
    process = subprocess.Popen(
        [sys.executable, "-c", work], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == mark.encode()
    yield process
    process.kill()
    process.communicate()


def test_processes_are_found_by_words_of_their_command_line(
    child: subprocess.Popen[bytes],
) -> None:
    mark = child.args[2].split("'")[1]  # type: ignore[index,union-attr]  # we gave a list
    found = matching(mark[:8] + ".")()
    assert [(p.pid, name) for p, name in found.items()] == [(child.pid, mark[:9])]


def test_a_family_is_a_process_and_its_children(child: subprocess.Popen[bytes]) -> None:
    assert child.pid in {p.pid for p in of_family(psutil.Process().pid)()}
    assert of_family(child.pid)().keys() == {psutil.Process(child.pid)}


def test_cpu_is_what_a_process_has_used(child: subprocess.Popen[bytes]) -> None:
    find = of_family(child.pid)
    used = cpu_now(find).since(cpu_now(dict))
    assert used.total >= BUSY_S - 0.02
    assert used.each(10)[psutil.Process(child.pid).name()] == pytest.approx(used.total / 10)


def test_cpu_of_this_process_is_counted_apart() -> None:
    before = cpu_now(dict)
    used = cpu_now(dict).since(before)
    while used.client < 0.03:
        used = cpu_now(dict).since(before)
    assert used.total == 0


def test_memory_that_is_shared_counts_once_in_pss(child: subprocess.Popen[bytes]) -> None:
    memory = memory_now(of_family(child.pid))
    assert memory.processes == 1
    assert 0 < memory.pss.total() <= memory.rss.total()


def test_a_process_that_is_gone_uses_nothing(child: subprocess.Popen[bytes]) -> None:
    find = of_family(child.pid)
    before = cpu_now(find)
    child.kill()
    child.wait()
    assert cpu_now(find).since(before).by_name == {}
    assert memory_now(find).processes == 0


def test_a_child_that_ended_counts_for_its_parent_once() -> None:
    parent, child = psutil.Process(), psutil.Process(1)
    before = CpuClocks({parent: _Clock("up", 5.0, 0), child: _Clock("child", 2.0, parent.pid)}, 0)
    reaped = CpuClocks({parent: _Clock("up", 8.0, 0)}, 0)
    assert reaped.since(before).by_name == {"up": 1.0}
    orphan = CpuClocks({parent: _Clock("up", 5.5, 0)}, 0)
    adopted = CpuClocks({parent: _Clock("up", 5.0, 0), child: _Clock("child", 2.0, 999_999)}, 0)
    assert orphan.since(adopted).by_name == {"up": 0.5}


def test_what_others_use_is_a_share_of_the_machine() -> None:
    others = Others(dict)
    before = cpu_now(dict)
    while cpu_now(dict).since(before).client < 0.05:
        pass
    assert 0 <= others.percent() <= 100
