"""From the Hub into the cache: the commit of a branch, its listing, and its blobs."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any
from urllib.parse import quote, urlsplit

from zoo.errors import IntegrityError
from zoo.hubcache import RepositoryCache
from zoo.transfer import Transfer
from zoo.tree import Entry, Listing, is_commit, listing_from_api
from zoo.verify import matches, remember_sha256
from zoo.wire import Wire

THREADS = 4
MOST_PAGES = 100


def ask_commit(wire: Wire, name: str, revision: str) -> str:
    """What a branch or tag stands for now.  Raises UsageError, IntegrityError, NetworkError."""
    url = f"{wire.endpoint}/api/models/{name}/revision/{quote(revision, safe='')}"
    answer, _ = wire.json(url)
    commit = answer.get("sha") if isinstance(answer, dict) else None
    if not is_commit(commit):
        raise _nonsense("the Hub's answer names no commit", wire)
    return str(commit)


def ask_listing(wire: Wire, name: str, commit: str) -> Listing:
    """The files of a commit.  Raises UsageError, IntegrityError, NetworkError."""
    base = f"{wire.endpoint}/api/models/{name}/tree/{commit}"
    url: str | None = f"{base}?recursive=true&expand=false"
    items: list[Any] = []
    for _ in range(MOST_PAGES):
        answer, url = wire.json(str(url))
        if not isinstance(answer, list) or (url and urlsplit(url)[:2] != urlsplit(base)[:2]):
            raise _nonsense("the Hub's list of files is none", wire)
        items += answer
        if not url:
            break
    return listing_from_api(items, wire.source)


class Fetcher:
    """Brings blobs into the cache, a few at a time, each by one process."""

    def __init__(self, wire: Wire, cache: RepositoryCache, name: str, commit: str) -> None:
        self.wire, self.cache = wire, cache
        self._base = f"{wire.endpoint}/{name}/resolve/{commit}"

    def all(self, entries: list[Entry], advance: Callable[[int], None]) -> dict[str, int]:
        """Names of what had to be fetched, with the bytes that came over the network.

        advance: called with the bytes that are now here.  Raises as ``Transfer.run``.
        """
        unique = {entry.etag: entry for entry in entries}  # the same bytes under two names: once
        largest_first = sorted(unique.values(), key=lambda entry: -entry.size)
        received = {}
        with ThreadPoolExecutor(THREADS) as pool:
            futures = {pool.submit(self._one, e, advance): e.name for e in largest_first}
            try:
                for future in as_completed(futures):
                    if (count := future.result()) is not None:
                        received[futures[future]] = count
            except BaseException:
                self.wire.stop.set()
                for future in futures:
                    future.cancel()
                raise
        return received

    def _one(self, entry: Entry, advance: Callable[[int], None]) -> int | None:
        """Bytes received for a file, or None where it was here."""
        cache = self.cache
        if matches(cache.blob(entry), entry):
            return None
        with cache.locked(entry, self.wire.check):
            if matches(cache.blob(entry), entry):  # another process was quicker
                advance(entry.size)
                return None
            with cache.partial(entry) as path:
                url = f"{self._base}/{quote(entry.name)}"
                transfer = Transfer(self.wire, url, entry, path, advance)
                sha256 = transfer.run()
                blob = cache.accept(path, entry)
        with contextlib.suppress(OSError):
            remember_sha256(blob, sha256)
        return transfer.received


@contextlib.contextmanager
def progress_bar(total: int, name: str) -> Iterator[Callable[[int], None]]:
    """One bar on stderr, and only on a terminal.  total: in bytes."""
    if not sys.stderr.isatty() or not total:
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(name, total=total)
        yield lambda count: progress.update(task, advance=count)


def _nonsense(what: str, wire: Wire) -> IntegrityError:
    return IntegrityError(
        what,
        where=f"{wire.source}: {wire.endpoint}",
        fix="check HF_ENDPOINT, or try again later",
    )
