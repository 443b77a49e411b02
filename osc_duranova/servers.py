"""Which server, user or project a word on the command line means."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from openstack.exceptions import DuplicateResource, NotFoundException
from osc_lib.exceptions import CommandError


def server_id(clients: Any, name_or_id: str) -> str:
    """The id of a server. An id is taken as it is: deleted servers have operations, too.

    An admin's names are looked up in the own project first, then in all. CommandError if there is none, or
    more than one.
    """
    if _is_id(name_or_id):
        return name_or_id
    find = clients.compute.find_server
    try:
        found = find(name_or_id, details=False)
        if found is None and "admin" in (clients.auth_ref.role_names or ()):
            found = find(name_or_id, details=False, all_projects=True)
    except DuplicateResource as several:
        raise CommandError(
            f"More than one server is called {name_or_id}; give its ID."
        ) from several
    if found is None:
        raise CommandError(f"No server with a name or ID of {name_or_id!r} exists.")
    return str(found.id)


def project_id(clients: Any, name_or_id: str) -> str:
    """The id of a project, by name or id."""
    try:
        identity = clients.sdk_connection.identity
        return str(identity.find_project(name_or_id, ignore_missing=False).id)
    except (NotFoundException, DuplicateResource) as unclear:
        raise CommandError(str(unclear)) from unclear


def _is_id(word: str) -> bool:
    try:
        UUID(word)
    except ValueError:
        return False
    return True
