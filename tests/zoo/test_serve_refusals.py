"""Requests to zoo serve that no good client makes, and those without the right to: refused."""

import hashlib
import json
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from hubclient import quick_client, usual_client
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from models import make_model
from ownhub import OwnHub, additions, commit_lines, own_hub, use_client

from zoo.pull import pull
from zoo.server import reading

MODEL = "org/name"
WEIGHTS = "model.safetensors"
WHOLE = hashlib.shake_256(b"weights").digest(3_000_000)
FILES = {"config.json": b"{}", WEIGHTS: WHOLE}
COMMIT = f"/api/models/{MODEL}/commit/main"
PATHS = f"/api/models/{MODEL}/paths-info/main"
VALIDATE = "/api/validate-yaml"
BATCH = f"/{MODEL}.git/info/lfs/objects/batch"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[OwnHub]:
    (tmp_path / "served").mkdir()
    quick_client()
    with own_hub(tmp_path / "served") as hub:
        hub.history.create(MODEL)
        yield hub
    usual_client()


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnHub]:
    """A server for the tests that leave it as it was."""
    folder = tmp_path_factory.mktemp("steady") / "served"
    folder.mkdir()
    with own_hub(folder) as hub:
        hub.history.create(MODEL)
        yield hub


@pytest.fixture
def api(hub: OwnHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HfApi:
    return use_client(monkeypatch, hub, tmp_path / "cache")


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


# Commits


BAD_COMMITS = {
    "bytes that never came": ("lfsFile", {"path": "w.safetensors", "oid": "0" * 64, "size": 3}),
    "no digest": ("lfsFile", {"path": "w.safetensors", "oid": "../../token", "size": 3}),
    "a file in a file": ("file", {"path": ".gitattributes/inside", "content": "x"}),
    "no such change": ("renamed", {"path": "config.json"}),
    "no path": ("file", {"content": "x"}),
    "no content": ("file", {"path": "x.txt"}),
    "not base64": ("file", {"path": "x.txt", "content": "%%%%", "encoding": "base64"}),
    "half a character": ("file", {"path": "x\ud800.txt", "content": "x"}),
    "another half": ("file", {"path": "x\udc80.txt", "content": "x"}),
}


@pytest.mark.parametrize("bad", BAD_COMMITS.values(), ids=BAD_COMMITS.keys())
def test_a_bad_change_leaves_all_as_it_was(steady: OwnHub, bad: tuple) -> None:
    before = steady.history.state(MODEL)
    lines = commit_lines(("file", {"path": "good.txt", "content": "x"}), bad)
    answer = steady.raw("POST", COMMIT, content=lines)
    assert answer.status_code == 400
    assert answer.headers["x-error-message"]
    assert steady.history.state(MODEL) == before


_LEADING_OUT = st.lists(
    st.sampled_from(["..", ".", "", "a", ".git", "C:", "con", "a\\b", "~", "b ", "%2e%2e", "\0"]),
    min_size=1,
    max_size=5,
).map("/".join)


@examples(
    deadline=None,
    max_examples=30,
)
@given(path=_LEADING_OUT | st.text(max_size=30))
def test_no_path_leads_out(steady: OwnHub, path: str) -> None:
    before = {p for p in steady.folder.parent.rglob("*") if steady.folder not in p.parents}
    lines = commit_lines(("file", {"path": path, "content": "x"}))
    answer = steady.raw("POST", COMMIT, content=lines)
    assert answer.status_code in {200, 400}
    parts = path.split("/")
    if {"..", ".", "", ".git"} & {*parts} or "\0" in path or "\\" in path:
        assert answer.status_code == 400
    after = {p for p in steady.folder.parent.rglob("*") if steady.folder not in p.parents}
    assert before == after


@examples(
    deadline=None,
    max_examples=30,
)
@given(
    org=st.sampled_from(["..", ".", "a", "", ".zoo-serve", "con"]) | st.text(max_size=8),
    name=st.sampled_from(["..", ".", "a", "", "b.git", "nul", "x--y"]) | st.text(max_size=8),
)
def test_no_name_leads_out(steady: OwnHub, org: str, name: str) -> None:
    asked = {"organization": org, "name": name}
    answer = steady.raw("POST", "/api/repos/create", content=json.dumps(asked).encode())
    assert answer.status_code in {200, 400, 409}
    inside = {s.name for s in steady.history.states()}
    assert (f"{org or 'local'}/{name}" in inside) == (answer.status_code != 400)
    assert {p.name for p in steady.folder.parent.iterdir()} == {"served"}
    assert {p.name for p in steady.folder.iterdir()} == {".zoo-serve"}


# Uploads


def test_bytes_that_are_not_those_announced_are_refused(hub: OwnHub) -> None:
    oid = hashlib.sha256(b"announced").hexdigest()
    asked = {"operation": "upload", "objects": [{"oid": oid, "size": 9}]}
    batch = hub.raw("POST", BATCH, json=asked).json()
    actions = batch["objects"][0]["actions"]
    place = actions["upload"]["href"].removeprefix(hub.endpoint)
    before = contents(hub.folder)
    for other in (b"different", b"annou", b"announced and more", b""):
        assert hub.raw("PUT", place, content=other, headers={}).status_code == 400
        chunked = iter([other])  # no length is stated beforehand
        assert hub.raw("PUT", place, content=chunked, headers={}).status_code == 400
    verify = actions["verify"]["href"].removeprefix(hub.endpoint)
    assert hub.raw("POST", verify, json=asked["objects"][0]).status_code == 404
    assert contents(hub.folder) == before
    for forged in (place.replace("size=9", "size=8"), place[:-1], place.split("?")[0]):
        assert hub.raw("PUT", forged, content=b"announced", headers={}).status_code == 403
    assert hub.raw("PUT", place, content=b"announced", headers={}).status_code == 200
    assert hub.raw("POST", verify, json=asked["objects"][0]).status_code == 200


def test_an_upload_that_breaks_off_leaves_nothing(hub: OwnHub) -> None:
    oid = hashlib.sha256(WHOLE * 2).hexdigest()
    asked = {"operation": "upload", "objects": [{"oid": oid, "size": 2 * len(WHOLE)}]}
    batch = hub.raw("POST", BATCH, json=asked).json()
    before = contents(hub.folder)

    def half() -> Iterator[bytes]:
        yield WHOLE
        raise ConnectionError("the client has gone")

    place = batch["objects"][0]["actions"]["upload"]["href"]
    with pytest.raises(ConnectionError):
        hub.raw("PUT", place.removeprefix(hub.endpoint), content=half(), headers={})
    assert hub.raw("GET", "/api/models", headers={}).is_success
    hub.stop()
    assert contents(hub.folder) == before


# The token


def test_only_the_token_pushes(hub: OwnHub, api: HfApi) -> None:
    commit = api.model_info(MODEL).sha
    changes = commit_lines(("file", {"path": "x.txt", "content": "x"}))
    for sent in ("Bearer wrong", "Bearer x", f"Basic {hub.token}", hub.token, "Bearer \xff"):
        headers = {"Authorization": sent.encode("latin-1")}
        answer = hub.raw("POST", COMMIT, content=changes, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["x-error-message"] == "Invalid credentials in Authorization header"
    for method, path in [
        ("POST", "/api/repos/create"),
        ("POST", COMMIT),
        ("POST", f"/api/models/{MODEL}/preupload/main"),
        ("POST", f"/api/models/{MODEL}/tag/main"),
        ("DELETE", f"/api/models/{MODEL}/tag/main"),
        ("POST", f"/api/models/{MODEL}/branch/main"),
        ("DELETE", f"/api/models/{MODEL}/branch/main"),
        ("POST", BATCH),
        ("POST", f"/{MODEL}.git/info/lfs/objects/verify"),
        ("GET", "/api/whoami-v2"),
    ]:
        assert hub.raw(method, path, headers={}).status_code == 401, path
    assert api.model_info(MODEL, token="hf_of_another_hub").sha == commit
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        api.whoami(token="wrong")
    assert api.whoami()["name"] == "local"
    assert [org["name"] for org in api.whoami()["orgs"]] == ["org"]


def test_what_is_private_is_not_there_for_others(hub: OwnHub, api: HfApi) -> None:
    api.create_repo("org/secret", private=True)
    api.create_commit("org/secret", additions(FILES), commit_message="push")
    assert api.model_info("org/secret").private
    stranger = HfApi(endpoint=hub.endpoint, token=False)
    assert [m.id for m in api.list_models()] == [MODEL, "org/secret"]
    assert [m.id for m in stranger.list_models()] == [MODEL]
    answers = []
    for name in ("secret", "missing"):
        for where in (f"/api/models/org/{name}", f"/org/{name}/resolve/main/config.json"):
            answer = hub.raw("GET", where, headers={})
            answers.append((answer.status_code, answer.headers["x-error-code"]))
        with pytest.raises(RepositoryNotFoundError):
            stranger.model_info(f"org/{name}")
        with pytest.raises(HfHubHTTPError, match="401"):
            stranger.model_info(f"org/{name}", token="wrong")
    assert set(answers) == {(401, "RepoNotFound")}
    assert pull("org/secret").fetched


def test_a_private_server_shows_nothing_without_the_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_model(tmp_path / "served" / "org" / "tiny")
    with own_hub(tmp_path / "served", private=True) as hub:
        api = use_client(monkeypatch, hub, tmp_path / "cache")
        assert api.model_info("org/tiny").private
        with pytest.raises(RepositoryNotFoundError):
            api.model_info("org/tiny", token=False)


# Without the token


@pytest.mark.parametrize("path", [PATHS, VALIDATE])
def test_who_may_not_ask_is_told_before_the_body_is_read(tmp_path: Path, path: str) -> None:
    (tmp_path / "served").mkdir()
    with own_hub(tmp_path / "served", private=True) as hub:
        hub.history.create(MODEL)
        connection = HTTPConnection(hub.endpoint.removeprefix("http://"), timeout=5)
        connection.putrequest("POST", path)
        connection.putheader("Content-Length", "16000000")
        connection.endheaders()  # and no byte of the body
        assert connection.getresponse().status == 401
        connection.close()


@pytest.mark.parametrize("path", [PATHS, VALIDATE])
def test_what_needs_no_token_is_short(steady: OwnHub, path: str) -> None:
    for length, status in {(1 << 20) - 100: 400, 1 << 20: 413}.items():
        body = b'{"nothing": "%s"}' % (b"a" * length)
        headers = {"Content-Type": "application/json"}
        assert steady.raw("POST", path, content=body, headers=headers).status_code == status


@pytest.mark.parametrize("reader", ["parse_qs", "object_of"])
def test_a_body_is_read_where_it_holds_up_nobody(
    steady: OwnHub, monkeypatch: pytest.MonkeyPatch, reader: str
) -> None:
    threads = []
    real = getattr(reading, reader)

    def watched(body: str | bytes) -> Any:
        threads.append(threading.current_thread().name)
        return real(body)

    monkeypatch.setattr(reading, reader, watched)
    asked = {"parse_qs": {"data": {"paths": ["nowhere.txt", *[".gitattributes"] * 2]}}}
    body = asked.get(reader, {"json": {"paths": [1, ".gitattributes"]}})
    answer = steady.raw("POST", PATHS, headers={}, **body)
    assert [item["path"] for item in answer.json()] == [".gitattributes"]
    assert steady.raw("POST", VALIDATE, json={"content": ""}).is_success
    assert threads
    assert "own hub" not in threads  # where all requests come in


ODD_REQUESTS = {
    "a limit below none": ("GET", "/api/models?limit=-1", None, 200),
    "a cursor behind all": ("GET", f"/api/models?cursor={'9' * 26}", None, 200),
    "a cursor before all": ("GET", "/api/models?cursor=-3", None, 200),
    "a type that is a list": ("POST", "/api/repos/create", {"name": "n", "type": []}, 400),
    "no visibility": ("POST", "/api/repos/create", {"name": "n", "visibility": {}}, 400),
    "no name": ("POST", "/api/repos/create", {"name": ["n"]}, 400),
    "a tag that is a list": ("POST", f"/api/models/{MODEL}/tag/main", {"tag": ["v1"]}, 400),
    "a start that is none": ("POST", f"/api/models/{MODEL}/branch/b", {"startingPoint": [1]}, 400),
    "a size without end": (
        "POST",
        f"/api/models/{MODEL}/preupload/main",
        {"files": [{"path": "a", "size": float("inf")}]},
        400,
    ),
    "a parent that is a list": (
        "POST",
        COMMIT,
        {"key": "header", "value": {"summary": "x", "parentCommit": []}},
        400,
    ),
    "a message that is a list": (
        "POST",
        COMMIT,
        {"key": "header", "value": {"summary": "x", "description": ["x"]}},
        400,
    ),
}


@pytest.mark.parametrize("odd", ODD_REQUESTS.values(), ids=ODD_REQUESTS.keys())
def test_odd_requests_have_an_answer(steady: OwnHub, odd: tuple) -> None:
    method, path, asked, status = odd
    before = steady.history.states()
    content = None if asked is None else json.dumps(asked).encode()
    answer = steady.raw(method, path, content=content)
    assert answer.status_code == status
    if status == 400:
        assert answer.headers["x-error-message"]
    assert steady.history.states() == before


@pytest.mark.parametrize("path", [COMMIT, VALIDATE, BATCH])
def test_json_that_goes_too_far_down_is_refused(steady: OwnHub, path: str) -> None:
    answer = steady.raw("POST", path, content=b"[" * 100_000)
    assert answer.status_code == 400
    assert "not JSON" in answer.headers["x-error-message"]


def test_only_names_of_this_machine_are_answered(steady: OwnHub) -> None:
    statuses = {
        name: steady.raw("GET", "/api/models", headers={"Host": name}).status_code
        for name in (
            "127.0.0.1",
            "localhost:8000",
            "[::1]:8000",
            "page.example",
            "127.0.0.1.example",
        )
    }
    assert list(statuses.values()) == [200, 200, 200, 400, 400]
