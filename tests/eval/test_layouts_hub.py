"""``hf:ORG/NAME``: a data set's Parquet files, fetched by the real client from a fake Hub."""

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from evalsets import (
    SMALL,
    SYNSETS,
    THREE,
    WORDS,
    parquet_rows,
    val_files,
    write_parquet,
    write_tree,
)
from fakehub import Answer, Asked, FakeHub, point_client_at, serve
from hubclient import quick_client, usual_client
from hypothesis import given
from hypothesis import strategies as st

from eval.layouts import EvalSet, open_eval_set
from eval.layouts.hubdata import HubData, parse_hub_data
from zoo.errors import DataError, NetworkError, UsageError, ZooError

NAME = "me/imagenet"
DATA = Path(f"hf:{NAME}")
TOKEN = "hf_" + "cAnary0123" * 3


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A repository: two validation shards, and what must not be read."""
    place = tmp_path_factory.mktemp("hub")
    rows = parquet_rows(val_files(), {synset: SYNSETS.index(synset) for synset in THREE})
    shards = {}
    for i in range(2):
        name = f"data/validation-0000{i}-of-00002.parquet"
        shards[name] = write_parquet(place / name, rows[i::2], names=WORDS).read_bytes()
    others = {"data/train-00000-of-00001.parquet": b"never fetched", "imagenet.py": b"1 / 0"}
    return {"README.md": b"---\nconfigs: 3\n---\n", **others, **shards}


@pytest.fixture
def hub(
    files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FakeHub]:
    quick_client()
    with serve() as hub:
        hub.add(NAME, dict(files))
        point_client_at(monkeypatch, hub.endpoint, tmp_path / "cache")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub
    usual_client()


@pytest.fixture
def folder(tmp_path: Path) -> EvalSet:
    return open_eval_set(write_tree(tmp_path / "val", val_files()), "in1k-val", due=SMALL)


def asked_files(hub: FakeHub) -> set[str]:
    return {asked.name for asked in hub.asked if asked.name}


def opened(data: Path = DATA) -> EvalSet:
    return open_eval_set(data, "in1k-val", due=SMALL)


def test_a_set_of_the_hub_equals_its_folder(hub: FakeHub, folder: EvalSet) -> None:
    found = opened()
    assert (found.complete, found.fingerprint) == (True, folder.fingerprint)
    assert np.array_equal(found.labels, folder.labels)
    for i in range(30):
        assert found.where(i) == folder.where(i)
        assert np.array_equal(found.read(i), folder.read(i))
    assert asked_files(hub) == {f"data/validation-0000{i}-of-00002.parquet" for i in range(2)}
    of_the_set = [asked for asked in hub.asked if NAME in asked.path]
    assert {asked.headers["authorization"] for asked in of_the_set} == {f"Bearer {TOKEN}"}


def test_again_and_offline_it_is_there_already(
    hub: FakeHub, folder: EvalSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(Path(f"hf:{NAME}@main#validation"))
    sent = hub.sent.total()
    assert opened().fingerprint == folder.fingerprint
    assert hub.sent.total() - sent < 10_000  # the listing, no file
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.requests)
    assert opened().fingerprint == folder.fingerprint
    assert len(hub.requests) == asked
    with pytest.raises(NetworkError, match="offline"):
        opened(Path("hf:me/other"))


def test_another_revision_is_never_taken_instead(hub: FakeHub, files: dict[str, bytes]) -> None:
    old = hub.commit(NAME)
    opened()
    kept = {name: data for name, data in files.items() if "00001-of-00002" not in name}
    hub.add(NAME, kept)
    with pytest.raises(DataError, match="shards of the set are missing"):
        opened()
    assert opened(Path(f"hf:{NAME}@{old}")).complete
    with pytest.raises(UsageError, match="no such revision"):
        opened(Path(f"hf:{NAME}@{'0' * 40}"))


def test_what_is_not_there(hub: FakeHub) -> None:
    with pytest.raises(UsageError, match="no such data set"):
        opened(Path("hf:me/other"))
    with pytest.raises(UsageError, match="no Parquet file is of this split") as caught:
        opened(Path(f"hf:{NAME}#test"))
    assert "data/train, data/validation" in caught.value.where
    hub.add("me/script", {"script.py": b"1 / 0", "data.bin": b"pickle"})
    with pytest.raises(UsageError, match="no Parquet files"):
        opened(Path("hf:me/script"))
    assert "script.py" not in asked_files(hub)


@pytest.mark.parametrize(
    ("status", "code", "kind", "hint"),
    [
        (403, "GatedRepo", UsageError, "agree"),
        (401, "RepoNotFound", UsageError, "log"),
        (500, "", NetworkError, "again"),
    ],
)
def test_a_hub_that_refuses(
    hub: FakeHub, status: int, code: str, kind: type[ZooError], hint: str
) -> None:
    def twist(asked: Asked, answer: Answer) -> Answer:
        return Answer(status=status, headers={"X-Error-Code": code})

    hub.twist = twist
    with pytest.raises(kind) as caught:
        opened()
    assert hint in caught.value.fix
    assert TOKEN not in str(caught.value)


def test_a_hub_that_is_not_there(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    point_client_at(monkeypatch, "http://127.0.0.1:9", Path("nowhere"))
    with pytest.raises(NetworkError):
        opened()


# Names


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("hf:a/b", HubData("a/b", None, "")),
        ("hf:a/b@v1.0", HubData("a/b", "v1.0", "")),
        ("hf:a/b#c/test", HubData("a/b", None, "c/test")),
        ("hf:a/b@refs/pr/1#test", HubData("a/b", "refs/pr/1", "test")),
    ],
)
def test_names_of_the_hub(text: str, meant: HubData) -> None:
    assert parse_hub_data(Path(text)) == meant


@pytest.mark.parametrize(
    "text", ["hf:", "hf:a", "hf:a/b/c", "hf:a/b@", "hf:a/b#", "hf://datasets/a/b", "hf:a/b@x/../y"]
)
def test_names_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="no data set on the Hub") as caught:
        open_eval_set(Path(text), "in1k-val")
    assert "imagenet-1k" in caught.value.fix


@given(st.text(max_size=30))
def test_no_name_leads_elsewhere(text: str) -> None:
    try:
        found = parse_hub_data(Path(f"hf:{text}"))
    except UsageError:
        return
    parts = f"{found.repository}/{found.revision or ''}/{found.split}".split("/")
    assert found.repository.count("/") == 1
    assert not {".", ".."} & set(parts)
