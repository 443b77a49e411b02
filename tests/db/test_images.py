"""Image queries, on both databases."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine

from db.images import (
    Image,
    ImageFilters,
    add_image,
    add_member,
    get_own_image,
    get_visible_image,
    list_images,
    project_usage,
    set_member_status,
)
from db.session import now, reading, transaction
from domain.errors import Conflict, Forbidden, NotFound

HUGE = 2**62


@pytest.fixture
def shelf(engine: Engine) -> Engine:
    """Images a to d of project p, one of each visibility, and the public z of project q."""
    kinds = ("private", "shared", "community", "public")
    with transaction(engine) as session:
        for n, (name, kind) in enumerate(zip("abcd", kinds, strict=True)):
            tags, properties = [name, 'x","y', "é"], {"os": name, "naïve key": "v"}
            size = n * HUGE // 4 or None
            image = Image(id=name, name=name, project_id="p", visibility=kind)
            image.size, image.tags, image.properties = size, tags, properties
            add_image(session, image)
        add_image(session, Image(id="z", name=None, project_id="q", visibility="public"))
    return engine


def listed(
    engine: Engine, filters: ImageFilters, project: str = "p", *order: tuple[str, bool]
) -> str:
    """Ids found, page by page of two."""
    found: list[Image] = []
    with reading(engine) as session:
        while page := list_images(
            session,
            project,
            False,
            filters,
            order or [("name", False)],
            found[-1] if found else None,
            2,
        ):
            found += page
    return "".join(image.id for image in found)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (ImageFilters(), "abcdz"),
        (ImageFilters(tags=["b"]), "b"),
        (ImageFilters(tags=["B"]), ""),
        (ImageFilters(tags=["y"]), ""),
        (ImageFilters(tags=['x","y', "é"]), "abcd"),
        (ImageFilters(properties={"os": "c"}), "c"),
        (ImageFilters(properties={"naïve key": "v"}), "abcd"),
        (ImageFilters(properties={'bad"key': "v"}), ""),
        (ImageFilters(properties={"os": "a", "naïve key": "v"}), "a"),
        (ImageFilters(properties={"a": "os"}), ""),
        (ImageFilters(size_min=HUGE // 2), "cd"),
        (ImageFilters(size_max=HUGE // 4), "b"),
        (ImageFilters(among={"hidden": (False,), "id": ("a", "z")}), "az"),
        (ImageFilters(among={"id": ()}), ""),
        (ImageFilters(visibility="public"), "dz"),
    ],
)
def test_filters_find_what_they_name(shelf: Engine, filters: ImageFilters, expected: str) -> None:
    assert listed(shelf, filters) == expected


def test_instants_compare(shelf: Engine) -> None:
    assert listed(shelf, ImageFilters(instants=[("created_at", "lt", now())])) == "abcdz"
    assert listed(shelf, ImageFilters(instants=[("created_at", "gte", now())])) == ""


@pytest.mark.parametrize("key", ["name", "size", "created_at", "updated_at", "id", "disk_format"])
@pytest.mark.parametrize("descending", [False, True])
def test_pages_hold_every_image_once(shelf: Engine, key: str, descending: bool) -> None:
    assert sorted(listed(shelf, ImageFilters(), "p", (key, descending))) == list("abcdz")


def test_each_visibility_is_seen_by_whom_it_should(shelf: Engine) -> None:
    assert listed(shelf, ImageFilters(), "q") == "dz"
    assert listed(shelf, ImageFilters(visibility="all"), "q") == "cdz"
    assert listed(shelf, ImageFilters(visibility="community"), "q") == "c"
    with transaction(shelf) as session:
        image = get_own_image(session, "b", "p", False)
        member = add_member(session, image, "q")
        with pytest.raises(Conflict):
            add_member(session, image, "q")
    assert listed(shelf, ImageFilters(), "q") == "dz"
    assert listed(shelf, ImageFilters(member_status="pending"), "q") == "bdz"
    with transaction(shelf) as session:
        set_member_status(session, session.merge(member), "accepted")
    assert listed(shelf, ImageFilters(), "q") == "bdz"
    with reading(shelf) as session:
        assert get_visible_image(session, "b", "q", False).id == "b"
        assert get_visible_image(session, "a", "q", True).id == "a"
        for unseen in ("a", "nothing", "\x00"):
            with pytest.raises(NotFound):
                get_visible_image(session, unseen, "q", False)
        with pytest.raises(Forbidden):
            get_own_image(session, "b", "q", False)


def test_usage_counts_images_and_bytes_beyond_32_bits(shelf: Engine) -> None:
    with reading(shelf) as session:
        assert project_usage(session, "p") == (4, HUGE // 4 * 6)
        assert project_usage(session, "nobody") == (0, 0)
