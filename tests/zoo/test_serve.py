"""The small Hub of zoo serve, asked by the real clients: what is pushed is what is pulled."""

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from huggingface_hub import (
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from models import make_model
from ownhub import OwnHub, additions, commit_lines, own_hub, use_client
from pulls import FAST
from starlette.responses import Response

from zoo.errors import NetworkError
from zoo.pull import pull

MODEL = "org/name"
WEIGHTS = "model.safetensors"
WHOLE = hashlib.shake_256(b"weights").digest(3_000_000)
FILES = {
    "config.json": b'{"architecture": "vit_tiny_patch16_224"}',
    WEIGHTS: WHOLE,
    "README.md": b"---\nlicense: apache-2.0\nlibrary_name: timm\ntags: [tiny]\n---\n# A model\n",
    "images/curve.svg": b"<svg/>",
}


def push(api: HfApi, files: dict[str, bytes] = FILES, *, parent: str | None = None) -> str:
    """Commit files to the model, made if it is not there; returns the commit."""
    api.create_repo(MODEL, exist_ok=True)
    operations = additions(files)
    return api.create_commit(MODEL, operations, commit_message="push", parent_commit=parent).oid


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


# Push, and pull what was pushed


def test_what_is_pushed_is_what_every_client_pulls(hub: OwnHub, api: HfApi, tmp_path: Path) -> None:
    commit = push(api)
    api.create_tag(MODEL, tag="v1", tag_message="the first")
    assert api.model_info(MODEL, revision="v1").sha == commit
    snapshot = Path(huggingface_hub.snapshot_download(MODEL, revision="v1"))
    assert FILES.items() <= contents(snapshot).items()
    assert contents(snapshot).keys() - FILES.keys() == {".gitattributes"}
    assert huggingface_hub.snapshot_download(MODEL, local_files_only=True, revision="v1")
    pulled = pull(f"{MODEL}@v1", to=tmp_path / "copy")
    assert pulled.commit == commit
    assert FILES.items() <= contents(tmp_path / "copy").items()
    assert not [path for _, path in hub.requests if "xet" in path]


def test_timm_loads_it_from_here_as_from_the_disk(api: HfApi, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "tiny")
    api.create_repo(MODEL)
    api.upload_folder(repo_id=MODEL, folder_path=folder)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    outputs = [
        timm.create_model(source, pretrained=True).eval()(images)
        for source in (f"hf-hub:{MODEL}", f"local-dir:{folder}")
    ]
    assert torch.equal(*outputs)


def test_a_pull_that_broke_off_continues(hub: OwnHub, api: HfApi, tmp_path: Path) -> None:
    commit = push(api)
    sha256 = hashlib.sha256(WHOLE).hexdigest()
    blobs = tmp_path / "cache" / f"models--{MODEL.replace('/', '--')}" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{sha256}.zoo.incomplete").write_bytes(WHOLE[:2_000_000])
    ranges: list[str | None] = []

    def note(request) -> None:
        if request.url.path.endswith(WEIGHTS):
            ranges.append(request.headers.get("range"))

    hub.answer = note
    pulled = pull(MODEL)
    assert pulled.commit == commit
    assert (pulled.folder / WEIGHTS).read_bytes() == WHOLE
    assert ranges == ["bytes=2000000-"]
    assert pulled.received < len(WHOLE)


def test_ranges_hold_for_the_same_bytes_only(hub: OwnHub, api: HfApi) -> None:
    commit = push(api)
    path = f"/{MODEL}/resolve/main/{WEIGHTS}"
    etag = f'"{hashlib.sha256(WHOLE).hexdigest()}"'
    head = hub.raw("HEAD", path, headers={})
    assert head.headers["etag"] == head.headers["x-linked-etag"] == etag
    assert head.headers["x-repo-commit"] == commit
    assert head.headers["x-linked-size"] == head.headers["content-length"] == str(len(WHOLE))
    asked = {"Range": "bytes=10-", "If-Range": etag}
    part = hub.raw("GET", path, headers=asked)
    assert part.status_code == 206
    assert part.content == WHOLE[10:]
    assert part.headers["content-range"] == f"bytes 10-{len(WHOLE) - 1}/{len(WHOLE)}"
    for other in ('"of-other-bytes"', f"W/{etag}", etag.strip('"')):
        whole = hub.raw("GET", path, headers={**asked, "If-Range": other})
        assert whole.status_code == 200
        assert whole.content == WHOLE
    assert hub.raw("GET", path, headers={"Range": f"bytes={len(WHOLE)}-"}).status_code == 416


def test_sixteen_at_once(hub: OwnHub, api: HfApi, tmp_path: Path) -> None:
    push(api)
    digest = hashlib.sha256(WHOLE).hexdigest()
    start = threading.Barrier(16)

    def both_ways(number: int) -> str:
        start.wait()
        data = f"{number}".encode() * 200_000
        api.create_repo(f"many/model{number}")
        changes = additions({WEIGHTS: data, "config.json": b"{}"})
        api.create_commit(f"many/model{number}", changes, commit_message="push")
        name = huggingface_hub.hf_hub_download(
            f"many/model{number}", WEIGHTS, cache_dir=tmp_path / f"{number}"
        )
        assert Path(name).read_bytes() == data
        got = hub.raw("GET", f"/{MODEL}/resolve/main/{WEIGHTS}", headers={})
        return hashlib.sha256(got.content).hexdigest()

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(both_ways, range(16))) == [digest] * 16
    assert len(list(api.list_models(author="many"))) == 16


