"""Domains and projects."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import AfterValidator, BaseModel, Field, StrictBool
from sqlmodel import Session

from api.context import Db, allow
from api.fields import Text
from api.idempotency import KeyedRoute
from api.identity.links import (
    Attributes,
    Id,
    Links,
    Name64,
    TheLinks,
    absent,
    check_mutable,
    flag,
    owner_or_reader,
)
from api.policy import Caller
from db import identity
from db.identity import DEFAULT_DOMAIN, Domain, Project
from domain.errors import BadRequest, Forbidden, NotFound

router = APIRouter(route_class=KeyedRoute)


def _check_tag(tag: str) -> str:
    if "/" in tag or "," in tag:
        raise ValueError("A tag may not hold a slash or a comma.")
    return tag


Tag = Annotated[Text, Field(min_length=1, max_length=255), AfterValidator(_check_tag)]
Tags = Annotated[list[Tag], Field(max_length=80)]


# --- domains


class DomainAttributes(Attributes):
    """What a domain may be given."""

    name: Name64
    enabled: StrictBool = True
    tags: Tags = Field(default_factory=list)
    explicit_domain_id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")] | None = None


class DomainChanges(DomainAttributes):
    """What of a domain may change."""

    name: Name64 = ""


class DomainBody(BaseModel):
    """A new domain."""

    domain: DomainAttributes


class DomainPatch(BaseModel):
    """Changes of a domain."""

    domain: DomainChanges


def domain_view(domain: Domain, links: Links) -> dict[str, Any]:
    """A domain as Keystone shows it."""
    return domain.extra | {
        "id": domain.id,
        "name": domain.name,
        "description": domain.description,
        "enabled": domain.enabled,
        "tags": domain.tags,
        "options": domain.options,
        "links": links.of("domains", domain.id),
    }


@router.get("/v3/domains")
def list_domains(
    _who: Annotated[Caller, allow("identity:read")],
    db: Db,
    links: TheLinks,
    name: str | None = None,
    enabled: str | None = None,
) -> dict[str, Any]:
    """All domains."""
    found = identity.search(db, Domain, name=name, enabled=flag(enabled))
    return links.listing("domains", (domain_view(d, links) for d in found))


@router.post("/v3/domains", status_code=201)
def create_domain(
    body: DomainBody, _who: Annotated[Caller, allow("identity:admin")], db: Db, links: TheLinks
) -> dict[str, Any]:
    """Make a domain."""
    domain = Domain(name=body.domain.name)
    if body.domain.explicit_domain_id:
        domain.id = body.domain.explicit_domain_id
    body.domain.write(domain, "enabled", "tags")
    return {"domain": domain_view(identity.store(db, domain), links)}


@router.get("/v3/domains/{domain_id}")
def show_domain(
    domain_id: str, who: Annotated[Caller, allow("identity:self")], db: Db, links: TheLinks
) -> dict[str, Any]:
    """One domain: anyone's own, an administrator's any."""
    owner_or_reader(who, domain_id in (who.domain_id, who.project_id and who.project_domain_id))
    return {"domain": domain_view(identity.get(db, Domain, domain_id), links)}


@router.patch("/v3/domains/{domain_id}")
def update_domain(
    domain_id: str,
    body: DomainPatch,
    _who: Annotated[Caller, allow("identity:admin")],
    db: Db,
    links: TheLinks,
) -> dict[str, Any]:
    """Change a domain; disabling it ends the tokens of its users and projects."""
    domain = identity.get(db, Domain, domain_id)
    check_mutable(domain, body.domain)
    body.domain.write(domain, "enabled", "tags")
    return {"domain": domain_view(identity.store(db, domain), links)}


@router.delete("/v3/domains/{domain_id}", status_code=204)
def delete_domain(domain_id: str, _who: Annotated[Caller, allow("identity:admin")], db: Db) -> None:
    """Delete a disabled domain with all that is in it."""
    domain = identity.get(db, Domain, domain_id)
    check_mutable(domain)
    if domain.enabled:
        raise Forbidden("Cannot delete a domain that is enabled, please disable it first.")
    identity.delete_domain(db, domain)


# --- projects


class ProjectAttributes(Attributes):
    """What a project may be given."""

    name: Name64
    domain_id: Id | None = None
    parent_id: Id | None = None
    is_domain: StrictBool = False
    enabled: StrictBool = True
    tags: Tags = Field(default_factory=list)


class ProjectChanges(ProjectAttributes):
    """What of a project may change."""

    name: Name64 = ""


class ProjectBody(BaseModel):
    """A new project."""

    project: ProjectAttributes


class ProjectPatch(BaseModel):
    """Changes of a project."""

    project: ProjectChanges


class TagsBody(BaseModel):
    """All tags of a project."""

    tags: Tags


def project_view(project: Project, links: Links) -> dict[str, Any]:
    """A project as Keystone shows it."""
    return project.extra | {
        "id": project.id,
        "name": project.name,
        "domain_id": project.domain_id,
        "description": project.description,
        "enabled": project.enabled,
        "parent_id": project.parent_id or project.domain_id,
        "is_domain": False,
        "tags": project.tags,
        "options": project.options,
        "links": links.of("projects", project.id),
    }


class ProjectQuery(BaseModel):
    """Filters of the list of projects."""

    name: str | None = None
    domain_id: str | None = None
    parent_id: str | None = None
    enabled: str | None = None
    is_domain: str | None = None
    tags: str | None = None
    tags_any: str | None = Field(default=None, alias="tags-any")
    not_tags: str | None = Field(default=None, alias="not-tags")
    not_tags_any: str | None = Field(default=None, alias="not-tags-any")

    def fits(self, project: Project) -> bool:
        """Whether the tree and the tags are as asked."""
        if flag(self.is_domain) or self.parent_id not in (
            None,
            project.parent_id or project.domain_id,
        ):
            return False
        have = set(project.tags)
        return (
            (self.tags is None or _split(self.tags) <= have)
            and (self.tags_any is None or bool(_split(self.tags_any) & have))
            and (self.not_tags is None or not _split(self.not_tags) <= have)
            and (self.not_tags_any is None or not _split(self.not_tags_any) & have)
        )


def _split(tags: str) -> set[str]:
    return set(tags.split(","))


@router.get("/v3/projects")
def list_projects(
    query: Annotated[ProjectQuery, Query()],
    _who: Annotated[Caller, allow("identity:read")],
    db: Db,
    links: TheLinks,
) -> dict[str, Any]:
    """All projects."""
    wanted = {"name": query.name, "domain_id": query.domain_id, "enabled": flag(query.enabled)}
    found = identity.search(db, Project, **wanted)
    return links.listing("projects", (project_view(p, links) for p in found if query.fits(p)))


@router.post("/v3/projects", status_code=201)
def create_project(
    body: ProjectBody, who: Annotated[Caller, allow("identity:admin")], db: Db, links: TheLinks
) -> dict[str, Any]:
    """Make a project, in the caller's domain unless another is named."""
    given = body.project
    if given.is_domain:
        raise absent("projects that are domains; POST /v3/domains makes a domain")
    domain_id, parent_id = _place(db, given, who)
    project = Project(name=given.name, domain_id=domain_id, parent_id=parent_id)
    given.write(project, "enabled", "tags")
    return {"project": project_view(identity.store(db, project), links)}


