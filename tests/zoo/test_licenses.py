"""What may be published of what was made from somebody's weights."""

import pytest

from zoo.errors import IntegrityError, UsageError
from zoo.licenses import KNOWN, hub_license, normalised, objection, publishable


@pytest.mark.parametrize(
    ("text", "hub"),
    [
        ("CC-BY-NC 4.0", ("cc-by-nc-4.0", None, None)),
        (" Apache-2.0 ", ("apache-2.0", None, None)),
        ("MIT", ("mit", None, None)),
        ("none stated", ("other", "none-stated", "LICENSE")),
        ("DINOv3 License!", ("other", "dinov3-license", "LICENSE")),
    ],
)
def test_a_licence_as_the_hub_spells_it(text: str, hub: tuple) -> None:
    assert hub_license(text, "LICENSE") == hub


@pytest.mark.parametrize("license_", sorted(KNOWN))
def test_every_known_licence_is_spelt_as_itself(license_: str) -> None:
    assert normalised(license_.upper()) == license_


@pytest.mark.parametrize(
    ("ancestor", "published", "allowed"),
    [
        ("apache-2.0", "mit", True),
        ("MIT", "cc-by-nc-4.0", True),
        ("cc-by-nc-4.0", "cc-by-nc-4.0", True),
        ("CC-BY-NC 4.0", "cc-by-nc-sa-4.0", True),
        ("cc-by-nc-4.0", "apache-2.0", False),
        ("cc-by-nc-4.0", "my own", False),
        ("cc-by-nc-4.0", "cc-by-4.0", False),
        ("cc-by-sa-4.0", "cc-by-sa-4.0", True),
        ("cc-by-sa-4.0", "mit", False),
        ("cc-by-nd-4.0", "cc-by-nd-4.0", False),
        ("not stated", "mit", False),
        ("none stated", "none stated", False),
        ("", "mit", False),
        ("a research licence", "a research licence", False),
    ],
)
def test_what_a_licence_of_an_ancestor_allows(ancestor: str, published: str, allowed: bool) -> None:
    assert (objection(ancestor, published) is None) == allowed


def test_every_ancestor_that_objects_is_named_with_what_would_do() -> None:
    teachers = {"teacher a": "cc-by-nc-4.0", "teacher b": "mit", "teacher c": "not stated"}
    with pytest.raises(IntegrityError) as caught:
        publishable("mit", "not stated", teachers, acknowledged=False)
    assert "teacher a (cc-by-nc-4.0)" in caught.value.where
    assert "--license cc-by-nc-4.0" in caught.value.where
    assert "teacher c (not stated)" in caught.value.where
    assert "teacher b" not in caught.value.where
    assert "--acknowledge-license" in caught.value.fix


def test_the_holder_may_say_so() -> None:
    assert publishable("mit", "", {"teacher": "not stated"}, acknowledged=True) == "mit"


@pytest.mark.parametrize("stated", ["not stated", "Not Stated", "none stated", ""])
def test_no_licence_is_no_choice(stated: str) -> None:
    with pytest.raises(UsageError, match="under which licence"):
        publishable(None, stated, {}, acknowledged=True)


def test_the_records_own_is_the_default() -> None:
    assert publishable(None, "cc-by-4.0", {}, acknowledged=False) == "cc-by-4.0"
