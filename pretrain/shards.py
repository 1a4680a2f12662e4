"""Which tar shards a source names, what is known of them, and that they are what they were.

Beside shards may lie ``_info.json``, as timm reads it and ``zoo data pack`` writes it: how many
samples each shard holds, and so how long an epoch is; the sizes and the names of the classes, where
our own verb wrote it.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

from braceexpand import braceexpand
from pydantic import ConfigDict, TypeAdapter, ValidationError

from pretrain.remote import filesystem, opened, patiently, protocol_of, require_safe, require_size
from pretrain.tars import Sample, samples
from zoo.errors import DataError, UsageError
from zoo.files import typed_path

INFO = "_info.json"
MOST_SHARDS = 100_000
_MOST_INFO_BYTES = 64 << 20
_MOST_LABEL_BYTES = 64
_MAGIC = "*?["
_ASK_AT_ONCE = 16

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """One tar file."""

    place: str
    """An absolute path, or an address."""
    size: int
    """Bytes."""
    count: int | None = None
    """Samples, where an index tells."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardSet:
    """Shards to be streamed, sorted by name."""

    shards: tuple[Shard, ...]
    classes: tuple[str, ...]
    """Names by label; empty where nothing tells."""
    labelled: bool
    """Whether samples carry a class."""
    fingerprint: str
    """Hex sha256 over names, sizes and numbers of samples: the same wherever the shards lie."""

    @property
    def samples(self) -> int | None:
        """In all shards; None where a shard's number is not known."""
        counts = [shard.count for shard in self.shards]
        return None if None in counts else sum(count or 0 for count in counts)

    def label_of(self, text: bytes) -> int | None:
        """The class that a ``.cls`` member names, by number or name; None for what names none."""
        word = text.strip()
        if word.isdigit():
            number = int(word)
            return number if number < (len(self.classes) or 2**31) else None
        name = os.fsdecode(word)
        return self.classes.index(name) if name in self.classes else None


@dataclass(frozen=True, kw_only=True)
class SplitInfo:
    """A split of ``_info.json``; other fields of it are passed over."""

    filenames: list[str]
    shard_lengths: list[int]
    shard_bytes: list[int] | None = None


@dataclass(frozen=True, kw_only=True)
class Info:
    """``_info.json``."""

    __pydantic_config__ = ConfigDict(strict=True)

    splits: dict[str, SplitInfo]
    classes: list[str] = field(default_factory=list)


def open_shards(spec: str) -> ShardSet:
    """The shards that ``wds:SPEC`` names, each asked for; the first one is looked into.

    spec: a tar file, a folder of them, or a pattern with braces or globs; here, or at an address.
    Raises UsageError, DataError, IntegrityError, NetworkError.
    """
    found, folder = _find(spec)
    if not found:
        raise DataError(
            "no tar file is there" if folder else "no file is of this name",
            where=spec,
            fix="check data.source: a .tar file, a folder of them, or names as in {000..127}.tar",
        )
    top = _common(list(found))
    info = _read_info(top)
    shards = _known(found, info, top, whole=folder) if info else _unknown(found)
    # C order, by the names' bytes, whatever the machine's language.
    shards.sort(key=lambda shard: os.fsencode(shard.place))
    classes = tuple(info.classes) if info else ()
    first = ShardSet(shards=tuple(shards), classes=classes, labelled=True, fingerprint="")
    return ShardSet(
        shards=first.shards,
        classes=classes,
        labelled=_has_labels(first),
        fingerprint=_fingerprint(shards, top),
    )


def _find(spec: str) -> tuple[dict[str, int], bool]:
    """Places and sizes in bytes of what a source names, and whether it named a whole folder."""
    require_safe(spec)
    if protocol_of(spec) == "file":
        local = typed_path(spec.removeprefix("file://")).absolute()
        if local.is_dir():
            return _in_folder(str(local)), True
        spec = str(local)
        if local.is_file():
            return {spec: local.stat().st_size}, False
    elif protocol_of(spec) in {"http", "https"}:
        return _over_http(spec)
    elif not spec.endswith(".tar"):
        source = filesystem(spec)
        if not any(c in spec for c in "{" + _MAGIC) and patiently(
            lambda: source.isdir(spec), lambda: spec
        ):
            return _in_folder(spec), True
    sizes: dict[str, int] = {}
    exact: list[str] = []
    for pattern in _expand(spec):
        if any(c in pattern for c in _MAGIC):
            sizes |= _listed(pattern, lambda source, p=pattern: source.glob(p, detail=True))
        else:
            exact.append(pattern)
    return sizes | _asked(exact), False


