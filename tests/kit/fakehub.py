"""A Hub on loopback, for the real client: metadata and bytes of files, and ways to misbehave.

A test changes ``repositories``, ``status`` and ``cut`` between two pulls.
"""

import contextlib
import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest

_FILE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/([^?]+)")


class FakeHub:
    """What the server holds and how it answers."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        """Repository to file name to bytes; one revision, ``main``."""
        self.history: dict[str, dict[str, bytes]] = {}
        """Commit to its files."""
        self.after: Callable[[str], None] = lambda path: None
        """Called with the path of every request that was answered."""
        self.requests: list[tuple[str, str]] = []
        """(method, path), in order."""
        self.status: dict[str, int] = {}
        """Method to the status that all its requests get."""
        self.cut: int | None = None
        """Close the connection after this many bytes of a body."""
        self.endpoint = ""

    def add_folder(self, repository: str, folder: Path) -> None:
        """Publish a folder's files."""
        files = {f.name: f.read_bytes() for f in folder.iterdir()}
        self.repositories[repository] = files
        self.history[self.commit(repository)] = files

    def commit(self, repository: str) -> str:
        """Of what the repository now holds: 40 hex digits."""
        digest = hashlib.sha1()
        for name, data in sorted(self.repositories[repository].items()):
            digest.update(name.encode() + data)
        return digest.hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub = self.hub
        hub.requests.append((self.command, self.path))
        match = _FILE.fullmatch(self.path)
        repository, revision, name = match.groups() if match else ("", "", "")
        if self.command in hub.status:
            self._refuse(hub.status[self.command])
        elif repository not in hub.repositories:
            self._refuse(404, "RepoNotFound")
        else:
            now = hub.commit(repository)
            commit = now if revision == "main" else revision
            known = {**hub.history, now: hub.repositories[repository]}
            if commit not in known:
                self._refuse(404, "RevisionNotFound")
            elif name not in known[commit]:
                self._refuse(404, "EntryNotFound", commit)
            else:
                self._give(known[commit][name], commit)
        hub.after(self.path)

    def _refuse(self, status: int, code: str = "", commit: str = "") -> None:
        self.send_response(status)
        headers = {"X-Error-Code": code, "X-Repo-Commit": commit, "Content-Length": "0"}
        for key, value in headers.items():
            if value:
                self.send_header(key, value)
        self.end_headers()

    def _give(self, data: bytes, commit: str) -> None:
        self.send_response(200)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[: self.hub.cut])
            self.close_connection = self.hub.cut is not None

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Quiet."""


@contextlib.contextmanager
def serve() -> Iterator[FakeHub]:
    """A running server."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
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
    constants = huggingface_hub.constants
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    huggingface_hub.close_session()
