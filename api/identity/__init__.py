"""Identity v3: logins, tokens, catalog, and the records of who may do what."""

from __future__ import annotations

from api.identity import application_credentials, auth, catalog, projects, roles, users

routers = (
    auth.router,  # first: matching is linear and logins are the hot path
    application_credentials.router,
    projects.router,
    users.router,
    roles.router,
    catalog.router,
)
