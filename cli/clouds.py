"""clouds.yaml: how OpenStack clients find and enter this cloud."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

CLOUDS = {"duranova": "demo", "duranova-alt": "alt", "duranova-admin": "admin"}
"""Cloud's name in the file → user, whose project has the same name."""


def clouds_yaml(public_url: str, region: str, passwords: Mapping[str, str]) -> str:
    """The text of a clouds.yaml with one entry per user in ``passwords``; keep it private.

    It is written as JSON, which every YAML reader reads.
    """
    clouds = {
        name: _cloud(public_url, region, user, passwords[user])
        for name, user in CLOUDS.items()
        if user in passwords
    }
    return json.dumps({"clouds": clouds}, indent=2) + "\n"


def _cloud(public_url: str, region: str, user: str, password: str) -> dict[str, Any]:
    return {
        "auth": {
            "auth_url": f"{public_url.rstrip('/')}/identity",
            "username": user,
            "password": password,
            "project_name": user,
            "user_domain_id": "default",
            "project_domain_id": "default",
        },
        "region_name": region,
        "identity_api_version": "3",
    }
