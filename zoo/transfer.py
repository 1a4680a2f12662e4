"""One file from the Hub into one partial file, continued and checked.

The bytes are hashed as they arrive; what an earlier process left is hashed anew first.  A partial
file is worth nothing until its digest is right, and only then does anyone else see it.
"""

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from zoo.errors import IntegrityError
from zoo.tree import Entry
from zoo.wire import TransientError, Wire

BLOCK = 1 << 18
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class Transfer:
    """One file on its way."""

    def __init__(
        self, wire: Wire, url: str, entry: Entry, partial: Path, advance: Callable[[int], None]
    ) -> None:
        self.wire, self.url, self.entry, self.partial = wire, url, entry, partial
        self.advance = advance
        """Called with how many bytes are now here, or negative: were thrown away."""
        self.received = 0
        """Bytes that came over the network, thrown away or not."""
        self.continued = 0
        """Bytes that an earlier process had left."""
        self._wrong = 0
        self._careful = True
        """Ask with If-Range; a store whose validators are not blob names then sends the whole."""

    def run(self) -> str:
        """Fetch what is missing; returns the sha256 of the whole, which is on disk then.

        Raises IntegrityError, NetworkError, UsageError, OSError.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
        self._file = os.open(self.partial, flags, 0o666)
        try:
            self._start_over(throw_away=False)
            self._take_up()
            sha256 = self.wire.persist(self._attempt, self.url, self.entry.size)
            os.fsync(self._file)
            return sha256
        finally:
            os.close(self._file)

    def _take_up(self) -> None:
        if os.fstat(self._file).st_size > self.entry.size:
            os.ftruncate(self._file, 0)
        while block := os.read(self._file, BLOCK):
            self._hash(block)
            self.wire.check()
        self.continued = self._offset
        self.advance(self._offset)

    def _start_over(self, *, throw_away: bool = True) -> None:
        if throw_away:
            self.advance(-self._offset)
            os.ftruncate(self._file, 0)
            os.lseek(self._file, 0, os.SEEK_SET)
        self._offset = 0
        self._sha256 = hashlib.sha256()
        self._git = hashlib.sha1(b"blob %d\0" % self.entry.size, usedforsecurity=False)

    def _hash(self, block: bytes) -> None:
        self._sha256.update(block)
        if self.entry.git_sha1:
            self._git.update(block)
        self._offset += len(block)

    def _attempt(self, deadline: float) -> str:
        before = self._offset
        try:
            if self._offset < self.entry.size:
                self._receive(deadline)
        except TransientError as trouble:
            trouble.received = max(0, self._offset - before)
            raise
        if self._offset < self.entry.size:
            raise TransientError(
                f"the answer ended after {self._offset:,} of {self.entry.size:,} bytes"
            )
        sha256 = self._sha256.hexdigest()
        expected = {self.entry.lfs_sha256, self.entry.sha256} - {None}
        git_sha1 = self.entry.git_sha1
        if expected - {sha256} or (git_sha1 and git_sha1 != self._git.hexdigest()):
            named = ", ".join(map(str, [*expected, git_sha1 or ""])).strip(", ")
            self._wrong_content(f"expected {named}, got sha256 {sha256}")
        return sha256

    def _receive(self, deadline: float) -> None:
        headers = {}
        if self._offset:
            headers["range"] = f"bytes={self._offset}-"
            if self._careful:
                headers["if-range"] = f'"{self.entry.etag}"'
        with self.wire.open(self.url, headers) as response:
            self._require_fit(response)
            block = bytearray()
            try:
                for chunk in response.iter_raw():
                    block += chunk
                    self.received += len(chunk)
                    if self._offset + len(block) > self.entry.size:
                        block.clear()
                        self._wrong_content(f"more than the listed {self.entry.size:,} bytes")
                    if len(block) >= BLOCK:
                        self._keep(block)
                    self.wire.check(deadline)
            finally:
                self._keep(block)  # of a broken connection too

    def _require_fit(self, response: Any) -> None:
        """See that the body is the part that was asked for, or start over with the whole."""
        encoding = response.headers.get("content-encoding", "identity")
        if encoding != "identity":
            raise TransientError("a compressed body, though none was asked for")
        if response.status_code == 200:
            if self._offset and self._careful:
                self._careful = False
                raise TransientError("the whole instead of the rest", wait=0)
            if self._offset:
                self._start_over()
            length = response.headers.get("content-length", "")
            if length.isdigit() and int(length) != self.entry.size:
                self._wrong_content(f"expected {self.entry.size:,} bytes, offered {int(length):,}")
            return
        match = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
        start, total = (match[1], match[3]) if match else ("", "")
        fits = start == str(self._offset) and total in {"*", str(self.entry.size)}
        if response.status_code == 416 or not fits or not self._offset:
            self._start_over()
            raise TransientError("another part of the file than asked for")

    def _keep(self, block: bytearray) -> None:
        data = bytes(block)
        block.clear()
        view = memoryview(data)
        while view:
            view = view[os.write(self._file, view) :]
        self._hash(data)
        self.advance(len(data))

    def _wrong_content(self, what: str) -> NoReturn:
        """Once may be the wire, or a bad part from before; twice is the source."""
        self._start_over()
        self._wrong += 1
        if self._wrong < 2:
            raise TransientError(what, wait=0)
        raise IntegrityError(
            f"the Hub sent other bytes for {self.entry.name} than it lists",
            where=f"{self.wire.source}: {what}",
            fix="try later or from another mirror; nothing of it was kept",
        )
