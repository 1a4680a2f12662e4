"""``zoo push``: a packed model folder to the Hub, in one commit, read back, and tagged.

The whole is idempotent: what is there already is not sent again, and a push that was cut anywhere
is finished by the same command.
"""

import contextlib
import re
import tempfile
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, GitRefInfo, HfApi, constants

from zoo.card import record_of
from zoo.catalog import add_to_user_catalog, load_catalog
from zoo.client import (
    meaning,
    progress_on_terminals,
    silence_ends_after,
    xet_where_it_is_served,
)
from zoo.errors import DiskError, IntegrityError, NetworkError, UsageError, ZooError
from zoo.fetch import ask_commit, ask_listing
from zoo.files import atomic_write
from zoo.package import Package
from zoo.published import entry_of
from zoo.signing import SIGNATURE, check_signature
from zoo.tree import Entry, Listing, is_commit, is_fetched
from zoo.verify import matches
from zoo.wire import Patience, Wire, own_token

_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SILENCE = 300
"""Seconds: a Hub takes its time over a large commit."""
_NUMBERED = re.compile(r"v(\d{1,9})")
_MAIN = constants.DEFAULT_REVISION


@dataclass(frozen=True, kw_only=True, slots=True)
class Pushed:
    """What a push did."""

    repository: str
    commit: str
    tag: str
    sent: tuple[str, ...]
    """Files that the Hub did not have; none where all of it was there."""
    page: str
    """Address of the model's page."""
    catalog: Path | None
    """The user's catalog, with the model in it."""
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return {
            "repository": self.repository,
            "commit": self.commit,
            "tag": self.tag,
            "sent": list(self.sent),
            "page": self.page,
            "catalog": str(self.catalog) if self.catalog else None,
            "notes": list(self.notes),
        }

    def text(self) -> str:
        sent = ", ".join(self.sent) or "nothing: all of it was there"
        lines = [
            f"published:  {self.page}",
            f"commit:     {self.commit}, tag {self.tag}",
            f"sent:       {sent}",
            f"catalog:    {self.catalog or 'not written'}",
            *(f"note:       {note}" for note in self.notes),
            f"fetch it:   zoo pull {self.repository}@{self.tag}",
        ]
        return "\n".join(lines)


@dataclass(kw_only=True, slots=True)
class _Push:
    """One push under way."""

    package: Package
    api: HfApi
    wire: Wire
    tag: str | None
    sent: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)
    listing: Listing = field(default_factory=dict)
    """Of the commit, as the Hub gave it last."""

    @property
    def name(self) -> str:
        return self.package.terms.repository


def push(
    package: Package,
    *,
    private: bool = False,
    tag: str | None = None,
    patience: Patience | None = None,
) -> Pushed:
    """Publish a package; the user's catalog then knows the model by its commit and digests.

    private: for a repository that does not exist yet.  tag: the publish marker; null for the next
    free ``v1``, ``v2``, ….  The token comes from the Hub client's standard places.  Raises
    UsageError (no token, no right, a tag that marks other files), NetworkError, IntegrityError
    where the Hub then lists other bytes than were sent.
    """
    require_tag(tag)
    job = _begin(package, tag, patience or Patience())
    _require_signer_kept(job)
    silence = job.wire.patience.stall_seconds or _SILENCE
    with silence_ends_after(silence), progress_on_terminals():
        _require_repository(job, private=private)
        with xet_where_it_is_served(job.api, job.name):
            commit = job.wire.persist(
                lambda _: _published(job),
                job.wire.endpoint,
                size=sum(file.size for file in package.files.values()),
            )
        marker = job.wire.persist(lambda _: _marked(job, commit), job.wire.endpoint)
    if others := _others(job, job.listing):
        job.notes.append(f"the repository also holds {', '.join(others[:10])}: left as they are")
    catalog = _remember(job, commit)
    return Pushed(
        repository=job.name,
        commit=commit,
        tag=marker,
        sent=job.sent,
        page=f"{job.wire.endpoint}/{job.name}",
        catalog=catalog,
        notes=tuple(job.notes),
    )


