"""Is it what the benchmark must hold?  Asked before the first forward pass."""

import os
from dataclasses import replace

import numpy as np

from eval.classes import VAL_IMAGES, class_of, synsets
from eval.layouts.evalset import EvalSet, Group
from eval.layouts.expected import Expected, reassessed
from eval.layouts.flat import synset_in_name
from eval.layouts.labelled import Labelled
from eval.layouts.listing import counted, each, first_ten, val_numbers
from zoo.errors import DataError

_OF_VAL = ("in1k-val", "in1k-c")
_FEWEST_JUDGED = 20
_LEAST_AGREEMENT = 0.5
# The original labels agree with nine in ten of the reassessed ones, labels in a wrong order with
# one in a thousand.
_AS_PUBLISHED = "give the set as it was published"
_COMPLETE_IT = "complete it, or repeat with --partial: the result will say so"


def checked(found: Labelled, benchmark: str, due: Expected | None, *, partial: bool) -> EvalSet:
    """The set, if it is what it is said to be.  Raises DataError that names what differs."""
    groups = found.groups or (Group("clean", 0, 0, len(found.labels)),)
    shortfall = ""
    if due is not None:
        _require_known(found, due, benchmark)
        counts = _counts(found, groups)
        _require_no_more(counts, groups, found, due, benchmark)
        _require_plausible(found, benchmark)
        shortfall = _shortfall(counts, groups, found, due, benchmark, partial=partial)
    return EvalSet(
        benchmark=benchmark,
        name=f"{benchmark} (partial: {shortfall})" if shortfall else benchmark,
        complete=not shortfall,
        labels=found.labels,
        classes=found.classes,
        fingerprint=found.listing.fingerprint,
        groups=groups,
        listing=replace(found.listing, targets=None),  # and without what it remembers
    )


def _counts(found: Labelled, groups: tuple[Group, ...]) -> np.ndarray:
    """(groups, 1000) int64, the images of each class."""
    return np.stack(
        [np.bincount(found.labels[g.start : g.stop], minlength=len(synsets())) for g in groups]
    )


def _require_known(found: Labelled, due: Expected, benchmark: str) -> None:
    extra = {synsets()[label] for label in np.unique(found.labels)} - set(due.synsets)
    if extra:
        raise DataError(
            f"{counted(len(extra), 'class', 'classes')} that {benchmark} does not have: "
            f"{first_ten(sorted(extra))}",
            where=str(found.listing.place),
            fix=f"give the folder of {benchmark} itself",
        )


def _require_no_more(
    counts: np.ndarray,
    groups: tuple[Group, ...],
    found: Labelled,
    due: Expected,
    benchmark: str,
) -> None:
    """A set with images too many is another one, partial or not."""
    for group, row in zip(groups, counts, strict=True):
        total = int(row.sum())
        over = np.flatnonzero(row > due.per_class) if due.per_class else ()
        if total <= due.images and not len(over):
            continue
        what = f"{total:,} images where {benchmark} has {due.images:,}"
        if total <= due.images:
            many = first_ten(f"{synsets()[c]} ({row[c]})" for c in over)
            what = f"classes with more than the {due.per_class} images of {benchmark}: {many}"
        raise DataError(what, where=_place(found, group), fix=_AS_PUBLISHED)


def _shortfall(
    counts: np.ndarray,
    groups: tuple[Group, ...],
    found: Labelled,
    due: Expected,
    benchmark: str,
    *,
    partial: bool,
) -> str:
    """What of the benchmark is there, in words, where something is missing; else empty.

    Raises DataError unless ``partial``.
    """
    pairs = {(g.type, g.severity) for g in groups}
    absent = [f"{kind}/{level}" for kind, level in due.groups if (kind, level) not in pairs]
    due_labels = [class_of()[name] for name in due.synsets]
    short = _first_short(counts[:, due_labels], groups, found, due)
    if not absent and not short:
        return ""
    if not partial:
        what, where = short or (
            f"{len(due.groups) - len(absent)} of the {len(due.groups)} types and severities of "
            f"{benchmark} are there",
            f"{found.listing.place}: missing: {first_ten(absent)}",
        )
        raise DataError(what, where=where, fix=_COMPLETE_IT)
    ours = [i for i, g in enumerate(groups) if (g.type, g.severity) in set(due.groups)]
    images, seen = int(counts[ours].sum()), int((counts[ours].sum(axis=0) > 0).sum())
    parts = [
        f"{images:,} of {due.images * len(due.groups):,} images",
        f"{seen:,} of {len(due.synsets):,} classes",
    ]
    if len(due.groups) > 1:
        parts.append(f"{len(ours)} of {len(due.groups)} types and severities")
    return ", ".join(parts)


