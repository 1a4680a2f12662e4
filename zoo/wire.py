"""Requests to the Hub: whom to trust with what, how often to try again, what a failure means.

The Hub client's own session carries them (its proxies and certificates hold); redirects are
followed here, one by one, because it matters where they lead.
"""

import contextlib
import email.utils
import json
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]  # httpx's or httpx2's, as it uses
)
from huggingface_hub.utils import build_hf_headers, get_session

from zoo.errors import IntegrityError, NetworkError, UsageError

MOST_REDIRECTS = 5
MOST_JSON = 64 << 20
RETRIED = {408, 425, 429, 500, 502, 503, 504}
LOOPBACK = {"127.0.0.1", "localhost", "::1"}

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Patience:
    """How long a pull goes on against a server that fails."""

    attempts: int = 8
    """In a row without progress."""
    progress: int = 1 << 20
    """Bytes in one attempt that count as progress."""
    first_wait_seconds: float = 0.5
    """Doubled with every failure; the wait is a random part of it, at least half."""
    longest_wait_seconds: float = 20
    longest_retry_after_seconds: float = 300
    """A server that asks for more is not waited for."""
    stall_seconds: float | None = None
    """Silence that ends an attempt; null for the client's HF_HUB_DOWNLOAD_TIMEOUT."""
    total_seconds: float = 180
    """For one request with all its attempts, beside what its size allows."""
    least_rate: float = 20_000
    """Bytes a second; a file may take its size over this, and ``total_seconds``."""


class TransientError(Exception):
    """A failure that may pass: worth another attempt."""

    def __init__(self, what: str, *, wait: float | None = None, unreachable: bool = False) -> None:
        super().__init__(what)
        self.wait = wait
        """Seconds that the server asked for."""
        self.unreachable = unreachable
        self.received = 0
        """Bytes of the attempt that were kept."""


class StoppedError(Exception):
    """Another file of the same pull failed, or the user ended it."""