def _place(session: Session, given: ProjectAttributes, who: Caller) -> tuple[str, str | None]:
    """The domain and the parent project of a new project; a domain as its parent is no project."""
    parent_id = given.parent_id
    if parent_id is None or session.get(Domain, parent_id) is not None:
        domain_id = given.domain_id or parent_id or who.domain_id or DEFAULT_DOMAIN
        if parent_id not in (None, domain_id):
            raise BadRequest("The parent is another domain than domain_id.")
        return identity.get(session, Domain, domain_id).id, None
    parent = identity.get(session, Project, parent_id)
    if given.domain_id not in (None, parent.domain_id):
        raise BadRequest("The parent project is in another domain than domain_id.")
    if not parent.enabled:
        raise Forbidden(f"Cannot create project in tree containing a disabled project: {parent.id}")
    return parent.domain_id, parent.id


@router.get("/v3/projects/{project_id}")
def show_project(
    project_id: str,
    request: Request,
    who: Annotated[Caller, allow("identity:self")],
    db: Db,
    links: TheLinks,
) -> dict[str, Any]:
    """One project: the token's own, or any for an administrator. ``parents_as_ids`` and
    ``subtree_as_ids`` add the tree around it."""
    owner_or_reader(who, project_id == who.project_id)
    project = identity.get(db, Project, project_id)
    view = project_view(project, links)
    if "parents_as_ids" in request.query_params:
        view["parents"] = _parents(db, project)
    if "subtree_as_ids" in request.query_params:
        view["subtree"] = _subtree(db, project.id)
    return {"project": view}


