"""Repositories with their commits, branches and tags: on disk first, then seen.

``blobs/`` by content · ``repositories/ORG/NAME/commits/ID.json`` · ``…/state.json``, where the
branches and tags point, replaced as a whole
"""

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from filelock import FileLock, Timeout
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from zoo.errors import IntegrityError, UsageError
from zoo.files import atomic_json, disk_errors, is_plain_name, safe_join
from zoo.server.blobs import Blobs, StoredFile
from zoo.server.refusal import (
    DamagedError,
    RefusedError,
    no_entry,
    no_repository,
    no_revision,
)
from zoo.tree import MOST_ENTRIES, is_commit

MAIN = "main"
LOCAL = "local"
"""The namespace of what has none, and the name of the one user."""

Seen = Mapping[str, tuple[int, ...]]
_T = TypeVar("_T")
_REF = re.compile(r"[A-Za-z0-9][\w.+-]*(/[A-Za-z0-9][\w.+-]*)*", re.ASCII)
_ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class Commit:
    """A state of all files, and how it came about."""

    id: str
    """40 hex digits, a digest of all the rest."""
    parent: str | None
    title: str
    message: str
    date: str
    files: Mapping[str, StoredFile]


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """A repository now."""

    name: str
    private: bool = False
    created: str
    branches: Mapping[str, str]
    """Name to commit id."""
    tags: Mapping[str, str] = field(default_factory=dict)
    pushed: bool
    """Made by a push, not found as a folder: it stays when there is no such folder."""
    seen: Seen | None = None
    """What the folder held when it last became a commit: name to size, time, inode."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Put:
    """Add a file, or replace it."""

    path: str
    file: StoredFile


@dataclass(frozen=True, kw_only=True, slots=True)
class Delete:
    """Take away a file, or a folder with all that is in it."""

    path: str
    folder: bool


def check_name(name: str) -> str:
    """``name``, if it is an ``org/name`` that the Hub and a disk can hold, or RefusedError."""
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise RefusedError(400, str(error).splitlines()[0]) from None
    parts = name.split("/")
    if len(parts) != 2 or not all(map(is_plain_name, parts)):
        raise RefusedError(400, f"not a repository's name: {name!r}")
    return name


def check_path(path: str) -> str:
    """``path`` again, if it is a file's name inside a repository, or RefusedError."""
    try:
        safe_join(Path("/repository"), path)
        bad = ".git" in path.lower().split("/") or len(path.encode()) > 1000
    except (IntegrityError, ValueError, OSError):
        bad = True
    if bad:
        raise RefusedError(400, f"not a file's name: {path!r}")
    return path


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