class Wire:
    """Requests for one repository."""

    def __init__(self, source: str, patience: Patience, *, failed: str = "did not deliver") -> None:
        """failed: what the Hub did where patience ends."""
        self.source, self.patience, self._failed = source, patience, failed
        self.endpoint = constants.ENDPOINT.rstrip("/")
        self.stop = threading.Event()
        self._first = _origin(self.endpoint)
        self._headers = _client_headers()
        self._token = self._headers.pop("authorization", None)

    def json(self, url: str) -> tuple[Any, str | None]:
        """What the Hub answers, and the address of the next page if there is one.

        Raises NetworkError, UsageError, IntegrityError.
        """

        def attempt(deadline: float) -> tuple[Any, str | None]:
            body = bytearray()
            with self.open(url) as response:
                for chunk in response.iter_raw():
                    body += chunk
                    self.check(deadline)
                    if len(body) > MOST_JSON:
                        raise TransientError(f"an answer of more than {MOST_JSON:,} bytes")
                next_page = response.links.get("next", {}).get("url")
            try:
                return json.loads(body), next_page and _joined(url, next_page)
            except (ValueError, RecursionError):
                raise TransientError("an answer that is not JSON") from None

        return self.persist(attempt, url)

    @contextlib.contextmanager
    def open(self, url: str, headers: Mapping[str, str] | None = None) -> Iterator[Any]:
        """A response of status 200, 206 or 416, its body still to be read.

        Raises TransientError for what may pass, and UsageError, IntegrityError for what will not.
        """
        for _ in range(MOST_REDIRECTS):
            self.require_safe(url)
            with self._send(url, headers or {}) as response:
                if response.status_code in {200, 206, 416}:
                    yield response
                    return
                location = response.headers.get("location")
                if response.status_code not in {301, 302, 303, 307, 308} or not location:
                    raise self._meaning(response, url)
            url = _joined(url, location)
        raise TransientError(f"more than {MOST_REDIRECTS} redirects")

    @contextlib.contextmanager
    def _send(self, url: str, more: Mapping[str, str]) -> Iterator[Any]:
        headers = {**self._headers, "accept-encoding": "identity", **more}
        if _origin(url) == self._first:
            if self._token:
                headers["authorization"] = self._token
        else:
            headers.pop("if-range", None)  # another store has validators of its own
        stall = self.patience.stall_seconds or float(constants.HF_HUB_DOWNLOAD_TIMEOUT)
        session = get_session()
        try:
            request = session.build_request("GET", url, headers=headers, timeout=stall)
            response = session.send(request, stream=True, follow_redirects=False)
            try:
                yield response
            finally:
                response.close()
        except HTTPError as error:
            what = f"{type(error).__name__} from {_place(url)}"
            raise TransientError(what, unreachable=is_unreachable(error)) from error

    def require_safe(self, url: str) -> None:
        """Raise IntegrityError for an address that a request should not go to."""
        try:
            parts = urlsplit(url)
            scheme, host = parts.scheme, parts.hostname
        except ValueError:
            scheme, host = "", None
        near = host in LOOPBACK and urlsplit(self.endpoint).hostname in LOOPBACK
        if host and (scheme == "https" or (scheme == "http" and near)):
            return
        raise IntegrityError(
            "refused to fetch over anything but https (http is for this machine only)",
            where=f"{self.source}: {_place(url)}",
            fix="check HF_ENDPOINT; do not use a mirror that redirects like this",
        )

    def _meaning(self, response: Any, url: str) -> Exception:
        status, code = response.status_code, response.headers.get("x-error-code", "")
        if status in RETRIED:
            return TransientError(f"status {status}", wait=retry_after(response.headers))
        if status == 403 or code == "GatedRepo":
            return UsageError(
                f"the Hub does not give {self.source!r} to you: it is gated, or the token has "
                "no right to it",
                where=f"{_place(url)}: status {status}",
                fix="accept its conditions on its page, and run `hf auth login`",
            )
        on_files = "/resolve/" in urlsplit(url).path
        missing = code in {"RepoNotFound", "RevisionNotFound"} or (status == 404 and not on_files)
        if status == 401 or missing:
            return UsageError(
                f"the Hub has no model {self.source!r}, or it is private",
                where=f"{_place(url)}: status {status}",
                fix="check the name; for a private or gated model run `hf auth login` first",
            )
        return TransientError(f"status {status} from {_place(url)}")

    def check(self, deadline: float | None = None) -> None:
        """Raise StoppedError or, behind the deadline, TransientError."""
        if self.stop.is_set():
            raise StoppedError
        if deadline is not None and time.monotonic() > deadline:
            raise TransientError("too slow: the total time is over")

    def persist(self, attempt: Callable[[float], T], url: str, size: int = 0) -> T:
        """Try again, ever more slowly, until it works.

        attempt: gets its deadline on the monotonic clock.  size: of the file, in bytes.  Raises
        NetworkError when patience is spent, and whatever else the attempt raises.
        """
        patience, failures, tries = self.patience, 0, 0
        began = time.monotonic()
        deadline = began + patience.total_seconds + size / patience.least_rate
        while True:
            self.check()
            tries += 1
            try:
                return attempt(deadline)
            except TransientError as trouble:
                failures = 1 if trouble.received >= patience.progress else failures + 1
                wait = trouble.wait if trouble.wait is not None else self._backoff(failures)
                spent = failures >= patience.attempts or time.monotonic() + wait > deadline
                if spent or wait > patience.longest_retry_after_seconds:
                    raise self._given_up(trouble, url, tries, wait) from trouble
            self._pause(wait)

    def _backoff(self, failures: int) -> float:
        longest = self.patience.first_wait_seconds * 2 ** (failures - 1)
        return min(longest, self.patience.longest_wait_seconds) * random.uniform(0.5, 1)

    def _pause(self, seconds: float) -> None:
        for _ in range(int(seconds / 0.1)):
            self.check()
            time.sleep(0.1)
        time.sleep(seconds % 0.1)

    def _given_up(self, trouble: TransientError, url: str, tries: int, wait: float) -> NetworkError:
        asked = f", which asks to wait {wait:.0f} s" if trouble.wait else ""
        return NetworkError(
            "the Hub cannot be reached"
            if trouble.unreachable
            else f"the Hub {self._failed} {self.source}: {trouble}{asked}",
            where=f"{_place(url)}, after {tries} attempts",
            fix="run the same command again when online: it continues where it stopped"
            if trouble.unreachable
            else "run the same command again: it continues where it stopped",
        )


def _client_headers() -> dict[str, str]:
    """The Hub client's own, with the user's token if there is one.  Raises UsageError."""
    with _token_errors():
        return build_hf_headers(library_name="tinyzoo", library_version=version("tinyzoo"))


def own_token() -> str | None:
    """The user's token, from where the Hub client looks for it.  Raises UsageError."""
    with _token_errors():
        return get_token()


@contextlib.contextmanager
def _token_errors() -> Iterator[None]:
    try:
        yield
        return
    except UnicodeDecodeError:
        file, why = constants.HF_TOKEN_PATH, "it is not text"
    except OSError as error:
        if error.filename is None:  # not about a file
            raise
        file, why = error.filename, error.strerror
    raise UsageError(
        f"the Hub's token cannot be read: {why}",
        where=str(file),
        fix="make the file yours and readable, or remove it; if the model is not public, "
        "run `hf auth login` then",
    )


def is_unreachable(error: Exception) -> bool:
    """Whether there was no answer at all, by the name of the client's error: its library varies."""
    return type(error).__name__ in {"ConnectError", "ConnectTimeout", "ProxyError"}


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port


def _joined(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError:
        return "nowhere:"  # what is no address at all is refused like any other


def _place(url: str) -> str:
    # Never with its query: a signed address is as good as a token.
    parts = urlsplit(url)
    text = f"{parts.scheme}://{parts.hostname or ''}" + (f":{parts.port}" if parts.port else "")
    return "".join(c if c.isprintable() else "?" for c in text + parts.path)[:300]


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait; null where it does not say."""
    value = headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        when = email.utils.parsedate_to_datetime(value)
        return max(0.0, when.timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None
