"""The live signal: what it measures, when it looks, and that training does not notice."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import make_convnet, make_model
from photos import make_photos
from runs import TINY, TINY_MAE, Run, outcome, run, words, zoo
from shards import write_shards

from eval.live_probe import probe
from pretrain.distillation import relation_loss
from pretrain.index import open_index
from pretrain.live import SHARE, FixedImages, Signal, StreamedImages
from pretrain.log import read_log
from pretrain.observe import rankme
from pretrain.pack import pack
from pretrain.recipe import find_recipe
from pretrain.shards import open_shards
from pretrain.stream import Deal, Reader
from zoo.folder import Model, load_model
from zoo.images import Preprocess
from zoo.tokens import features_of
from zoo.vit import Tap, taps

LOOKS = {"signal.every_steps": "5", "signal.images": "20"}
"""Of 14 steps: at 0, 5, 10 and 14."""


def method_settings(method: str, folder: Path) -> tuple[str, dict[str, str]]:
    """A recipe, and what makes it tiny."""
    if method == "mae":
        return "mae-vit-t", {**TINY_MAE, "training.optim.ema_decay": "0.9"}
    if method == "tinymim":
        source = str(make_model(folder / "teacher"))
        return "tinymim-vit-t", {**TINY, "method.teacher.source": source}
    if method == "img2vec":
        source = {"method.teacher.source": str(make_convnet(folder / "convnet"))}
        more = {"method.teacher.stride": "16", "method.targets": "whiten"}
        return "img2vec-vit-t", {**TINY_MAE, **source, **more, "method.head_hidden": "16"}
    small = {"student.image_size": "32", "data.augment": "null"}
    plain = {k: v for k, v in TINY.items() if not k.startswith("student.")}
    return "study-simclr-96px", {**plain, **small}


def parts(out: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of training and those of the signal, without the clock's fields."""
    rows = outcome(out)["log"]
    looks = [row for row in rows if "signal_images" in row]
    return [row for row in rows if row not in looks], looks


EXPECTED = {
    "mae": {"signal_attention_distance"},
    "tinymim": {
        "signal_attention_distance",
        "signal_error_qk",
        "signal_error_vv",
    },
    "img2vec": {"signal_attention_distance"},
}
ALWAYS = {"step", "signal_images", "signal_rankme", "signal_probe@1", "signal_probe@1_error"}


@pytest.mark.parametrize("method", list(EXPECTED))
def test_training_does_not_notice(photos: Path, tmp_path: Path, method: str) -> None:
    recipe, settings = method_settings(method, tmp_path)
    for name, looks in (("on", LOOKS), ("off", {"signal.every_steps": "null"})):
        assert zoo(words(recipe, photos, tmp_path / name, {**settings, **looks})) == 0
    trained, looked = parts(tmp_path / "on")
    assert (trained, []) == parts(tmp_path / "off")
    assert outcome(tmp_path / "on")["weights"] == outcome(tmp_path / "off")["weights"]
    assert [row["step"] for row in looked] == [0, 5, 10, 14]
    for row in looked:
        assert row.keys() == ALWAYS | EXPECTED[method]
        assert row["signal_images"] == 20
    assert len({row["signal_rankme"] for row in looked}) == 4  # the network did learn
    rows = read_log(tmp_path / "on" / "log.jsonl")
    assert all(row["signal_seconds"] > 0 for row in rows if "signal_rankme" in row)


def last_qkv(model: Model, images: torch.Tensor) -> list[torch.Tensor]:
    wanted = [Tap(model.config.depth, kind) for kind in ("q", "k", "v")]
    found = taps(model.vit, images, wanted)
    return [found[tap] for tap in wanted]


