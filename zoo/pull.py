"""``zoo pull``: a model from the Hub into the standard cache, every byte checked, resumed if cut.

Metadata first; then each missing file into a partial file of its own, hashed as it arrives; then,
all of them right, links under their names.  At no moment does a snapshot show a wrong byte.
"""

import contextlib
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from huggingface_hub import constants
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from zoo.card import read_card
from zoo.entry import Signer
from zoo.errors import IntegrityError, NetworkError, UsageError
from zoo.fetch import Fetcher, ask_commit, ask_listing, progress_bar
from zoo.files import atomic_folder, disk_errors, require_space, safe_join
from zoo.hubcache import RepositoryCache
from zoo.signing import (
    MOST_BYTES,
    NOT_JUDGED,
    SIGNATURE,
    Signature,
    check_signature,
    missing_signature,
    require_signing,
)
from zoo.tree import (
    MOST_FETCHED,
    Entry,
    Listing,
    is_commit,
    is_fetched,
    tree_json,
    with_witness,
)
from zoo.verify import (
    CONFIG,
    LOCAL_TREES,
    RECORD,
    WEIGHTS,
    matches,
    remembered_sha256,
    require_own_record,
    verify_folder,
)
from zoo.wire import Patience, Wire

_REVISION = re.compile(r"[A-Za-z0-9][\w.+-]*(/[\w.+-]+)*", re.ASCII)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pulled:
    """What a pull did."""

    source: str
    commit: str
    folder: Path
    """A snapshot in the cache, or the copy that was asked for."""
    fetched: tuple[str, ...] = ()
    present: tuple[str, ...] = ()
    """Were here and right."""
    refused: tuple[str, ...] = ()
    """In the repository, and no type of file that a model needs: not fetched."""
    received: int = 0
    """Bytes over the network."""
    signature: Signature | None = None
    """As it was judged; null where no signer is known for the model."""
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return {
            "model": self.source,
            "commit": self.commit,
            "folder": str(self.folder),
            "fetched": list(self.fetched),
            "present": list(self.present),
            "not_fetched": list(self.refused),
            "received_bytes": self.received,
            "signature": self.signature.as_dict() if self.signature else None,
            "notes": list(self.notes),
        }

    def text(self) -> str:
        lines = [f"folder:      {self.folder}", f"commit:      {self.commit}"]
        if self.fetched:
            lines.append(f"fetched:     {', '.join(self.fetched)} ({self.received:,} bytes)")
        if self.present:
            lines.append(f"here before: {', '.join(self.present)}")
        if self.refused:
            lines.append(f"not fetched: {', '.join(self.refused)} (not a file type of models)")
        if self.signature:
            lines.append(f"signed by:   {self.signature.text()}")
        return "\n".join([*lines, *(f"note:        {note}" for note in self.notes)])


@dataclass(kw_only=True, slots=True)
class _Pull:
    """One pull under way."""

    source: str
    name: str
    revision: str
    cache: RepositoryCache
    pins: Mapping[str, str]
    signer: Signer | None
    whole: bool
    patience: Patience
    notes: list[str] = field(default_factory=list)


def pull(
    source: str,
    *,
    commit: str | None = None,
    pins: Mapping[str, str] | None = None,
    signer: Signer | None = None,
    whole: bool = True,
    to: Path | None = None,
    offline: bool = False,
    patience: Patience | None = None,
) -> Pulled:
    """Bring a model into the standard Hugging Face cache, verified; what is there stays.

    source: ``org/name[@revision]``.  commit, pins: what a catalog knows, file name to sha256; they
    hold where the source names no revision.  signer: who must have signed all the files, whatever
    the revision.  whole: every file of a model's types; else what loading needs, if no signature
    has to cover the rest too.  to: also make a plain copy, a new folder.  offline: no request at
    all.  Raises UsageError, IntegrityError, NetworkError, DiskError.
    """
    name, _, revision = source.partition("@")
    _require_name(source, name, revision)
    job = _Pull(
        source=source,
        name=name,
        revision=revision or commit or constants.DEFAULT_REVISION,
        cache=RepositoryCache(name),
        pins={} if revision else pins or {},
        signer=signer,
        whole=whole or signer is not None,
        patience=patience or Patience(),
    )
    with disk_errors(job.cache.folder):
        quiet = offline or constants.is_offline_mode()
        pulled = _offline(job) if quiet else _online(job)
    return pulled if to is None else _copy(job, pulled, to.expanduser())


def cached_folder(source: str) -> Path:
    """The snapshot of ``org/name[@revision]`` in the cache, unchecked.

    Raises UsageError, NetworkError where there is none.
    """
    name, _, revision = source.partition("@")
    _require_name(source, name, revision)
    cache = RepositoryCache(name)
    commit = cache.commit_of(revision or constants.DEFAULT_REVISION)
    if not (commit and (cache.snapshot(commit) / CONFIG).is_file()):
        raise _not_cached(source, str(cache.folder))
    return cache.snapshot(commit)


