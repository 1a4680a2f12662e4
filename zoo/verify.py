"""Whether the files of a model are what they were: offline, against every record there is.

``zoo.json`` in the folder · ``trees/<commit>.json`` of the Hub's cache · a pin from the catalog
"""

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_cache_path

from zoo.card import Card, read_card
from zoo.entry import Signer
from zoo.errors import DiskError, IntegrityError, UsageError
from zoo.files import atomic_json, safe_join, sha256_of
from zoo.hubcache import repository_at
from zoo.signing import NOT_JUDGED, SIGNATURE, Signature, check_signature, files_of
from zoo.tree import Entry, Listing, is_commit, read_tree

WEIGHTS, CONFIG, RECORD = "model.safetensors", "config.json", "zoo.json"
LOCAL_TREES = Path(".cache") / "huggingface" / "trees"
"""Where a copy outside the cache keeps its listing, as the Hub client does."""

_BLOCK = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Verified:
    """What was checked, all of it found right."""

    folder: Path
    files: tuple[str, ...]
    size: int
    """Of these files, in bytes."""
    against: tuple[str, ...]
    """The records that were asked."""
    absent: tuple[str, ...] = ()
    """In the repository, and not fetched."""
    signature: Signature | None = None
    """As it was judged; null where no signer is known for the model."""
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, object]:
        return {
            "folder": str(self.folder),
            "files": list(self.files),
            "bytes": self.size,
            "against": list(self.against),
            "absent": list(self.absent),
            "signature": self.signature.as_dict() if self.signature else None,
            "notes": list(self.notes),
        }

    def text(self) -> str:
        lines = [
            f"{len(self.files)} files are what they were: {', '.join(self.files)}",
            f"checked:  {self.size:,} bytes against {' and '.join(self.against)}",
            f"folder:   {self.folder}",
        ]
        if self.absent:
            lines.append(f"not here: {', '.join(self.absent)}")
        if self.signature:
            lines.append(f"signed:   by {self.signature.text()}")
        return "\n".join([*lines, *(f"note:     {note}" for note in self.notes)])


def verify(folder: Path, *, quick: bool = True) -> Card | None:
    """Check every file against ``zoo.json``; None where there is no such record.

    quick: a file that was hashed before and has kept its size, time and inode is not hashed again.
    Raises IntegrityError that names every differing file.
    """
    if not (folder / RECORD).exists():
        return None
    card = read_card(folder / RECORD)
    differing = []
    for name, record in card.files.items():
        path = safe_join(folder, name, follow_links=True)  # the Hub's cache is made of links
        if not path.exists():
            differing.append(f"{name} is missing")
        elif path.stat().st_size != record.size:
            differing.append(f"{name} has {path.stat().st_size:,} bytes, not {record.size:,}")
        elif (remembered_sha256 if quick else sha256_of)(path) != record.sha256:
            differing.append(f"{name} has other bytes than when it was made")
    if differing:
        raise _differ(folder, "its record says", differing)
    return card


def verify_folder(
    folder: Path,
    *,
    pins: Mapping[str, str] | None = None,
    signer: Signer | None = None,
    quick: bool = False,
) -> Verified:
    """Check a model folder, in the Hub's cache or anywhere, against every record there is.

    pins: file name to sha256, from a catalog.  signer: who must have signed all the files.  quick:
    believe earlier hashing where size, time and inode are the same.  Raises IntegrityError that
    names every differing file, and UsageError where there is nothing to check against, or a
    signature and not the extra ``sign``.
    """
    expected, against, listing = _witnesses(folder, pins)
    if not expected and signer is None:
        raise UsageError(
            "there is nothing to check this folder against",
            where=f"{folder}: no {RECORD}, no listing of a pull, no pin in the catalog",
            fix="pull the model again, or compare its sha256 with what the publisher states",
        )
    strangers = _strangers(folder, listing) if listing else []
    differing = [f"{name} is not in the listing" for name in strangers]
    size = 0
    for name, witnesses in sorted(expected.items()):
        path = safe_join(folder, name, follow_links=True)
        if not path.is_file():
            differing.append(f"{name} is missing")
        elif fault := _fault(path, witnesses, quick=quick):
            differing.append(f"{name} {fault}")
        else:
            size += path.stat().st_size
    if differing:
        raise _differ(folder, f"{' and '.join(against)} say{'s' * (len(against) == 1)}", differing)
    signature = _judge(folder, signer, expected, quick=quick) if signer else None
    covered = set(signature.files if signature else ())
    size += sum((folder / name).stat().st_size for name in covered - expected.keys())
    not_judged = signer is None and (folder / SIGNATURE).is_file()
    return Verified(
        folder=folder,
        files=tuple(sorted(covered | expected.keys())),
        size=size,
        against=(*against, SIGNATURE) if signature else tuple(against),
        absent=tuple(sorted(set(listing or ()) - set(expected))),
        signature=signature,
        notes=(NOT_JUDGED,) if not_judged else (),
    )


def _judge(
    folder: Path, signer: Signer, expected: Mapping[str, list[Entry | str]], *, quick: bool
) -> Signature:
    """Whether the signer has signed the files of a folder, which are what was expected of them."""
    digests = {
        name: _sha256(path, expected.get(name, []), quick=quick)
        for name, path in files_of(folder).items()
    }
    signature = check_signature(digests, folder / SIGNATURE, signer, where=str(folder))
    require_own_record(folder / RECORD, repository_at(folder))
    return signature


