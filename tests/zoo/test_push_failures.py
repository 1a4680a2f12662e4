"""zoo push against a Hub that refuses, fails, lies or is not there."""

import errno
import socket
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]
from huggingface_hub.utils import get_session
from ownhub import OwnHub
from pushes import NAME, failure, make, posts, publish, refusing
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from zoo.errors import DiskError, IntegrityError, NetworkError, UsageError, ZooError


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make(tmp_path / "runs" / "tiny" / "export")


def test_no_token(hub: OwnHub, api: HfApi, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    error = failure(model, UsageError)
    assert "hf auth login" in error.fix
    assert hub.requests == []


def test_a_token_that_is_no_text(
    hub: OwnHub, api: HfApi, model: Path, token_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    token_file.write_bytes(b"hf_\xff\xfe")
    error = failure(model, UsageError)
    assert "token cannot be read" in error.what
    assert str(token_file) in error.where


def test_a_token_that_is_not_known(
    hub: OwnHub, api: HfApi, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_" + "wrong0" * 6)
    error = failure(model, UsageError)
    assert "does not know the token" in error.what
    assert "wrong0" not in str(error)


def test_a_token_that_may_not_write(hub: OwnHub, api: HfApi, model: Path) -> None:
    hub.answer = refusing("/commit/", 403)
    assert "may not write" in failure(model, UsageError).what


def test_too_large_for_the_hub(hub: OwnHub, api: HfApi, model: Path) -> None:
    hub.answer = refusing("/commit/", 413)
    assert "too large" in failure(model, UsageError).what


def test_a_page_that_the_hub_refuses(hub: OwnHub, api: HfApi, model: Path) -> None:
    def answer(request: Request) -> Response | None:
        if "validate-yaml" not in request.url.path:
            return None
        return JSONResponse({"errors": [{"message": "license is odd"}], "warnings": []}, 400)

    hub.answer = answer
    error = failure(model, UsageError)
    assert "license is odd" in error.where
    assert posts(hub, "/commit/") == 0


@pytest.mark.parametrize(
    ("part", "status"),
    [
        ("/repos/create", 503),
        ("/revision/", 503),
        ("/tree/", 503),
        ("/preupload/", 503),
        ("/batch", 503),
        ("/commit/", 429),
        ("/commit/", 500),
        ("/commit/", 503),
        ("/tag/", 503),
    ],
)
def test_what_may_pass_is_tried_again(
    hub: OwnHub, api: HfApi, model: Path, part: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)  # of the client's own waits too
    hub.answer = refusing(part, status, times=1)
    pushed = publish(model)
    assert api.model_info(NAME, revision=pushed.tag).sha == pushed.commit


def test_a_hub_that_stays_down_is_a_network_error(
    hub: OwnHub, api: HfApi, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    hub.answer = refusing("/commit/", 503)
    error = failure(model, NetworkError)
    assert "did not take me/tiny" in error.what
    assert api.list_repo_refs(NAME).tags == []


def test_a_hub_that_is_not_there(hub: OwnHub, api: HfApi, model: Path) -> None:
    hub.stop()
    assert "cannot be reached" in failure(model, NetworkError).what


def test_a_hub_that_never_answers(
    hub: OwnHub, api: HfApi, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", place)
        before = get_session().timeout
        failure(model, NetworkError)
        assert get_session().timeout == before


def test_an_answer_that_was_lost_is_not_a_second_commit(
    hub: OwnHub, api: HfApi, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = HfApi.create_commit

    def and_then_cut(*arguments: Any, **options: Any) -> None:
        commit(*arguments, **options)
        raise HTTPError("the connection was cut before the answer came")

    monkeypatch.setattr(HfApi, "create_commit", and_then_cut)
    pushed = publish(model)
    assert posts(hub, "/commit/") == 1
    assert pushed.tag == "v1"
    assert "model.safetensors" in pushed.sent
    assert api.model_info(NAME, revision="v1").sha == pushed.commit


def test_somebody_elses_commit_in_between(hub: OwnHub, api: HfApi, model: Path) -> None:
    api.create_repo(NAME)
    between = [True]

    def answer(request: Request) -> Response | None:
        if "/commit/" in request.url.path and between:
            between.clear()
            return JSONResponse({"error": "stale"}, status_code=412)
        return None

    hub.answer = answer
    pushed = publish(model)
    assert api.model_info(NAME).sha == pushed.commit


def test_a_hub_that_keeps_other_bytes_gets_no_tag(hub: OwnHub, api: HfApi, model: Path) -> None:
    listed = []

    def answer(request: Request) -> Response | None:
        if "/tree/" not in request.url.path or not posts(hub, "/commit/"):
            return None
        listed.append(request.url.path)
        item = {"type": "file", "path": "config.json", "size": 5, "oid": "ab" * 20}
        return JSONResponse([item])

    hub.answer = answer
    error = failure(model, IntegrityError)
    assert "other bytes than were sent" in error.what
    assert "config.json" in error.where
    assert listed
    assert api.list_repo_refs(NAME).tags == []


def test_a_tag_that_another_push_set_meanwhile(
    hub: OwnHub, api: HfApi, model: Path, tmp_path: Path
) -> None:
    first = publish(model, tag="one")

    def after(method: str, path: str) -> None:
        if method == "POST" and "/commit/" in path:
            hub.after = lambda method, path: None
            hub.history.add_tag(NAME, "paper", first.commit)

    hub.after = after
    error = failure(make(tmp_path / "other", seed=1), UsageError, tag="paper")
    assert "already marks other files" in error.what


def test_a_branch_is_no_tag(hub: OwnHub, api: HfApi, model: Path) -> None:
    publish(model)
    api.create_branch(NAME, branch="next")
    assert "is a branch" in failure(model, UsageError, tag="next").what


@pytest.mark.parametrize("status", [400, 403, 413, 500])
def test_a_hub_that_repeats_the_token_is_not_quoted(
    hub: OwnHub, api: HfApi, model: Path, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)

    def answer(request: Request) -> Response | None:
        if "/commit/" not in request.url.path:
            return None
        return JSONResponse({"error": f"bad {request.headers['authorization']}"}, status)

    hub.answer = answer
    failure(model, ZooError)  # which looks for the token


def test_a_proxy_that_answers_with_a_page(
    hub: OwnHub, api: HfApi, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    hub.answer = lambda request: (
        HTMLResponse("<p>log in</p>") if "preupload" in request.url.path else None
    )
    failure(model, NetworkError)


def test_a_full_disk_is_said_to_be_one(
    hub: OwnHub, api: HfApi, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(HfApi, "create_commit", full)
    failure(model, DiskError)


def test_a_hub_that_asks_to_wait_is_waited_for(
    hub: OwnHub, api: HfApi, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    hub.answer = refusing("/commit/", 429, times=1, **{"Retry-After": "3"})
    publish(model)
    assert sum(waited) >= 3


def test_offline_is_said(
    hub: OwnHub, api: HfApi, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "offline" in failure(model, NetworkError).what


@pytest.mark.parametrize("endpoint", ["http://example.org", "ftp://127.0.0.1", "file:///tmp"])
def test_the_token_goes_nowhere_unsafe(
    hub: OwnHub, api: HfApi, model: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    assert "https" in failure(model, IntegrityError).what
