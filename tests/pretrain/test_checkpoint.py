"""Checkpoints: damage is found and said aloud, and a full disk costs nothing that was saved."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from faults import Record, tell
from runs import TINY_MAE, last_words, outcome, run, words, zoo

from pretrain.checkpoint import newest_valid
from zoo.errors import IntegrityError
from zoo.files import sweep

SETTINGS = {**TINY_MAE, "training.steps": "6", "training.optim.ema_decay": "0.9"}


@pytest.fixture(scope="module")
def finished(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 6 steps, with checkpoints of steps 4 and 6."""
    out = tmp_path_factory.mktemp("finished") / "run"
    assert zoo(words("mae-vit-t", photos, out, SETTINGS)) == 0
    assert {p.name for p in (out / "checkpoints").iterdir()} == {"step-4", "step-6"}
    return out


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def again(photos: Path, out: Path) -> int:
    return zoo(words("mae-vit-t", photos, out, SETTINGS))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    rng = random.Random(path.name)
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


FILES = ["model.safetensors", "optimizer.safetensors", "average.safetensors", "state.json"]
WAYS = [cut, empty, flip, Path.unlink]


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
@pytest.mark.parametrize("damage", WAYS, ids=lambda way: way.__name__)
def test_damage_is_found_and_the_previous_one_used(
    out: Path, name: str, damage: Callable[[Path], None]
) -> None:
    checkpoints = out / "checkpoints"
    damage(checkpoints / "step-6" / name)
    said: list[str] = []
    assert newest_valid(checkpoints, said.append) == checkpoints / "step-4"
    assert len(said) == 1
    assert "step-6 is damaged" in said[0]