def _parents(session: Session, project: Project) -> dict[str, Any]:
    if project.parent_id is None:
        return {project.domain_id: None}
    return {project.parent_id: _parents(session, identity.get(session, Project, project.parent_id))}


def _subtree(session: Session, project_id: str) -> dict[str, Any] | None:
    children = identity.search(session, Project, parent_id=project_id)
    return {c.id: _subtree(session, c.id) for c in children} or None


@router.patch("/v3/projects/{project_id}")
def update_project(
    project_id: str,
    body: ProjectPatch,
    _who: Annotated[Caller, allow("identity:admin")],
    db: Db,
    links: TheLinks,
) -> dict[str, Any]:
    """Change a project; disabling it ends the tokens for it."""
    project, given = identity.get(db, Project, project_id), body.project
    check_mutable(project, given)
    if given.domain_id not in (None, project.domain_id):
        raise BadRequest("Cannot change Domain ID")
    if given.parent_id not in (None, project.parent_id or project.domain_id):
        raise Forbidden("Update of `parent_id` is not allowed.")
    if given.is_domain:
        raise BadRequest("Update of `is_domain` is not allowed.")
    given.write(project, "enabled", "tags")
    return {"project": project_view(identity.store(db, project), links)}


@router.delete("/v3/projects/{project_id}", status_code=204)
def delete_project(
    project_id: str, _who: Annotated[Caller, allow("identity:admin")], db: Db
) -> None:
    """Delete a project without children, with its grants and application credentials."""
    project = identity.get(db, Project, project_id)
    check_mutable(project)
    if identity.search(db, Project, parent_id=project_id):
        raise Forbidden(
            f"Cannot delete the project {project_id} since it is not a leaf in the hierarchy."
        )
    identity.delete_project(db, project)


# --- tags of a project


@router.get("/v3/projects/{project_id}/tags")
def list_project_tags(
    project_id: str, who: Annotated[Caller, allow("identity:self")], db: Db, links: TheLinks
) -> dict[str, Any]:
    """The tags of a project."""
    owner_or_reader(who, project_id == who.project_id)
    tags = identity.get(db, Project, project_id).tags
    return {"tags": tags, "links": links.of("projects", project_id, "tags")}


@router.put("/v3/projects/{project_id}/tags")
def replace_project_tags(
    project_id: str,
    body: TagsBody,
    _who: Annotated[Caller, allow("identity:admin")],
    db: Db,
    links: TheLinks,
) -> dict[str, Any]:
    """Replace all tags."""
    project = identity.get(db, Project, project_id)
    project.tags = list(dict.fromkeys(body.tags))
    return {"tags": project.tags, "links": links.of("projects", project_id, "tags")}


@router.delete("/v3/projects/{project_id}/tags", status_code=204)
def clear_project_tags(
    project_id: str, _who: Annotated[Caller, allow("identity:admin")], db: Db
) -> None:
    """Remove all tags."""
    identity.get(db, Project, project_id).tags = []


@router.get("/v3/projects/{project_id}/tags/{tag}", status_code=204)
@router.head("/v3/projects/{project_id}/tags/{tag}", status_code=204, include_in_schema=False)
def check_project_tag(
    project_id: str, tag: str, who: Annotated[Caller, allow("identity:self")], db: Db
) -> None:
    """204 if the project has the tag, 404 if not."""
    owner_or_reader(who, project_id == who.project_id)
    _with_tag(db, project_id, tag)


@router.put("/v3/projects/{project_id}/tags/{tag}", status_code=201)
def add_project_tag(
    project_id: str, tag: str, _who: Annotated[Caller, allow("identity:admin")], db: Db
) -> None:
    """Add one tag."""
    project = identity.get(db, Project, project_id)
    if tag not in project.tags:
        project.tags = _checked_tags([*project.tags, tag])


@router.delete("/v3/projects/{project_id}/tags/{tag}", status_code=204)
def remove_project_tag(
    project_id: str, tag: str, _who: Annotated[Caller, allow("identity:admin")], db: Db
) -> None:
    """Remove one tag."""
    project = _with_tag(db, project_id, tag)
    project.tags = [t for t in project.tags if t != tag]


def _checked_tags(tags: list[str]) -> list[str]:
    if len(tags) > 80 or any(not t or len(t) > 255 or "," in t for t in tags):
        raise BadRequest("A project has at most 80 tags of 1 to 255 characters without comma.")
    return tags


def _with_tag(session: Session, project_id: str, tag: str) -> Project:
    project = identity.get(session, Project, project_id)
    if tag not in project.tags:
        raise NotFound(f"Could not find project tag: {tag}.")
    return project
