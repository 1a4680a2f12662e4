"""Who may see and change what: reading is open unless it is private, changing needs the token."""

import hashlib
import hmac
import secrets
import time
from dataclasses import dataclass, field
from urllib.parse import unquote

from starlette.requests import Request

from zoo.server.folders import Shelf
from zoo.server.history import Commit, History, State, check_name
from zoo.server.refusal import RefusedError, no_repository
from zoo.tree import is_commit

UPLOAD_SECONDS = 24 * 3600
"""How long an address for an upload holds."""

_WRONG_TOKEN = "Invalid credentials in Authorization header"  # the client knows this text


@dataclass(kw_only=True, slots=True)
class Access:
    """What the endpoints share."""

    history: History
    shelf: Shelf
    token: str = field(repr=False)
    private: bool = False
    """Reading needs the token everywhere."""
    page: int = 1000
    """Items on a page of a listing."""
    _key: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)

    def has_token(self, request: Request) -> bool:
        """Whether the request carries the token; compared in constant time."""
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        right = hmac.compare_digest(token.strip().encode(), self.token.encode())
        return right and kind.lower() == "bearer"

    def require_token(self, request: Request) -> None:
        """Raises RefusedError: 401."""
        if not self.has_token(request):
            raise self._unknown_user(request)

    def readable(self, request: Request, state: State) -> bool:
        return not (self.private or state.private) or self.has_token(request)

    def repository(self, request: Request, *, write: bool = False) -> State:
        """The repository that a request is about, as it is now.  Raises RefusedError, DiskError.

        To whom has no token, one that is private and one that is not there look the same.
        """
        if write:
            self.require_token(request)
        name = check_name(f"{parameter(request, 'org')}/{parameter(request, 'name')}")
        # A commit never changes: the files of one are fetched without a look at the folder.
        pinned = is_commit(parameter(request, "revision")) and not write
        there = pinned or self.shelf.refresh(name)
        try:
            state = self.history.state(name)
            if (there or state.pushed) and self.readable(request, state):
                return state
        except RefusedError:
            pass
        if self.has_token(request):
            raise no_repository(name)
        if "authorization" in request.headers:
            raise self._unknown_user(request)
        raise no_repository(name, status=401)

    def commit(self, request: Request) -> tuple[State, Commit]:
        """The repository and commit that a request is about.  Raises RefusedError, DiskError."""
        state = self.repository(request)
        return state, self.history.commit_of(state, parameter(request, "revision") or "main")

    def sign(self, name: str, sha256: str, size: int) -> str:
        """The query of an address to upload to: the client sends no token there."""
        until = int(time.time()) + UPLOAD_SECONDS
        return f"size={size}&until={until}&signature={self._signature(name, sha256, size, until)}"

    def require_signature(self, request: Request) -> tuple[str, int]:
        """The sha256 and size that an upload was announced with.  Raises RefusedError: 403."""
        name = f"{parameter(request, 'org')}/{parameter(request, 'name')}"
        sha256, query = parameter(request, "sha256"), request.query_params
        try:
            size, until = int(query["size"]), int(query["until"])
        except (KeyError, ValueError):
            raise RefusedError(403, "this is no address to upload to") from None
        right = self._signature(name, sha256, size, until)
        given = query.get("signature", "")
        if not hmac.compare_digest(right.encode(), given.encode()) or until < time.time():
            raise RefusedError(403, "this address to upload to does not hold, or no longer")
        return sha256, size

    def _signature(self, name: str, sha256: str, size: int, until: int) -> str:
        text = f"{name}\n{sha256}\n{size}\n{until}"
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()

    def _unknown_user(self, request: Request) -> RefusedError:
        sent = "authorization" in request.headers
        return RefusedError(401, _WRONG_TOKEN if sent else "Invalid username or password.")


def parameter(request: Request, name: str) -> str:
    """A part of the path, as it was meant (see ``app``); empty where it is not there."""
    try:
        return unquote(request.path_params.get(name, ""), errors="strict")
    except UnicodeDecodeError:
        raise RefusedError(400, "the address is not UTF-8") from None
