"""A host's worker does not end while one of its driver's calls goes on."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

from temporalio.testing import ActivityEnvironment

from activities.host.control_plane import ControlPlane, control_http
from activities.host.guests import Guests
from runtime.sealing import Sealer
from workflows.contract import ReadConsole


async def test_a_call_that_was_given_up_is_waited_for_at_the_end() -> None:
    entered, go_on = threading.Event(), threading.Event()

    def console_log(*_given: Any) -> bytes:
        entered.set()
        go_on.wait(30)
        return b""

    driver: Any = SimpleNamespace(console_log=console_log)
    with ThreadPoolExecutor(1) as pool:
        guests = Guests(driver, pool, Sealer("k" * 64), "epoch")
        call = asyncio.create_task(
            ActivityEnvironment().run(guests.read_console, ReadConsole("server", 10))
        )
        await asyncio.to_thread(entered.wait, 30)
        while not call.done():  # once it waits for the driver, the second time it does not
            call.cancel()
            await asyncio.sleep(0)
        settled = asyncio.create_task(guests.settled())
        done, _ = await asyncio.wait([settled], timeout=0.2)
        assert not done
        go_on.set()
        async with asyncio.timeout(30):
            await settled
    with suppress(asyncio.CancelledError):
        await call


def test_a_hosts_name_is_no_address() -> None:
    with control_http("http://127.0.0.1:9/") as http:
        url = ControlPlane(http, "rack1:node2", "k" * 64)._url("report")
        asked = http.build_request("POST", url).url
        assert str(asked) == "http://127.0.0.1:9/internal/v1/hosts/rack1%3Anode2/report"
