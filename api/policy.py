"""The policy table: rule name → who may. Every route names exactly one rule; a test walks them all.

Whose resource it is decides the query, not the policy: another project's id is simply not found. A
rule here only asks for a role. ``admin`` implies ``manager`` implies ``member`` implies ``reader``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from domain.errors import Forbidden

_IMPLIED = {
    "admin": {"admin", "manager", "member", "reader"},
    "manager": {"manager", "member", "reader"},
    "member": {"member", "reader"},
    "reader": {"reader"},
}


def implied(roles: Iterable[str]) -> frozenset[str]:
    """These roles with those they imply."""
    return frozenset().union(*(_IMPLIED.get(r, {r}) for r in roles))


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: what a validated token says."""

    user_id: str
    user_name: str
    project_id: str
    """Empty when the token is unscoped or system-scoped."""
    roles: frozenset[str]
    """As granted."""
    token_id: str = ""
    user_domain_id: str = "default"
    project_name: str = ""
    project_domain_id: str = "default"
    system: bool = False
    domain_id: str = ""
    """Set when the token is scoped to a domain."""
    restricted: bool = False
    """The token came from an application credential that may not make others."""

    @property
    def effective_roles(self) -> frozenset[str]:
        """Granted roles with those they imply."""
        return implied(self.roles)

    @property
    def is_admin(self) -> bool:
        """Whether the caller runs the cloud."""
        return "admin" in self.roles


Rule = Callable[[Caller], bool]


def _anyone(_caller: Caller) -> bool:
    return True


def _role(name: str) -> Rule:
    def scoped(caller: Caller) -> bool:
        scope = bool(caller.project_id) or caller.system or bool(caller.domain_id)
        return scope and name in caller.effective_roles

    return scoped


def _system_reader(caller: Caller) -> bool:
    return caller.system and "reader" in caller.effective_roles


ANYONE: Rule = _anyone
"""Any valid token, unscoped ones included."""
READER: Rule = _role("reader")
MEMBER: Rule = _role("member")
ADMIN: Rule = _role("admin")

RULES: dict[str, Rule] = {
    # --- identity
    "identity:admin": ADMIN,
    "identity:read": lambda caller: ADMIN(caller) or _system_reader(caller),
    "identity:self": ANYONE,
    # --- image
    "images:read": READER,
    "images:write": MEMBER,
    "images:publicize": ADMIN,
    # --- network
    "network:read": READER,
    "network:write": MEMBER,
    "network:admin": ADMIN,
    # --- compute: servers
    "servers:index": READER,
    "servers:index:all_tenants": ADMIN,
    "servers:show": READER,
    "servers:create": MEMBER,
    "servers:create:forced_host": ADMIN,
    "servers:update": MEMBER,
    "servers:delete": MEMBER,
    "servers:start": MEMBER,
    "servers:stop": MEMBER,
    "servers:reboot": MEMBER,
    "servers:pause": MEMBER,
    "servers:unpause": MEMBER,
    "servers:suspend": MEMBER,
    "servers:resume": MEMBER,
    "servers:lock": MEMBER,
    "servers:unlock": MEMBER,
    "servers:unlock:override": ADMIN,
    "servers:console_output": MEMBER,
    "servers:metadata:read": READER,
    "servers:metadata:write": MEMBER,
    "servers:tags:read": READER,
    "servers:tags:write": MEMBER,
    "servers:addresses": READER,
    "servers:security_groups": READER,
    "servers:interfaces": READER,
    "servers:action": MEMBER,
    "servers:security_groups:write": MEMBER,
    "servers:interfaces:write": MEMBER,
    "servers:password": READER,
    "servers:password:clear": MEMBER,
    "servers:diagnostics": ADMIN,
    "servers:topology": READER,
    "servers:volumes": READER,
    "servers:volumes:write": MEMBER,
    "servers:migrations": ADMIN,
    "servers:remote_consoles": MEMBER,
    "servers:instance_actions": READER,
    "servers:instance_actions:events": ADMIN,
    "servers:extended_attributes": ADMIN,
    "servers:host_status": ADMIN,
    # --- compute: the rest
    "aggregates": ADMIN,
    "availability_zones:list": READER,
    "availability_zones:detail": ADMIN,
    "extensions": READER,
    "flavors:read": READER,
    "flavors:write": ADMIN,
    "flavors:access": ADMIN,
    "hypervisors": ADMIN,
    "keypairs": READER,
    "keypairs:write": MEMBER,
    "limits": READER,
    "quotas:read": READER,
    "quotas:write": ADMIN,
    "server_groups:read": READER,
    "server_groups:write": MEMBER,
    "services": ADMIN,
    # --- ours
    "events:read": READER,
    "operations:read": READER,
    "operations:cancel": MEMBER,
    "operations:everywhere": ADMIN,
    "operations:order": MEMBER,
    "operations:retry": MEMBER,
    "orphans:read": ADMIN,
    "placement:explain": READER,
    "servers:power_policy:read": READER,
    "servers:power_policy:write": MEMBER,
}


def authorize(caller: Caller, rule: str) -> None:
    """Raise Forbidden, worded as OpenStack does, unless the rule holds."""
    if not RULES[rule](caller):
        raise Forbidden(f"Policy doesn't allow {rule} to be performed.")


def permits(caller: Caller, rule: str) -> bool:
    """Whether the rule holds: for fields and filters that only some may see."""
    return RULES[rule](caller)
