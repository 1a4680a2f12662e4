"""The one way to write a file, the one way to make a path, and digests.

Nothing is ever half there under its final name: temporary name in the same folder, fsync, rename,
fsync of the folder.
"""

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from zoo.errors import DiskError, IntegrityError, ZooError

_TEMP = re.compile(r"^\.tmp-(\d+)-(.+)")
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG}
# What safetensors and torch print where they swallow the errno.
_NO_SPACE_TEXT = re.compile(r"No space left|File too large|quota|inline_container.*unexpected pos")
# Names Windows cannot hold; a model must be usable there too.
_RESERVED = re.compile(r"^(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?$", re.IGNORECASE)
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


@contextlib.contextmanager
def disk_errors(path: Path, needed: int | None = None) -> Iterator[None]:
    """Turn "no space" and "not writable", in any library's words, into DiskError (exit 6)."""
    try:
        yield
    except ZooError:
        raise
    except Exception as error:
        number = getattr(error, "errno", None)
        # Only where there is no number: the text may hold a path of any name.
        if number in _NO_SPACE or (number is None and _NO_SPACE_TEXT.search(str(error))):
            raise DiskError(
                f"no space left: {_room(path, needed)}",
                where=str(path),
                fix="free some space and run the same command again; earlier state is intact",
            ) from error
        if number in _NOT_WRITABLE:
            raise DiskError(
                "the place cannot be written to",
                where=str(path),
                fix="choose another folder or change its permissions",
            ) from error
        raise


def require_space(folder: Path, needed: int) -> None:
    """Raise DiskError before a write that cannot fit.  ``needed`` in bytes."""
    if shutil.disk_usage(folder).free < needed:
        raise DiskError(
            f"no space left: {_room(folder, needed)}",
            where=str(folder),
            fix="free some space and run the same command again; earlier state is intact",
        )


def _room(path: Path, needed: int | None) -> str:
    existing = next(p for p in [path, *path.parents] if p.exists())
    free = shutil.disk_usage(existing).free
    need = f"{needed:,} bytes needed, " if needed is not None else ""
    return f"{need}{free:,} free"


@contextlib.contextmanager
def atomic_file(path: Path, needed: int | None = None) -> Iterator[Path]:
    """A temporary name that becomes ``path``, synced to disk, when the block ends well.

    An existing file of that name is replaced.  needed: bytes, for the error.  Raises DiskError.
    """
    temp = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    with disk_errors(path, needed):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temp
            sync_file(temp)
            temp.replace(path)
        except BaseException:
            temp.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def atomic_write(path: Path, data: bytes | str) -> None:
    """Write ``data`` so that ``path`` holds either its old content or all of the new.

    Raises DiskError.
    """
    content = data.encode() if isinstance(data, str) else data
    with atomic_file(path, len(content)) as temp:
        temp.write_bytes(content)


def atomic_json(path: Path, value: Any) -> None:
    """``atomic_write`` of indented JSON; NaN and infinity are refused (they are not JSON)."""
    text = json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    # A file name that is no UTF-8 comes as lone surrogates: JSON's escape is Python's.
    atomic_write(path, text.encode(errors="backslashreplace"))


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes ``path``, synced to disk, when the block ends well.

    An existing folder of that name is replaced.  Raises DiskError.
    """
    temp = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temp, ignore_errors=True)
        try:
            temp.mkdir()
            yield temp
            for place in temp.rglob("*"):
                if place.is_file():
                    place.chmod(0o666 & ~_umask())  # safetensors writes 0600
                sync_file(place)
            sync_folder(temp)
            _swap_in(temp, path)
        except BaseException:
            shutil.rmtree(temp, ignore_errors=True)
            raise
        sync_folder(path.parent)


def _swap_in(temp: Path, path: Path) -> None:
    # A folder cannot be renamed onto a filled one: the two change places, at no moment is there
    # none.  Where the file system cannot do that, the old one steps aside first.
    if not path.exists():
        temp.rename(path)
        return
    if not _exchange(temp, path):
        old = path.with_name(f".tmp-{os.getpid()}-old-{path.name}")
        path.rename(old)
        try:
            temp.rename(path)
        except BaseException:
            old.rename(path)
            raise
        temp = old
    shutil.rmtree(temp, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    rename = getattr(ctypes.CDLL(None), "renameat2", None)  # Linux; Python has no name for it
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(rename) and rename(here, os.fsencode(one), here, os.fsencode(other), swap) == 0


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


sync_folder = sync_file  # on POSIX a folder is synced through a descriptor of its own


def sweep(folder: Path, name: str = "", *, older_seconds: float = 0) -> None:
    """Remove the temporaries of writers that are dead (a kill -9 leaves its own behind).

    name: only those of the file or folder of this name, where strangers' things lie beside it.
    older_seconds: only those that were last written so long ago, where other machines write too.
    """
    if not folder.is_dir():
        return
    for entry in folder.iterdir():
        match = _TEMP.match(entry.name)
        if match and name in {"", match[2]} and not process_alive(int(match[1])):
            if older_seconds and _age(entry) < older_seconds:
                continue
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)


def _age(path: Path) -> float:
    """Seconds since it was written; none for what is gone."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0


def process_alive(pid: int) -> bool:
    """Whether a process of this id runs on this host."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def safe_join(root: Path, name: str, *, follow_links: bool = False) -> Path:
    """``root / name`` for a name that came from outside, or IntegrityError.

    Refused: absolute names, ``..``, backslashes, drives, control characters, names reserved
    elsewhere, parts over 255 bytes, and anything that resolves out of ``root`` by a link, unless
    follow_links (only for reading).
    """
    parts = PurePosixPath(name).parts
    bad = (
        not parts
        or name.startswith("/")
        or any(ord(c) < 32 or ord(c) == 127 or c in '\\:<>"|?*' for c in name)
        or any(_unsafe_part(part) for part in name.split("/"))
    )
    joined = root / name
    if bad or not (follow_links or joined.resolve().is_relative_to(root.resolve())):
        raise IntegrityError(
            f"refused a file name that could leave its folder: {name!r}",
            where=str(root),
            fix="do not use this source; report it to whoever publishes it",
        )
    return joined


def typed_path(text: str | Path) -> Path:
    """A path as somebody typed it, ``~`` replaced where that is somebody's home."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def is_there(path: Path) -> bool:
    """Whether there is something; no error for what no file system can hold, as pathlib raises."""
    return os.path.exists(path)  # noqa: PTH110


def is_plain_name(name: str) -> bool:
    """Whether a text can name a model, and so a folder on any system: one part, ASCII, no path."""
    return bool(_PLAIN.fullmatch(name)) and not _unsafe_part(name)


def _unsafe_part(part: str) -> bool:
    encoded = part.encode(errors="surrogatepass")
    return (
        part in {"", ".", ".."}
        or part[-1] in " ."
        or len(encoded) > 255
        or bool(_RESERVED.match(part))
    )
