"""What a repository on the Hub says it holds, and which of it a pull fetches.

Everything here came from outside: names, sizes and digests are checked before any becomes a path.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, TypeGuard

from zoo.errors import IntegrityError
from zoo.files import safe_join

TREE_FORMAT = 1
"""Of ``trees/<commit>.json``, as the Hub client writes it."""
MOST_ENTRIES, MOST_FETCHED = 20_000, 100
FETCHED_SUFFIXES = {".safetensors", ".json", ".md", ".txt", ".png", ".svg", ".sig"}
FETCHED_NAMES = {"LICENSE", "NOTICE", ".gitattributes"}  # the last: the client counts it as missing

_SHA1, _SHA256 = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One file of a repository at one commit."""

    name: str
    size: int
    """In bytes."""
    blob_id: str
    """git's sha1 of the file, or of the pointer that stands for it."""
    lfs_sha256: str | None = None
    """Of files that git does not store itself."""
    xet_hash: str | None = None
    sha256: str | None = None
    """What the bytes must be by another witness: a pin, or the model's own record."""

    @property
    def etag(self) -> str:
        """The blob's name in the cache."""
        return self.lfs_sha256 or self.blob_id

    @property
    def git_sha1(self) -> str | None:
        """What git says of the bytes themselves."""
        return None if self.lfs_sha256 else self.blob_id

    def as_tree(self) -> dict[str, Any]:
        """As the Hub client writes it into ``trees/``."""
        info: dict[str, Any] = {"size": self.size, "blob_id": self.blob_id}
        if self.lfs_sha256:
            info |= {"lfs_sha256": self.lfs_sha256, "lfs_size": self.size}
        if self.xet_hash:
            info["xet_hash"] = self.xet_hash
        return info


Listing = dict[str, Entry]


def is_commit(text: object) -> bool:
    """Whether this is a full commit id: 40 hex digits."""
    return isinstance(text, str) and bool(_SHA1.fullmatch(text))


def is_sha256(text: object) -> TypeGuard[str]:
    """Whether this is a sha256: 64 hex digits."""
    return isinstance(text, str) and bool(_SHA256.fullmatch(text))


def is_fetched(name: str) -> bool:
    """Whether a file of this name is data that a pull fetches, and no program or pickle."""
    path = PurePosixPath(name)
    return path.suffix in FETCHED_SUFFIXES or path.name in FETCHED_NAMES


def listing_from_api(answers: Iterable[Any], where: str) -> Listing:
    """The files in the Hub's answer to ``/tree``.  Raises IntegrityError."""
    entries = []
    for item in answers:
        if not isinstance(item, dict) or item.get("type") not in {"file", "directory"}:
            raise _refused("something that is neither a file nor a folder", where)
        if item["type"] == "file":
            lfs = item.get("lfs") or {}
            entries.append(
                _entry(
                    item.get("path"),
                    {
                        "size": item.get("size"),
                        "blob_id": item.get("oid"),
                        "lfs_sha256": lfs.get("oid") if isinstance(lfs, dict) else lfs,
                        "lfs_size": lfs.get("size") if isinstance(lfs, dict) else lfs,
                        "xet_hash": item.get("xetHash"),
                    },
                    where,
                )
            )
    return _checked(entries, where)


def read_tree(path: Path) -> Listing | None:
    """The listing that the client, or a pull, left in ``trees/``; None where there is no good one.

    Other formats and damaged files count as none: the Hub can be asked again.
    """
    try:
        data = json.loads(path.read_bytes())
        if data["format_version"] != TREE_FORMAT:
            return None
        return _checked([_entry(n, info, str(path)) for n, info in data["files"].items()], path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IntegrityError):
        return None


def tree_json(listing: Listing) -> str:
    """The text of ``trees/<commit>.json``."""
    files = {name: listing[name].as_tree() for name in sorted(listing)}
    return json.dumps({"format_version": TREE_FORMAT, "files": files}, indent=1)


def with_witness(listing: Listing, sha256s: Mapping[str, str], where: str) -> Listing:
    """The listing with what a pin or a record says of its files.

    Raises IntegrityError where they disagree, naming every file: nothing needs to be fetched to
    know that.
    """
    differing, updated = [], dict(listing)
    for name, sha256 in sha256s.items():
        entry = listing.get(name)
        if entry is None:
            differing.append(f"{name} is missing")
        elif sha256 not in {entry.lfs_sha256 or sha256} & {entry.sha256 or sha256}:
            differing.append(f"{name} has other bytes than when it was made")
        else:
            updated[name] = replace(entry, sha256=sha256)
    if differing:
        raise IntegrityError(
            "the Hub does not offer what this model is known to be",
            where=f"{where}: " + "; ".join(differing),
            fix="do not use this source; report it to whoever publishes it",
        )
    return updated


def _entry(name: object, info: Mapping[str, Any], where: str) -> Entry:
    size, blob_id = info.get("size"), info.get("blob_id")
    sha256, xet_hash = info.get("lfs_sha256"), info.get("xet_hash")
    good = (
        isinstance(name, str)
        and isinstance(size, int)
        and not isinstance(size, bool)
        and size >= 0
        and is_commit(blob_id)
        and (sha256 is None or is_sha256(sha256))
        and (sha256 is None or info.get("lfs_size", size) == size)
    )
    if not good:
        raise _refused(f"a file with a bad size or digest: {name!r:.80}", where)
    if not is_sha256(xet_hash):
        xet_hash = None  # only a hint for another way of fetching
    return Entry(
        name=str(name),
        size=int(size or 0),
        blob_id=str(blob_id),
        lfs_sha256=sha256,
        xet_hash=xet_hash,
    )


def _checked(entries: list[Entry], where: str | Path) -> Listing:
    root = Path("/listing")  # names are judged without touching the disk
    for entry in entries:
        safe_join(root, entry.name)
    listing = {entry.name: entry for entry in entries}
    folders = {str(parent) for name in listing for parent in PurePosixPath(name).parents}
    if len(listing) != len(entries) or folders & listing.keys() or len(entries) > MOST_ENTRIES:
        raise _refused("the same name twice, or too many names", where)
    return listing


def _refused(what: str, where: str | Path) -> IntegrityError:
    return IntegrityError(
        f"refused a listing of files that holds {what}",
        where=str(where),
        fix="do not use this source; report it to whoever publishes it",
    )
