"""What python-openstackclient looks for in a plug-in: names, versions, and the client it makes."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from osc_lib import utils

from osc_duranova.client import Operations

API_NAME = "duranova"
"""``clients.duranova`` is the client; its commands are in the group ``openstack.duranova.v1``."""
API_VERSION_OPTION = "os_duranova_api_version"
DEFAULT_API_VERSION = "1"
API_VERSIONS = ("1",)


def make_client(instance: Any) -> Operations:
    """The operations API of the cloud, region and interface that the command was told to use."""
    return Operations.of(instance.session, instance.sdk_connection.config)


def build_option_parser(parser: ArgumentParser) -> ArgumentParser:
    """Add the plug-in's global option."""
    parser.add_argument(
        "--os-duranova-api-version",
        metavar="<duranova-api-version>",
        default=utils.env("OS_DURANOVA_API_VERSION"),
        help=f"Operations API version, default={DEFAULT_API_VERSION} (Env: OS_DURANOVA_API_VERSION)",
    )
    return parser
