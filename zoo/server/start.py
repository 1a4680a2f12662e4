"""``zoo serve``: the small Hub on a port of this machine, until Ctrl-C."""

import ipaddress
import logging
import os
import secrets
import shlex
import signal
import socket
import stat
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from zoo.errors import UsageError
from zoo.files import disk_errors

TOKEN = "ZOO_SERVE_TOKEN"
LOOPBACK = "127.0.0.1"

_STOP_SECONDS = 3
"""For requests under way, when the server is told to stop."""
_IDLE_SECONDS = 75
_STOPS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """A server that is about to answer, and what to tell its user."""

    endpoint: str
    elsewhere: str
    """The endpoint for other machines, where it is another."""
    folder: Path
    models: Mapping[str, Path]
    """Repository to the folder it was found in."""
    pushed: tuple[str, ...]
    """Repositories without a folder."""
    skipped: Mapping[Path, str]
    token: str
    """Where the token is, a file or a variable; never the token."""
    warnings: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        return {
            "endpoint": self.endpoint,
            "elsewhere": self.elsewhere,
            "folder": str(self.folder),
            "models": {name: str(path) for name, path in self.models.items()},
            "pushed": list(self.pushed),
            "skipped": {str(path): why for path, why in self.skipped.items()},
            "token": self.token,
            "warnings": list(self.warnings),
        }

    def text(self) -> str:
        names = [*(f"{n}  ({_short(p)})" for n, p in self.models.items()), *self.pushed]
        lines = [f"export HF_ENDPOINT={self.endpoint}"]
        lines += [f"# elsewhere: export HF_ENDPOINT={self.elsewhere}"] if self.elsewhere else []
        lines += [""]
        lines += _listed("models:", names or ["none yet"])
        lines += _listed("skipped:", [f"{_short(p)}: {why}" for p, why in self.skipped.items()])
        lines += _listed("token:", [self.token])
        lines += _listed("push:", [f"export HF_TOKEN={self._value} HF_HUB_DISABLE_XET=1"])
        lines += _listed("warning:", self.warnings)
        return "\n".join([*lines, *_listed("stop:", ["Ctrl-C"])])

    @property
    def _value(self) -> str:
        """The token, in the words of a shell."""
        return f"${TOKEN}" if self.token == TOKEN else f"$(cat {shlex.quote(self.token)})"


class Server:
    """A bound port and all that answers there."""

    def __init__(
        self,
        folder: Path,
        *,
        host: str = LOOPBACK,
        port: int = 8000,
        token_file: Path | None = None,
        private: bool = False,
        verbose: bool = False,
    ) -> None:
        """Publish what has changed and take the port; ``run`` answers.

        port: 0 for any that is free.  private: reading needs the token, too.  Raises UsageError,
        IntegrityError, DiskError.
        """
        _require_extra()
        from zoo.server.access import Access
        from zoo.server.app import ANY_HOST, LOCAL_HOSTS, create_app
        from zoo.server.folders import Shelf, find_models, store_of
        from zoo.server.history import History

        _require_folder(folder)
        if not store_of(folder).is_dir():
            _require_models(folder, find_models(folder).models)
        self._socket = bind(host, port)
        try:
            token, place, warnings = _token(token_file, store_of(folder) / "token")
            self._history = History(store_of(folder))
        except BaseException:
            self._socket.close()
            raise
        try:
            shelf = Shelf(folder, self._history)
            found = shelf.refresh_all()
            pushed = {s.name for s in self._history.states() if s.pushed} - found.models.keys()
        except BaseException:
            self.close()
            raise
        access = Access(history=self._history, shelf=shelf, token=token, private=private)
        local = _address(self._socket).is_loopback
        self._app = create_app(access, hosts=(*LOCAL_HOSTS, host) if local else ANY_HOST)
        self._verbose = verbose
        endpoint, elsewhere = _endpoints(host, self._socket)
        self.served = Served(
            endpoint=endpoint,
            elsewhere=elsewhere,
            folder=folder,
            models=found.models,
            pushed=tuple(sorted(pushed)),
            skipped=found.skipped,
            token=place,
            warnings=(*warnings, *([] if local else [_open(elsewhere)])),
        )

    def run(self, ready: Callable[[], object] = lambda: None) -> None:
        """Answer until Ctrl-C or SIGTERM; both are the usual end of a server.

        ready: called once a signal would end it well.
        """
        import uvicorn

        if self._verbose:
            logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.WARNING)
            logging.getLogger("zoo.server").setLevel(logging.INFO)
        config = uvicorn.Config(
            self._app,
            lifespan="off",
            ws="none",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=_IDLE_SECONDS,
            timeout_graceful_shutdown=_STOP_SECONDS,
        )
        server = uvicorn.Server(config)

        def stop(number: int, frame: object) -> None:
            server.should_exit = True

        # For what comes before uvicorn listens for signals, and after: it repeats what it caught.
        before = {number: signal.signal(number, stop) for number in _STOPS}
        try:
            ready()
            server.run(sockets=[self._socket])
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self.close()

    def close(self) -> None:
        """Give back the port and the folder."""
        self._socket.close()
        self._history.close()


