"""Commands find the parts of a running cloud by its data directory, and nothing when none runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli.datadir import Running, StartError, open_data_dir, read_running


def running(pid: int) -> Running:
    return Running(
        pid=pid,
        database_url="sqlite:///x",
        temporal_address="127.0.0.1:7233",
        temporal_namespace="default",
        public_url="http://127.0.0.1:8774",
    )


def test_what_runs_is_found_until_it_says_that_it_ends(tmp_path: Path) -> None:
    data = open_data_dir(tmp_path / "d")
    try:
        ours = running(os.getpid())
        data.write_running(ours)
        assert read_running(data.path) == ours
        assert (data.path / "running.json").stat().st_mode & 0o777 == 0o600
        data.forget_running()
        data.forget_running()
        with pytest.raises(StartError, match="no duranova runs in"):
            read_running(data.path)
    finally:
        os.close(data.lock)


def test_what_was_killed_does_not_run(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / "running.json").write_text(running(gone.pid).model_dump_json())
    with pytest.raises(StartError, match="killed"):
        read_running(tmp_path)


def test_somebody_elses_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "running.json").write_text("{}")
    with pytest.raises(StartError, match="is not ours"):
        read_running(tmp_path)


def test_queues_of_an_older_directory_are_read_in_all_their_partitions(tmp_path: Path) -> None:
    new, old = open_data_dir(tmp_path / "new"), open_data_dir(tmp_path / "old")
    try:
        old.temporal_db.touch()
        assert (new.partitions(), old.partitions()) == (1, 4)
        new.temporal_db.touch()
        assert (new.partitions(), old.partitions()) == (1, 4)
    finally:
        os.close(new.lock)
        os.close(old.lock)
