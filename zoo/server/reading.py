"""What anyone may ask: models, commits, listings, files."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs, urlencode

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from zoo.server import cards
from zoo.server.access import Access, parameter
from zoo.server.blobs import BLOCK, StoredFile, lfs_pointer
from zoo.server.history import LOCAL, MAIN, Commit, State
from zoo.server.refusal import RefusedError, no_entry

MOST_JSON_BYTES = 16 << 20
_MOST_OPEN_BYTES = 1 << 20
"""Of the body of a request that needs no token."""
_MOST_CARD_BYTES = 1 << 20


class _BlobResponse(FileResponse):
    chunk_size = BLOCK


async def json_of(request: Request, most: int = MOST_JSON_BYTES) -> dict[str, Any]:
    """The request's body: an object.  Raises RefusedError."""
    return await run_in_threadpool(object_of, await body_of(request, most))


async def body_of(request: Request, most: int) -> bytes:
    """The request's body, of so many bytes at most.  Raises RefusedError: 413."""
    body = bytearray()
    async for block in request.stream():
        body += block
        if len(body) > most:
            raise RefusedError(413, f"more than {most:,} bytes")
    return bytes(body)


def object_of(body: bytes) -> dict[str, Any]:
    """A JSON object.  Raises RefusedError."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise RefusedError(400, "the body is not JSON") from None
    if not isinstance(value, dict):
        raise RefusedError(400, "the body is not an object")
    return value


def text_in(asked: Mapping[str, Any], key: str) -> str:
    """A text of a request's object; empty where it is not there.  Raises RefusedError."""
    value = asked.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RefusedError(400, f"{key!r} must be a text")
    return value


class Reading:
    """The endpoints that change nothing."""

    def __init__(self, access: Access) -> None:
        self.access = access
        self.history = access.history

    def whoami(self, request: Request) -> Response:
        self.access.require_token(request)
        owners = {state.name.partition("/")[0] for state in self.history.states()} - {LOCAL}
        right = {"displayName": "zoo serve", "role": "write"}
        return JSONResponse(
            {
                "type": "user",
                "id": LOCAL,
                "name": LOCAL,
                "fullname": LOCAL,
                "orgs": [{"type": "org", "id": name, "name": name} for name in sorted(owners)],
                "auth": {"type": "access_token", "accessToken": right},
            }
        )

    def list_models(self, request: Request) -> Response:
        found = self.access.shelf.refresh_all().models
        query = request.query_params
        models = []
        for state in self.history.states():
            there = state.pushed or state.name in found
            if there and self.access.readable(request, state):
                info = self._info(state, self.history.commit_of(state, MAIN))
                if _wanted(info, query, query.getlist("filter")):
                    models.append(info)
        return self._page(request, models, most=query.get("limit"))

    def model(self, request: Request) -> Response:
        state, commit = self.access.commit(request)
        blobs = request.query_params.get("blobs", "").lower() in {"1", "true"}
        return JSONResponse(self._info(state, commit, blobs=blobs))

    def auth_check(self, request: Request) -> Response:
        self.access.repository(request, write=request.scope["path"].endswith("/write"))
        return JSONResponse({})

    def tree(self, request: Request) -> Response:
        _, commit = self.access.commit(request)
        top = parameter(request, "path").strip("/")
        recursive = request.query_params.get("recursive", "").lower() in {"1", "true"}
        items = [
            item
            for path, item in _tree(commit.files).items()
            if _inside(path, top) and (recursive or "/" not in path[len(top) :].strip("/"))
        ]
        if top and not items:
            raise no_entry(top, commit.id)
        return self._page(request, items)

    async def paths_info(self, request: Request) -> Response:
        _, commit = await run_in_threadpool(self.access.commit, request)
        body = await body_of(request, _MOST_OPEN_BYTES)
        as_json = request.headers.get("content-type", "").startswith("application/json")

        def answer() -> Response:
            asked = object_of(body) if as_json else parse_qs(body.decode(errors="replace"))
            paths = asked.get("paths")
            if not isinstance(paths, list):
                raise RefusedError(400, "no paths")
            tree = _tree(commit.files)
            once = dict.fromkeys(path for path in paths if isinstance(path, str))
            return JSONResponse([tree[path] for path in once if path in tree])

        return await run_in_threadpool(answer)

    def refs(self, request: Request) -> Response:
        state = self.access.repository(request)
        return JSONResponse(
            {
                "branches": _refs(state.branches, "refs/heads/"),
                "tags": _refs(state.tags, "refs/tags/"),
                "converts": [],
                "pullRequests": [],
            }
        )

    def commits(self, request: Request) -> Response:
        state, commit = self.access.commit(request)
        log = [
            {
                "id": commit.id,
                "title": commit.title,
                "message": commit.message,
                "date": commit.date,
                "authors": [{"user": LOCAL}],
            }
            for commit in self.history.log(state, commit.id)
        ]
        return self._page(request, log)

    def file(self, request: Request) -> Response:
        """The bytes, or with HEAD what is known of them; ranges are Starlette's."""
        _, commit = self.access.commit(request)
        path = parameter(request, "path")
        file = commit.files.get(path)
        if file is None:
            raise no_entry(path, commit.id)
        headers = {"X-Repo-Commit": commit.id, "ETag": f'"{file.etag}"'}
        if file.lfs:
            headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(file.size)}
        return _BlobResponse(
            self.history.blobs.kept(file),
            headers={**headers, "X-Content-Type-Options": "nosniff"},
            media_type="application/octet-stream",  # a pushed page is not for this origin
        )

    async def validate_yaml(self, request: Request) -> Response:
        if self.access.private:  # else open to all: the client checks cards without its token
            self.access.require_token(request)
        content = (await json_of(request, _MOST_OPEN_BYTES)).get("content")
        if not isinstance(content, str):
            raise RefusedError(400, "no content")
        errors, warnings = await run_in_threadpool(cards.check, content)
        answer = {
            "errors": [{"message": message} for message in errors],
            "warnings": [{"message": message} for message in warnings],
        }
        return JSONResponse(answer, status_code=400 if errors else 200)

    def _info(self, state: State, commit: Commit, *, blobs: bool = False) -> dict[str, Any]:
        card = self._card(commit)
        return {
            "id": state.name,
            "modelId": state.name,
            "author": state.name.partition("/")[0],
            "sha": commit.id,
            "private": self.access.private or state.private,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": cards.tags(card),
            "library_name": cards.text_of(card, "library_name"),
            "pipeline_tag": cards.text_of(card, "pipeline_tag"),
            "cardData": card or None,
            "createdAt": state.created,
            "lastModified": commit.date,
            "siblings": [
                {"rfilename": path, **(_blob(file) if blobs else {})}
                for path, file in commit.files.items()
            ],
        }

    def _card(self, commit: Commit) -> dict[str, Any]:
        readme = commit.files.get("README.md")
        if readme is None or readme.size > _MOST_CARD_BYTES:
            return {}
        text = self.history.blobs.kept(readme).read_text("utf-8", "replace")
        try:
            return cards.metadata(text)
        except ValueError:
            return {}  # a model with a bad card is a model

    def _page(self, request: Request, items: Sequence[Any], most: str | None = None) -> Response:
        """A page of a listing, with the address of the next."""
        query = request.query_params
        try:
            start = max(0, int(query.get("cursor", "0")))
            size = max(0, min(self.access.page, int(most or self.access.page)))
        except ValueError:
            raise RefusedError(400, "a cursor or limit that is no number") from None
        headers = {}
        if 0 < size < len(items) - start:
            kept = [(key, value) for key, value in query.multi_items() if key != "cursor"]
            following = urlencode([*kept, ("cursor", start + size)])
            address = f"{origin(request)}{request.scope['path']}?{following}"
            headers["Link"] = f'<{address}>; rel="next"'
        return JSONResponse(list(items[start : start + size]), headers=headers)


