"""The Hub's cache on this machine: where, how large, whether zoo pull can write to it."""

import itertools
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import constants

from zoo.doctor.check import BAD, NOTE, OK, WARN, Check
from zoo.doctor.machine import size, standing

_DAY = 86_400
_SCAN_SECONDS = 3.0
_ELSEWHERE = "export HF_HUB_CACHE=DIR, a folder that you can write to"


def cache_folder() -> Path:
    """Where the client, and so zoo pull, keeps models."""
    return Path(constants.HF_HUB_CACHE).expanduser().resolve()


def cache_checks(cache: Path) -> Iterator[Check]:
    """Its place and size, whether it can be written to, and what dead pulls have left."""
    blobs = list(itertools.islice(_blobs(cache), 1_000_000))
    files = {(stat.st_dev, stat.st_ino): stat.st_size for _, stat in blobs}
    held = f"{size(sum(files.values()))} of models" if files else "no models yet"
    fault = _write_fault(standing(cache))
    if fault:
        state = WARN if files else BAD
        yield Check("cache", state, f"{cache}, {held}: cannot be written to: {fault}", _ELSEWHERE)
    elif not _links_work(standing(cache)):
        what = f"{cache}, {held}: no symbolic links here, so revisions are copies"
        yield Check("cache", NOTE, what, _ELSEWHERE)
    else:
        yield Check("cache", OK, f"{cache}, {held}")
    old = [
        stat.st_size
        for path, stat in blobs
        if path.endswith(".incomplete") and time.time() - stat.st_mtime > _DAY
    ]
    if old:
        what = f"{len(old)} unfinished downloads of more than a day ago, {size(sum(old))}"
        yield Check("cache", NOTE, what, "zoo pull the model again, or: hf cache prune")


def _blobs(cache: Path) -> Iterator[tuple[str, os.stat_result]]:
    """The files of models, partial ones too, for some seconds at the most."""
    until = time.monotonic() + _SCAN_SECONDS
    for folder in cache.glob("models--*/blobs"):
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if time.monotonic() > until:
                        return
                    if entry.is_file():
                        yield entry.name, entry.stat()
        except OSError:
            continue


def _write_fault(folder: Path) -> str:
    """Why a file cannot be made there; found out by making one."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return error.strerror or type(error).__name__


def _links_work(folder: Path) -> bool:
    try:
        with tempfile.TemporaryDirectory(prefix=".tmp-doctor-", dir=folder) as temp:
            (Path(temp) / "link").symlink_to("file")
            return True
    except (OSError, NotImplementedError):
        return False
