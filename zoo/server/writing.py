"""What needs the token: new repositories, uploads, commits, tags and branches."""

import base64
import binascii
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from typing import Any, TypeGuard

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from zoo.server.access import Access, parameter
from zoo.server.blobs import BLOCK, MOST_REGULAR_BYTES, SAMPLE_BYTES, is_large, lfs_file
from zoo.server.history import LOCAL, MAIN, Delete, Put, check_name, check_path
from zoo.server.reading import json_of, object_of, origin, text_in
from zoo.server.refusal import RefusedError
from zoo.tree import is_sha256

_MOST_LINE_BYTES = 2 * MOST_REGULAR_BYTES
"""Of a commit's line: a regular file in base64."""
_MOST_FILES = 20_000
_LFS_JSON = "application/vnd.git-lfs+json"


class Writing:
    """The endpoints that change something."""

    def __init__(self, access: Access) -> None:
        self.access = access
        self.history = access.history

    async def create(self, request: Request) -> Response:
        self.access.require_token(request)
        asked = await json_of(request)
        name = f"{text_in(asked, 'organization') or LOCAL}/{text_in(asked, 'name')}"
        if text_in(asked, "type") not in {"", "model"}:
            raise RefusedError(400, "this server holds models only")
        usual = "private" if asked.get("private") else "public"
        visibility = text_in(asked, "visibility") or usual
        if visibility not in {"private", "public"}:
            raise RefusedError(400, f"no such visibility here: {visibility!r}")
        url = f"{origin(request)}/{name}"

        def work() -> Response:
            try:
                found = self.access.shelf.refresh(check_name(name))
                self.history.create(name, private=visibility == "private", found=found)
            except RefusedError as refusal:
                refusal.url = url if refusal.status == 409 else ""
                raise
            return JSONResponse({"url": url, "name": name, "id": name})

        return await run_in_threadpool(work)

    async def preupload(self, request: Request) -> Response:
        """How each file is to come, and what the branch has of that name already."""
        self.access.require_token(request)
        asked = (await json_of(request)).get("files")
        if not isinstance(asked, list):
            raise RefusedError(400, "no files")

        def work() -> Response:
            state = self.access.repository(request, write=True)
            present = self.history.commit_of(state, parameter(request, "revision")).files
            files = []
            for item in asked:
                path, size, sample = _preupload_item(item)
                answer = {
                    "path": path,
                    "uploadMode": "lfs" if is_large(path, size, sample) else "regular",
                    "shouldIgnore": False,
                }
                if path in present:
                    answer["oid"] = present[path].etag
                files.append(answer)
            return JSONResponse({"files": files})

        return await run_in_threadpool(work)

    async def lfs_batch(self, request: Request) -> Response:
        """Where to upload what is not here yet."""
        self.access.require_token(request)
        asked = await json_of(request)
        if asked.get("operation") != "upload" or not isinstance(asked.get("objects"), list):
            raise RefusedError(400, "only uploads go this way")

        def work() -> Response:
            name = self.access.repository(request, write=True).name
            objects = []
            for item in asked["objects"]:
                sha256, size = _announced(item)
                answer: dict[str, Any] = {"oid": sha256, "size": size}
                if not self.history.blobs.has(sha256, size):
                    query = self.access.sign(name, sha256, size)
                    place = f"{origin(request)}/{name}.git/info/lfs/objects"
                    answer["actions"] = {
                        "upload": {"href": f"{place}/{sha256}?{query}"},
                        "verify": {"href": f"{place}/verify"},
                    }
                objects.append(answer)
            return JSONResponse({"transfer": "basic", "objects": objects}, media_type=_LFS_JSON)

        return await run_in_threadpool(work)

    async def lfs_upload(self, request: Request) -> Response:
        """The bytes of one file, straight to the disk; kept if they are those announced."""
        sha256, size = self.access.require_signature(request)
        if request.headers.get("content-length", str(size)) != str(size):
            raise RefusedError(400, f"{size:,} bytes were announced")
        with ExitStack() as stack:
            file = stack.enter_context(self.history.blobs.incoming(sha256=sha256, size=size))
            async for block in _blocks(request):
                if file.size + len(block) > size:
                    raise RefusedError(400, f"{size:,} bytes were announced")
                await run_in_threadpool(file.write, block)
            await run_in_threadpool(stack.close)  # waits for the disk; others need not
        return Response(status_code=200)

    async def lfs_verify(self, request: Request) -> Response:
        self.access.require_token(request)
        sha256, size = _announced(await json_of(request))
        if not self.history.blobs.has(sha256, size):
            raise RefusedError(404, "this file has not come")
        return JSONResponse({}, media_type=_LFS_JSON)

    async def commit(self, request: Request) -> Response:
        """All of the operations, or none."""
        if request.query_params.get("create_pr"):
            self.access.require_token(request)
            raise RefusedError(400, "there are no pull requests on this server")
        state = await run_in_threadpool(self.access.repository, request, write=True)
        header: dict[str, Any] = {}
        operations: list[Put | Delete] = []
        async for line in _lines(request):
            change = await run_in_threadpool(self._change_of, line)
            if isinstance(change, dict):
                header = change
            else:
                operations.append(change)
            if len(operations) > _MOST_FILES:
                raise RefusedError(413, f"more than {_MOST_FILES:,} changes at once")
        title = _text(text_in(header, "summary"))
        if not title.strip():
            raise RefusedError(400, "a commit needs a summary")
        commit = await run_in_threadpool(
            self.history.push,
            state.name,
            parameter(request, "revision"),
            operations,
            title=title,
            message=_text(text_in(header, "description")),
            parent=text_in(header, "parentCommit") or None,
        )
        return JSONResponse(
            {
                "success": True,
                "commitOid": commit.id,
                "commitUrl": f"{origin(request)}/{state.name}/commit/{commit.id}",
                "hookOutput": "",
            }
        )

    async def add_tag(self, request: Request) -> Response:
        self.access.require_token(request)
        tag = text_in(await json_of(request), "tag")
        revision = parameter(request, "revision")
        return await self._change(request, lambda name: self.history.add_tag(name, tag, revision))

    async def remove_tag(self, request: Request) -> Response:
        tag = parameter(request, "revision")
        return await self._change(request, lambda name: self.history.remove_tag(name, tag))

    async def add_branch(self, request: Request) -> Response:
        self.access.require_token(request)
        start = text_in(await json_of(request), "startingPoint") or MAIN
        branch = parameter(request, "revision")
        return await self._change(
            request, lambda name: self.history.add_branch(name, branch, start)
        )

    async def remove_branch(self, request: Request) -> Response:
        branch = parameter(request, "revision")
        return await self._change(request, lambda name: self.history.remove_branch(name, branch))

    async def _change(self, request: Request, change: Callable[[str], None]) -> Response:
        def work() -> Response:
            change(self.access.repository(request, write=True).name)
            return JSONResponse({})

        return await run_in_threadpool(work)

    def _change_of(self, line: bytes) -> Put | Delete | dict[str, Any]:
        """What a line of a commit asks for, its bytes kept; or the commit's header."""
        key, value = _commit_line(line)
        if key == "header":
            return value
        path = value.get("path")
        if not isinstance(path, str):
            raise RefusedError(400, "a change without a path")
        if key in {"deletedFile", "deletedFolder"}:
            return Delete(path=path, folder=key == "deletedFolder")
        check_path(path)
        if key == "file":
            return Put(path=path, file=self.history.blobs.add(path, _content(value)))
        if key == "lfsFile":
            # Where the client copies a file, it leaves out the size.
            sha256, size = _announced({"size": self._size(value), **value})
            if not self.history.blobs.has(sha256, size):
                raise RefusedError(400, f"{path}: its bytes have not been uploaded")
            return Put(path=path, file=lfs_file(sha256, size))
        raise RefusedError(400, f"no such change: {key!r}")

    def _size(self, value: dict[str, Any]) -> int:
        sha256, _ = _announced({"size": 0, "oid": value.get("oid")})
        path = self.history.blobs.path(sha256)
        return path.stat().st_size if path.is_file() else 0