def require_tag(tag: str | None) -> None:
    """Raise UsageError for what git, or the Hub, would not take as a tag; null is fine."""
    if tag is None:
        return
    git_refuses = not _TAG.fullmatch(tag) or ".." in tag or tag.endswith((".", ".lock"))
    if git_refuses or tag in {_MAIN, "HEAD"} or is_commit(tag):
        raise UsageError(
            f"this can be no tag: {tag[:80]!r}",
            where="--tag",
            fix="use letters, digits, dots and dashes, such as v1.0",
        )


def _begin(package: Package, tag: str | None, patience: Patience) -> _Push:
    if constants.is_offline_mode():
        raise NetworkError(
            "this is offline, and a push needs the Hub",
            where="HF_HUB_OFFLINE",
            fix="unset it and run the same command again",
        )
    if not (token := own_token()):
        raise UsageError(
            "there is no token to publish with",
            where="HF_TOKEN, and the place where hf auth login keeps it",
            fix="run hf auth login with a token that may write",
        )
    wire = Wire(package.terms.repository, patience, failed="did not take")
    wire.require_safe(wire.endpoint)  # before the token goes anywhere
    api = HfApi(endpoint=wire.endpoint, token=token, library_name="tinyzoo")
    return _Push(package=package, api=api, wire=wire, tag=tag)


def _require_signer_kept(job: _Push) -> None:
    """Readers whose catalog names a signer would refuse what another signed, or nobody."""
    hosted = next(
        (
            entry.hosted
            for entry in load_catalog().models.values()
            if entry.hosted and entry.hosted.repository == job.name
        ),
        None,
    )
    known, signer = hosted and hosted.signer, job.package.signer
    if known and signer is None:
        raise UsageError(
            f"{job.name} is signed by {known.text()}: unsigned, its readers' pulls would refuse it",
            where="signer in the catalog",
            fix="give --sign KEY.pem, or take the signer out of the catalog first",
        )
    if known and signer != known:
        job.notes.append(f"signed by another than before, {known.text()}: tell the readers")


def _require_repository(job: _Push, *, private: bool) -> None:
    """Make it, or see that it is as asked for."""

    def attempt(_: float) -> bool:
        with meaning(job.api, job.name):
            job.api.create_repo(job.name, private=private or None, exist_ok=True)
            return bool(job.api.model_info(job.name).private)

    is_private = job.wire.persist(attempt, job.wire.endpoint)
    if private and not is_private:
        raise UsageError(
            f"{job.name} exists already, and everybody can see it",
            where=f"{job.wire.endpoint}/{job.name}",
            fix="make it private on its page, choose another name, or leave --private out",
        )


def _published(job: _Push) -> str:
    """The commit that holds every file of the package, made if there is none."""
    with meaning(job.api, job.name):
        head = ask_commit(job.wire, job.name, _MAIN)
        listing = job.listing = ask_listing(job.wire, job.name, head)
        _require_covered(job, listing)
        _keep_signature(job, head, listing)
        missing = _differing(job, listing)
        _require_tag_free(job, head, missing)
        if not missing:
            return head
        made = _commit(job, head, listing, missing)
    job.listing = ask_listing(job.wire, job.name, made)
    if wrong := _differing(job, job.listing):
        raise IntegrityError(
            "the Hub lists other bytes than were sent",
            where=f"{job.name} at {made[:12]}: {', '.join(wrong)}",
            fix="do not use this commit: it has no tag; push again, or ask the Hub",
        )
    return made


def _commit(job: _Push, head: str, listing: Listing, missing: list[str]) -> str:
    folder = job.package.folder
    job.sent = tuple(missing)  # also where the answer is lost: the next attempt finds them there
    stale = {SIGNATURE} & listing.keys() - job.package.files.keys()
    with warnings.catch_warnings(record=True) as warned:  # of the Hub, about the page
        warnings.simplefilter("always", UserWarning)
        made = job.api.create_commit(
            job.name,
            [
                *(CommitOperationAdd(name, folder / name) for name in missing),
                *(CommitOperationDelete(name) for name in stale),
            ],
            commit_message=f"{job.package.card.name} ({job.package.card.digest[:12]})",
            parent_commit=head,
        )
    job.notes += [" ".join(str(warning.message).split()) for warning in warned]
    return made.oid


