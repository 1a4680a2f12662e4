"""What a pull leaves in the cache: for the real client libraries, for the next pull, offline."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from fakehub import Answer, Asked, FakeHub, point_client_at
from huggingface_hub import get_cached_repo_tree, hf_hub_download, scan_cache_dir, snapshot_download
from huggingface_hub.errors import IncompleteSnapshotError
from models import make_model
from pulls import (
    FAST,
    FILES,
    REPOSITORY,
    WEIGHTS,
    WHOLE,
    assert_complete,
    assert_nothing_wrong,
    fetch,
    gets,
    litter,
    published,
)
from runs import zoo

from zoo import pull as zoo_pull
from zoo.errors import DiskError, Exit, IntegrityError, NetworkError, UsageError
from zoo.folder import load_model
from zoo.hub import pin_of


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[FakeHub]:
    with published(monkeypatch, cache) as hub:
        yield hub


def broken(asked: Asked, answer: Answer) -> Answer:
    return replace(answer, cut=150_000) if asked.name == WEIGHTS else answer


# What a pull leaves for others


def test_the_client_libraries_find_everything(
    hub: FakeHub, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_model(tmp_path / "ours")
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    hub.add_folder("org/tiny", folder)
    pulled = fetch("org/tiny")
    assert (
        huggingface_hub.HfApi(endpoint=hub.endpoint).verify_repo_checksums("org/tiny").mismatches
        == []
    )
    report = scan_cache_dir(cache)
    assert (report.warnings, report.incomplete_files) == ([], frozenset())
    (repository,) = report.repos
    (revision,) = repository.revisions
    assert (revision.commit_hash, revision.refs) == (pulled.commit, {"main"})
    assert revision.nb_files == 5
    hub.requests.clear()
    assert snapshot_download("org/tiny", local_files_only=True) == str(pulled.folder)
    assert snapshot_download("org/tiny", revision=pulled.commit) == str(pulled.folder)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert hf_hub_download("org/tiny", WEIGHTS) == str(pulled.folder / WEIGHTS)
    names = {file.path for file in get_cached_repo_tree("org/tiny")}
    assert names == {path.name for path in folder.iterdir()}
    theirs = timm.create_model("hf-hub:org/tiny", pretrained=True).eval()
    images = torch.randn(1, 3, 32, 32)
    ours = load_model(folder).vit.forward_features(images)
    assert torch.equal(theirs.forward_features(images), ours)  # type: ignore[operator]
    assert not hub.requests


def test_what_the_client_fetched_is_used_and_checked(hub: FakeHub, cache: Path) -> None:
    snapshot_download(REPOSITORY)
    before = gets(hub)
    assert fetch().fetched == ()
    assert gets(hub) == before


def test_trees_are_what_the_client_writes(hub: FakeHub, cache: Path, tmp_path: Path) -> None:
    (tree,) = (fetch().folder.parents[1] / "trees").iterdir()
    snapshot_download(REPOSITORY, cache_dir=tmp_path / "theirs")
    assert tree.read_text() == next((tmp_path / "theirs").glob("*/trees/*")).read_text()


def test_links_are_relative(hub: FakeHub) -> None:
    pulled = fetch()
    assert (pulled.folder / "config.json").readlink().is_relative_to("../../blobs/")
    assert (pulled.folder / "images" / "curve.svg").readlink().is_relative_to("../../../blobs/")


def test_only_data_is_fetched(hub: FakeHub, cache: Path) -> None:
    programs = ["pytorch_model.bin", "run.py", "x.pth", "y.pkl", "z.pt2", "data.yaml", "License"]
    hub.add(REPOSITORY, {**FILES, **dict.fromkeys(programs, b"evil")})
    pulled = fetch()
    assert pulled.refused == tuple(sorted(programs))
    assert not set(gets(hub)) & set(programs)
    assert "pytorch_model.bin" in pulled.text()
    with pytest.raises(IncompleteSnapshotError):  # the truth, said by the client
        snapshot_download(REPOSITORY, local_files_only=True)
    found = snapshot_download(REPOSITORY, local_files_only=True, allow_patterns=["*.safetensors"])
    assert found == str(pulled.folder)


def test_a_listing_of_many_pages(hub: FakeHub, cache: Path) -> None:
    hub.page = 2
    assert_complete(fetch(), cache)


def test_the_same_bytes_under_two_names_are_fetched_once(hub: FakeHub) -> None:
    hub.add(REPOSITORY, {**FILES, "other.safetensors": WHOLE})
    pulled = fetch()
    assert (pulled.folder / "other.safetensors").read_bytes() == WHOLE
    assert len([name for name in gets(hub) if name.endswith(".safetensors")]) == 1


def test_too_many_files_are_refused(hub: FakeHub) -> None:
    hub.add(REPOSITORY, {**FILES, **{f"{n}.txt": b"%d" % n for n in range(101)}})
    with pytest.raises(IntegrityError, match="106 files"):
        fetch()
    assert WEIGHTS not in gets(hub)


# Continue, offline, read-only


def test_a_cut_pull_continues_where_it_stopped(hub: FakeHub, cache: Path) -> None:
    hub.twist = broken
    with pytest.raises(NetworkError, match="did not deliver"):
        fetch(patience=replace(FAST, attempts=1))
    left = [cache / "models--org--name" / "blobs" / name for name in litter(cache)]
    assert hashlib.sha256(WHOLE).hexdigest() + ".zoo.incomplete" in {path.name for path in left}
    known = {file.file_path for file in scan_cache_dir(cache).incomplete_files}
    assert known == set(left)  # the client's prune knows them
    hub.twist = lambda asked, answer: answer
    assert_complete(fetch(), cache)
    (again,) = (asked for asked in hub.asked if asked.name == WEIGHTS and asked.number == 2)
    assert again.headers["range"] == "bytes=150000-"
    assert again.headers["if-range"] == f'"{hashlib.sha256(WHOLE).hexdigest()}"'
    assert hub.sent[WEIGHTS] == len(WHOLE)


@pytest.mark.parametrize("left", [WHOLE[:90_000], WHOLE, WHOLE + b"more", b"wrong" * 40_000, b"no"])
def test_what_an_earlier_pull_left_is_hashed_anew(hub: FakeHub, cache: Path, left: bytes) -> None:
    sha256 = hashlib.sha256(WHOLE).hexdigest()
    partial = cache / "models--org--name" / "blobs" / f"{sha256}.zoo.incomplete"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(left)
    assert_complete(fetch(), cache)
    wrong = left and not (left.startswith(WHOLE) or WHOLE.startswith(left))
    assert hub.sent[WEIGHTS] <= len(WHOLE) * (2 if wrong else 1)
    if left == WHOLE:
        assert WEIGHTS not in gets(hub)


def test_a_link_in_place_of_a_partial_file_is_not_followed(hub: FakeHub, cache: Path) -> None:
    victim = cache.parent / "victim"
    victim.write_bytes(b"mine")
    sha256 = hashlib.sha256(WHOLE).hexdigest()
    partial = cache / "models--org--name" / "blobs" / f"{sha256}.zoo.incomplete"
    partial.parent.mkdir(parents=True)
    partial.symlink_to(victim)
    assert_complete(fetch(), cache)
    assert victim.read_bytes() == b"mine"


def test_the_second_time_nothing_is_fetched(hub: FakeHub) -> None:
    first = fetch()
    hub.requests.clear()
    again = fetch()
    assert again.fetched == ()
    assert set(again.present) == set(FILES)
    assert [path.rpartition("/")[2] for _, path in hub.requests] == ["main"]
    hub.requests.clear()
    assert fetch(f"{REPOSITORY}@{first.commit}").folder == first.folder
    assert fetch(offline=True).folder == first.folder
    assert not hub.requests


def test_offline_and_not_here(hub: FakeHub) -> None:
    with pytest.raises(NetworkError, match="not in the cache") as caught:
        fetch(offline=True)
    assert caught.value.fix == "when online, run: zoo pull org/name"
    assert not hub.requests


def test_no_server_and_here(hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fetch()
    point_client_at(monkeypatch, "http://127.0.0.1:9", cache)
    pulled = fetch()
    assert pulled.folder == first.folder
    assert "cannot be reached" in pulled.notes[0]


def test_offline_with_what_another_client_left(hub: FakeHub) -> None:
    for name in ("config.json", WEIGHTS):
        hf_hub_download(REPOSITORY, name)
    pulled = fetch(offline=True)
    assert (pulled.folder / WEIGHTS).read_bytes() == WHOLE
    assert "not checked" in pulled.notes[0]


def test_a_cached_file_that_rots_is_found_and_fetched_again(hub: FakeHub, cache: Path) -> None:
    blob = (fetch().folder / WEIGHTS).resolve()
    blob.write_bytes(WHOLE[:-1] + b"?")
    with pytest.raises(IntegrityError, match="is not what") as caught:
        fetch(offline=True)
    assert WEIGHTS in caught.value.where
    assert fetch().fetched == (WEIGHTS,)
    assert_nothing_wrong(cache)


def test_a_moved_branch_is_reported(hub: FakeHub) -> None:
    first = fetch()
    hub.add(REPOSITORY, {**FILES, "README.md": b"new"})
    pulled = fetch()
    assert pulled.commit != first.commit
    assert first.commit in pulled.notes[0]
    assert pulled.fetched == ("README.md",)
    assert fetch(f"{REPOSITORY}@{first.commit}").commit == first.commit


def test_a_branch_may_have_a_slash(hub: FakeHub) -> None:
    assert pin_of("org/name@feature/x").source == "org/name@feature/x"
    with pytest.raises(UsageError, match="no model 'org/name@feature/x'"):
        fetch("org/name@feature/x")
    assert hub.requests[-1] == ("GET", "/api/models/org/name/revision/feature%2Fx")


def test_a_pin_holds(hub: FakeHub) -> None:
    commit = hub.commit(REPOSITORY)
    pins = {name: hashlib.sha256(FILES[name]).hexdigest() for name in (WEIGHTS, "README.md")}
    hub.add(REPOSITORY, {**FILES, WEIGHTS: WHOLE[::-1]})
    pulled = fetch(commit=commit, pins=pins)
    assert pulled.commit == commit
    hub.requests.clear()
    assert fetch(commit=commit, pins=pins).folder == pulled.folder
    assert not hub.requests


@pytest.mark.parametrize("name", [WEIGHTS, "README.md", "absent.json"])
def test_a_pin_that_does_not_fit_is_refused(hub: FakeHub, cache: Path, name: str) -> None:
    with pytest.raises(IntegrityError):
        fetch(pins={name: "0" * 64})
    assert not list(cache.glob("*/snapshots/*/*"))
    assert (name == "README.md") == (WEIGHTS in gets(hub))  # known before where it can be


# A copy


def test_a_copy_is_a_plain_folder(hub: FakeHub, tmp_path: Path) -> None:
    hub.add(REPOSITORY, {**FILES, ".gitattributes": b"*"})
    copy = tmp_path / "deep" / "copy"
    assert fetch(to=copy).folder == copy
    there = {p.relative_to(copy).as_posix() for p in copy.rglob("*") if p.is_file()}
    assert {name for name in there if not name.startswith(".cache/")} == set(FILES)
    assert not any(path.is_symlink() for path in copy.rglob("*"))
    assert fetch(to=copy).folder == copy  # again: nothing to do
    (copy / "README.md").write_text("mine")
    with pytest.raises(UsageError, match="something else"):
        fetch(to=copy)
    assert (copy / "README.md").read_text() == "mine"


# The command line


def test_pull_and_verify_need_no_torch() -> None:
    code = "import sys, zoo.hub, zoo.pull, zoo.verify; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_verb(hub: FakeHub, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert zoo(["pull", REPOSITORY, "--json"]) == 0
    shown = capsys.readouterr()
    record = json.loads(shown.out)
    assert set(record["fetched"]) == set(FILES)
    assert record["received_bytes"] == sum(map(len, FILES.values()))
    assert shown.err == ""  # no terminal, no bar
    assert zoo(["pull", REPOSITORY, "--to", str(tmp_path / "copy"), "--offline"]) == 0
    assert "here before:" in capsys.readouterr().out
    assert zoo(["pull", "org/nothing"]) == Exit.USAGE
    assert "no model" in capsys.readouterr().err


def test_no_space_before_it_begins(
    hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: Path, needed: int) -> None:
        raise DiskError(f"no space left: {needed:,} bytes needed", where=str(folder), fix="free")

    monkeypatch.setattr(zoo_pull, "require_space", full)
    with pytest.raises(DiskError, match="20"):
        fetch()
    assert litter(cache) == []
