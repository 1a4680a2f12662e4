"""Where the sets of ImageNet's family lie: named on the command line, or found below a folder."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from eval.layouts import expected
from zoo.errors import DataError, UsageError

NAMES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "in1k-val": (
            *("imagenet", "imagenet-1k", "imagenet1k", "imagenet2012", "ilsvrc2012", "ilsvrc"),
            *("imagenet-val", "ilsvrc2012-img-val", "in1k-val"),
        ),
        "in1k-v2": (
            *("imagenetv2-matched-frequency-format-val", "imagenetv2-matched-frequency"),
            *("imagenet-v2", "imagenetv2", "in1k-v2"),
        ),
        "in1k-a": ("imagenet-a", "in1k-a"),
        "in1k-r": ("imagenet-r", "in1k-r"),
        "in1k-sketch": ("imagenet-sketch", "sketch", "in1k-sketch"),
        "in1k-c": ("imagenet-c", "in1k-c"),
    }
)
"""What the sets' folders are called as they unpack, in lower case, with - for _; without .tar."""

SET_OF: Mapping[str, str] = MappingProxyType(
    dict.fromkeys(("in1k-finetune", "in1k-real", "in1k-a-clean", "in1k-r-clean"), "in1k-val")
)
"""Protocols whose images are another's."""


def set_of(protocol: str) -> str:
    """The set of images that a protocol (its name without a version) scores."""
    return SET_OF.get(protocol, protocol)


def parse_data(texts: Iterable[str]) -> tuple[str | None, dict[str, str]]:
    """``--data`` as typed: the plain one, and those that say ``SET=DIR``.

    Raises UsageError for two plain ones, an unknown set, or a set given twice.
    """
    plain, named = None, {}
    for text in texts:
        name, equals, place = text.partition("=")
        if not equals or "/" in name:
            if plain is not None:
                raise UsageError(
                    "two data folders, and no word which is which",
                    where=f"{plain}, {text}",
                    fix="write SET=DIR, with SET one of " + ", ".join(expected()),
                )
            plain = text
        elif name not in expected() or name in named:
            raise UsageError(
                f"no set is called {name!r}" if name not in named else f"{name} is given twice",
                where=f"--data {text}",
                fix="SET is one of " + ", ".join(expected()),
            )
        else:
            named[name] = place
    return plain, named


def find_sets(root: Path) -> dict[str, Path]:
    """The sets below a folder, by the names they are published under.

    Raises DataError where there is none, or where two folders could be the same one.
    """
    if not root.is_dir():
        raise DataError(
            "there is no such folder", where=str(root), fix="give a folder that holds the sets"
        )
    there = sorted(path for path in root.iterdir() if not path.name.startswith("."))
    found: dict[str, Path] = {}
    for name, known in NAMES.items():
        of_set = [path for path in there if _plain(path.name) in known]
        if len(of_set) > 1:
            raise DataError(
                f"two places that could be {name}: {', '.join(path.name for path in of_set)}",
                where=str(root),
                fix=f"say which: --data {name}=DIR",
            )
        if of_set:
            found[name] = of_set[0]
    if "in1k-val" not in found and (root / "val").is_dir():
        found["in1k-val"] = root
    if not found:
        known = "; ".join(f"{name}: {', '.join(names)}" for name, names in NAMES.items())
        raise DataError(
            "none of the sets of ImageNet's family is there",
            where=f"{root}: looked for {known}",
            fix="name the folders as they unpack, or write --data SET=DIR for each",
        )
    return found


def _plain(name: str) -> str:
    return name.lower().removesuffix(".tar").replace("_", "-")
