"""The processes ``duranova up`` looks after: started, logged, started again when they die."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import structlog

from cli.datadir import StartError

_log = structlog.get_logger(__name__)
_PR_SET_PDEATHSIG = 1
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0
"""Before a child is started again: doubled each time that it dies young."""
_YOUNG_S = 60.0
_STOP_S = 30.0


def _die_with_parent() -> None:
    # A killed parent must not leave a Temporal server or a host worker behind that holds the files.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


class Child:
    """One child process, kept alive until ``stop``."""

    def __init__(
        self,
        name: str,
        command: list[str],
        log: Path,
        env: Mapping[str, str] | None = None,
        *,
        says_ready: bool = False,
    ) -> None:
        """``says_ready``: the program takes ``--ready-fd N`` and writes a line to it."""
        self.name = name
        self._command = command
        self._log_path = log
        self._env = {**os.environ, **(env or {})}
        self._says_ready = says_ready
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None

    async def start(self, within_s: float = 120.0) -> None:
        """Start it and wait until it says that it is ready. StartError when it does not."""
        ready = await self._spawn()
        if ready is not None:
            await self._await_ready(ready, within_s)
        self._keeper = asyncio.create_task(self._keep())

    @property
    def pid(self) -> int | None:
        """Of the process that runs now; None while there is none."""
        alive = self._process is not None and self._process.returncode is None
        return self._process.pid if alive and self._process is not None else None

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL if that does not help in time."""
        await self._let_go()
        if self._process is None or self._process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            self._process.terminate()
        try:
            await asyncio.wait_for(self._process.wait(), _STOP_S)
        except TimeoutError:
            _log.warning("killed, because it did not stop", child=self.name)
            self._process.kill()
            await self._process.wait()

    async def kill(self) -> None:
        """SIGKILL; it stays dead until ``start``."""
        await self._let_go()
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()

    async def _let_go(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeper
            self._keeper = None

    async def _spawn(self) -> int | None:
        command, reader, writer = list(self._command), None, None
        if self._says_ready:
            reader, writer = os.pipe()
            command += ["--ready-fd", str(writer)]
        try:
            await self._exec(command, () if writer is None else (writer,))
        except OSError:
            if reader is not None:
                os.close(reader)
            raise
        finally:
            if writer is not None:
                os.close(writer)
        return reader

    async def _exec(self, command: list[str], descriptors: tuple[int, ...]) -> None:
        with self._log_path.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._env,
                pass_fds=descriptors,
                start_new_session=True,  # ctrl-C is ours to handle, in the right order
                preexec_fn=_die_with_parent,
            )

    async def _await_ready(self, reader: int, within_s: float) -> None:
        try:
            line = await asyncio.wait_for(asyncio.to_thread(os.read, reader, 100), within_s)
        except TimeoutError:
            line = b""
        finally:
            os.close(reader)
        if not line:
            raise StartError(f"{self.name} did not start: {last_line(self._log_path)}")

    async def _keep(self) -> None:
        loop, pause_s = asyncio.get_running_loop(), _FIRST_PAUSE_S
        while True:
            started = loop.time()
            assert self._process is not None  # noqa: S101  # started before it is kept
            code = await self._process.wait()
            lived_s = loop.time() - started
            pause_s = _FIRST_PAUSE_S if lived_s >= _YOUNG_S else pause_s
            _log.warning(
                "child ended, starting it again",
                child=self.name,
                ended=_in_words(code),
                lived_s=round(lived_s, 1),
                pause_s=pause_s,
                log=str(self._log_path),
            )
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            await self._again()

    async def _again(self) -> None:
        while True:
            try:
                ready = await self._spawn()
                break
            except OSError as error:  # no process or no memory to be had right now
                _log.error("child could not be started", child=self.name, error=str(error))
                await asyncio.sleep(_LONGEST_PAUSE_S)
        if ready is not None:
            os.close(ready)
        _log.info("child started again", child=self.name, pid=self.pid)


def _in_words(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    return f"signal {-code} ({signal.strsignal(-code)})"


def last_line(log: Path) -> str:
    """The last line of a log, for an error message, and where the rest is."""
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return f"{lines[-1][:300] if lines else 'no output'} (log: {log})"