@pytest.mark.parametrize("targets", ["[qk,vv]", "[attention]", "[block,qk,vv]"])
def test_it_sees_what_is_exported(photos: Path, tmp_path: Path, targets: str) -> None:
    """The last look, of weights that were averaged over steps, beside the exported model.

    After targets within it, the student's last block is trained in part.
    """
    recipe, settings = method_settings("tinymim", tmp_path)
    settings |= {"training.optim.ema_decay": "0.5", **LOOKS, "signal.images": "36"}
    settings |= {"method.targets": targets, "training.steps": "4"}
    out = tmp_path / "run"
    assert zoo(words(recipe, photos, out, settings)) == 0
    seen = parts(out)[1][-1]
    student, teacher = load_model(out / "export"), load_model(tmp_path / "teacher")
    index = open_index(photos)
    files = [index.path(i) for i in range(len(index))]
    features = features_of(student, files)
    assert seen["signal_rankme"] == pytest.approx(rankme(features), rel=1e-4)
    assert index.labels is not None
    scores = probe(features, torch.from_numpy(index.labels).long())
    assert seen["signal_probe@1"] == pytest.approx(scores["probe@1"])
    assert student.card is not None
    assert len(seen["signal_attention_distance"]) == student.card.last_trained_block
    if "qk" not in targets:
        assert "signal_error_attention" in seen
        return
    crops = [student.preprocess.eval_crop(index.read(i)) for i in range(len(index))]
    images = student.preprocess.normalise(torch.stack(crops))
    with torch.no_grad():
        (q, k, v), (q_t, k_t, v_t) = (last_qkv(model, images) for model in (student, teacher))
    assert student.card is not None
    heads = student.card.relation_heads
    assert heads is not None
    for name, pairs in (("qk", ((q_t, k_t), (q, k))), ("vv", ((v_t, v_t), (v, v)))):
        expected = relation_loss(*pairs, heads).item()
        assert seen[f"signal_error_{name}"] == pytest.approx(expected, rel=1e-4)


def test_a_convnet_has_features_and_no_heads(photos: Path, tmp_path: Path) -> None:
    recipe, settings = method_settings("simclr", tmp_path)
    settings |= {"training.steps": "2", **LOOKS}
    assert zoo(words(recipe, photos, tmp_path / "run", settings)) == 0
    first, last = parts(tmp_path / "run")[1]
    assert first.keys() == last.keys() == ALWAYS


def test_without_classes_there_is_no_probe(photos: Path, tmp_path: Path) -> None:
    for number, photo in enumerate(sorted(photos.rglob("*.jpg"))):
        (tmp_path / "flat").mkdir(exist_ok=True)
        shutil.copy(photo, tmp_path / "flat" / f"{number}.jpg")
    settings = {**TINY_MAE, "training.steps": "2", **LOOKS}
    assert zoo(words("mae-vit-t", tmp_path / "flat", tmp_path / "run", settings)) == 0
    for row in parts(tmp_path / "run")[1]:
        assert "signal_rankme" in row
        assert not [key for key in row if "probe" in key]


def test_a_stream_is_looked_at_too(photos: Path, tmp_path: Path) -> None:
    """The same few images at each look and after a kill; training does not notice."""
    source = f"wds:{tmp_path / 'shards'}"
    assert pack(photos, tmp_path / "shards", shard_bytes=12_000).shards >= 4
    for name, looks in (("on", LOOKS), ("off", {"signal.every_steps": "null"})):
        assert zoo(words("mae-vit-t", source, tmp_path / name, {**TINY_MAE, **looks})) == 0
    trained, looked = parts(tmp_path / "on")
    assert (trained, []) == parts(tmp_path / "off")
    assert outcome(tmp_path / "on")["weights"] == outcome(tmp_path / "off")["weights"]
    assert [row["step"] for row in looked] == [0, 5, 10, 14]
    for row in looked:
        assert row.keys() == {"step", "signal_images", "signal_rankme", "signal_attention_distance"}
        assert row["signal_images"] == 20
    for step in (10, 12, 14):
        shutil.rmtree(tmp_path / "on" / "checkpoints" / f"step-{step}", ignore_errors=True)
    before = outcome(tmp_path / "on")
    assert zoo(words("mae-vit-t", source, tmp_path / "on", {**TINY_MAE, **LOOKS})) == 0
    assert outcome(tmp_path / "on") == before