def _require_name(source: str, name: str, revision: str) -> None:
    try:
        validate_repo_id(name)
        odd = "@" in source and (not _REVISION.fullmatch(revision) or ".." in revision)
        if "/" not in name or odd:
            raise HFValidationError("not org/name[@revision]")
        safe_join(Path("/refs"), revision or "main")
    except (HFValidationError, IntegrityError) as error:
        raise UsageError(
            f"the Hub has no model {source!r}: that is no name of one",
            where=str(error).splitlines()[0],
            fix="give org/name, or org/name@ with a branch, tag or commit",
        ) from None


def _online(job: _Pull) -> Pulled:
    known = job.cache.commit_of(job.revision)
    if is_commit(job.revision):
        commit = job.revision
    else:
        try:
            hurry = replace(job.patience, attempts=2) if known else job.patience
            commit = ask_commit(Wire(job.source, hurry), job.name, job.revision)
        except NetworkError as error:
            if known is None or (pulled := _from_cache(job, known)) is None:
                raise
            note = f"{error.what}: this is commit {known[:12]} again"
            return replace(pulled, notes=(*pulled.notes, note))
        if known not in {None, commit}:
            job.notes.append(f"{job.revision} has moved from {known} since the last pull")
    pulled = _from_cache(job, commit) or _fetch(job, commit)
    with contextlib.suppress(OSError):  # a read-only cache that holds everything
        job.cache.refer(job.revision, commit)
    return pulled


def _from_cache(job: _Pull, commit: str) -> Pulled | None:
    """The snapshot, if it is all here and right; no request, and no write that matters."""
    listing, snapshot = job.cache.listing(commit), job.cache.snapshot(commit)
    if listing is None:
        return None
    listing = with_witness(listing, job.pins, "the catalog's pin")
    first = [listing[name] for name in (CONFIG, RECORD) if name in listing]
    if not all(matches(snapshot / entry.name, entry) for entry in first):
        return None
    listing, wanted = _choose(job, listing, snapshot / RECORD)
    if not all(matches(snapshot / entry.name, entry) for entry in wanted):
        return None
    signature = _judge(job, listing, {entry: snapshot / entry.name for entry in wanted})
    return _done(job, commit, listing, wanted, signature)


def _offline(job: _Pull) -> Pulled:
    commit = job.cache.commit_of(job.revision)
    where = str(job.cache.folder)
    if commit is None:
        raise _not_cached(job.source, where)
    if pulled := _from_cache(job, commit):
        return pulled
    # Not everything is here; what loading needs may be, by another client's doing.
    snapshot = job.cache.snapshot(commit)
    if not all((snapshot / name).is_file() for name in (CONFIG, WEIGHTS)):
        raise _not_cached(job.source, where)
    if job.cache.listing(commit) is not None:
        verify_folder(snapshot, pins=job.pins, quick=True)  # names the damaged file
        loading = replace(job, whole=job.signer is not None)
        if (pulled := _from_cache(loading, commit)) is None:
            raise _not_cached(job.source, where)
        note = "offline: only what loading needs is here"
    elif job.signer:
        raise _not_cached(job.source, where)  # what a signature must cover is not known
    else:
        if job.pins:
            verify_folder(snapshot, pins=job.pins, quick=True)
        note = "no listing of the Hub is here: the files were not checked against one"
        pulled = Pulled(source=job.source, commit=commit, folder=snapshot)
    return replace(pulled, notes=(*pulled.notes, note))


def _not_cached(source: str, where: str) -> NetworkError:
    return NetworkError(
        f"{source} is not in the cache, and this is offline",
        where=where,
        fix=f"when online, run: zoo pull {source}",
    )


def _choose(job: _Pull, listing: Listing, record: Path) -> tuple[Listing, list[Entry]]:
    """Which files to fetch, and the listing with what the model's own record knows of them."""
    names = {CONFIG, WEIGHTS}
    if not names <= listing.keys():
        raise UsageError(
            f"{job.source} has no safetensors weights in timm's layout",
            where=f"{', '.join(sorted(names - listing.keys()))} is missing among its files",
            fix="choose a repository with config.json and model.safetensors",
        )
    if RECORD in listing:
        files = read_card(record).files
        refused = sorted(name for name in files if not is_fetched(name))
        if refused or len(files) > MOST_FETCHED:
            raise IntegrityError(
                f"the record speaks of {len(files)} files, among them {refused[:3]}",
                where=f"{job.source}: {RECORD}",
                fix="do not use this source; report it to whoever publishes it",
            )
        listing = with_witness(listing, {n: f.sha256 for n, f in files.items()}, RECORD)
        names |= {RECORD, *files}
    if job.whole:
        names |= {name for name in listing if is_fetched(name)}
    if len(names) > MOST_FETCHED:
        raise IntegrityError(
            f"a model of {len(names)} files; {MOST_FETCHED} are the most",
            where=job.source,
            fix="do not use this source; report it to whoever publishes it",
        )
    return listing, [listing[name] for name in sorted(names)]