def _first_short(
    counts: np.ndarray, groups: tuple[Group, ...], found: Labelled, due: Expected
) -> tuple[str, str] | None:
    """What and where, of the first group with missing classes or images.

    counts: (groups, classes due).
    """
    for group, row in zip(groups, counts, strict=True):
        place = _place(found, group)
        missing = [due.synsets[c] for c in np.flatnonzero(row == 0)]
        if missing:
            empty = [name for name in found.empty if name.rpartition("/")[2] in set(missing)]
            kind = "empty" if empty else "missing"
            there = f"{len(due.synsets) - len(missing):,} of the {len(due.synsets):,} classes"
            return f"{there} have images", f"{place}: {kind}: {first_ten(empty or missing)}"
        few = [] if due.per_class is None else np.flatnonzero(row < due.per_class)
        if len(few):
            named = first_ten(f"{due.synsets[c]} ({row[c]})" for c in few)
            what = f"{int(row.sum()):,} images of {due.images:,}"
            return what, f"{place}: fewer than {due.per_class}: {named}"
        if row.sum() < due.images and row.sum() != due.or_images:
            return f"{int(row.sum()):,} images of {due.images:,}", place
    return None


def _place(found: Labelled, group: Group) -> str:
    place = str(found.listing.place)
    return f"{place}: {group.type}/{group.severity}" if group.severity else place


def _require_plausible(found: Labelled, benchmark: str) -> None:
    """Do the labels fit what file names and the reassessed labels say?  Raises DataError."""
    listing = found.listing
    synset_of = synsets()
    wrong = []
    for i, (name, label) in enumerate(zip(each(listing.names), found.labels.tolist(), strict=True)):
        synset = synset_in_name(name)
        if synset in class_of() and synset != synset_of[label]:
            wrong.append(f"{os.fsdecode(listing.relative(i))} as {synset_of[label]}")
    if wrong:
        raise DataError(
            f"{counted(len(wrong), 'image')} whose name says another class: {first_ten(wrong)}",
            where=str(listing.place),
            fix="sort the images into their class folders anew",
        )
    numbers = val_numbers(listing)
    if numbers.any() and benchmark not in _OF_VAL:
        raise DataError(
            f"these are ImageNet's own validation images, not {benchmark}: "
            f"{first_ten(sorted(f'ILSVRC2012_val_{n:08}' for n in numbers[numbers > 0].tolist()))}",
            where=str(listing.place),
            fix=f"give the folder of {benchmark} itself",
        )
    if (numbers > VAL_IMAGES).any():
        raise DataError(
            f"an ILSVRC2012_val number over {VAL_IMAGES:,}: {int(numbers.max())}",
            where=str(listing.place),
            fix=_AS_PUBLISHED,
        )
    _require_each_once(found, numbers)
    _require_agreement(found, numbers)


def _require_each_once(found: Labelled, numbers: np.ndarray) -> None:
    for group in found.groups or (Group("clean", 0, 0, len(numbers)),):
        some = numbers[group.start : group.stop]
        twice = np.flatnonzero(np.bincount(some[some > 0], minlength=1) > 1)
        if len(twice):
            named = first_ten(f"ILSVRC2012_val_{n:08}" for n in twice)
            raise DataError(
                f"the same image more than once: {named}",
                where=_place(found, group),
                fix="remove the copies",
            )


def _require_agreement(found: Labelled, numbers: np.ndarray) -> None:
    """Labels in the order of another list give plausible counts, and one point in a thousand."""
    known, pairs = reassessed()
    judged = (numbers > 0) & known[numbers]
    codes = numbers[judged] * len(synsets()) + found.labels[judged]
    if len(codes) < _FEWEST_JUDGED:
        return
    at = np.minimum(np.searchsorted(pairs, codes), len(pairs) - 1)
    agreement = float((pairs[at] == codes).mean())
    if agreement < _LEAST_AGREEMENT:
        raise DataError(
            f"the classes are permuted: {agreement:.1%} of {counted(len(codes), 'label')} agree "
            "with the reassessed labels of these images (ReaL), and nine in ten should",
            where=str(found.listing.place),
            fix="check the map of classes, or sort the images into class folders anew",
        )
