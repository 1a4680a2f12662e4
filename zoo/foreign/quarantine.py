"""The only door for ``.pth`` files: another process reads them, under limits.

Their tensors come in as safetensors.  Nothing of the file is interpreted in this process.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from zoo.errors import DiskError, IntegrityError, UsageError, ZooError
from zoo.foreign.unpickle import REPORT, TENSORS, Seen

MOST_BYTES = 8 * 10**9
"""Far above a full checkpoint of the largest network read here (2 GB)."""
MEMORY_FACTOR, MEMORY_SPARE = 4, 512 * 2**20
"""Beside what the process has before it reads: the file, a copy, what is being written; spare."""
CPU_SECONDS, CPU_RATE = 60, 10 * 10**6
"""A base, and a second for so many bytes of the file."""
WALL_SECONDS, WALL_RATE = 180, 5 * 10**6
"""The same for the clock, with the process's start and a slow disk in it."""
WRITTEN_FACTOR, WRITTEN_SPARE = 2, 2**20

_REPORT_BYTES = 100_000
_ERRORS = "errors.txt"
_START = 512
"""How much of a file is looked at to say what it is."""
_KINDS = {
    "an image": rb"\xff\xd8\xff|\x89PNG|GIF8|RIFF....WEBP",
    "a pointer of git-lfs, not the file itself": rb"version https://git-lfs",
    "a web page": rb"\s*<(!doctype|html)",
    "a safetensors file": rb".{5}\0\0\0\{",
    "a compressed file": rb"\x1f\x8b",
    "a tar archive": rb".{257}ustar",
}
# No tokens, no proxies, nothing that changes how torch or Python behave.
_KEPT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "TMPDIR", "TEMP", "TMP")


@dataclass(frozen=True, kw_only=True, slots=True)
class Admitted:
    """What was let in; the file is gone when the ``with`` block ends."""

    seen: Seen
    tensors: Path | None
    """safetensors; null where there were none."""


@contextlib.contextmanager
def admitted(file: Path, parts: tuple[str, ...], expected: str) -> Iterator[Admitted]:
    """The tensors of a ``.pth``: those under the first of the keys ``parts``, or of a flat file.

    expected: the files that would do, for errors.  Raises UsageError (no such file), IntegrityError
    (another kind of file, damaged, unsafe or over a limit), DiskError.
    """
    size = require_pickle(file, expected)
    # Windows keeps files that are still mapped: there the system's own cleaning has to do.
    with tempfile.TemporaryDirectory(prefix="zoo-import-", ignore_cleanup_errors=True) as temp:
        folder = Path(temp)
        limits = [
            MEMORY_FACTOR * size + MEMORY_SPARE,
            CPU_SECONDS + size // CPU_RATE,
            WRITTEN_FACTOR * size + WRITTEN_SPARE,
        ]
        words = [str(file.resolve()), temp, ",".join(parts), *map(str, limits)]
        wall = WALL_SECONDS + size // WALL_RATE
        try:
            code = _run(words, folder, wall)
        except subprocess.TimeoutExpired:
            raise _refused(file, f"reading it took longer than {wall} s") from None
        seen = _report(file, folder, code)
        if seen.failure:
            raise _failure(file, seen, expected)
        tensors = folder / TENSORS
        yield Admitted(seen=seen, tensors=tensors if tensors.exists() else None)


def _run(words: list[str], folder: Path, seconds: float) -> int:
    """Run the reader in ``folder``; its exit code, negative for a signal."""
    environment = {name: os.environ[name] for name in _KEPT if name in os.environ} | {
        "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    # -P: it finds what this process finds, and nothing in the folder that it writes to.
    command = [sys.executable, "-P", "-m", "zoo.foreign.unpickle", *words]
    with (folder / _ERRORS).open("wb") as errors:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            timeout=seconds,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            check=False,
        )
    return done.returncode


def _report(file: Path, folder: Path, code: int) -> Seen:
    if code < 0:
        reason = f"was stopped by {signal.Signals(-code).name}"
        if code == -getattr(signal, "SIGXCPU", 0):
            reason = "needed more processor time than a file of this size can"
        raise _refused(file, f"the process that read it {reason}")
    if code:  # whatever the file does ends in a report: this is a reader that cannot run
        with (folder / _ERRORS).open(errors="replace") as errors:
            said = errors.read(_REPORT_BYTES).splitlines()
        raise ZooError(
            f"the process that reads foreign files ended with code {code}",
            where=_printable(said[-1]) if said else str(file),
            fix="check this installation of Python, torch and tinyzoo; else report it",
        )
    try:
        with (folder / REPORT).open("rb") as report:
            text = report.read(_REPORT_BYTES)
        return TypeAdapter(Seen).validate_json(text, strict=True)
    except (OSError, ValidationError) as error:
        raise _refused(file, "the process that read it left no report") from error


def _failure(file: Path, seen: Seen, expected: str) -> ZooError:
    if seen.failure == "space":
        return DiskError(
            "no space left for a copy of the weights",
            where=tempfile.gettempdir(),
            fix="free some space, or set TMPDIR to a place that has it",
        )
    if seen.failure == "memory":
        return _refused(file, "it unfolds to many times its size")
    if seen.failure == "unsafe":
        return _refused(file, f"it asks for more than weights: {seen.reason}")
    return unfit(file, seen.reason, "", f"give {expected}")


def _refused(file: Path, reason: str) -> IntegrityError:
    return IntegrityError(
        f"refused for safety: {_printable(reason)}",
        where=str(file),
        fix="do not load this file in another way; fetch it again from who published it",
    )


def unfit(file: Path, what: str, found: str, fix: str) -> IntegrityError:
    """The error for a file of another kind: what it is, what was found in it, what to do."""
    places = [str(file), f"found: {_printable(found)}"] if found else [str(file)]
    return IntegrityError(
        f"not a file that can be imported: {_printable(what)}",
        where="\n         ".join(places),
        fix=fix,
    )


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)[:1000]


def require_pickle(file: Path, expected: str) -> int:
    """Size in bytes of a file that torch.save may have written.

    Raises UsageError where there is none, IntegrityError for other files and above MOST_BYTES.
    """
    if not file.is_file():
        raise UsageError(
            "a folder, not a file" if file.is_dir() else "no such file",
            where=str(file),
            fix="give the .pth file as it was published",
        )
    size = file.stat().st_size
    if size > MOST_BYTES:
        raise _refused(file, f"{size:,} bytes; no file that is read here has {MOST_BYTES:,}")
    kind = _other_kind(file)
    if kind:
        raise unfit(file, kind, "", f"give {expected}")
    return size


def _other_kind(file: Path) -> str:
    """What a file is by its first bytes; empty where torch.save may have written it."""
    try:
        with file.open("rb") as content:
            start = content.read(_START)
    except OSError as error:
        raise UsageError(
            f"the file cannot be read: {error.strerror}",
            where=str(file),
            fix="check its permissions",
        ) from error
    if start.startswith(b"PK\x03\x04") or re.match(rb"\x80[\x02-\x05]", start):
        return ""  # a zip archive, or a bare pickle as torch wrote before 1.6
    if not start:
        return "it is empty"
    for kind, pattern in _KINDS.items():
        if re.match(pattern, start, re.DOTALL | re.IGNORECASE):
            return f"it is {kind}"
    try:
        text = start.decode(errors="strict" if len(start) < _START else "ignore")
    except UnicodeDecodeError:
        text = "\0"
    return (
        "it is text" if text.replace("\n", "").replace("\t", "").isprintable() else "unknown bytes"
    )
