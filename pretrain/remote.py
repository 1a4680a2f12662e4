"""Files from wherever fsspec reaches, read with patience: a broken connection is no broken run.

fsspec and the Hub's own file system open and read.  Here stands what they leave to their callers:
which addresses are safe, how often to ask again, and what a failure means.
"""

import contextlib
import io
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast
from urllib.parse import urlsplit

import fsspec
from fsspec.asyn import AsyncFileSystem
from huggingface_hub import constants

from pretrain.tars import unreadable
from zoo.errors import DataError, IntegrityError, NetworkError, UsageError, ZooError
from zoo.wire import LOOPBACK

BLOCK_BYTES = 4 << 20
"""Asked for at once; the next such block is on its way while one is used."""
BLOCKS = 4
"""Of them in memory, for each file."""
BUFFER_BYTES = 1 << 20
"""Out of which headers are read: each would otherwise pass through all of the layers below."""
SILENCE_SECONDS = 20
BLOCK_SECONDS = 60
"""For one request; slower than 70 kB a second is no training."""

T = TypeVar("T")

_DRAW = random.SystemRandom()
"""Not the process's own generator, from which samples draw."""
_NETWORK = {"aiohttp", "aiobotocore", "botocore", "fsspec", "httpcore", "httpx", "httpx2"}
"""Packages whose exceptions speak of the network."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Patience:
    """How often a request is made again.  All of it must end before a loader is said to hang."""

    attempts: int = 6
    first_wait_seconds: float = 0.5
    """Doubled each time; the wait is a random part of it, at least half."""


PATIENCE = Patience()


def protocol_of(place: str) -> str:
    """``https`` of ``https://…``; ``file`` of a path on this machine."""
    scheme, mark, _ = place.partition("://")
    return scheme.lower() if mark else "file"


def require_safe(place: str) -> None:
    """Raise UsageError, IntegrityError for an address that nothing should be fetched from.

    It is written into recipes and logs: what lets somebody in has no place in it.
    """
    protocol = protocol_of(place)
    if not place:
        raise UsageError(
            "which shards?",
            where="data.source",
            fix="write wds:FOLDER, or names as in wds:https://…/{000..127}.tar",
        )
    if protocol == "file":
        return
    if "::" in place:
        raise UsageError(
            "addresses are not joined by ::", where="data.source", fix="give one plain address"
        )
    try:
        parts = urlsplit(place)
        host, secret = parts.hostname, bool(parts.username or parts.password)
    except ValueError:
        raise UsageError("not an address", where="data.source", fix="check it") from None
    if secret or (protocol in {"http", "https"} and ("?" in place or "#" in place)):
        raise UsageError(
            "an address with a name, a password or a signature in it would stand in the recipe",
            where="data.source",
            fix="leave them out: ~/.netrc, HF_TOKEN or the store's own settings let you in",
        )
    if protocol == "hf":
        place, host = constants.ENDPOINT, urlsplit(constants.ENDPOINT).hostname
    if protocol_of(place) == "http" and host not in LOOPBACK:
        raise IntegrityError(
            "refused to fetch over anything but https (http is for this machine only)",
            where=f"{protocol_of(place)}://{host}",
            fix="give the https address",
        )


def filesystem(place: str) -> Any:
    """fsspec's file system for an address; this process's own.  Raises as ``require_safe``."""
    require_safe(place)
    protocol = protocol_of(place)
    options: dict[str, Any] = {}
    if protocol in {"http", "https"}:
        # trust_env: proxies, and who one is by ~/.netrc; this machine is reached without.
        far = urlsplit(place).hostname not in LOOPBACK
        options = {"get_client": _client, "client_kwargs": {"trust_env": far}}
    try:
        return fsspec.filesystem(protocol, **options)
    except (ImportError, ValueError) as error:
        raise UsageError(
            f"addresses with {protocol}: cannot be opened here: {error}",
            where=place,
            fix="pip install 'tinyzoo[s3]' for s3:, the package that fsspec names for others",
        ) from error


async def _client(**options: Any) -> Any:
    """A session that neither waits for ever nor follows anybody to an unsafe place."""
    import aiohttp

    async def look(session: Any, context: Any, redirect: Any) -> None:
        headers = redirect.response.headers
        onward = redirect.url.join(_url(headers.get("Location") or headers.get("URI") or ""))
        near = {onward.host, redirect.url.host} <= LOOPBACK
        if onward.scheme != "https" and not near:
            raise IntegrityError(
                "the server leads to an address that is not https",
                where=f"{redirect.url.host} to {onward.scheme}://{onward.host}",
                fix="do not use this server",
            )

    watch = aiohttp.TraceConfig()
    watch.on_request_redirect.append(look)
    limits = aiohttp.ClientTimeout(
        total=BLOCK_SECONDS, sock_connect=SILENCE_SECONDS, sock_read=SILENCE_SECONDS
    )
    return aiohttp.ClientSession(
        timeout=limits, trace_configs=[watch], read_bufsize=BLOCK_BYTES, **options
    )


def _url(text: str) -> Any:
    import yarl

    return yarl.URL(text)


