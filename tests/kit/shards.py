"""Tar shards that the tests make, and a server on loopback that gives them out, or fails to."""

import contextlib
import io
import json
import re
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from PIL import Image

_RANGE = re.compile(r"bytes=(\d+)-(\d+)?")


def picture(number: int) -> bytes:
    """A small JPEG unlike any other."""
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((40 + number % 7, 36)).save(file, "JPEG", quality=90)
    return file.getvalue()


def write_shard(place: Path, files: Mapping[str, bytes]) -> Path:
    with tarfile.open(place, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return place


def write_shards(folder: Path, counts: list[int], *, labels: bool = True, bad: tuple = ()) -> Path:
    """``000.tar`` and on, so many samples in each; ``bad``: numbers of those that are no image."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    for shard, count in enumerate(counts):
        files: dict[str, bytes] = {}
        for _ in range(count):
            files[f"{number:04}.jpg"] = b"<html>" if number in bad else picture(number)
            if labels:
                files[f"{number:04}.cls"] = str(number % 3).encode()
            number += 1
        write_shard(folder / f"{shard:03}.tar", files)
    return folder


def write_info(folder: Path, counts: list[int], classes: list[str] | None = None) -> Path:
    """The index, as timm's, of what ``write_shards`` wrote."""
    split = {
        "name": "train",
        "filenames": [f"{i:03}.tar" for i in range(len(counts))],
        "shard_lengths": counts,
        "num_samples": sum(counts),
    }
    info: dict[str, object] = {"splits": {"train": split}}
    if classes:
        info["classes"] = classes
    (folder / "_info.json").write_text(json.dumps(info))
    return folder


@dataclass(kw_only=True)
class Failure:
    """How the server treats a request."""

    status: int | None = None
    cut: int | None = None
    """Bytes of the body after which the connection ends."""
    location: str | None = None
    by: str = "Location"
    """The header that leads there."""
    whole: bool = False
    """The range is passed over."""
    silent_seconds: float = 0


@dataclass(kw_only=True)
class Web:
    """A folder on loopback."""

    folder: Path
    address: str = ""
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    """(method, path, range), in order."""
    headers: list[dict[str, str]] = field(default_factory=list)
    fail: Callable[[str, str, int], Failure | None] = lambda method, path, number: None
    """Asked with method, path and how many requests there were."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    web: Web

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        web = self.web
        wanted = self.headers.get("Range", "")
        web.requests.append((self.command, self.path, wanted))
        web.headers.append({key.lower(): value for key, value in self.headers.items()})
        failure = web.fail(self.command, self.path, len(web.requests)) or Failure()
        place = web.folder / self.path.lstrip("/")
        status = failure.status or (200 if place.is_file() else 404)
        if failure.location:
            self.send_response(302)
            self.send_header(failure.by, failure.location)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = place.read_bytes() if status == 200 else b""
        size, match = len(data), _RANGE.fullmatch(wanted)
        start = 0
        if match and status == 200 and not failure.whole:
            start, end = int(match[1]), int(match[2] or size - 1) + 1
            status, data = 206, data[start:end]
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{start + len(data) - 1}/{size}")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        time.sleep(failure.silent_seconds)
        if self.command == "GET":
            with contextlib.suppress(ConnectionError):
                self.wfile.write(data[: failure.cut])
            self.close_connection = failure.cut is not None

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Quiet."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: object, client_address: object) -> None:
        """Quiet: clients hang up."""


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[Web]:
    web = Web(folder=folder)
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"web": web}))
    web.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
