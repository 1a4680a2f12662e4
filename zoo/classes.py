"""The names of a classifier's classes, as they stand in ``config.json``."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.errors import IntegrityError, UsageError

LONGEST_NAME = 200
LONGEST_DESCRIPTION = 2000
"""Both in characters."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Classes:
    """Names in the order of the logits, and what each is in words, if anything."""

    names: tuple[str, ...] = ()
    descriptions: tuple[str, ...] = ()
    """One for each name, or none at all."""

    def as_layout(self) -> dict[str, Any]:
        """The keys of ``config.json``, as timm writes them; none without names."""
        layout: dict[str, Any] = {"label_names": list(self.names)} if self.names else {}
        if self.descriptions:
            layout["label_descriptions"] = dict(zip(self.names, self.descriptions, strict=True))
        return layout


NO_CLASSES = Classes()


def name_classes(names: Sequence[str], descriptions: Sequence[str] = ()) -> Classes:
    """The names for a model that is about to be written.

    Raises UsageError for names that ``read_classes`` would refuse, and for descriptions that are
    not one to a name.
    """
    problem = next(_problems(names, descriptions), None)
    if problem is None and descriptions and len(descriptions) != len(names):
        problem = f"{len(descriptions):,} descriptions of {len(names):,} classes"
    if problem is not None:
        raise UsageError(
            f"classes cannot be named so: {problem}",
            where="labels",
            fix=f"give each class a name of its own, in print, of 1 to {LONGEST_NAME} characters",
        )
    return Classes(names=tuple(names), descriptions=tuple(descriptions))


def read_classes(names: object, described: object, classes: int, path: Path) -> Classes:
    """The names that a file states, which comes from wherever the weights come from.

    names: a list, or timm's mapping from the class number.  described: a mapping from names.
    Raises IntegrityError unless there is one name to a class, all different and fit for print.
    """
    try:
        found = _in_order(names)
        if len(found) != classes:
            raise ValueError(f"{len(found):,} names for {classes:,} classes")
        if not isinstance(described, Mapping):
            raise ValueError("the descriptions are no mapping")
        words = [described.get(name, "") for name in found] if described else []
        for problem in _problems(found, words):
            raise ValueError(problem)
    except ValueError as error:
        raise IntegrityError(
            f"the classes are not named as they must be: {error}",
            where=f"{path}: label_names",
            fix="fetch or export the model again",
        ) from error
    return Classes(names=tuple(found), descriptions=tuple(words))


def _in_order(names: object) -> list[Any]:
    if isinstance(names, Mapping):
        numbers = {str(number): name for number, name in names.items()}
        if set(numbers) != {str(i) for i in range(len(numbers))}:
            raise ValueError("their numbers have gaps")
        return [numbers[str(i)] for i in range(len(numbers))]
    if not isinstance(names, list | tuple):
        raise ValueError("no list")
    return list(names)


def _problems(names: Sequence[Any], descriptions: Sequence[Any]) -> Iterator[str]:
    """What is wrong with them, first things first."""
    for what, texts, longest in [
        ("name", names, LONGEST_NAME),
        ("description", descriptions, LONGEST_DESCRIPTION),
    ]:
        for text in texts:
            if not isinstance(text, str):
                yield f"a {what} that is no text: {str(text)[:40]!r}"
            elif len(text) > longest:
                yield f"a {what} of {len(text):,} characters: {text[:40]!r}…"
            elif not text.isprintable():
                yield f"a {what} with a character that cannot be printed: {text[:40]!r}"
    if not all(isinstance(name, str) and name.strip() for name in names):
        yield "an empty name"
    seen: set[str] = set()
    for name in names:
        if name in seen:
            yield f"{name[:40]!r} twice"
        seen.add(name)