# What the repository says


def test_history_tags_and_branches(hub: OwnHub, api: HfApi) -> None:
    first = push(api)
    second = push(api, {"config.json": b"{}"}, parent=first)
    api.create_tag(MODEL, tag="v1", revision=first)
    api.create_branch(MODEL, branch="try/out", revision="v1")
    operations = [
        CommitOperationDelete("images/"),
        CommitOperationCopy(WEIGHTS, "copy.safetensors"),
        CommitOperationCopy("README.md", "copy.md"),
    ]
    third = api.create_commit(
        MODEL, operations, commit_message="tidy\n\nup", revision="try/out"
    ).oid
    assert [c.commit_id for c in api.list_repo_commits(MODEL)][:2] == [second, first]
    assert [c.title for c in api.list_repo_commits(MODEL)] == ["push", "push", "initial commit"]
    refs = api.list_repo_refs(MODEL)
    assert {b.name: b.target_commit for b in refs.branches} == {"main": second, "try/out": third}
    assert {t.ref: t.target_commit for t in refs.tags} == {"refs/tags/v1": first}
    assert set(api.list_repo_files(MODEL, revision="try/out")) == {
        *(FILES.keys() - {"images/curve.svg"}),
        *("copy.safetensors", "copy.md", ".gitattributes"),
    }
    for revision, sha in {"try/out": third, first: first, "v1": first, "main": second}.items():
        assert api.model_info(MODEL, revision=revision).sha == sha
    pulled = huggingface_hub.hf_hub_download(MODEL, "copy.safetensors", revision="try/out")
    assert Path(pulled).read_bytes() == WHOLE
    for change in (api.create_tag, api.delete_branch):
        with pytest.raises(HfHubHTTPError) as refused:
            change(MODEL, **{"tag": "v1"} if change == api.create_tag else {"branch": "main"})  # type: ignore[arg-type]
        assert refused.value.response.status_code in {403, 409}
    api.create_tag(MODEL, tag="v1", exist_ok=True)
    api.delete_tag(MODEL, tag="v1")
    api.delete_branch(MODEL, branch="try/out")
    with pytest.raises(RevisionNotFoundError):
        api.model_info(MODEL, revision="v1")
    assert [b.name for b in api.list_repo_refs(MODEL).branches] == ["main"]


def test_a_listing_comes_in_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "served").mkdir()
    with own_hub(tmp_path / "served", page=3) as hub:
        api = use_client(monkeypatch, hub, tmp_path / "cache")
        push(api, {f"notes/{n}.txt": b"%d" % n for n in range(7)} | FILES)
        names = [file.path for file in api.list_repo_tree(MODEL, recursive=True)]
        assert len([p for _, p in hub.requests if "/tree/" in p]) == 5
        assert len(names) == len(set(names)) == 7 + len(FILES) + 3  # folders, .gitattributes
        assert pull(MODEL).folder.joinpath("notes/6.txt").read_bytes() == b"6"
        for number in range(7):
            api.create_repo(f"other/model{number}")
        assert len(list(api.list_models())) == 8
        assert [m.id for m in api.list_models(limit=2)] == [MODEL, "other/model0"]
        assert len(api.list_repo_commits(MODEL)) == 2
        inside = {item.path for item in api.list_repo_tree(MODEL, "images")}
        assert inside == {"images/curve.svg"}
        with pytest.raises(EntryNotFoundError):
            list(api.list_repo_tree(MODEL, "nowhere"))


