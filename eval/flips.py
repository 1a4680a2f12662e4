"""Two results image by image: what flipped between them, and whether that is more than chance."""

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from eval.classes import class_names
from eval.compare import Comparison, compare
from eval.predictions import Saved, read_saved
from eval.result_files import Found, read_result, shown
from eval.results import Result
from eval.table import is_benchmark, is_model
from eval.table_page import csv_text, digits_of, signed
from zoo.errors import DataError, IntegrityError, UsageError
from zoo.files import atomic_json, atomic_write, is_there, typed_path
from zoo.listing import WIDTH

FIRST = 10
"""Flips that are listed in the terminal."""
SUFFIXES = (".csv", ".json")

_FIX = "run zoo eval for both models on the same data, with the same version of tinyzoo"


@dataclass(frozen=True, kw_only=True, slots=True)
class Flip:
    """An image that one of the two alone is right on."""

    flip: Literal["won", "lost"]
    """won: the second is right."""
    index: int
    """The image's number in its data set."""
    name: str
    labels: str
    """What is right, in words."""
    first: str
    """What the first takes it for."""
    first_confidence: float
    second: str
    second_confidence: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Flips:
    """The second result against the first."""

    first: Result
    second: Result
    comparison: Comparison
    flips: tuple[Flip, ...]
    """All of them, in the order of the images' numbers."""

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``; every flip by its number, the first ones in words."""
        of = ("model", "model_digest", "value", "standard_error", "dtype", "transform", "settings")
        sides = {"first": self.first, "second": self.second}
        return {
            **{side: {key: getattr(r, key) for key in of} for side, r in sides.items()},
            "data": self.first.data,
            "data_fingerprint": self.first.data_fingerprint,
            **self.comparison.as_dict(),
            "flips": [asdict(flip) for flip in self.flips[:FIRST]],
        }

    def text(self) -> str:
        """For a terminal."""
        found = self.comparison
        right = [found.both_right + len(side) for side in (found.lost, found.won)]
        names = (self.first.model, self.second.model)
        width = min(max(map(len, names)), 60)
        lines = [f"{found.protocol} · top-1 on {self.first.data}, {found.images:,} images", ""]
        for letter, name, count in zip("AB", names, right, strict=True):
            cut = name if len(name) <= width else "…" + name[1 - width :]
            lines.append(f"{letter}  {cut:<{width}}  {100 * count / found.images:.2f} %")
        digits = digits_of(found.paired_error)
        error = f"{found.paired_error:.{digits}f}"
        lines += [
            "",
            f"B less A        {signed(found.difference, digits)} ± {error} points, paired",
            f"both right      {found.both_right:,}",
            f"both wrong      {found.both_wrong:,}",
            f"won by B        {len(found.won):,}",
            f"lost by B       {len(found.lost):,}",
            f"another class   {found.changed:,} images, right or wrong",
            f"McNemar         p = {found.mcnemar.p:.3g} ({_test(found)})",
        ]
        if self.flips:
            shown = self.flips[:FIRST]
            which = f"first {len(shown)} of {len(self.flips):,} flips"
            lines += ["", f"{which if len(shown) < len(self.flips) else 'flips'}:"]
            lines += [line for flip in shown for line in _lines(flip)]
        return "\n".join(lines)

    def write(self, path: Path) -> None:
        """All flips as CSV, a row a flip; or the comparison with all flips as JSON.

        Raises DiskError.
        """
        rows = [asdict(flip) for flip in self.flips]
        if path.suffix.lower() == ".json":
            atomic_json(path, self.as_dict() | {"flips": rows})
        else:
            atomic_write(path, csv_text(rows, tuple(Flip.__dataclass_fields__)))


def _test(found: Comparison) -> str:
    chi_square = found.mcnemar.chi_square
    return found.mcnemar.test + ("" if chi_square is None else f", {chi_square:.2f}")


def _lines(flip: Flip) -> Iterator[str]:
    yield f"  {flip.flip:<4}  {flip.name}: {flip.labels}"[:WIDTH]
    told = (
        f"A {flip.first} ({flip.first_confidence:.2f}), B {flip.second} "
        f"({flip.second_confidence:.2f})"
    )
    indent = " " * 8
    yield from textwrap.wrap(told, WIDTH, initial_indent=indent, subsequent_indent=indent)


def is_file_name(text: str) -> bool:
    """Whether a text is the path of a result file, not a model."""
    return text.endswith(".json") and is_there(typed_path(text))


def choose(text: str, found: Sequence[Found], benchmark: str | None) -> Found:
    """The one result that a file's path, a model's name or the beginning of its digest means.

    Raises UsageError where it means none or several, DataError for a file that is no result.
    """
    if is_file_name(text):
        return _of_file(typed_path(text))
    of_model = [one for one in found if is_model(one.result, text)]
    fitting = [o for o in of_model if benchmark is None or is_benchmark(o.result, benchmark)]
    if not fitting:
        listed = sorted({one.result.protocol if of_model else one.result.model for one in found})
        raise UsageError(
            f"no result of a model called {text[:80]!r}"
            + (f" by {benchmark}" if of_model and benchmark else ""),
            where="--diff",
            fix=f"give the path of a result file, or one of: {', '.join(listed[:20])}",
        )
    with_predictions = [one for one in fitting if one.result.predictions] or fitting
    if len(with_predictions) > 1:
        files = ", ".join(str(one.file) for one in with_predictions[:10])
        raise UsageError(
            f"{len(with_predictions)} results are meant by {text[:80]!r}",
            where=files + (", …" if with_predictions[10:] else ""),
            fix="name the benchmark (--benchmark), or give the path of one of these files",
        )
    return with_predictions[0]


def _of_file(file: Path) -> Found:
    try:
        result = read_result(file)
    except (OSError, ValueError, RecursionError) as error:
        raise _no_result(file, shown(str(error).splitlines()[0])) from error
    if result is None:
        raise _no_result(file, "it does not claim to be one")
    return Found(result=result, file=file)


def _no_result(file: Path, why: str) -> DataError:
    return DataError(f"not a result file: {why}", where=str(file), fix="give one of zoo eval's")


def find_flips(first: Found, second: Found) -> Flips:
    """What the second does differently.

    Raises UsageError for results of different protocols, DataError for other data or where the
    predictions are missing, IntegrityError where they are not those of the results.
    """
    a, b = first.result, second.result
    if a.protocol != b.protocol or (
        a.protocol_digest and b.protocol_digest and a.protocol_digest != b.protocol_digest
    ):
        same = a.protocol == b.protocol
        raise UsageError(
            "these results are of different "
            + (f"versions of the rules of {a.protocol}" if same else "protocols"),
            where=f"{first.file}: {a.protocol} and {second.file}: {b.protocol}",
            fix="compare two models on one benchmark, of one version",
        )
    if a.data_fingerprint != b.data_fingerprint:
        raise DataError(
            "these results are not of the same data",
            where=f"{a.data} ({a.data_fingerprint[:16]}) and {b.data} ({b.data_fingerprint[:16]})",
            fix=_FIX,
        )
    ours, theirs = _predictions(first), _predictions(second)
    comparison = compare(ours.predictions, theirs.predictions)
    if ours.names and theirs.names and ours.names != theirs.names:
        raise DataError(
            "the images have other names in the two results",
            where=f"{first.file} and {second.file}",
            fix=_FIX,
        )
    flips = tuple(_flips(comparison, ours, theirs))
    return Flips(first=a, second=b, comparison=comparison, flips=flips)


def _predictions(found: Found) -> Saved:
    result, file = found.result, found.file
    if not result.predictions:
        raise DataError(
            "this result has no predictions of single images beside it",
            where=str(file),
            fix="run zoo eval again: older versions kept none, and some benchmarks have none",
        )
    saved = read_saved(file.with_name(result.predictions))
    header = saved.header
    stated = (header.model_digest, header.data_fingerprint)
    due = (result.model_digest, result.data_fingerprint)
    if header.protocol != result.protocol or any(
        is_ and is_ != should for is_, should in zip(stated, due, strict=True)
    ):
        raise IntegrityError(
            "these predictions are not those of the result beside them",
            where=str(file.with_name(result.predictions)),
            fix="run zoo eval again",
        )
    return saved


def _flips(comparison: Comparison, first: Saved, second: Saved) -> Iterator[Flip]:
    words = _words(first)
    a, b = first.predictions, second.predictions
    won = {int(number): True for number in comparison.won}
    flipped = won | {int(number): False for number in comparison.lost}
    names = first.names or second.names
    for number in sorted(flipped):
        place = int(torch.searchsorted(a.samples, number))
        right = [int(label) for label in a.labels[place] if label >= 0]
        yield Flip(
            flip="won" if flipped[number] else "lost",
            index=number,
            name=shown(names[place]) if names else f"image {number}",
            labels=" or ".join(map(words, right)),
            first=words(int(a.top5[place, 0])),
            first_confidence=round(float(a.confidence[place]), 4),
            second=words(int(b.top5[place, 0])),
            second_confidence=round(float(b.confidence[place]), 4),
        )


def _words(saved: Saved) -> Any:
    """From a class's number to what it is: ImageNet-1k's unless the file has classes of its own."""
    classes = saved.header.classes
    known = classes or (class_names() if saved.header.protocol.startswith("in1k-") else ())

    def word(number: int) -> str:
        return shown(known[number]).split(", ")[0] if number < len(known) else f"class {number}"

    return word