async def _blocks(request: Request) -> AsyncIterator[bytes]:
    """The body, in pieces worth a thread each."""
    gathered = bytearray()
    async for piece in request.stream():
        gathered += piece
        if len(gathered) >= BLOCK:
            yield bytes(gathered)
            gathered.clear()
    if gathered:
        yield bytes(gathered)


async def _lines(request: Request) -> AsyncIterator[bytes]:
    rest = bytearray()
    async for piece in request.stream():
        rest += piece
        if b"\n" in piece:
            *lines, last = bytes(rest).split(b"\n")
            rest = bytearray(last)
            for line in lines:
                yield line
        if len(rest) > _MOST_LINE_BYTES:
            raise RefusedError(413, f"a file of over {MOST_REGULAR_BYTES:,} bytes goes by LFS")
    if rest:
        yield bytes(rest)


def _commit_line(line: bytes) -> tuple[str, dict[str, Any]]:
    item = object_of(line)
    key, value = item.get("key"), item.get("value")
    if not isinstance(key, str) or not isinstance(value, dict):
        raise RefusedError(400, "a line that is no change")
    return key, value


def _text(text: str) -> str:
    return text.encode("utf-8", "replace").decode()  # JSON can spell what no file can hold


def _content(value: dict[str, Any]) -> bytes:
    try:
        if value.get("encoding") == "base64":
            return base64.b64decode(value["content"], validate=True)
        return value["content"].encode()
    except (KeyError, TypeError, AttributeError, ValueError, binascii.Error):
        raise RefusedError(400, "a file without its content") from None


def _announced(item: Any) -> tuple[str, int]:
    sha256 = item.get("oid") if isinstance(item, dict) else None
    size = item.get("size") if isinstance(item, dict) else None
    if not is_sha256(sha256) or not _is_size(size):
        raise RefusedError(400, "a file without its sha256 and size")
    return sha256, size


def _is_size(size: object) -> TypeGuard[int]:
    return isinstance(size, int) and not isinstance(size, bool) and size >= 0


def _preupload_item(item: Any) -> tuple[str, int, bytes]:
    try:
        sample = base64.b64decode(item.get("sample") or "", validate=True)[:SAMPLE_BYTES]
        path, size = check_path(item["path"]), item["size"]
    except (KeyError, TypeError, AttributeError, ValueError):
        path, size, sample = "", None, b""
    if not _is_size(size):
        raise RefusedError(400, "a file without its path and size")
    return path, size, sample