def _over_http(spec: str) -> tuple[dict[str, int], bool]:
    """HTTP lists no folders: names come from braces, or from the folder's index."""
    if "*" in spec or "[" in spec:
        raise UsageError(
            "https: has no list of files to look for names in",
            where=f"data.source=wds:{spec}",
            fix="name the shards: …/{000..127}.tar; or give a folder with _info.json, ending in /",
        )
    if not spec.endswith("/"):
        return _asked(_expand(spec)), False
    info = _read_info(spec)
    if info is None:
        raise DataError(
            f"there is no {INFO}, and https: has no list of files",
            where=spec,
            fix="name the shards: …/{000..127}.tar",
        )
    return _asked([spec + name for name in _only_split(info, spec).filenames]), True


def _expand(spec: str) -> list[str]:
    try:
        names = list(dict.fromkeys(islice(braceexpand(spec), MOST_SHARDS + 1)))
    except ValueError as error:
        raise UsageError(
            "a brace that is not closed", where=f"data.source=wds:{spec}", fix="close it"
        ) from error
    if len(names) > MOST_SHARDS:
        raise UsageError(
            f"the braces name more than {MOST_SHARDS:,} shards",
            where=f"data.source=wds:{spec}",
            fix="name fewer",
        )
    return names


def _in_folder(folder: str) -> dict[str, int]:
    listed = _listed(folder, lambda source: {e["name"]: e for e in source.ls(folder, detail=True)})
    return {place: size for place, size in listed.items() if place.endswith(".tar")}


def _listed(place: str, ask: Callable[[Any], dict[str, dict[str, Any]]]) -> dict[str, int]:
    """Files and their sizes, by whole addresses: file systems leave the protocol out."""
    source, prefix = filesystem(place), ""
    if protocol_of(place) != "file":
        prefix = place.partition("://")[0] + "://"
    found = patiently(lambda: ask(source), lambda: place)
    return {prefix + name: e["size"] for name, e in found.items() if e["type"] == "file"}


def _asked(places: Sequence[str]) -> dict[str, int]:
    """Sizes of files, several asked for at a time."""

    def ask(place: str) -> int:
        source = filesystem(place)
        facts = patiently(lambda: source.info(place), lambda: place)
        if facts.get("size") is None:
            raise UsageError(
                "the server does not say how large the shard is",
                where=place,
                fix="copy the shards to a disk, or use a server that does",
            )
        return facts["size"]

    return dict(zip(places, _at_once(ask, places), strict=True))


def _at_once(ask: Callable[[str], T], places: Sequence[str]) -> list[T]:
    with ThreadPoolExecutor(_ASK_AT_ONCE) as threads:
        return list(threads.map(ask, places))


def _common(places: Sequence[str]) -> str:
    """The folder that all lie in, ending in a slash."""
    common = os.path.commonpath([place.rpartition("/")[0] for place in places])
    if protocol_of(places[0]) != "file":
        common = common.replace(":/", "://", 1)
    return common.rstrip("/") + "/"


def _read_info(top: str) -> Info | None:
    """What ``_info.json`` in a folder says; None where there is none.  Raises DataError."""
    place = top + INFO

    def read() -> bytes:
        with filesystem(place).open(place, "rb") as file:
            return file.read(_MOST_INFO_BYTES)

    try:
        data = patiently(read, lambda: place)
    except (DataError, UsageError):  # S3 says "not allowed" of what is not there
        return None
    try:
        info = TypeAdapter(Info).validate_json(data)
        if any(len(s.filenames) != len(s.shard_lengths) for s in info.splits.values()):
            raise ValueError("names and lengths are not of one number")
        if any(not _plain(name) for s in info.splits.values() for name in s.filenames):
            raise ValueError("a name leads out of the folder")
    except ValueError as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise DataError(
            f"not an index of shards: {reason}",
            where=place,
            fix="remove it (then data.source needs training.steps), or make the shards anew",
        ) from error
    return info