def _fetch(job: _Pull, commit: str) -> Pulled:
    wire = Wire(job.source, job.patience)
    listing = ask_listing(wire, job.name, commit)
    listing = with_witness(listing, job.pins, "the catalog's pin")
    if job.signer:  # what cannot be judged is not fetched
        require_signing()
        _require_signature(job, listing)
    job.cache.prepare()
    # The model's own record first: it may already say that the rest is not worth fetching.
    first = [listing[name] for name in (CONFIG, RECORD) if name in listing]
    missing = [listing.get(name) for name in (CONFIG, WEIGHTS)]
    fetch = Fetcher(wire, job.cache, job.name, commit)
    fetched = fetch.all(first, lambda _: None) if all(missing) else {}
    record = job.cache.blob(listing[RECORD]) if RECORD in listing else Path()
    listing, wanted = _choose(job, listing, record)
    rest = [entry for entry in wanted if entry not in first]
    absent = [entry for entry in rest if not matches(job.cache.blob(entry), entry)]
    need = sum(entry.size - job.cache.kept(entry) for entry in absent)
    require_space(job.cache.blobs, need)
    with progress_bar(sum(entry.size for entry in absent), job.source) as advance:
        fetched |= fetch.all(rest, advance)
    signature = _judge(job, listing, {entry: job.cache.blob(entry) for entry in wanted})
    job.cache.publish(commit, listing, wanted)
    job.cache.sweep(wanted)
    return _done(job, commit, listing, wanted, signature, fetched)


def _require_signature(job: _Pull, listing: Listing) -> None:
    if job.signer and SIGNATURE not in listing:
        raise missing_signature(job.signer, job.source)
    if listing[SIGNATURE].size > MOST_BYTES:
        raise IntegrityError(
            f"a signature of {listing[SIGNATURE].size:,} bytes; {MOST_BYTES:,} are the most",
            where=f"{job.source}: {SIGNATURE}",
            fix="do not use this source; report it to whoever publishes it",
        )


def _judge(job: _Pull, listing: Listing, paths: Mapping[Entry, Path]) -> Signature | None:
    """Whether the signer of this model has signed these files, all that a pull fetches of it."""
    if job.signer is None:
        if SIGNATURE in listing:
            job.notes.append(NOT_JUDGED)
        return None
    _require_signature(job, listing)
    named = {entry.name: path for entry, path in paths.items()}
    signature = check_signature(
        {name: remembered_sha256(path) for name, path in named.items()},
        named[SIGNATURE],
        job.signer,
        quick=True,
        where=job.source,
    )
    require_own_record(named.get(RECORD, Path()), job.name)
    return signature


def _done(
    job: _Pull,
    commit: str,
    listing: Listing,
    wanted: list[Entry],
    signature: Signature | None,
    fetched: Mapping[str, int] | None = None,
) -> Pulled:
    fetched = fetched or {}
    return Pulled(
        source=job.source,
        commit=commit,
        folder=job.cache.snapshot(commit),
        fetched=tuple(entry.name for entry in wanted if entry.name in fetched),
        present=tuple(entry.name for entry in wanted if entry.name not in fetched),
        refused=tuple(sorted(name for name in listing if not is_fetched(name))),
        received=sum(fetched.values()),
        signature=signature,
        notes=tuple(job.notes),
    )


def _copy(job: _Pull, pulled: Pulled, to: Path) -> Pulled:
    """A plain copy of the verified files, with the listing beside them; all of it or nothing."""
    listing = job.cache.listing(pulled.commit) or {}
    names = [n for n in (*pulled.fetched, *pulled.present) if not n.startswith(".")]
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        if names and all(matches(to / name, listing[name]) for name in names):
            return replace(pulled, folder=to)
        raise UsageError(
            "there is already something else",
            where=str(to),
            fix="give --to a new folder, or remove this one",
        )
    if not names:
        raise IntegrityError(
            "refused to copy files that were not checked",
            where=str(pulled.folder),
            fix=f"when online, run: zoo pull {job.source}",
        )
    with atomic_folder(to) as temp:
        for name in names:
            target = safe_join(temp, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(pulled.folder / name, target)
        tree = temp / LOCAL_TREES / f"{pulled.commit}.json"
        tree.parent.mkdir(parents=True)
        tree.write_text(tree_json({name: listing[name] for name in names}))
        verify_folder(temp)  # the copy, byte by byte
    return replace(pulled, folder=to)