def test_digests_are_those_of_git(api: HfApi) -> None:
    push(api)
    info = api.model_info(MODEL, files_metadata=True)
    sizes = {s.rfilename: s.size for s in info.siblings or []}
    assert sizes == {**{n: len(d) for n, d in FILES.items()}, ".gitattributes": 50}
    svg, weights = api.get_paths_info(MODEL, ["images/curve.svg", WEIGHTS, "missing"])
    assert svg.blob_id == hashlib.sha1(b"blob 6\0<svg/>").hexdigest()  # type: ignore[union-attr]
    assert weights.lfs.sha256 == hashlib.sha256(WHOLE).hexdigest()  # type: ignore[union-attr]
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{weights.lfs.sha256}\n"  # type: ignore[union-attr]
    pointer += f"size {len(WHOLE)}\n"
    of_pointer = hashlib.sha1(f"blob {len(pointer)}\0{pointer}".encode()).hexdigest()
    assert weights.blob_id == of_pointer  # type: ignore[union-attr]
    assert weights.lfs.pointer_size == len(pointer)  # type: ignore[union-attr]


def test_models_are_found_by_what_their_card_says(api: HfApi) -> None:
    push(api)
    api.create_repo("org/other")
    assert {m.id for m in api.list_models()} == {MODEL, "org/other"}
    for query in ({"filter": "tiny"}, {"search": "NAME"}, {"filter": "license:apache-2.0"}):
        assert [m.id for m in api.list_models(**query)] == [MODEL]  # type: ignore[arg-type]
    assert not list(api.list_models(author="nobody"))
    info = api.model_info(MODEL)
    assert info.library_name == "timm"
    assert info.card_data is not None
    assert info.card_data.license == "apache-2.0"


def test_what_is_missing_is_named_as_the_hub_does(api: HfApi) -> None:
    push(api)
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("org/nothing")
    with pytest.raises(RevisionNotFoundError):
        api.model_info(MODEL, revision="v9")
    with pytest.raises(EntryNotFoundError):
        huggingface_hub.hf_hub_download(MODEL, "nothing.json")
    with pytest.raises(RepositoryNotFoundError):
        api.dataset_info(MODEL)
    with pytest.raises(EntryNotFoundError, match="A file with this name doesn't exist"):
        api.delete_file("nothing.json", MODEL)


# Commits: all or nothing


def test_a_commit_on_a_stale_parent_is_refused(api: HfApi) -> None:
    first = push(api)
    second = push(api, {"config.json": b"{}"}, parent=first)
    with pytest.raises(HfHubHTTPError) as refused:
        push(api, {"config.json": b"[]"}, parent=first)
    assert refused.value.response.status_code == 412
    assert api.model_info(MODEL).sha == second


def test_the_same_again_is_no_new_commit(hub: OwnHub, api: HfApi) -> None:
    commit = push(api)
    assert push(api) == commit
    assert not [path for method, path in hub.requests[-3:] if "/commit/" in path]
    by_hand = commit_lines(("file", {"path": "config.json", "content": "{}"}))
    answers = [hub.raw("POST", f"/api/models/{MODEL}/commit/main", content=by_hand) for _ in "ab"]
    assert answers[0].json()["commitOid"] == answers[1].json()["commitOid"] != commit
    assert len(api.list_repo_commits(MODEL)) == 3


def test_of_two_pushes_at_once_none_is_lost(hub: OwnHub, api: HfApi) -> None:
    push(api)

    def add(number: int) -> None:
        line = commit_lines(("file", {"path": f"{number}.txt", "content": "x"}))
        assert hub.raw("POST", f"/api/models/{MODEL}/commit/main", content=line).is_success

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(24)))
    assert {f"{n}.txt" for n in range(24)} <= set(api.list_repo_files(MODEL))
    assert len(api.list_repo_commits(MODEL)) == 26


# The kit


def test_a_test_can_answer_in_place_of_the_server(hub: OwnHub, api: HfApi) -> None:
    push(api)
    hub.answer = lambda request: Response(status_code=503) if WEIGHTS in request.url.path else None
    with pytest.raises(NetworkError):
        pull(MODEL, patience=FAST)
    hub.answer = lambda request: None
    assert pull(MODEL).fetched


def test_a_test_can_act_between_two_requests(hub: OwnHub, api: HfApi) -> None:
    first = push(api)

    def meanwhile(method: str, path: str) -> None:
        if "/preupload/" in path:
            hub.after = lambda method, path: None
            hub.history.push(MODEL, "main", [], title="nothing")
            hub.history.add_tag(MODEL, "meanwhile", "main")

    hub.after = meanwhile
    push(api, {"config.json": b"{}"})
    assert api.model_info(MODEL, revision="meanwhile").sha == first
