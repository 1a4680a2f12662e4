"""A Hub on loopback, for the real clients: metadata, listings, bytes, and ways to misbehave.

A test changes ``repositories``, ``status``, ``cut`` and ``twist`` between two pulls.
"""

import contextlib
import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import huggingface_hub
import pytest
from hubclient import settings

_FILE = re.compile(r"/(?:datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/([^?]+)")
_API = re.compile(
    r"/api/(?:models|datasets)/([^/]+/[^/?]+)(?:/(revision|tree)/([^/?]+)(?:/([^?]+))?)?(?:\?.*)?"
)
_STORE = re.compile(r"/store/([0-9a-f]{64})(?:\?.*)?")
_RANGE = re.compile(r"bytes=(\d+)-(\d+)?")
MAIN = "main"


@dataclass(kw_only=True)
class Asked:
    """A request."""

    method: str
    path: str
    headers: dict[str, str]
    """Lower-case names."""
    name: str = ""
    """The file's name, for files."""
    number: int = 1
    """How often this path was asked for, this time included."""


@dataclass(kw_only=True)
class Answer:
    """What the server will send, for a test to twist."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | memoryview = b""
    cut: int | None = None
    """Close the connection after this many bytes of the body."""
    reset: bool = False
    """Close it as a crash does."""
    silent_seconds: float = 0
    """Before the connection closes, or the rest comes."""
    block: int = 1 << 20
    pace_seconds: float = 0
    """Between two blocks of the body."""
    chunked: bool = False
    length: bool = True
    """Send Content-Length."""
    endless: bool = False
    raw: bytes | None = None
    """In place of all the rest."""


class FakeHub:
    """What the server holds and how it answers."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        """Repository to file name to bytes; one branch, ``main``."""
        self.history: dict[str, dict[str, bytes]] = {}
        """Commit to its files."""
        self.after: Callable[[str], None] = lambda path: None
        """Called with the path of every request that was answered."""
        self.requests: list[tuple[str, str]] = []
        """(method, path), in order."""
        self.asked: list[Asked] = []
        """The same, with headers."""
        self.sent: Counter[str] = Counter()
        """File name to bytes of its body that were sent."""
        self.status: dict[str, int] = {}
        """Method to the status that all its requests get."""
        self.cut: int | None = None
        """Close the connection after this many bytes of a body."""
        self.twist: Callable[[Asked, Answer], Answer] = lambda asked, answer: answer
        """Changes any answer."""
        self.store = ""
        """Another origin, that large files are redirected to; empty for none."""
        self.page = 1000
        """Files on a page of a listing."""
        self.endpoint = ""
        self._digests: dict[int, tuple[bytes, str, str]] = {}

    def add_folder(self, repository: str, folder: Path) -> None:
        """Publish a folder's files."""
        self.add(repository, {f.name: f.read_bytes() for f in folder.iterdir()})

    def add(self, repository: str, files: dict[str, bytes]) -> str:
        """Publish files; returns the commit."""
        self.repositories[repository] = files
        self.history[self.commit(repository)] = files
        return self.commit(repository)

    def commit(self, repository: str) -> str:
        """Of what the repository now holds: 40 hex digits."""
        digest = hashlib.sha1()
        for name, data in sorted(self.repositories[repository].items()):
            digest.update(name.encode() + self.digests(data)[1].encode())
        return digest.hexdigest()

    def files(self, repository: str, revision: str) -> tuple[str, dict[str, bytes] | None]:
        """(commit, files), or None for a revision that is not known."""
        now = self.commit(repository)
        commit = now if revision == MAIN else revision
        return commit, {**self.history, now: self.repositories[repository]}.get(commit)

    def digests(self, data: bytes) -> tuple[str, str]:
        """git's sha1, and the sha256."""
        known = self._digests.get(id(data))
        if known is None or known[0] is not data:
            sha1 = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            known = (data, sha1, hashlib.sha256(data).hexdigest())
            self._digests[id(data)] = known
        return known[1], known[2]

    def etag(self, name: str, data: bytes) -> str:
        """As the blob is called in a cache."""
        return self.digests(data)[name.endswith(".safetensors")]

    def listing(self, files: dict[str, bytes]) -> list[dict[str, object]]:
        """The answer to ``/tree``."""
        items = []
        for name, data in files.items():
            sha1, sha256 = self.digests(data)
            item: dict[str, object] = {"type": "file", "path": name, "size": len(data), "oid": sha1}
            if name.endswith(".safetensors"):
                item["oid"] = hashlib.sha1(sha256.encode()).hexdigest()  # of the pointer
                item["lfs"] = {"oid": sha256, "size": len(data), "pointerSize": 134}
            items.append(item)
        return items


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub = self.hub
        match = _FILE.fullmatch(self.path)
        asked = Asked(
            method=self.command,
            path=self.path,
            headers={key.lower(): value for key, value in self.headers.items()},
            name=unquote(match[3]) if match else "",
        )
        hub.requests.append((self.command, self.path))
        asked.number = hub.requests.count((self.command, self.path))
        hub.asked.append(asked)
        if self.command in hub.status:
            answer = _refusal(hub.status[self.command])
        elif match:
            answer = self._file(match[1], match[2], asked)
        elif api := _API.fullmatch(self.path):
            answer = self._api(api[1], api[2] or "", unquote(api[3] or MAIN), unquote(api[4] or ""))
        elif store := _STORE.fullmatch(self.path):
            answer = self._stored(store[1], asked)
        else:
            answer = _refusal(404)
        answer = hub.twist(asked, answer)
        with contextlib.suppress(ConnectionError):
            self._send(answer, asked)
        hub.after(self.path)

    def _api(self, repository: str, kind: str, revision: str, folder: str) -> Answer:
        hub = self.hub
        if repository not in hub.repositories:
            return _refusal(404, "RepoNotFound")
        commit, files = hub.files(repository, revision)
        if files is None:
            return _refusal(404, "RevisionNotFound")
        headers = {"Content-Type": "application/json"}
        if kind != "tree":
            siblings = [{"rfilename": name} for name in files]
            value: object = {"id": repository, "sha": commit, "siblings": siblings, "tags": []}
            return Answer(headers=headers, body=json.dumps(value).encode())
        items = hub.listing(files)
        if "recursive=false" in self.path:
            items = _directly_in(folder, items)
        start = int((re.findall(r"cursor=(\d+)", self.path) or ["0"])[0])
        if start + hub.page < len(items):
            path = f"{self.path.partition('?')[0]}?recursive=true&cursor={start + hub.page}"
            headers["Link"] = f'<{hub.endpoint}{path}>; rel="next"'
        page = items[start : start + hub.page]
        return Answer(headers=headers, body=json.dumps(page).encode())

    def _file(self, repository: str, revision: str, asked: Asked) -> Answer:
        hub = self.hub
        if repository not in hub.repositories:
            return _refusal(404, "RepoNotFound")
        commit, files = hub.files(repository, revision)
        if files is None:
            return _refusal(404, "RevisionNotFound")
        if asked.name not in files:
            return _refusal(404, "EntryNotFound", commit)
        data = files[asked.name]
        etag = hub.etag(asked.name, data)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{etag}"'}
        if len(etag) == 64:
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(data))}
            if hub.store:
                location = f"{hub.store}/store/{etag}?signature=secret"
                return Answer(status=302, headers={**headers, "Location": location})
        return _ranged(data, headers, asked)

    def _stored(self, sha256: str, asked: Asked) -> Answer:
        for files in [*self.hub.repositories.values(), *self.hub.history.values()]:
            for name, data in files.items():
                if self.hub.digests(data)[1] == sha256:
                    asked.name = name
                    return _ranged(data, {"ETag": '"of-another-kind"'}, asked)
        return _refusal(404)

    def _send(self, answer: Answer, asked: Asked) -> None:
        if answer.raw is not None:
            self.wfile.write(answer.raw)
            self.close_connection = True
            return
        self.send_response(answer.status)
        for key, value in answer.headers.items():
            self.send_header(key, value)
        if answer.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        elif answer.length:
            self.send_header("Content-Length", str(len(answer.body)))
        else:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command == "GET":
            self._send_body(answer, asked)
        cut = answer.cut is not None or self.hub.cut is not None
        self.close_connection = cut or not (answer.length or answer.chunked)
        if answer.reset:
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    def _send_body(self, answer: Answer, asked: Asked) -> None:
        cut = self.hub.cut if self.hub.cut is not None else answer.cut
        body = memoryview(answer.body)[:cut]
        while True:
            for start in range(0, len(body), answer.block):
                piece = body[start : start + answer.block]
                if answer.chunked:
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                else:
                    self.wfile.write(piece)
                self.hub.sent[asked.name] += len(piece)
                time.sleep(answer.pace_seconds)
            if not answer.endless:
                break
        if answer.chunked and cut is None:
            self.wfile.write(b"0\r\n\r\n")
        self.wfile.flush()
        time.sleep(answer.silent_seconds)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Quiet."""


def _refusal(status: int, code: str = "", commit: str = "") -> Answer:
    headers = {"X-Error-Code": code, "X-Repo-Commit": commit}
    return Answer(status=status, headers={key: value for key, value in headers.items() if value})


def _directly_in(folder: str, items: list[dict[str, object]]) -> list[dict[str, object]]:
    """What of a listing lies in this folder itself, folders included; "" is the top."""
    prefix = folder and folder + "/"
    below = {str(item["path"]).removeprefix(prefix): item for item in items if _in(item, prefix)}
    folders = dict.fromkeys(name.partition("/")[0] for name in below if "/" in name)
    shown = [
        {"type": "directory", "path": prefix + name, "size": 0, "oid": "0" * 40} for name in folders
    ]
    return [*shown, *(item for name, item in below.items() if "/" not in name)]


def _in(item: dict[str, object], prefix: str) -> bool:
    return str(item["path"]).startswith(prefix)


def _ranged(data: bytes, headers: dict[str, str], asked: Asked) -> Answer:
    wanted = _RANGE.fullmatch(asked.headers.get("range", ""))
    validator = asked.headers.get("if-range", headers["ETag"])
    if not wanted or validator != headers["ETag"]:
        return Answer(headers=headers, body=data)
    start, size = int(wanted[1]), len(data)
    if start >= size:
        return Answer(status=416, headers={"Content-Range": f"bytes */{size}"})
    end = min(int(wanted[2] or size), size - 1)
    place = f"bytes {start}-{end}/{size}"
    body = memoryview(data)[start : end + 1]
    return Answer(status=206, headers={**headers, "Content-Range": place}, body=body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a test may leave one that stalls
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        """Quiet: clients that are killed hang up."""


@contextlib.contextmanager
def serve() -> Iterator[FakeHub]:
    """A running server."""
    hub = FakeHub()
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def point_client_at(monkeypatch: pytest.MonkeyPatch, endpoint: str, cache: Path) -> None:
    """Make the Hub client, which reads its environment on import, use this server and cache."""
    for name, value in settings(endpoint, cache).items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    huggingface_hub.close_session()