def _require_extra() -> None:
    missing = [name for name in ("starlette", "uvicorn") if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"zoo serve needs {' and '.join(missing)}",
            where="an extra of tinyzoo that is not installed",
            fix='pip install "tinyzoo[serve]"',
        )


def _require_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise UsageError(
            "there is no such folder to serve",
            where=str(folder),
            fix="give a folder of model folders, or make an empty one to push into",
        )


def _require_models(folder: Path, models: Mapping[str, Path]) -> None:
    if not models and any(entry.name[0] != "." for entry in folder.iterdir()):
        raise UsageError(
            "there is no model to serve",
            where=f"{folder}: no NAME/config.json and no ORG/NAME/config.json",
            fix="give a folder of model folders, a run folder, or an empty folder to push into",
        )


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens.  Raises UsageError."""
    try:
        # With the protocol: asyncio sends small answers at once only where a socket says TCP.
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind(address)
            bound.listen(128)  # who comes early waits
        except BaseException:
            bound.close()
            raise
    except OSError as error:
        raise UsageError(
            f"cannot listen here: {error.strerror or error}",
            where=f"{host}, port {port}",
            fix="give --port another number, or 0 for any that is free",
        ) from None
    return bound


def _token(file: Path | None, own: Path) -> tuple[str, str, tuple[str, ...]]:
    """The environment's, that of a file, or one made for this folder.

    Returns the token, where it is, and warnings.
    """
    if file is None and os.environ.get(TOKEN):
        return _usable(os.environ[TOKEN], TOKEN), TOKEN, ()
    with disk_errors(own):
        if file is None and not own.exists():
            own.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(own, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as new:
                new.write(f"hf_{secrets.token_hex(20)}\n")
    place = file or own
    try:
        with place.open() as opened:
            exposed = _exposed(os.fstat(opened.fileno()))
            text = opened.read()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"the token cannot be read: {error}",
            where=str(place),
            fix="give --token-file a file that holds one line",
        ) from None
    if file is None and own.is_symlink():
        exposed = "it is a link"
    if file is None and exposed:
        # Who may write into a served folder could have put it there, to push with it.
        raise UsageError(
            f"the folder's token is not kept for you alone: {exposed}",
            where=str(own),
            fix="remove it, and one is made; or give --token-file",
        )
    return _usable(text, str(place)), str(place), (f"{place}: {exposed}",) if exposed else ()


def _exposed(status: os.stat_result) -> str:
    """How others may know or change what a file holds; empty where they cannot."""
    if status.st_uid not in {0, os.geteuid()}:
        return "it is another user's"
    mode = stat.S_IMODE(status.st_mode)
    return f"it has mode {mode:o}, which lets other users in" if mode & 0o077 else ""


def _usable(text: str, where: str) -> str:
    token = text.strip()
    if len(token) < 8 or not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError(
            "that is no token: one line of 8 or more letters and digits",
            where=where,
            fix="remove it, and one is made",
        )
    return token


def _open(elsewhere: str) -> str:
    whose = "zoo pull from other machines" if elsewhere else "zoo pull"
    return (
        "others can reach this port, and there is no TLS: the token and the models can be read "
        f"on the way, and {whose} needs a server that speaks TLS before this one"
    )


def _address(bound: socket.socket) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return ipaddress.ip_address(bound.getsockname()[0])


def _endpoints(host: str, bound: socket.socket) -> tuple[str, str]:
    """For this machine, and for others where that is not the same."""
    port = bound.getsockname()[1]
    if not _address(bound).is_unspecified:
        return _endpoint(host, port), ""
    here = LOOPBACK if bound.family == socket.AF_INET else "::1"
    return _endpoint(here, port), _endpoint(socket.gethostname(), port)


def _endpoint(name: str, port: int) -> str:
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def _short(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _listed(title: str, lines: tuple[str, ...] | list[str]) -> list[str]:
    return [f"{title if not i else '':<9} {line}" for i, line in enumerate(lines)]
