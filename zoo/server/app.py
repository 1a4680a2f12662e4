"""All endpoints, as one ASGI application."""

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from zoo.errors import DiskError, IntegrityError, ZooError
from zoo.server.access import Access
from zoo.server.reading import Reading
from zoo.server.refusal import RefusedError
from zoo.server.writing import Writing

log = logging.getLogger("zoo.server")

_Endpoint = Callable[[Request], Response | Awaitable[Response]]
# Of [::1] older releases of Starlette see the bracket alone; no name in the DNS begins with it.
LOCAL_HOSTS = ("127.0.0.1", "localhost", "[::1]", "[")
"""What a client on this machine calls it."""
ANY_HOST = ("*",)

_ONE = "/api/models/{org}/{name}"
_OTHER_KINDS = tuple(f"{api}/{kind}/" for api in ("", "/api") for kind in ("datasets", "spaces"))
_LFS = "/{org}/{name}.git/info/lfs/objects"


def create_app(access: Access, hosts: Sequence[str] = LOCAL_HOSTS) -> ASGIApp:
    """The Hub of one served folder.

    hosts: the names it answers to.  A page in a browser here could otherwise have its own name
    resolved to this machine, and read what is served.
    """
    app = Starlette(
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)],
        routes=[*_read(Reading(access)), *_written(Writing(access))],
        exception_handlers={
            RefusedError: _refused,
            ZooError: _failed,
            HTTPException: _unknown,
            ClientDisconnect: _gone,
        },
    )
    app.router.redirect_slashes = False
    return _Quoted(_Logged(app))


def _read(reading: Reading) -> list[Route]:
    return [
        _route("GET", "/api/whoami-v2", reading.whoami),
        _route("POST", "/api/validate-yaml", reading.validate_yaml),
        _route("GET", "/api/models", reading.list_models),
        _route("GET", _ONE, reading.model),
        _route("GET", _ONE + "/revision/{revision}", reading.model),
        _route("GET", _ONE + "/auth-check", reading.auth_check),
        _route("GET", _ONE + "/auth-check/write", reading.auth_check),
        _route("GET", _ONE + "/tree/{revision}", reading.tree),
        _route("GET", _ONE + "/tree/{revision}/{path:path}", reading.tree),
        _route("POST", _ONE + "/paths-info/{revision}", reading.paths_info),
        _route("GET", _ONE + "/refs", reading.refs),
        _route("GET", _ONE + "/commits/{revision}", reading.commits),
        _route("GET", "/{org}/{name}/resolve/{revision}/{path:path}", reading.file),
    ]


def _written(writing: Writing) -> list[Route]:
    return [
        _route("POST", "/api/repos/create", writing.create),
        _route("POST", _ONE + "/preupload/{revision}", writing.preupload),
        _route("POST", _LFS + "/batch", writing.lfs_batch),
        _route("POST", _LFS + "/verify", writing.lfs_verify),
        _route("PUT", _LFS + "/{sha256}", writing.lfs_upload),
        _route("POST", _ONE + "/commit/{revision}", writing.commit),
        _route("POST", _ONE + "/tag/{revision}", writing.add_tag),
        _route("DELETE", _ONE + "/tag/{revision}", writing.remove_tag),
        _route("POST", _ONE + "/branch/{revision}", writing.add_branch),
        _route("DELETE", _ONE + "/branch/{revision}", writing.remove_branch),
    ]


def _route(method: str, path: str, endpoint: _Endpoint) -> Route:
    return Route(path, endpoint, methods=[method])


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    body = {"error": error.message, **({"url": error.url} if error.url else {})}
    return JSONResponse(body, status_code=error.status, headers=error.headers)


async def _failed(request: Request, error: Exception) -> Response:
    """Bytes that are not right are the client's; a full disk and a damaged store are ours."""
    assert isinstance(error, ZooError)
    status = {IntegrityError: 400, DiskError: 507}.get(type(error), 500)
    if status != 400:
        log.error("%s", error)
    return await _refused(request, RefusedError(status, error.what))


async def _unknown(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    of_another_kind = request.url.path.startswith(_OTHER_KINDS)
    code = "RepoNotFound" if of_another_kind else ""
    return await _refused(request, RefusedError(error.status_code, error.detail, code=code))


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=400)  # nobody is there to read it


class _Quoted:
    """Routes by the path as it was sent: a branch's slash, as %2F, is no separator."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = {**scope, "path": scope["raw_path"].decode("ascii", "replace")}
        await self.app(scope, receive, send)


class _Logged:
    """One line a request, without its query: that may hold a signature."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.monotonic()
        status: Any = "no answer"

        async def watched(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            if scope["type"] == "http":
                took = 1000 * (time.monotonic() - started)
                log.info("%s %s %s %.0f ms", scope["method"], scope["path"], status, took)