class History:
    """All repositories of a served folder.  One process at a time; many threads."""

    def __init__(self, folder: Path) -> None:
        """Raises UsageError where another server has it, DamagedError, DiskError."""
        self.folder = folder
        self.repositories = folder / "repositories"
        with disk_errors(folder):
            self.repositories.mkdir(parents=True, exist_ok=True)
            self._other = FileLock(folder / "lock", thread_local=False)
            try:
                self._other.acquire(timeout=0)
            except Timeout:
                raise UsageError(
                    "another server has this folder",
                    where=str(folder),
                    fix="use that one, stop it, or serve another folder",
                ) from None
        self.lock = threading.RLock()
        self.blobs = Blobs(folder / "blobs")
        self._states = {state.name: state for state in map(_read_state, self._found())}

    def close(self) -> None:
        """Let another process have it."""
        self._other.release()

    def states(self) -> list[State]:
        return [state for _, state in sorted(self._states.copy().items())]

    def get(self, name: str) -> State | None:
        return self._states.get(name)

    def state(self, name: str) -> State:
        """Raises RefusedError."""
        if name not in self._states:
            raise no_repository(name)
        return self._states[name]

    def commit_of(self, state: State, revision: str) -> Commit:
        """The commit of a branch, a tag or an id.  Raises RefusedError."""
        known = state.branches.get(revision) or state.tags.get(revision)
        if known is None and is_commit(revision):
            known = revision if self._commit_path(state.name, revision).is_file() else None
        if known is None:
            raise no_revision(revision)
        return self._read_commit(state.name, known)

    def log(self, state: State, revision: str) -> Iterator[Commit]:
        """A commit and those before it, the newest first.  Raises RefusedError."""
        commit = self.commit_of(state, revision)
        yield commit
        while commit.parent:
            commit = self._read_commit(state.name, commit.parent)
            yield commit

    def create(self, name: str, *, private: bool = False, found: bool = False) -> State:
        """A new repository with a first commit, as on the Hub.  Raises RefusedError: 409.

        found: there is a folder of that name.  The repository of a folder that is gone is taken up
        again where it was.
        """
        with self.lock:
            known = self._states.get(check_name(name))
            if known and (known.pushed or found):
                raise RefusedError(409, "You already created this model repo")
            if known:
                self._set(replace(known, private=private, pushed=True))
                return self._states[name]
            first = self.blobs.add(".gitattributes", _ATTRIBUTES)
            commit = self._new_commit(name, None, "initial commit", "", {".gitattributes": first})
            state = State(
                name=name,
                private=private,
                created=commit.date,
                branches={MAIN: commit.id},
                pushed=True,
            )
            self._set(state)
            return state

    def push(
        self,
        name: str,
        branch: str,
        operations: Sequence[Put | Delete],
        *,
        title: str,
        message: str = "",
        parent: str | None = None,
    ) -> Commit:
        """A new commit on a branch; the last one where nothing changes.

        parent: what the branch must still be at.  Raises RefusedError: 412 where it is not, 404,
        400.
        """
        with self.lock:
            state = self.state(name)
            if branch not in state.branches:
                raise no_revision(branch)
            head = self._read_commit(name, state.branches[branch])
            if parent not in {None, head.id}:
                raise RefusedError(
                    412, "A commit has happened since. Please refresh and try again."
                )
            files = dict(head.files)
            for operation in operations:
                _apply(files, operation, head.id)
            _check_tree(files)
            if files == head.files:
                return head
            commit = self._new_commit(name, head.id, title, message, files)
            branches = {**state.branches, branch: commit.id}
            self._set(replace(state, branches=branches, pushed=True))
            return commit

    def publish(self, name: str, files: Mapping[str, StoredFile], seen: Seen) -> Commit:
        """What a folder holds becomes the tip of ``main``."""
        with self.lock:
            state = self._states.get(name)
            parent = state.branches[MAIN] if state else None
            if state and parent and self._read_commit(name, parent).files == files:
                commit = self._read_commit(name, parent)
            else:
                title = "as found in the served folder"
                commit = self._new_commit(name, parent, title, "", files)
            state = state or State(name=name, created=commit.date, branches={}, pushed=False)
            branches = {**state.branches, MAIN: commit.id}
            self._set(replace(state, branches=branches, seen=seen))
            return commit

    def add_tag(self, name: str, tag: str, revision: str) -> None:
        """Raises RefusedError: 409 where there is such a tag or branch, 404, 400."""
        with self.lock:
            state = self.state(name)
            self._require_free(state, tag)
            commit = self.commit_of(state, revision)
            self._set(replace(state, tags={**state.tags, tag: commit.id}, pushed=True))

    def add_branch(self, name: str, branch: str, revision: str) -> None:
        """Raises RefusedError: 409 where there is such a tag or branch, 404, 400."""
        with self.lock:
            state = self.state(name)
            self._require_free(state, branch)
            commit = self.commit_of(state, revision)
            self._set(replace(state, branches={**state.branches, branch: commit.id}, pushed=True))

    def remove_tag(self, name: str, tag: str) -> None:
        """Raises RefusedError: 404."""
        with self.lock:
            state = self.state(name)
            if tag not in state.tags:
                raise no_revision(tag)
            self._set(replace(state, tags={k: v for k, v in state.tags.items() if k != tag}))

    def remove_branch(self, name: str, branch: str) -> None:
        """Raises RefusedError: 404, and 403 for ``main``."""
        with self.lock:
            state = self.state(name)
            if branch == MAIN:
                raise RefusedError(403, f"The branch {MAIN} cannot be deleted")
            if branch not in state.branches:
                raise no_revision(branch)
            left = {k: v for k, v in state.branches.items() if k != branch}
            self._set(replace(state, branches=left))

    def _require_free(self, state: State, ref: str) -> None:
        if not _REF.fullmatch(ref) or ".." in ref or len(ref) > 200 or is_commit(ref):
            raise RefusedError(400, f"not a branch's or a tag's name: {ref!r}")
        if ref in state.tags or ref in state.branches:
            raise RefusedError(409, f"Reference already exists: {ref}")

    def _found(self) -> list[Path]:
        return sorted(self.repositories.glob("*/*/state.json"))

    def _commit_path(self, name: str, commit: str) -> Path:
        return safe_join(self.repositories, f"{name}/commits/{commit}.json")

    def _set(self, state: State) -> None:
        atomic_json(safe_join(self.repositories, f"{state.name}/state.json"), asdict(state))
        self._states[state.name] = state

    def _new_commit(
        self,
        name: str,
        parent: str | None,
        title: str,
        message: str,
        files: Mapping[str, StoredFile],
    ) -> Commit:
        record = {
            "parent": parent,
            "title": title,
            "message": message,
            "date": now(),
            "files": {path: asdict(files[path]) for path in sorted(files)},
        }
        text = json.dumps(record, sort_keys=True)
        digest = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        atomic_json(self._commit_path(name, digest), record)
        return _commit(digest, record)

    def _read_commit(self, name: str, commit: str) -> Commit:
        return _read(self._commit_path(name, commit), lambda record: _commit(commit, record))


def _apply(files: dict[str, StoredFile], operation: Put | Delete, commit: str) -> None:
    path = check_path(
        operation.path.rstrip("/") if isinstance(operation, Delete) else operation.path
    )
    if isinstance(operation, Put):
        files[path] = operation.file
        return
    gone = [name for name in files if name.startswith(path + "/")] if operation.folder else [path]
    if not gone or not files.keys() >= set(gone):
        raise no_entry(f"{path}: A file with this name doesn't exist", commit)
    for name in gone:
        del files[name]


def _check_tree(files: Mapping[str, StoredFile]) -> None:
    folders = {str(parent) for name in files for parent in PurePosixPath(name).parents}
    if both := folders & files.keys():
        raise RefusedError(400, f"both a file and a folder: {min(both)!r}")
    if len(files) > MOST_ENTRIES:
        raise RefusedError(400, f"{len(files):,} files; {MOST_ENTRIES:,} are the most")


def _commit(commit: str, record: Mapping[str, Any]) -> Commit:
    files = {path: StoredFile(**file) for path, file in record["files"].items()}
    return Commit(id=commit, **{**record, "files": files})


def _read_state(path: Path) -> State:
    def state(record: Any) -> State:
        seen = record["seen"] and {name: tuple(status) for name, status in record["seen"].items()}
        return State(**{**record, "seen": seen})

    return _read(path, state)


def _read(path: Path, of: Callable[[Any], _T]) -> _T:
    try:
        return of(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DamagedError(
            f"the server's history cannot be read: {getattr(error, 'strerror', None) or error}",
            where=str(path),
            fix="remove the repository's folder, and push or publish the model again",
        ) from error
