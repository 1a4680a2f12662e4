"""zoo pull against a Hub that misbehaves: no wrong byte is ever seen."""

import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from fakehub import Answer, Asked, FakeHub, point_client_at
from hypothesis import given
from hypothesis import strategies as st
from pulls import FILES, WEIGHTS, WHOLE, assert_complete, assert_nothing_wrong, fetch, published

from zoo.errors import Exit, IntegrityError, NetworkError, UsageError, ZooError
from zoo.pull import pull
from zoo.tree import listing_from_api

CANARY = "hf_canary0123456789"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[FakeHub]:
    with published(monkeypatch, cache) as hub:
        yield hub


# What a server does wrong, and how a pull ends


Twist = Callable[[Asked, Answer], Answer]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A misbehaviour and its end: 0 for a pull that gets through."""

    twist: Twist
    code: int
    store: bool = False
    """Large files come from another origin."""


def of_weights(change: Callable[[Asked, Answer], Answer], *, times: int = 10**9) -> Twist:
    """Change the answer to a request for the weights: ever, or the first few times."""
    return files(change, name=WEIGHTS, times=times)


def files(change: Callable[[Asked, Answer], Answer], *, name: str, times: int = 10**9) -> Twist:
    def twist(asked: Asked, answer: Answer) -> Answer:
        bytes_of_it = asked.name == name and answer.status in {200, 206}
        return change(asked, answer) if bytes_of_it and asked.number <= times else answer

    return twist


def api(kind: str, change: Callable[[Answer], Answer], *, times: int = 10**9) -> Twist:
    def twist(asked: Asked, answer: Answer) -> Answer:
        is_it = f"/{kind}/" in asked.path and asked.path.startswith("/api/")
        return change(answer) if is_it and asked.number <= times else answer

    return twist


def listed(change: Callable[[dict], object], name: str = WEIGHTS) -> Twist:
    """Change what the listing says of one file."""

    def twist(answer: Answer) -> Answer:
        items = json.loads(bytes(answer.body))
        for item in items:
            if item["path"] == name:
                change(item)
        return replace(answer, body=json.dumps(items).encode())

    return api("tree", twist)


def flipped(asked: Asked, answer: Answer) -> Answer:
    body = bytearray(answer.body)
    body[len(body) // 2] ^= 1
    return replace(answer, body=bytes(body))


def becomes(status: int, **headers: str) -> Callable[[Asked, Answer], Answer]:
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    return lambda asked, answer: Answer(status=status, headers=named)


def sends(**changes: object) -> Callable[[Asked, Answer], Answer]:
    return lambda asked, answer: replace(answer, **changes)  # type: ignore[arg-type]


def cut_then(later: Callable[[Asked, Answer], Answer]) -> Twist:
    """The first answer breaks in the middle; those to what follows are changed."""

    def change(asked: Asked, answer: Answer) -> Answer:
        if asked.number == 1:
            return replace(answer, cut=100_000)
        return later(asked, answer) if "range" in asked.headers else answer

    return of_weights(change)


def at_wrong_offset(asked: Asked, answer: Answer) -> Answer:
    place = f"bytes 7-{len(FILES[WEIGHTS]) - 1}/{len(FILES[WEIGHTS])}"
    return replace(answer, headers={**answer.headers, "Content-Range": place})


def with_body(body: bytes) -> Callable[[Asked, Answer], Answer]:
    return lambda asked, answer: replace(answer, body=body)


def header(key: str, value: str) -> Callable[[Asked, Answer], Answer]:
    return lambda asked, answer: replace(answer, headers={**answer.headers, key: value})


HTML = b"<html><title>Sign in to the network</title></html>"

FAULTS = {
    "a flipped bit": Fault(twist=of_weights(flipped), code=4),
    "a flipped bit, once": Fault(twist=of_weights(flipped, times=1), code=0),
    "a flipped bit in a small file": Fault(twist=files(flipped, name="README.md"), code=4),
    "a flipped bit in the rest": Fault(twist=cut_then(flipped), code=0),
    "a short file": Fault(twist=of_weights(with_body(WHOLE[:-1])), code=4),
    "a long file": Fault(twist=of_weights(with_body(WHOLE + b"x")), code=4),
    "an empty file": Fault(twist=of_weights(with_body(b"")), code=4),
    "a page of HTML": Fault(twist=of_weights(with_body(HTML)), code=4),
    "cut, once": Fault(twist=of_weights(sends(cut=100_000), times=1), code=0),
    "cut, every time": Fault(twist=of_weights(sends(cut=50_000)), code=0),
    "cut before any byte": Fault(twist=of_weights(sends(cut=0)), code=5),
    "a reset": Fault(twist=of_weights(sends(cut=100_000, reset=True), times=1), code=0),
    "a stall": Fault(twist=of_weights(sends(cut=1000, silent_seconds=0.6)), code=5),
    "a stall, once": Fault(twist=of_weights(sends(cut=9, silent_seconds=0.6), times=1), code=0),
    "a trickle": Fault(twist=of_weights(sends(block=1000, pace_seconds=0.05)), code=5),
    "429, come back at once": Fault(
        twist=of_weights(becomes(429, Retry_After="0"), times=1), code=0
    ),
    "429, come back tomorrow": Fault(twist=of_weights(becomes(429, Retry_After="86400")), code=5),
    "500, once": Fault(twist=of_weights(becomes(500), times=1), code=0),
    "502, once": Fault(twist=of_weights(becomes(502), times=1), code=0),
    "503, for ever": Fault(twist=of_weights(becomes(503)), code=5),
    "504, twice": Fault(twist=of_weights(becomes(504), times=2), code=0),
    "401": Fault(twist=of_weights(becomes(401)), code=2),
    "403": Fault(twist=of_weights(becomes(403, X_Error_Code="GatedRepo")), code=2),
    "404 for what it lists": Fault(
        twist=of_weights(becomes(404, X_Error_Code="EntryNotFound")), code=5
    ),
    "a status of its own": Fault(twist=of_weights(becomes(299)), code=5),
    "no range": Fault(twist=cut_then(lambda _, a: replace(a, status=200, body=WHOLE)), code=0),
    "206 at a wrong place": Fault(twist=cut_then(at_wrong_offset), code=0),
    "206 without a place": Fault(twist=cut_then(header("Content-Range", "?")), code=0),
    "206 not asked for": Fault(twist=of_weights(sends(status=206)), code=5),
    "416": Fault(twist=cut_then(becomes(416)), code=0),
    "gzip": Fault(twist=of_weights(header("Content-Encoding", "gzip")), code=5),
    "chunked": Fault(twist=of_weights(sends(chunked=True, block=999)), code=0),
    "chunked, too long": Fault(twist=of_weights(sends(chunked=True, body=WHOLE + b"x")), code=4),
    "no length": Fault(twist=of_weights(sends(length=False)), code=0),
    "an endless body": Fault(twist=of_weights(sends(chunked=True, endless=True)), code=4),
    "no HTTP": Fault(twist=of_weights(sends(raw=b"SSH-2.0-OpenSSH_9.6\r\n\r\n")), code=5),
    "redirect to a file": Fault(
        twist=of_weights(becomes(302, Location="file:///etc/passwd")), code=4
    ),
    "redirect to http": Fault(
        twist=of_weights(becomes(302, Location="http://example.org/x")), code=4
    ),
    "redirect to nowhere": Fault(twist=of_weights(becomes(302, Location="https://[bad/x")), code=4),
    "redirects for ever": Fault(
        twist=lambda asked, answer: (
            Answer(status=307, headers={"Location": "/self"})
            if asked.name == WEIGHTS or asked.path == "/self"
            else answer
        ),
        code=5,
    ),
    "another store": Fault(twist=lambda _, answer: answer, code=0, store=True),
    "another store that cuts": Fault(twist=cut_then(sends()), code=0, store=True),
    "another store with other bytes": Fault(twist=of_weights(flipped), code=4, store=True),
    "a listing with another sha256": Fault(
        twist=listed(lambda item: item["lfs"].update(oid="0" * 64)), code=4
    ),
    "a listing with another sha1": Fault(
        twist=listed(lambda item: item.update(oid="0" * 40), "README.md"), code=4
    ),
    "a listing with another size": Fault(
        twist=listed(lambda i: (i.update(size=9), i["lfs"].update(size=9))), code=4
    ),
    "a size below zero": Fault(twist=listed(lambda i: i.update(size=-1), "LICENSE"), code=4),
    "two sizes": Fault(twist=listed(lambda item: item.update(size=1)), code=4),
    "a digest that leaves": Fault(
        twist=listed(lambda item: item["lfs"].update(oid="../../../../x")), code=4
    ),
    "a name that leaves": Fault(twist=listed(lambda i: i.update(path="../x.json")), code=4),
    "an absolute name": Fault(twist=listed(lambda i: i.update(path="/x.json")), code=4),
    "a name twice": Fault(
        twist=listed(lambda i: i.update(path="config.json"), "README.md"), code=4
    ),
    "a file inside a file": Fault(
        twist=listed(lambda i: i.update(path="config.json/x.json"), "README.md"), code=4
    ),
    "a listing that is no list": Fault(
        twist=api("tree", lambda a: replace(a, body=b'{"error": 1}')), code=4
    ),
    "a listing of nonsense": Fault(
        twist=api("tree", lambda a: replace(a, body=b'[1, {"type": []}]')), code=4
    ),
    "a listing that is not JSON": Fault(twist=api("tree", lambda a: replace(a, body=HTML)), code=5),
    "a listing too deep": Fault(
        twist=api("tree", lambda a: replace(a, body=b"[" * 200_000)), code=5
    ),
    "a listing cut once": Fault(
        twist=api("tree", lambda answer: replace(answer, cut=10), times=1), code=0
    ),
    "a next page elsewhere": Fault(
        twist=api(
            "tree", lambda a: replace(a, headers={"Link": '<https://example.org/>; rel="next"'})
        ),
        code=4,
    ),
    "no commit": Fault(
        twist=api("revision", lambda a: replace(a, body=b'{"sha": "main"}')), code=4
    ),
    "a commit that leaves": Fault(
        twist=api("revision", lambda a: replace(a, body=b'{"sha": "../../../../../../x"}')), code=4
    ),
    "gated": Fault(
        twist=api("revision", lambda _: Answer(status=403, headers={"X-Error-Code": "GatedRepo"})),
        code=2,
    ),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_whatever_the_server_does_no_wrong_byte_is_seen(
    hub: FakeHub, cache: Path, fault: Fault, tmp_path: Path
) -> None:
    hub.twist = fault.twist
    if fault.store:
        hub.store = hub.endpoint.replace("127.0.0.1", "localhost")
    if fault.code:
        with pytest.raises(ZooError) as caught:
            fetch()
        assert caught.value.code == fault.code
        assert caught.value.where
        assert caught.value.fix
        assert "\n" not in caught.value.what + caught.value.where
    else:
        fetch()
    assert_nothing_wrong(cache)
    assert {path.name for path in tmp_path.iterdir()} <= {"cache"}
    hub.twist, hub.store = (lambda asked, answer: answer), ""
    assert_complete(fetch(), cache)


def test_there_are_many_faults() -> None:
    assert len(FAULTS) >= 25


# Names


NAMES = st.text(min_size=1, max_size=40) | st.from_regex(r"(\.\.|[a-z]|/|\\|:|\0|CON){1,8}")


@given(name=NAMES)
def test_a_listed_name_stays_inside_or_is_refused(name: str) -> None:
    item = {"type": "file", "path": name, "size": 1, "oid": "0" * 40}
    root = Path("/some/where")
    try:
        (entry,) = listing_from_api([item], "org/name").values()
    except IntegrityError:
        return
    inside = Path(os.path.normpath(root / entry.name))
    assert inside.is_relative_to(root)
    assert inside != root


@given(name=NAMES)
def test_a_source_is_a_name_or_refused_without_a_request(name: str) -> None:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name, re.ASCII):
        with pytest.raises(UsageError):
            pull(name, offline=True)


@given(revision=NAMES)
def test_a_revision_stays_inside_or_is_refused(revision: str) -> None:
    with pytest.raises((UsageError, NetworkError)) as caught:
        pull(f"org/name@{revision}", offline=True)
    if not re.fullmatch(r"[\w.+/-]+", revision, re.ASCII) or ".." in revision:
        assert caught.value.code == Exit.USAGE


@pytest.mark.parametrize(
    "source",
    [
        *("../x", "/etc/passwd", "org/name@../../x", "org/name@a\\b", "org/name@", "org/na\0me"),
        *("C:\\x", "org/" + "x" * 300, "org/name@" + "x" * 300, "\\\\host\\x", "org/..", "name"),
    ],
)
def test_a_bad_name_touches_nothing(hub: FakeHub, tmp_path: Path, source: str) -> None:
    with pytest.raises(UsageError):
        fetch(source)
    assert not hub.requests
    assert list(tmp_path.iterdir()) == []


# Secrets


def test_the_token_stays_with_the_first_host(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", CANARY)
    hub.store = hub.endpoint.replace("127.0.0.1", "localhost")
    fetch()
    carried = {
        urlsplit(a.path).path.split("/")[1]: a.headers.get("authorization") for a in hub.asked
    }
    assert carried["store"] is None
    assert carried["api"] == carried["org"] == f"Bearer {CANARY}"
    hub.status["GET"] = 401
    with pytest.raises(UsageError) as caught:
        fetch("org/other")
    assert CANARY not in str(caught.value) + "".join(capfd.readouterr())


def test_plain_http_is_for_this_machine(
    hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point_client_at(monkeypatch, "http://hub.example.org", cache)
    with pytest.raises(IntegrityError, match="https"):
        fetch()
