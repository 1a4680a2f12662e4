"""The standard Hugging Face cache of one repository: its places, locks and partial files.

``blobs/<etag>`` · ``snapshots/<commit>/<file>``, links to them · ``refs/<branch>`` ·
``trees/<commit>.json`` · ``.locks/``.  The layout is the Hub client's, so that it, timm and
transformers find everything; the partial files are ours, and end in ``.incomplete`` so that the
client's own prune knows them.
"""

import contextlib
import hashlib
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import Timeout
from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import WeakFileLock

from zoo.files import process_alive, safe_join, sync_file, sync_folder
from zoo.tree import Entry, Listing, is_commit, read_tree, tree_json

FREE = ".zoo.incomplete"
"""After the blob's name: a partial file that nobody writes; the next pull continues it."""
TAG = "Signature: 8a477f597d28d172789f06886806bc55\n# A cache of the Hugging Face Hub.\n"

_HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
_CLAIMED = re.compile(r"(\w+)\.zoo\.([0-9a-f]{8})-(\d+)-[0-9a-f]{8}\.incomplete")
_FOREIGN_SECONDS, _STALE_SECONDS = 600, 86_400


def repository_at(folder: Path) -> str | None:
    """``org/name`` of the repository whose snapshot this is; None for any other folder."""
    kind, _, name = folder.parent.parent.name.partition("--")
    if folder.parent.name != "snapshots" or kind != "models" or not name:
        return None
    return name.replace("--", "/")


class RepositoryCache:
    """What this machine holds of a repository."""

    def __init__(self, repository: str) -> None:
        self.cache = Path(constants.HF_HUB_CACHE).expanduser().resolve()
        folder = repo_folder_name(repo_id=repository, repo_type="model")
        self.folder = self.cache / folder
        self.blobs = self.folder / "blobs"
        self._locks = self.cache / ".locks" / folder

    def blob(self, entry: Entry) -> Path:
        """Where the bytes stand once they are right."""
        return self.blobs / entry.etag

    def snapshot(self, commit: str) -> Path:
        """The folder of one commit."""
        return self.folder / "snapshots" / commit

    def commit_of(self, revision: str) -> str | None:
        """The commit that a branch or tag stood for when it was last asked about."""
        if is_commit(revision):
            return revision
        try:
            text = safe_join(self.folder / "refs", revision).read_text().strip()
        except (OSError, ValueError):
            return None
        return text if is_commit(text) else None

    def listing(self, commit: str) -> Listing | None:
        """What the Hub listed for a commit, if that was kept."""
        return read_tree(self.folder / "trees" / f"{commit}.json")

    def prepare(self) -> None:
        """Make the folders.  Raises OSError."""
        for folder in (self.blobs, self._locks, self.folder / "snapshots"):  # the client's scan
            folder.mkdir(parents=True, exist_ok=True)
        if not (self.cache / "CACHEDIR.TAG").exists():
            (self.cache / "CACHEDIR.TAG").write_text(TAG)

    def publish(self, commit: str, listing: Listing, fetched: list[Entry]) -> None:
        """Make verified blobs visible under their names.  Raises OSError."""
        self._place(self.folder / "trees" / f"{commit}.json", tree_json(listing))
        for entry in fetched:
            pointer = safe_join(self.snapshot(commit), entry.name, follow_links=True)
            if not (pointer.exists() and pointer.samefile(self.blob(entry))):
                self._point(pointer, self.blob(entry))
        sync_folder(self.snapshot(commit))

    def refer(self, revision: str, commit: str) -> None:
        """Note what a branch or tag stands for.  Raises OSError."""
        if not is_commit(revision) and self.commit_of(revision) != commit:
            self._place(safe_join(self.folder / "refs", revision), commit)

    @contextlib.contextmanager
    def locked(self, entry: Entry, check: Callable[[], None]) -> Iterator[None]:
        """Hold the Hub client's own lock of a blob.  check: called while waiting, may raise."""
        while True:
            with contextlib.ExitStack() as held:
                try:
                    held.enter_context(WeakFileLock(self._locks / f"{entry.etag}.lock", timeout=1))
                except Timeout:
                    check()
                    continue
                yield
                return

    @contextlib.contextmanager
    def partial(self, entry: Entry) -> Iterator[Path]:
        """A partial file that only this process writes: a dead one's, continued, or a new one.

        The name says whose it is, so that nothing goes wrong where locks do not hold (some network
        file systems).  Left behind by an error, it is freed for the next pull; where the disk is
        full, it goes.
        """
        own = self._own_name(entry.etag)
        left = sorted(self._abandoned(entry.etag), key=_size, reverse=True)
        for number, path in enumerate(left):
            with contextlib.suppress(FileNotFoundError):  # another took it
                path.unlink() if number or path.is_symlink() else path.rename(own)
        try:
            yield own
        except OSError:
            own.unlink(missing_ok=True)
            raise
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                own.rename(self.blobs / (entry.etag + FREE)) if _size(own) else own.unlink()
            raise

    def kept(self, entry: Entry) -> int:
        """Bytes of a file that dead pulls have left."""
        return max(map(_size, self._abandoned(entry.etag)), default=0)

    def accept(self, partial: Path, entry: Entry) -> Path:
        """A partial file whose digest is right becomes the blob.  Raises OSError."""
        partial.replace(self.blob(entry))
        sync_folder(self.blobs)
        return self.blob(entry)

    def sweep(self, finished: list[Entry]) -> None:
        """Remove what dead pulls left: of these files, and of any after a day."""
        etags = {entry.etag for entry in finished}
        with contextlib.suppress(OSError):
            for path in self._abandoned():
                if path.name.partition(".")[0] in etags or _age(path) > _STALE_SECONDS:
                    path.unlink(missing_ok=True)

    def _abandoned(self, etag: str = "*") -> list[Path]:
        return [path for path in self.blobs.glob(f"{etag}.zoo*.incomplete") if _is_abandoned(path)]

    def _own_name(self, stem: str) -> Path:
        return self.blobs / f"{stem}.zoo.{_HOST}-{os.getpid()}-{secrets.token_hex(4)}.incomplete"

    def _place(self, path: Path, text: str) -> None:
        # The temporary file stands among the blobs: in refs/ and snapshots/ the client's scan would
        # take one that a kill left for a branch or a file.
        temp = self._own_name("text")
        try:
            temp.write_text(text)
            sync_file(temp)
            path.parent.mkdir(parents=True, exist_ok=True)
            temp.replace(path)
        finally:
            temp.unlink(missing_ok=True)
        sync_folder(path.parent)

    def _point(self, pointer: Path, blob: Path) -> None:
        pointer.parent.mkdir(parents=True, exist_ok=True)
        temp = self._own_name("link")
        try:
            try:
                temp.symlink_to(os.path.relpath(blob, pointer.parent))
            except (NotImplementedError, PermissionError):  # Windows without the right to
                shutil.copyfile(blob, temp)
            temp.replace(pointer)
        finally:
            temp.unlink(missing_ok=True)


def _is_abandoned(path: Path) -> bool:
    claim = _CLAIMED.fullmatch(path.name)
    if not claim:
        return path.name.endswith(FREE)
    if claim[2] == _HOST:
        return not process_alive(int(claim[3]))
    return _age(path) > _FOREIGN_SECONDS  # another machine's: one that writes shows it


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0


def _age(path: Path) -> float:
    try:
        return time.time() - path.lstat().st_mtime
    except OSError:
        return 0.0
