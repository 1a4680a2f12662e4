"""Signatures: what their signer did not sign, all of it and nothing else, is refused."""

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fakehub import FakeHub
from hypothesis import given
from hypothesis import settings as how
from hypothesis import strategies as st
from model_signing import hashing, signing
from pulls import FILES, REPOSITORY, WEIGHTS, WHOLE, litter, published
from runs import zoo
from signed import (
    KEY,
    OTHER,
    SIGNER,
    Files,
    digests,
    key_file,
    public,
    signed,
    write,
    write_catalog,
)

from zoo.errors import Exit, IntegrityError
from zoo.signing import MOST_BYTES, SIGNATURE, check_signature


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return signed(tmp_path_factory.mktemp("good") / "new", FILES, KEY)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Another's signature over the same files."""
    return signed(tmp_path_factory.mktemp("others") / "new", FILES, OTHER)[SIGNATURE]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    with published(monkeypatch, tmp_path / "cache") as hub:
        yield hub


def assert_nothing_seen(tmp_path: Path) -> None:
    """No snapshot, no branch, no listing, no partial file."""
    for place in ("snapshots/*/*", "refs/*", "trees/*"):
        assert not list((tmp_path / "cache").glob(f"models--*/{place}"))
    assert litter(tmp_path / "cache") == []


# ---- What is wrong with a repository, and what is said of it


def restated(files: Files, change: Callable[[dict], object]) -> Files:
    """The signed statement changed, and not signed again."""
    bundle = json.loads(files[SIGNATURE])
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    change(statement["predicate"])
    payload = base64.b64encode(json.dumps(statement).encode()).decode()
    bundle["dsseEnvelope"]["payload"] = payload
    return {**files, SIGNATURE: json.dumps(bundle).encode()}


def believed(files: Files) -> Files:
    """A changed file, and the statement with its digest."""

    def change(predicate: dict) -> None:
        for resource in predicate["resources"]:
            if resource["name"] == "LICENSE":
                resource["digest"] = digests({"": b"mine"})[""]

    return restated({**files, "LICENSE": b"mine"}, change)


def library_signed(files: Files, tmp_path: Path, config: hashing.Config) -> Files:
    """By the library itself, in another manner."""
    folder = write(tmp_path / "by-library", {n: d for n, d in files.items() if n != SIGNATURE})
    made = tmp_path / "made.sig"
    key = key_file(tmp_path, KEY)
    signer = signing.Config().use_elliptic_key_signer(private_key=key)
    signer.set_hashing_config(config).sign(folder, made)
    return {**files, SIGNATURE: made.read_bytes()}


def without(files: Files, *names: str) -> Files:
    return {name: data for name, data in files.items() if name not in names}


def first_twice(predicate: dict) -> None:
    predicate["resources"].append(predicate["resources"][0])


WRONG: dict[str, tuple[Callable[[Files, bytes, Path], Files], tuple[str, ...]]] = {
    "another key": (lambda g, o, t: {**g, SIGNATURE: o}, ("is not that of the key",)),
    "no signature": (lambda g, o, t: without(g, SIGNATURE), ("is missing", SIGNATURE)),
    "another file": (
        lambda g, o, t: {**g, "images/evil.svg": b"<svg onload=''/>"},
        ("images/evil.svg is not covered",),
    ),
    "a second signature": (lambda g, o, t: {**g, "b/model.sig": o}, ("b/model.sig is not cov",)),
    "a file gone": (lambda g, o, t: without(g, "LICENSE"), ("LICENSE was signed and is missing",)),
    "another name": (
        lambda g, o, t: {**without(g, "LICENSE"), "NOTICE": g["LICENSE"]},
        ("LICENSE was signed and is missing; NOTICE is not covered",),
    ),
    "a changed byte": (
        lambda g, o, t: {**g, WEIGHTS: WHOLE[:-1] + b"?"},
        (f"{WEIGHTS} has other bytes",),
    ),
    "two files swapped": (
        lambda g, o, t: {**g, "README.md": g["LICENSE"], "LICENSE": g["README.md"]},
        ("LICENSE has other bytes", "README.md has other bytes"),
    ),
    "a changed statement": (lambda g, o, t: believed(g), ("is not that of the key",)),
    "a name twice": (lambda g, o, t: restated(g, first_twice), ("stands in it twice",)),
    "truncated": (lambda g, o, t: {**g, SIGNATURE: g[SIGNATURE][:-300]}, ("cannot be read",)),
    "empty": (lambda g, o, t: {**g, SIGNATURE: b""}, ("cannot be read",)),
    "no JSON": (lambda g, o, t: {**g, SIGNATURE: b"\x7fELF" * 99}, ("cannot be read",)),
    "no UTF-8": (lambda g, o, t: {**g, SIGNATURE: b"\xff\xfe\x00"}, ("cannot be read",)),
    "a list": (lambda g, o, t: {**g, SIGNATURE: b"[1, 2]"}, ("cannot be read",)),
    "deep": (lambda g, o, t: {**g, SIGNATURE: b"[" * 100_000}, ("cannot be read",)),
    "deep inside": (
        lambda g, o, t: {
            **g,
            SIGNATURE: g[SIGNATURE][:-1] + b',"x":' + b"[" * 900 + b"]" * 900 + b"}",
        },
        ("is not that of the key",),
    ),
    "huge": (lambda g, o, t: {**g, SIGNATURE: b" " * (MOST_BYTES + 1)}, ("1,000,0",)),
    "in shards": (
        lambda g, o, t: library_signed(g, t, hashing.Config().use_shard_serialization()),
        ("not sha256 file by file",),
    ),
    "a path left out": (
        lambda g, o, t: library_signed(
            g, t, hashing.Config().set_ignored_paths(paths=["config.json"])
        ),
        ("config.json is not covered",),
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_not_signed_is_not_pulled(
    case: str,
    good: Files,
    others: bytes,
    hub: FakeHub,
    settings: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make, words = WRONG[case]
    commit = hub.add(REPOSITORY, make(good, others, tmp_path))
    write_catalog(settings, commit=commit)
    assert zoo(["pull", "mine"]) == Exit.INTEGRITY
    said = capsys.readouterr().err
    assert [word for word in words if word not in said] == []
    assert_nothing_seen(tmp_path)


@pytest.mark.parametrize("case", WRONG)
def test_what_is_not_signed_is_not_verified(
    case: str, good: Files, others: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, words = WRONG[case]
    folder = write(tmp_path / "model", make(good, others, tmp_path))
    (tmp_path / "key.pub.pem").write_text(public(KEY))
    signer = ["--signer", str(tmp_path / "key.pub.pem")]
    assert zoo(["verify", str(folder), *signer]) == Exit.INTEGRITY
    said = capsys.readouterr().err
    assert [word for word in words if word not in said] == []


@given(data=st.data())
@how(max_examples=60, deadline=None)
def test_a_damaged_signature_never_passes(
    data: st.DataObject, good: Files, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = good[SIGNATURE]
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, min(len(whole), start + 20)))
    damaged = whole[:start] + data.draw(st.binary(max_size=20)) + whole[end:]
    file = tmp_path_factory.getbasetemp() / "damaged.sig"
    file.write_bytes(damaged)
    try:
        check_signature(digests(good), file, SIGNER)
    except IntegrityError:
        return
    # Then the damage is beside what counts.
    was, now = (json.loads(text)["dsseEnvelope"] for text in (whole, damaged))
    assert base64.b64decode(now["payload"]) == base64.b64decode(was["payload"])