def origin(request: Request) -> str:
    """The server's address, as the client knows it."""
    return str(request.base_url).rstrip("/")


def _wanted(info: Mapping[str, Any], query: Mapping[str, str], filters: Sequence[str]) -> bool:
    return (
        query.get("author", info["author"]) == info["author"]
        and query.get("search", "").lower() in info["id"].lower()
        and query.get("pipeline_tag", info["pipeline_tag"]) == info["pipeline_tag"]
        and {*filters} <= {*info["tags"], info["pipeline_tag"]}
    )


def _refs(refs: Mapping[str, str], prefix: str) -> list[dict[str, str]]:
    return [
        {"name": name, "ref": prefix + name, "targetCommit": commit}
        for name, commit in refs.items()
    ]


def _blob(file: StoredFile) -> dict[str, Any]:
    known: dict[str, Any] = {"size": file.size, "blobId": file.oid}
    if file.lfs:
        size = len(lfs_pointer(file.sha256, file.size))
        known["lfs"] = {"sha256": file.sha256, "size": file.size, "pointerSize": size}
    return known


def _inside(path: str, top: str) -> bool:
    return not top or path.startswith(top + "/")


def _tree(files: Mapping[str, StoredFile]) -> dict[str, dict[str, Any]]:
    """Path to the Hub's item, folders included, sorted by path."""
    tree: dict[str, dict[str, Any]] = {}
    for path, file in files.items():
        item: dict[str, Any] = {"type": "file", "path": path, "size": file.size, "oid": file.oid}
        if file.lfs:
            size = len(lfs_pointer(file.sha256, file.size))
            item["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": size}
        tree[path] = item
        for folder in _parents(path):
            tree.setdefault(folder, {"type": "directory", "path": folder, "size": 0, "oid": ""})
    for folder in [path for path, item in tree.items() if item["type"] == "directory"]:
        inside = "".join(f"{p} {f.oid}\n" for p, f in files.items() if _inside(p, folder))
        tree[folder]["oid"] = hashlib.sha1(inside.encode(), usedforsecurity=False).hexdigest()
    return dict(sorted(tree.items()))


def _parents(path: str) -> Iterator[str]:
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path
