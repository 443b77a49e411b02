"""What a process does when it is ready for work."""

from __future__ import annotations

import gc
import os
from contextlib import suppress


def say_ready(descriptor: int | None, line: str = "ready") -> None:
    """Write a line to whoever waits at this descriptor, and close it.

    What is in memory by now stays for as long as the process: the garbage collector need not walk over it
    again and again, which stops every thread for a tenth of a second and more.
    """
    gc.collect()
    gc.freeze()
    if descriptor is not None:
        with suppress(BrokenPipeError):  # whoever restarted us is not waiting
            os.write(descriptor, f"{line}\n".encode())
        os.close(descriptor)