@pytest.mark.parametrize(("counts", "found"), [([3] * 40, 20), ([50], 20), ([1, 30, 2], 10)])
def test_of_a_stream_the_first_of_several_shards_are_looked_at(
    tmp_path: Path, counts: list[int], found: int
) -> None:
    data = open_shards(str(write_shards(tmp_path / "shards", counts)))
    reader = Reader(data, Deal(shards=len(counts), rank=0, world=1, readers=1, seed=3), 0, buffer=1)
    first, again = ([(e.shard, e.ordinal) for e in reader.some(20)] for _ in range(2))
    assert first == again
    assert len(set(first)) == found
    assert len({shard for shard, _ in first}) >= min(10, len(counts))
    looked = StreamedImages(data=data, count=20, seed=3, preprocess=Preprocess(image_size=32))
    images, labels = looked.read()
    assert images.shape == (found, 3, 32, 32)
    assert labels is None


def test_a_teacher_that_drops_paths_rests_while_it_is_looked_at(
    photos: Path, tmp_path: Path
) -> None:
    recipe, settings = method_settings("tinymim", tmp_path)
    settings |= {"training.steps": "1", **LOOKS}
    for name, rate in (("still", "0.0"), ("drops", "0.9")):
        dropping = {**settings, "method.teacher.drop_path": rate}
        assert zoo(words(recipe, photos, tmp_path / name, dropping)) == 0
    (trained, looked), (dropped, looked_too) = (parts(tmp_path / n) for n in ("still", "drops"))
    assert looked[0] == looked_too[0]  # before the first step both students are the same
    assert trained != dropped


def test_unreadable_images_are_left_out(tmp_path: Path) -> None:
    folder = make_photos(tmp_path / "photos")
    (folder / "ant" / "003.jpg").write_bytes(b"GIF89a")
    settings = {**TINY_MAE, "training.steps": "1", **LOOKS, "signal.images": "36"}
    assert zoo(words("mae-vit-t", folder, tmp_path / "run", settings)) == 0
    assert {row["signal_images"] for row in parts(tmp_path / "run")[1]} == {35}


@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_and_continued_it_has_the_same_rows(
    photos: Path, tmp_path: Path, ranks: int
) -> None:
    """Killed once a look has been written that no checkpoint knows of."""
    settings = {**TINY_MAE, **LOOKS, "training.steps": "40", "training.save_every_steps": "7"}
    undisturbed = words("mae-vit-t", photos, tmp_path / "undisturbed", settings)
    assert set(run(undisturbed, ranks=ranks)) == {0}
    out = tmp_path / "killed"
    command = words("mae-vit-t", photos, out, settings)
    started = Run(command, ranks=ranks)
    while not (out / "log.jsonl").exists() or b'"step": 5, "signal' not in _bytes(out):
        assert started.running
        time.sleep(0.01)
    started.kill()
    assert set(run(command, ranks=ranks)) == {0}
    expected = outcome(tmp_path / "undisturbed")
    assert outcome(out) == expected
    assert [r["step"] for r in parts(out)[1]] == list(range(0, 41, 5))
    before = _bytes(out)
    assert set(run(command, ranks=ranks)) == {0}  # nothing is left to do, or to look at
    assert _bytes(out) == before


def _bytes(out: Path) -> bytes:
    return (out / "log.jsonl").read_bytes()