def _others(job: _Push, listing: Listing) -> list[str]:
    """What the repository holds beside the package, and a pull would fetch."""
    known = {*job.package.files, SIGNATURE, ".gitattributes"}
    return sorted(name for name in listing if is_fetched(name) and name not in known)


def _require_covered(job: _Push, listing: Listing) -> None:
    if job.package.signer and (others := _others(job, listing)):
        raise UsageError(
            "the repository holds files that the signature would not cover: pulls would refuse it",
            where=f"{job.name}: {', '.join(others[:10])}",
            fix="remove them there, put them into the model folder, or choose another --repo",
        )


def _keep_signature(job: _Push, head: str, listing: Listing) -> None:
    """A signature differs each time it is made: one that is there, and right, stays."""
    signer, files = job.package.signer, job.package.files
    if signer is None or SIGNATURE not in listing or _differing(job, listing) != [SIGNATURE]:
        return
    with tempfile.TemporaryDirectory() as temp:
        there = job.api.hf_hub_download(job.name, SIGNATURE, revision=head, local_dir=temp)
        digests = {name: file.sha256 for name, file in files.items() if name != SIGNATURE}
        with contextlib.suppress(IntegrityError):
            check_signature(digests, Path(there), signer)
            atomic_write(job.package.folder / SIGNATURE, Path(there).read_bytes())
            files[SIGNATURE] = record_of(Path(there))


def _differing(job: _Push, listing: Listing) -> list[str]:
    return [name for name in job.package.files if not _is_listed(job, name, listing.get(name))]


def _is_listed(job: _Push, name: str, entry: Entry | None) -> bool:
    record = job.package.files[name]
    if entry is None or entry.size != record.size:
        return False
    if entry.lfs_sha256:  # not hashed again: it may be large
        return entry.lfs_sha256 == record.sha256
    return matches(job.package.folder / name, entry, quick=False)


def _require_tag_free(job: _Push, head: str, missing: list[str]) -> None:
    """A tag that others may have pinned is never moved."""
    if job.tag is None:
        return
    refs = job.api.list_repo_refs(job.name)
    marked = _commits(refs.tags).get(job.tag)
    if job.tag in _commits(refs.branches):
        raise UsageError(
            f"{job.tag} is a branch of {job.name}", where="--tag", fix="choose another --tag"
        )
    if marked is None or (marked == head and not missing):
        return
    if not _differing(job, ask_listing(job.wire, job.name, marked)):
        return  # the same files, at a commit before this one
    raise UsageError(
        f"the tag {job.tag} already marks other files",
        where=f"{job.name} at {marked[:12]}",
        fix="choose another --tag, or leave it out for the next number",
    )


def _commits(refs: Iterable[GitRefInfo]) -> dict[str, str]:
    """By the name of the tag or branch."""
    return {ref.name: ref.target_commit for ref in refs}


def _marked(job: _Push, commit: str) -> str:
    """The tag that marks the commit, made if there is none."""
    with meaning(job.api, job.name):
        tags = _commits(job.api.list_repo_refs(job.name).tags)
        if job.tag in tags:
            _require_tag_free(job, commit, [])  # another push may have set it meanwhile
            return str(job.tag)
        numbers = {int(found[1]): name for name in tags if (found := _NUMBERED.fullmatch(name))}
        here = [name for _, name in sorted(numbers.items()) if tags[name] == commit]
        if job.tag is None and here:
            return here[-1]
        name = job.tag or f"v{max(numbers, default=0) + 1}"
        job.api.create_tag(job.name, tag=name, revision=commit)
        return name


def _remember(job: _Push, commit: str) -> Path | None:
    """Into the user's catalog; what stands against that is told, for the model is published."""
    try:
        return add_to_user_catalog(entry_of(job.package, commit))
    except (UsageError, DiskError, ValueError) as error:
        what = error.what if isinstance(error, ZooError) else str(error).splitlines()[0]
        job.notes.append(f"published, and not noted in your catalog: {what}")
        return None
