"""The project's own Hub, as ``zoo serve`` runs it, in a thread of the tests: pull and push."""

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import uvicorn
from hubclient import plain_client, settings
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from zoo.server.access import Access
from zoo.server.app import create_app
from zoo.server.folders import Shelf, store_of
from zoo.server.history import History
from zoo.server.start import bind

CANARY = "hf_canary0123456789canary0123456789abcd"


class OwnHub:
    """A running server, what it was asked, and ways to interfere."""

    def __init__(self, folder: Path, token: str, *, private: bool, page: int) -> None:
        self.folder, self.token = folder, token
        self.requests: list[tuple[str, str]] = []
        """(method, path without query), in order."""
        self.answer: Callable[[Request], Response | None] = lambda request: None
        """Asked before the server sees a request; a response is sent in place of its own."""
        self.after: Callable[[str, str], None] = lambda method, path: None
        """Called with method and path of every request that was answered, in the server's thread:
        it may change ``history`` or ``stop``, but not ask the server."""
        self.history = History(store_of(folder))
        """Repositories, commits, refs: ``push``, ``add_tag``, ``state`` …"""
        self.access = Access(
            history=self.history,
            shelf=Shelf(folder, self.history),
            token=token,
            private=private,
            page=page,
        )
        self._client = plain_client()
        self._socket = bind("127.0.0.1", 0)
        self.endpoint = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        config = uvicorn.Config(
            self._interfered(create_app(self.access)),
            lifespan="off",
            ws="none",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=1,
        )
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="own hub"
        )

    def start(self) -> None:
        self._thread.start()
        while not self._server.started:
            time.sleep(0.005)

    def stop(self) -> None:
        """No connection after this; twice is once.  Also from ``after``, in the server's thread."""
        self._server.should_exit = True
        if threading.current_thread() is not self._thread and self._thread.is_alive():
            self._thread.join()
            self._client.close()
            self._socket.close()
            self.history.close()

    def raw(self, method: str, path: str, **options: Any) -> Any:
        """A request that no well-behaved client makes; with the token, if no headers are given."""
        headers = options.pop("headers", {"Authorization": f"Bearer {self.token}"})
        return self._client.request(method, self.endpoint + path, headers=headers, **options)

    def _interfered(self, app: ASGIApp) -> ASGIApp:
        async def outer(scope: Scope, receive: Receive, send: Send) -> None:
            method, path = scope["method"], scope["raw_path"].decode()
            self.requests.append((method, path))
            instead = self.answer(Request(scope, receive))
            await (instead or app)(scope, receive, send)
            self.after(method, path)

        return outer


@contextlib.contextmanager
def own_hub(
    folder: Path, *, token: str = CANARY, private: bool = False, page: int = 1000
) -> Iterator[OwnHub]:
    """A server of a folder.  private: reading needs the token.  page: items on one of a listing."""
    hub = OwnHub(folder, token, private=private, page=page)
    hub.start()
    try:
        yield hub
    finally:
        hub.stop()


def additions(files: dict[str, bytes]) -> list[huggingface_hub.CommitOperationAdd]:
    """The files of a commit."""
    return [
        huggingface_hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=data)
        for name, data in files.items()
    ]


def commit_lines(*changes: tuple[str, dict[str, Any]]) -> bytes:
    """The body of a commit, made by hand."""
    lines = [("header", {"summary": "by hand"}), *changes]
    return b"".join(json.dumps({"key": k, "value": v}).encode() + b"\n" for k, v in lines)


def use_client(monkeypatch: pytest.MonkeyPatch, hub: OwnHub, cache: Path) -> huggingface_hub.HfApi:
    """Point the real client at this server, with the token, and without Xet."""
    for name, value in {**settings(hub.endpoint, cache), "HF_HUB_DISABLE_XET": True}.items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    huggingface_hub.close_session()
    return huggingface_hub.HfApi(endpoint=hub.endpoint, token=hub.token)