def test_damaged_newest_is_said_aloud_and_made_again(
    photos: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = outcome(out)
    flip(out / "checkpoints" / "step-6" / "model.safetensors")
    assert again(photos, out) == 0
    said = capsys.readouterr().err
    assert "step-6 is damaged" in said
    assert "continuing from step 4" in said
    assert outcome(out) == expected
    assert newest_valid(out / "checkpoints", pytest.fail) == out / "checkpoints" / "step-6"


def damage_found(out: Path, *, flips: int, cuts: int) -> str:
    """Flip a bit, or cut the end off, anywhere in any file of a checkpoint."""
    rng = random.Random(flips)
    names = sorted(path.name for path in (out / "checkpoints" / "step-6").iterdir())
    assert names == sorted([*FILES, "manifest.json"])
    found = dict.fromkeys(names, 0)
    for number in range(flips + cuts):
        path = out / "checkpoints" / "step-6" / rng.choice(names)
        data = path.read_bytes()
        place = rng.randrange(len(data))
        flipped = bytes([data[place] ^ 1 << rng.randrange(8)])
        path.write_bytes(data[:place] + (flipped + data[place + 1 :] if number < flips else b""))
        newest = newest_valid(out / "checkpoints", lambda _: None)
        path.write_bytes(data)
        assert newest == out / "checkpoints" / "step-4", (path.name, place)
        found[path.name] += 1
    assert newest_valid(out / "checkpoints", pytest.fail) == out / "checkpoints" / "step-6"
    each = ", ".join(f"{count} in {name}" for name, count in found.items())
    return f"{flips} of {flips} flipped bits and {cuts} of {cuts} truncations found: {each}"


def test_every_flipped_bit_and_every_cut_is_found(out: Path) -> None:
    damage_found(out, flips=120, cuts=30)


@pytest.mark.slow
def test_a_thousand_flipped_bits_are_found(out: Path, record_property: Record) -> None:
    tell(record_property, damage_found(out, flips=1000, cuts=200))


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_another_name_of_a_file_is_damage(out: Path, name: str) -> None:
    checkpoint = out / "checkpoints" / "step-6"
    for place in range(len(name)):
        other = name[:place] + chr(ord(name[place]) ^ 1) + name[place + 1 :]
        if "/" in other:
            continue  # no name at all
        (checkpoint / name).rename(checkpoint / other)
        assert newest_valid(out / "checkpoints", lambda _: None) == out / "checkpoints" / "step-4"
        (checkpoint / other).rename(checkpoint / name)


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_a_file_too_many_is_damage(out: Path, kind: str) -> None:
    extra = out / "checkpoints" / "step-6" / "more.safetensors"
    if kind == "file":
        extra.write_bytes(b"")
    elif kind == "folder":
        extra.mkdir()
    else:
        extra.symlink_to(out / "nowhere")
    assert newest_valid(out / "checkpoints", lambda _: None) == out / "checkpoints" / "step-4"


@pytest.mark.parametrize(
    "edit",
    [
        lambda manifest: {},
        lambda manifest: [],
        lambda manifest: {**manifest, "model.safetensors": 3},
        lambda manifest: {k: v for k, v in manifest.items() if k != "model.safetensors"},
        lambda manifest: {k: v for k, v in manifest.items() if k != "optimizer.safetensors"},
        lambda manifest: {**manifest, "more.safetensors": manifest["model.safetensors"]},
        lambda manifest: {
            **manifest,
            "model.safetensors": {**manifest["model.safetensors"], "sha256": "0" * 64},
        },
    ],
)
def test_edited_manifest_is_damage(out: Path, edit: Callable) -> None:
    place = out / "checkpoints" / "step-6" / "manifest.json"
    place.write_text(json.dumps(edit(json.loads(place.read_bytes()))))
    assert newest_valid(out / "checkpoints", lambda _: None) == out / "checkpoints" / "step-4"


def test_all_damaged_is_never_a_fresh_start(photos: Path, out: Path) -> None:
    for path in (out / "checkpoints").iterdir():
        flip(path / "model.safetensors")
    with pytest.raises(IntegrityError, match="every checkpoint"):
        newest_valid(out / "checkpoints", lambda _: None)
    assert again(photos, out) == 4
    left = last_words(out)
    assert left["code"] == 4
    assert "step-4: model.safetensors" in left["where"]
    assert "step-6: model.safetensors" in left["where"]


def test_newest_goes_by_number(out: Path) -> None:
    folder = out / "checkpoints"
    (folder / "step-4").rename(folder / "step-10")
    (folder / "step-6").rename(folder / "step-9")
    os.utime(folder / "step-9", (2e9, 2e9))
    os.utime(folder / "step-10", (1, 1))
    assert newest_valid(folder, pytest.fail) == folder / "step-10"


def test_other_names_are_no_checkpoints(out: Path) -> None:
    folder = out / "checkpoints"
    for name in ("step-99x", "step-", "step--1", "99", "old-step-99"):
        (folder / name).mkdir()
    assert newest_valid(folder, pytest.fail) == folder / "step-6"


def test_no_checkpoint_is_no_error(tmp_path: Path) -> None:
    assert newest_valid(tmp_path / "nothing", pytest.fail) is None


@pytest.mark.parametrize("keep", [2, 3])
def test_the_newest_are_kept(photos: Path, tmp_path: Path, keep: int) -> None:
    settings = {**SETTINGS, "training.keep_checkpoints": str(keep)}
    assert zoo(words("mae-vit-t", photos, tmp_path / "run", settings)) == 0
    names = {p.name for p in (tmp_path / "run" / "checkpoints").iterdir()}
    assert names == {f"step-{2 * n}" for n in range(3, 3 - keep, -1)}


def test_temporaries_of_dead_writers_are_swept(out: Path) -> None:
    folder = out / "checkpoints"
    dead = folder / ".tmp-4194999-step-8"
    dead.mkdir()
    (dead / "model.safetensors").write_bytes(b"half")
    alive = folder / f".tmp-{os.getpid()}-step-8"
    alive.mkdir()
    newest_valid(folder, pytest.fail)
    assert not dead.exists()
    assert alive.exists()
    alive.rmdir()
    sweep(folder)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.97])
def test_full_disk_at_a_save_costs_nothing(
    photos: Path, finished: Path, tmp_path: Path, share: float
) -> None:
    """No file of the second half of the run may grow beyond a share of the largest."""
    out = tmp_path / "run"
    first = words("mae-vit-t", photos, out, {**SETTINGS, "training.save_every_steps": "3"})
    part = Path(shutil.copytree(finished, out)) / "checkpoints"
    shutil.rmtree(part / "step-6")
    largest = max(f.stat().st_size for f in (part / "step-4").iterdir())
    assert run(first, file_limit=int(share * largest)) == [6]
    assert [p.name for p in part.iterdir()] == ["step-4"]
    assert newest_valid(part, pytest.fail) == part / "step-4"
    assert not list(out.glob("**/.tmp-*"))
    if share > 0.05:  # or else there was no room for the last words either
        assert last_words(out)["code"] == 6
    assert run(first) == [0]
    assert outcome(out) == outcome(finished)