def test_it_may_be_switched_on_and_off_between_two_starts(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = {**TINY_MAE, "training.keep_checkpoints": "9"}
    assert zoo(words("mae-vit-t", photos, out, {**settings, **LOOKS})) == 0
    expected = outcome(out)["weights"]
    for step in (10, 12, 14):
        shutil.rmtree(out / "checkpoints" / f"step-{step}")
    assert zoo(words("mae-vit-t", photos, out, {**settings, "signal.every_steps": "null"})) == 0
    assert outcome(out)["weights"] == expected
    assert [row["step"] for row in parts(out)[1]] == [0, 5]


def test_by_itself_a_short_run_is_not_looked_at(photos: Path, tmp_path: Path) -> None:
    assert zoo(words("mae-vit-t", photos, tmp_path / "run", TINY_MAE)) == 0
    assert parts(tmp_path / "run")[1] == []


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("signal.every_steps", "0", "'auto' or null"),
        ("signal.every_steps", "often", "'auto' or null"),
        ("signal.images", "1", "Ge(ge=2)"),
        ("signal.step", "4", "did you mean 'signal.every_steps'?"),
    ],
)
def test_wrong_settings_are_refused(
    photos: Path, tmp_path: Path, key: str, value: str, said: str, capsys
) -> None:
    assert zoo(words("mae-vit-t", photos, tmp_path / "run", {**TINY_MAE, key: value})) == 2
    assert said in capsys.readouterr().err


def looks_of(every: int, steps: int) -> int:
    return len({0, *range(0, steps + 1, every), steps})


@given(
    steps=st.integers(1, 200_000),
    rank_samples=st.integers(1, 5000),
    images=st.integers(2, 4096),
    round_to=st.integers(1, 500),
)
def test_left_open_it_never_looks_at_more_than_its_share(
    steps: int, rank_samples: int, images: int, round_to: int
) -> None:
    signal = Signal(images=images)
    every = signal.interval(steps=steps, rank_samples=rank_samples, round_to=round_to)
    paid_for = SHARE * steps * rank_samples
    if every is None:
        assert 2 * images > paid_for
    else:
        assert every % round_to == 0
        assert looks_of(every, steps) * images <= paid_for
        assert looks_of(every, steps) <= 200


def test_the_studies_are_looked_at_five_times_and_more() -> None:
    samples = 9469
    for name in ("study-mae-96px", "study-tinymim-96px", "study-img2vec-96px"):
        recipe = find_recipe(name)
        batch = recipe.training.global_batch
        steps = recipe.training.total_steps(samples // batch)
        every = recipe.signal.interval(
            steps=steps, rank_samples=batch, round_to=recipe.training.log_every_steps
        )
        assert every is not None
        assert looks_of(every, steps) >= 5


@given(seed=st.integers(0, 9), count=st.integers(2, 40))
def test_the_images_are_fixed_and_evenly_of_every_class(
    photos: Path, seed: int, count: int
) -> None:
    index = open_index(photos)
    chosen, again = (
        FixedImages.choose(index, count=count, seed=seed, image_size=32).numbers for _ in range(2)
    )
    assert chosen.tolist() == again.tolist() == sorted(set(chosen.tolist()))
    assert len(chosen) == min(count, 36)
    assert index.labels is not None
    shares = np.bincount(index.labels[chosen])
    shares = shares[shares > 0]
    assert len(shares) == (2 if count <= 24 else 3)
    assert shares.max() - shares.min() <= 1


def test_rows_hold_no_number_that_json_has_not(photos: Path, tmp_path: Path) -> None:
    """Features that are not finite: the loss would say so, but a look may come first."""
    settings = {**TINY_MAE, **LOOKS, "training.optim.lr_per_256": "1e30", "training.steps": "9"}
    out = tmp_path / "run"
    assert zoo(words("mae-vit-t", photos, out, settings)) == 7
    for line in (out / "log.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)
    assert zoo(words("mae-vit-t", photos, out, settings)) == 7  # meets the same end
    steps = [row["step"] for row in read_log(out / "log.jsonl") if "signal_images" in row]
    assert len(steps) == len(set(steps))
