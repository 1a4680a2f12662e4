"""Faults of the data: what is bad is counted and listed, or ends the run with all that is known."""

import json
import os
import shutil
import unicodedata
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from faults import assert_error, unprivileged
from photos import make_photos
from runs import TINY_MAE, last_words, outcome, run, words, zoo

from pretrain import loader as loader_module
from pretrain.data import FEW_BAD, MAX_ATTEMPTS, Data
from pretrain.index import open_index
from pretrain.loader import Loader
from zoo.errors import Exit, ZooError

SETTINGS = {**TINY_MAE, "training.steps": "9"}  # two epochs and a step


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_photos(tmp_path / "photos")


def listed(out: Path) -> dict[str, str]:
    """By file, why it is in quarantine."""
    lines = map(json.loads, (out / "quarantine.jsonl").read_text().splitlines())
    return {line["file"]: line["why"] for line in lines}


@pytest.mark.parametrize(
    ("images", "max_bad", "share", "most"),
    [
        (36, 100, 0.001, FEW_BAD),  # a thousandth of 36 is none
        (36, 2, 0.001, 2),
        (9_469, 100, 0.001, FEW_BAD),
        (50_000, 100, 0.001, 50),
        (1_281_167, 100, 0.001, 100),
        (1_281_167, 5000, 0.001, 1281),
        (1_281_167, 5000, 0.01, 5000),
        (1_281_167, 0, 0.001, 0),
    ],
)
def test_how_many_bad_images_a_data_set_may_have(
    images: int, max_bad: int, share: float, most: int
) -> None:
    data = Data(source="folder:x", max_bad=max_bad, max_bad_share=share)
    assert data.most_bad(images) == most


def test_a_share_stops_a_run_too(data: Path, tmp_path: Path) -> None:
    """A third of these images is more than the few that any data set may have."""
    for photo in sorted((data / "ant").iterdir()):
        photo.write_text("<html>404</html>")
    out, settings = tmp_path / "run", {**SETTINGS, "data.max_bad": "1000"}
    assert zoo(words("mae-vit-t", data, out, settings)) == 3
    told, where = last_words(out), "quarantine.jsonl lists them"
    fix = "raise data.max_bad and data.max_bad_share"
    assert_error(told, Exit.DATA, what=f"the limit is {FEW_BAD}", where=where, fix=fix)
    assert set(listed(out).values()) == {"not a readable image: no JPEG, PNG or WebP"}
    assert zoo(words("mae-vit-t", data, out, {**settings, "data.max_bad_share": "1.0"})) == 0
    assert len(listed(out)) == 12


def test_files_that_vanish_and_files_nobody_may_read(data: Path, tmp_path: Path) -> None:
    out, plain = tmp_path / "run", tmp_path / "plain"
    open_index(data)
    (data / "bee" / "004.jpg").chmod(0)
    command = words("mae-vit-t", data, out, SETTINGS)
    vanish = partial(unlink_at_first_row, data / "cat" / "005.jpg", tmp_path / "errors")
    assert run(command, prepare=vanish) == [0]
    bad = listed(out)
    assert bad.pop(str(data / "bee" / "004.jpg")).endswith("cannot be read: Permission denied")
    why = "the file cannot be read: No such file or directory"
    assert bad == {str(data / "cat" / "005.jpg"): why}
    (data / "bee" / "004.jpg").chmod(0o644)
    assert zoo(words("mae-vit-t", make_photos(tmp_path / "again"), plain, SETTINGS)) == 0
    assert len(outcome(out)["log"]) == len(outcome(plain)["log"])


def unlink_at_first_row(photo: Path, errors: Path) -> None:
    """Remove an image once training has begun; permissions hold for root too."""
    from pretrain.log import RunLog

    unprivileged(errors)
    advance = RunLog.advance

    def gone(self: RunLog, step: int) -> None:
        photo.unlink(missing_ok=True)
        advance(self, step)

    RunLog.advance = gone


def test_a_folder_nobody_may_read(data: Path, tmp_path: Path) -> None:
    (data / "bee").chmod(0)
    out = tmp_path / "run"
    command = words("mae-vit-t", data, out, SETTINGS)
    assert run(command, prepare=partial(unprivileged, tmp_path / "errors")) == [3]
    what, where = "cannot be read: Permission denied", str(data / "bee")
    assert_error(last_words(out), Exit.DATA, what=what, where=where, fix="check its permissions")
    (data / "bee").chmod(0o755)


def test_names_of_every_kind_of_bytes(data: Path, tmp_path: Path) -> None:
    """Not UTF-8; one letter written in two ways; names that differ in case alone."""
    folder = os.fsencode(data / "ant")
    letter = "ä.jpg"
    names = [b"\xff\xfe.jpg", b"Case.jpg", b"case.jpg"]
    names += [unicodedata.normalize(form, letter).encode() for form in ("NFC", "NFD")]
    for name in names:
        shutil.copy(data / "ant" / "000.jpg", os.fsdecode(folder + b"/" + name))
    index = open_index(data)
    assert len(index) == 36 + 5
    found = [os.fsencode(index.path(i)).rpartition(b"/")[2] for i in range(12 + 5)]
    assert found == sorted(found)
    assert {*names} <= {*found}
    (data / "ant" / "000.jpg").unlink()
    assert zoo([*words("mae-vit-t", data, tmp_path / "run", SETTINGS), "--reindex"]) == 0


def test_a_data_set_of_bad_images_with_bad_names(tmp_path: Path) -> None:
    """The error that names one can be printed, and written down."""
    data, out = tmp_path / os.fsdecode(b"caf\xe9"), tmp_path / "run"
    data.mkdir()
    for number in range(8):
        (data / os.fsdecode(b"\xff%d.jpg" % number)).write_bytes(b"")
    settings = {**SETTINGS, "data.max_bad": "0"}
    assert zoo(words("mae-vit-t", data, out, settings)) == 3
    what, where = f"{MAX_ATTEMPTS} images in a row could not be read", "caf\\xe9/\\xff"
    assert_error(last_words(out), Exit.DATA, what=what, where=where, fix="check the data set")


def loader_of(data: Path, transform, workers: int) -> Loader:
    return Loader(
        open_index(data),
        transform=transform,
        draws=0,
        global_batch=4,
        rank_batch=4,
        stop_step=8,
        workers=workers,
    )


def broken(_: np.ndarray) -> torch.Tensor:
    raise KeyError("a transform's own")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_worker_that_raises_names_the_sample(data: Path, workers: int) -> None:
    with pytest.raises(ZooError) as caught:
        list(loader_of(data, broken, workers))
    what = "a sample could not be made: KeyError: "
    assert str(data) in caught.value.where
    assert_error(caught.value, Exit.BUG, what=what, where=".jpg", fix="the recipe's transform")


def killed(_: np.ndarray) -> torch.Tensor:
    os.kill(os.getpid(), 9)
    return torch.zeros(0)


def hanging(_: np.ndarray) -> torch.Tensor:
    while True:
        pass


@pytest.mark.parametrize(
    ("transform", "what", "fix"),
    [
        (killed, "a loader worker died: process ", "use fewer workers"),
        (hanging, "the loader workers gave nothing for 0 seconds", "file system answers"),
    ],
)
def test_a_worker_that_is_lost(
    data: Path, transform, what: str, fix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader_module, "POLL_SECONDS", 0.2)
    monkeypatch.setattr(loader_module, "HANG_SECONDS", 0)
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.2)
    with pytest.raises(ZooError) as caught:
        list(loader_of(data, transform, 2))
    assert_error(caught.value, Exit.BUG, what=what, where="data.workers", fix=fix)