def _plain(name: str) -> bool:
    parts = name.split("/")
    return not {"", ".", ".."} & {*parts} and not any(c in name for c in "\\:?#%")


def _only_split(info: Info, where: str) -> SplitInfo:
    if len(info.splits) != 1:
        raise UsageError(
            f"the folder holds {len(info.splits)} splits: {', '.join(sorted(info.splits))}",
            where=where,
            fix="name the shards of one: …/train-*.tar, or …/train-{0000..1023}.tar",
        )
    return next(iter(info.splits.values()))


def _unknown(found: dict[str, int]) -> list[Shard]:
    return [Shard(place=place, size=size) for place, size in found.items()]


def _known(found: dict[str, int], info: Info, top: str, *, whole: bool) -> list[Shard]:
    """The shards with their numbers of samples.  Raises DataError where set and index differ."""
    splits = [_only_split(info, top)] if whole else list(info.splits.values())
    counts: dict[str, tuple[int, int | None]] = {}
    for split in splits:
        sizes = split.shard_bytes or [None] * len(split.filenames)
        counts |= {
            name: (count, size)
            for name, count, size in zip(split.filenames, split.shard_lengths, sizes, strict=True)
        }
    names = {place.removeprefix(top): place for place in found}
    odd = sorted(names.keys() - counts) + (sorted(counts.keys() - names) if whole else [])
    if odd:
        raise DataError(
            f"{len(odd)} shards are in the folder or in its index, not in both",
            where=f"{top}: {', '.join(odd[:10])}" + ", …" * (len(odd) > 10),
            fix="fetch the set again, or make it anew",
        )
    for name, place in names.items():
        if counts[name][1] is not None:
            require_size(found[place], counts[name][1] or 0, place)
    return [
        Shard(place=place, size=found[place], count=counts[name][0])
        for name, place in names.items()
    ]


def _fingerprint(shards: Sequence[Shard], top: str) -> str:
    digest = hashlib.sha256()
    for shard in shards:
        name = os.fsencode(shard.place.removeprefix(top))
        digest.update(
            b"%s\0%d\0%d\n" % (name, shard.size, -1 if shard.count is None else shard.count)
        )
    return digest.hexdigest()


def _has_labels(found: ShardSet) -> bool:
    """Whether the very first sample carries a class."""
    shard = found.shards[0]
    with opened(shard.place, shard.size) as file:
        first = next(samples(file, shard.place), None)
        if first is None:
            raise no_images(shard)
        if first.label is None:
            return False
        text = read_label(file, first, shard)
        if found.label_of(text) is None and (found.classes or text.strip().isdigit()):
            raise no_class(text, f"{shard.place}: {first.image.name}")
        return found.label_of(text) is not None


def read_label(file: Any, sample: Sample, shard: Shard) -> bytes:
    """The content of a ``.cls`` member.  Raises DataError for one that is no class."""
    assert sample.label is not None
    if sample.label.size > _MOST_LABEL_BYTES:
        raise DataError(
            f"a .cls file of {sample.label.size:,} bytes holds no class",
            where=f"{shard.place}: {sample.label.name}",
            fix="it should hold the class number, in digits",
        )
    file.seek(sample.label.offset)
    return file.read(sample.label.size)


def no_class(text: bytes | None, where: str) -> DataError:
    """text: of the ``.cls`` member; None where there is none."""
    return DataError(
        "no .cls file says the image's class"
        if text is None
        else f"no class is called {text[:40]!r}",
        where=where,
        fix="make the shards anew: every sample of them carries a class, or none does",
    )


def no_images(shard: Shard) -> DataError:
    return DataError(
        "the shard holds no image",
        where=shard.place,
        fix="a shard holds key.jpg (.jpeg, .png, .webp), and key.cls where there are classes; "
        "leave this one out",
    )
