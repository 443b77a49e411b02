"""What a console says when its guest is there, and when it is not."""

from __future__ import annotations

import pytest

from domain.guest import Fence
from tests.operations.conftest import Desk

pytestmark = pytest.mark.temporal


async def test_the_console_of_a_guest_that_its_host_does_not_know_is_not_found(desk: Desk) -> None:
    server_id = await desk.build("image")
    await desk.stack.until(server_id, "ACTIVE")
    url = f"/compute/v2.1/servers/{server_id}/action"
    headers, body = await desk.stack.headers("admin"), {"os-getConsoleOutput": {}}
    shown = await desk.stack.client.post(url, json=body, headers=headers)
    assert shown.status_code == 200, shown.text
    desk.driver("image").destroy(server_id, Fence(2**40, "behind its back"))
    gone = await desk.stack.client.post(url, json=body, headers=headers)
    assert gone.status_code == 404, gone.text