def require_own_record(record: Path, repository: str | None) -> None:
    """Raise IntegrityError where a signed record says that it was published as another repository.

    Without it a signature would hold for every model that its signer ever signed.
    """
    published = read_card(record).repository if record.is_file() else None
    if published and repository and published != repository:
        raise IntegrityError(
            f"these files were signed as {published}, and stand in the place of {repository}",
            where=f"{record}: repository",
            fix="do not use this source; report it to whoever publishes it",
        )


def _witnesses(
    folder: Path, pins: Mapping[str, str] | None
) -> tuple[dict[str, list[Entry | str]], list[str], Listing | None]:
    """What is known of each file, by whom, and the listing if there is one."""
    expected: dict[str, list[Entry | str]] = {}
    against = []
    listing, commit = _listing_of(folder)
    if (folder / RECORD).is_file():
        against.append(RECORD)
        for name, record in read_card(folder / RECORD).files.items():
            expected.setdefault(name, []).append(record.sha256)
    if listing is not None:
        against.append(f"the Hub's listing of commit {commit[:12]}")
        for name in listing:
            if (folder / name).exists() or name in {CONFIG, WEIGHTS, RECORD}:
                expected.setdefault(name, []).append(listing[name])
    if pins:
        against.append("the catalog's pin")
        for name, sha256 in pins.items():
            expected.setdefault(name, []).append(sha256)
    return expected, against, listing


def matches(path: Path, entry: Entry, *, quick: bool = True) -> bool:
    """Whether a file holds the bytes that the Hub lists for it."""
    return path.is_file() and _fault(path, [entry], quick=quick) is None


def remembered_sha256(path: Path) -> str:
    """sha256 of a file, from memory where size, time and inode are those of the last hashing."""
    memory, seen = _memory_of(path)
    try:
        remembered = json.loads(memory.read_bytes())
        if remembered["seen"] == seen:
            return remembered["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # never hashed, or a memory that cannot be read: hash
    digest = sha256_of(path)
    if path.stat().st_mtime_ns == seen[1]:
        remember_sha256(path, digest)
    return digest


def remember_sha256(path: Path, sha256: str) -> None:
    """Note what was just hashed; where the home is full or read-only, it is hashed again."""
    memory, seen = _memory_of(path)
    with contextlib.suppress(DiskError):
        atomic_json(memory, {"path": str(path), "seen": seen, "sha256": sha256})


def _memory_of(path: Path) -> tuple[Path, list[int]]:
    stat = path.stat()
    key = hashlib.sha256(str(path.resolve()).encode()).hexdigest()
    memory = user_cache_path("tinyzoo") / "digests" / f"{key}.json"
    return memory, [stat.st_size, stat.st_mtime_ns, stat.st_ino]


def _fault(path: Path, witnesses: list[Entry | str], *, quick: bool) -> str | None:
    """What is wrong with a file by any of its witnesses: listed entries, or sha256 digests."""
    size = path.stat().st_size
    entries = [witness for witness in witnesses if isinstance(witness, Entry)]
    for entry in entries:
        if entry.size != size:
            return f"has {size:,} bytes, not {entry.size:,}"
    sha256s = {witness for witness in witnesses if isinstance(witness, str)}
    sha256s |= {digest for e in entries for digest in (e.lfs_sha256, e.sha256) if digest}
    sha1s = {entry.git_sha1 for entry in entries if entry.git_sha1}
    if sha1s:  # of small files: read again, remembered or not
        found256, found1 = _both_digests(path, size)
    else:
        found256, found1 = (remembered_sha256 if quick else sha256_of)(path), ""
    if sha256s - {found256} or (sha1s and sha1s != {found1}):
        return "has other bytes than when it was made"
    return None


def _sha256(path: Path, witnesses: list[Entry | str], *, quick: bool) -> str:
    """Of a file that was found to be what its witnesses say; hashed again where none says it."""
    known = {w if isinstance(w, str) else w.lfs_sha256 or w.sha256 for w in witnesses}
    digest = next(filter(None, known), None)
    return digest or (remembered_sha256 if quick else sha256_of)(path)


def _both_digests(path: Path, size: int) -> tuple[str, str]:
    sha256, sha1 = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            sha256.update(block)
            sha1.update(block)
    return sha256.hexdigest(), sha1.hexdigest()


def _listing_of(folder: Path) -> tuple[Listing | None, str]:
    """The listing that stands for a folder, and its commit."""
    commit = folder.name
    if is_commit(commit) and folder.parent.name == "snapshots":
        return read_tree(folder.parent.parent / "trees" / f"{commit}.json"), commit
    trees = sorted((folder / LOCAL_TREES).glob("*.json"))
    if len(trees) == 1 and is_commit(trees[0].stem):
        return read_tree(trees[0]), trees[0].stem
    return None, ""


def _strangers(folder: Path, listing: Listing) -> list[str]:
    found = (path for path in folder.rglob("*") if path.is_file() or path.is_symlink())
    names = (path.relative_to(folder).as_posix() for path in found)
    own = LOCAL_TREES.parent.as_posix() + "/"
    known = {*listing, SIGNATURE}  # whoever has a copy may sign it
    return sorted(name for name in names if name not in known and not name.startswith(own))


def _differ(folder: Path, says: str, differing: list[str]) -> IntegrityError:
    return IntegrityError(
        f"the model folder is not what {says}",
        where=f"{folder}: " + "; ".join(differing),
        fix="export or fetch the model again",
    )