def patiently(attempt: Callable[[], T], where: Callable[[], str]) -> T:
    """What ``attempt`` gives, made again after failures that may pass.

    where: what is asked for.  Raises NetworkError when patience is spent; DataError for what is
    not there, UsageError for what may not be read.
    """
    failures: list[str] = []
    while True:
        try:
            return attempt()
        except Exception as error:
            failures.append(_passing(error, where()))
        if len(failures) == PATIENCE.attempts:
            raise NetworkError(
                f"it could not be read on, {len(failures)} times in a row: {failures[-1]}",
                where=where(),
                fix="when the server answers again, the same command continues the run",
            )
        longest = PATIENCE.first_wait_seconds * 2 ** (len(failures) - 1)
        time.sleep(_DRAW.uniform(longest / 2, longest))


def _passing(error: Exception, where: str) -> str:
    """What went wrong, in words without an address, where it may pass; else raises its meaning."""
    causes = [error, *([error.__cause__] if error.__cause__ else [])]
    for cause in causes:
        if isinstance(cause, ZooError):
            raise cause
    statuses = [status for cause in causes if (status := _status(cause))]
    if {401, 403} & {*statuses} or isinstance(error, PermissionError):
        raise UsageError(
            "reading it is not allowed",
            where=where,
            fix="~/.netrc, HF_TOKEN or the store's own settings let you in",
        ) from None
    # fsspec calls anything that keeps it from asking for a size "not found".
    missing = isinstance(error, FileNotFoundError) and (not error.__cause__ or 400 in statuses)
    if {404, 410} & {*statuses} or missing:
        raise DataError(
            "it is not there, or no longer", where=where, fix="check the address; restore the file"
        ) from None
    if isinstance(error, ValueError) and not isinstance(error, OSError):
        raise UsageError(
            "the server does not give parts of a file",
            where=where,
            fix="copy the shards to a disk, or use a server that answers Range requests",
        ) from error
    if not isinstance(error, OSError) and type(error).__module__.partition(".")[0] not in _NETWORK:
        raise error
    return f"status {statuses[0]}" if statuses else type(causes[-1]).__name__


def _status(error: BaseException) -> int | None:
    """HTTP's status, in aiohttp's, httpx's or botocore's words."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return getattr(error, "status", None) or getattr(response, "status_code", None)


class RemoteFile(io.RawIOBase):
    """A file that is read from its beginning to its end, mostly; the next block is fetched ahead.

    size: bytes that it is known to have.  Reading raises as ``patiently``, and DataError where the
    file has become another.
    """

    def __init__(self, place: str, size: int) -> None:
        self.place, self.size = place, size
        self._position = 0
        self._file: Any = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), max(0, self.size - self._position))
        if wanted:
            buffer[:wanted] = patiently(lambda: self._attempt(wanted), self._where)
            self._position += wanted
        return wanted

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def close(self) -> None:
        self._hang_up()
        super().close()

    def _hang_up(self) -> None:
        file, self._file = self._file, None
        if file:
            with contextlib.suppress(Exception):  # of the block that was on its way
                file.close()

    def _attempt(self, wanted: int) -> bytes:
        try:
            if self._file is None:
                self._file = self._open()
            self._file.seek(self._position)
            data = self._file.read(wanted)
        except Exception:
            self._hang_up()  # a failed block would be found failed again
            raise
        if len(data) != wanted:
            self._hang_up()
            raise ConnectionError("a short answer")
        return data

    def _open(self) -> Any:
        file = filesystem(self.place).open(
            self.place,
            "rb",
            block_size=BLOCK_BYTES,
            cache_type="background",
            cache_options={"maxblocks": BLOCKS},
        )
        require_size(file.size, self.size, self.place)
        return file

    def _where(self) -> str:
        return f"{self.place} at byte {self._position:,}"


def require_size(now: int | None, known: int, where: str) -> None:
    """Raise DataError for a file that is not of the size it is known by.  In bytes."""
    if now != known:
        raise DataError(
            f"the shard has {now or 0:,} bytes where there were {known:,}: cut short, or another",
            where=where,
            fix="fetch it or make it anew, or start anew in another folder (--out)",
        )


@contextlib.contextmanager
def opened(place: str, size: int) -> Iterator[BinaryIO]:
    """A shard to be read, on this machine or not.  size: as it is known, in bytes.

    Raises DataError where it is not there or of another size; reading raises as ``RemoteFile``.
    """
    if protocol_of(place) == "file":
        try:
            with Path(place).open("rb", buffering=BUFFER_BYTES) as file:
                require_size(os.fstat(file.fileno()).st_size, size, place)
                yield file
        except OSError as error:
            raise unreadable(error, place) from error
        return
    with io.BufferedReader(RemoteFile(place, size), BUFFER_BYTES) as remote:
        yield remote


def read_part(place: str, offset: int, size: int) -> bytes:
    """So many bytes of a file, and no others.  Raises as ``opened``."""
    if protocol_of(place) == "file":
        try:
            with Path(place).open("rb", buffering=0) as file:
                return os.pread(file.fileno(), size, offset)
        except OSError as error:
            raise unreadable(error, place) from error

    def attempt() -> bytes:
        source = filesystem(place)
        if isinstance(source, AsyncFileSystem):
            data = cast(bytes, source.cat_file(place, start=offset, end=offset + size))
        else:
            with source.open(place, "rb", cache_type="none") as file:
                file.seek(offset)
                data = cast(bytes, file.read(size))
        if len(data) != size:
            raise ConnectionError("a short answer")
        return data

    return patiently(attempt, lambda: f"{place} at byte {offset:,}")
