"""Scores of logits: against timm's own path, hand-computed cases, and what must not matter."""

import math
import time
from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.data.readers.class_map import load_class_map
from timm.data.readers.reader_image_folder import find_images_and_targets
from timm.data.real_labels import RealLabelsImagenet
from timm.utils.metrics import AverageMeter, accuracy
from torch import Tensor

from eval.classes import VAL_IMAGES, class_of, columns, label_sets, real_labels_of, synsets
from eval.protocols import PROTOCOLS, Protocol, find_protocol
from eval.scoring import (
    RESAMPLES,
    Predictions,
    concatenate,
    predict,
    require_head,
    summarise,
)
from zoo.errors import DataError, Exit, IntegrityError

VAL, A, R = (find_protocol(name) for name in ("in1k-val", "in1k-a", "in1k-r"))
REAL = find_protocol("in1k-real")
INFO = files("timm.data") / "_info"


def score(
    logits: Tensor, labels: Tensor, protocol: Protocol = VAL, order: Sequence[int] | None = None
) -> Predictions:
    samples = torch.arange(len(logits)) if order is None else torch.tensor(order)
    return predict(logits, labels, protocol, samples=samples)


def same(a: Predictions, b: Predictions) -> bool:
    pairs = zip(
        (a.samples, a.labels, a.top5, a.confidence),
        (b.samples, b.labels, b.top5, b.confidence),
        strict=True,
    )
    return a.protocol == b.protocol and all(torch.equal(x, y) for x, y in pairs)


def guesses(correct: list[bool], confidence: list[float] | None = None) -> Predictions:
    """Images of class 7, taken for it or for others."""
    count = len(correct)
    top5 = torch.arange(8, 13).repeat(count, 1)
    top5[:, 0] = torch.tensor([7 if right else 99 for right in correct])
    sure = torch.full((count,), 0.5) if confidence is None else torch.tensor(confidence)
    return Predictions(
        protocol=VAL.id,
        samples=torch.arange(count),
        labels=torch.full((count, 1), 7).short(),
        top5=top5.short(),
        confidence=sure,
    )


# Against timm


@pytest.mark.parametrize("subset", ["a", "r"])
def test_masked_scores_are_those_of_timms_valid_labels(subset: str, tmp_path: Path) -> None:
    """timm's --class-map drops and numbers the folders, its --valid-labels selects the columns."""
    protocol = find_protocol(f"in1k-{subset}")
    for number, synset in enumerate(synsets()):
        (tmp_path / synset).mkdir()
        for copy in range(number % 3):
            (tmp_path / synset / f"{copy}.jpg").touch()
    with as_file(INFO / f"imagenet_{subset}_synsets.txt") as path:
        found_images, _ = find_images_and_targets(
            str(tmp_path), class_to_idx=load_class_map(str(path))
        )
    targets = torch.tensor([target for _, target in found_images])
    folders = [Path(name).parent.name for name, _ in found_images]
    valid = [int(line) for line in (INFO / f"imagenet_{subset}_indices.txt").read_text().split()]
    labels = torch.tensor([class_of()[synset] for synset in folders])
    logits = torch.randn(len(labels), 1000, generator=torch.Generator().manual_seed(5))
    logits[::2].scatter_add_(1, labels[::2, None], torch.full((len(labels[::2]), 1), 3.0))

    meters, parts = (AverageMeter(), AverageMeter()), []
    for rows in torch.arange(len(labels)).split(64):
        output = logits[rows][:, valid]
        for meter, value in zip(meters, accuracy(output, targets[rows], topk=(1, 5)), strict=True):
            meter.update(value.item(), len(rows))
        parts.append(score(logits[rows], labels[rows], protocol, rows.tolist()))
    found = summarise(concatenate(parts), protocol)
    assert 150 < len(labels) < 250
    assert len(labels) % 64
    assert 20 < found.top1.percent < found.top5.percent < 90
    assert found.top1.percent == pytest.approx(meters[0].avg, abs=1e-4)
    assert found.top5.percent == pytest.approx(meters[1].avg, abs=1e-4)
    unmasked = predict(logits, labels, VAL, samples=torch.arange(len(labels)))
    assert summarise(unmasked, VAL).top1.percent < found.top1.percent


def test_real_scores_are_those_of_timm() -> None:
    generator = torch.Generator().manual_seed(8)
    numbers = torch.randperm(VAL_IMAGES, generator=generator) + 1
    names = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in numbers.tolist()]
    timms = RealLabelsImagenet([f"val/{name}" for name in names])
    labels = real_labels_of(names)
    parts = []
    for rows in torch.arange(VAL_IMAGES).split(2_500):
        logits = torch.randn(len(rows), 1000, generator=generator)
        first = labels[rows, :1].clamp_min(0)
        logits.scatter_add_(1, first, 3 * torch.rand(len(rows), 1, generator=generator))
        timms.add_result(logits)
        parts.append(score(logits, labels[rows], REAL, rows.tolist()))
    found = summarise(concatenate(parts), REAL)
    assert found.images == 50_000
    assert found.top1.of == found.top5.of == 46_837
    assert found.top1.correct == sum(timms.is_correct[1])
    assert found.top5.correct == sum(timms.is_correct[5])
    assert found.top1.percent == pytest.approx(timms.get_accuracy(1))
    assert 10 < found.top1.percent < found.top5.percent < 80


# By hand


def test_columns_are_selected_before_softmax_and_argmax() -> None:
    assert 0 not in columns("a").tolist()
    logits = torch.zeros(1, 1000)
    logits[0, 0] = 50  # not among the 200
    logits[0, 6] = 2
    found = score(logits, torch.tensor([6]), A)
    assert found.top5.tolist() == [[6, 11, 13, 15, 17]]
    assert found.confidence.item() == pytest.approx(math.exp(2) / (math.exp(2) + 199))
    assert found.correct1.item()
    assert score(logits, torch.tensor([6])).top5[0].tolist() == [0, 6, 1, 2, 3]


def test_real_by_hand() -> None:
    logits = torch.zeros(5, 1000)
    for row, surest in enumerate([[4], [9, 5], [1], [30], [2]]):
        for rank, number in enumerate(surest):
            logits[row, number] = 10 - rank
    labels = label_sets([[3, 4], [5], [], [1, 30, 700], [900]])
    found = score(logits, labels, REAL)
    assert found.scored.tolist() == [True, True, False, True, True]
    assert found.correct1.tolist() == [True, False, False, True, False]
    assert found.correct5.tolist() == [True, True, False, True, False]
    summary = summarise(found, REAL)
    assert (summary.images, summary.top1.of) == (5, 4)
    assert (summary.top1.percent, summary.top5.percent) == (50, 75)
    names = synsets()
    expected = {3: 100, 4: 100, 5: 0, 1: 100, 30: 100, 700: 100, 900: 0}
    assert summary.per_class() == {names[number]: share for number, share in expected.items()}


def test_of_equal_logits_the_first_class_is_taken() -> None:
    found = score(torch.zeros(2, 1000), torch.tensor([0, 4]))
    assert found.top5.tolist() == [[0, 1, 2, 3, 4]] * 2
    assert found.confidence.tolist() == pytest.approx([0.001] * 2)


def test_per_class_accuracy_and_the_figures_of_json() -> None:
    logits = torch.eye(1000)[[3, 3, 8, 999]]
    summary = summarise(score(logits, torch.tensor([3, 8, 8, 999])), VAL)
    names = synsets()
    assert summary.per_class() == {names[3]: 100, names[8]: 50, names[999]: 100}
    printed = summary.as_dict()
    assert printed["top-1"]["correct"] == 3
    assert printed["top-1"]["percent"] == 75
    assert printed["protocol_digest"] == VAL.digest
    assert set(VAL.metrics) <= set(printed)


# What must not matter


def drawn(seed: int, count: int) -> tuple[Tensor, Tensor]:
    """Logits in steps of 1/16, which sums with whole numbers keep exactly, ties among them."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(-160, 160, (count, 1000), generator=generator) / 16
    labels = columns("a")[torch.randint(200, (count,), generator=generator)]
    logits[torch.arange(count), labels] += torch.randint(20, (count,), generator=generator)
    return logits, labels


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    count=st.integers(1, 24),
    cuts=st.lists(st.integers(0, 24), max_size=4),
    shift=st.integers(-500, 500),
)
@pytest.mark.parametrize("protocol", [VAL, A], ids=lambda p: p.id)
def test_batches_order_and_offset_do_not_matter(
    protocol: Protocol, seed: int, count: int, cuts: list[int], shift: int
) -> None:
    logits, labels = drawn(seed, count)
    whole = score(logits, labels, protocol)
    assert same(score(logits + shift, labels, protocol), whole)

    ends = [*sorted(cut for cut in cuts if cut < len(labels)), len(labels)]
    starts = [0, *ends[:-1]]
    split = [
        score(logits[a:b], labels[a:b], protocol, range(a, b))
        for a, b in zip(starts, ends, strict=True)
    ]
    assert same(concatenate(split[::-1]), whole)

    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    mixed = score(logits[order], labels[order], protocol, order.tolist())
    assert same(concatenate([mixed]), whole)
    assert summarise(mixed, protocol).as_dict() == summarise(whole, protocol).as_dict()


@pytest.mark.gpu
def test_a_gpu_takes_images_for_the_same_classes() -> None:
    logits, labels = drawn(3, 500)
    here, there = score(logits, labels, A), score(logits.cuda(), labels.cuda(), A)
    assert torch.equal(here.top5, there.top5)
    assert torch.allclose(here.confidence, there.confidence, atol=1e-6)


def test_sets_of_different_sizes_join() -> None:
    parts = [
        score(torch.eye(1000)[[1]], label_sets([[1]]), REAL, [1]),
        score(torch.eye(1000)[[5]], label_sets([[2, 5, 6]]), REAL, [0]),
    ]
    assert concatenate(parts).labels.tolist() == [[2, 5, 6], [1, -1, -1]]


# Standard errors


@pytest.mark.parametrize(("correct", "total"), [(37_000, 50_000), (1_400, 7_500), (30, 400)])
def test_the_bootstrap_is_close_to_the_closed_form(correct: int, total: int) -> None:
    found = summarise(guesses([i < correct for i in range(total)]), VAL).top1
    share = correct / total
    assert found.binomial_error == pytest.approx(100 * math.sqrt(share * (1 - share) / total))
    # 1,000 resamples know a deviation to within 2.2 %: this allows four times that.
    assert found.bootstrap_error == pytest.approx(found.binomial_error, rel=0.09)


def test_counts_of_a_resample_are_drawn_as_resampling_would() -> None:
    right = torch.arange(300) < 210
    rows = torch.randint(300, (RESAMPLES, 300), generator=torch.Generator().manual_seed(1))
    resampled = 100 * right[rows].double().mean(1).std().item()
    found = summarise(guesses(right.tolist()), VAL).top1
    assert found.bootstrap_error == pytest.approx(resampled, rel=0.13)


@pytest.mark.parametrize("right", [True, False])
def test_certainty_has_no_error(right: bool) -> None:
    found = summarise(guesses([right] * 50), VAL).top1
    assert found.percent == 100 * right
    assert found.bootstrap_error == found.binomial_error == 0


def test_a_whole_validation_set_is_summarised_quickly() -> None:
    whole = guesses([i % 3 > 0 for i in range(50_000)])
    started = time.process_time()
    first = summarise(whole, VAL)
    assert time.process_time() - started < 2
    assert first.as_dict() == summarise(whole, VAL).as_dict()


# Refusals


@pytest.mark.parametrize(("bad", "value"), [(2, math.nan), (1, math.inf), (3, -math.inf)])
def test_logits_that_are_not_finite_name_their_image(bad: int, value: float) -> None:
    logits = torch.zeros(5, 1000)
    logits[bad:, 17] = value
    with pytest.raises(IntegrityError, match=f"{5 - bad} of 5 images") as refused:
        predict(
            logits,
            torch.zeros(5, dtype=torch.int64),
            VAL,
            samples=torch.arange(10, 15),
            name_of="n01440764/{}.JPEG".format,
        )
    assert refused.value.code == Exit.INTEGRITY
    assert refused.value.where == f"first: n01440764/{10 + bad}.JPEG"


@pytest.mark.parametrize(
    ("outputs", "what", "fix"),
    [
        (0, "the model has no classification head", "in1k-linear"),
        (200, "the head has 200 classes", "selects its 200"),
        (21_843, "the head has 21,843 classes, those of imagenet-21k-goog", "zoo finetune"),
        (10, "the head has 10 classes", "zoo finetune"),
    ],
)
def test_a_head_of_another_size_is_refused(outputs: int, what: str, fix: str) -> None:
    with pytest.raises(DataError) as refused:
        require_head(outputs, A)
    assert refused.value.what == what
    assert fix in refused.value.fix
    with pytest.raises(DataError):
        score(torch.zeros(1, outputs), torch.tensor([6]), A)


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=lambda p: p.id)
def test_a_head_of_1000_fits_every_protocol(protocol: Protocol) -> None:
    require_head(1000, protocol)


@pytest.mark.parametrize(
    ("protocol", "label"), [(A, 0), (R, 3), (VAL, -1), (VAL, 1000), (REAL, 1000), (REAL, -2)]
)
def test_a_label_of_no_class_is_refused(protocol: Protocol, label: int) -> None:
    labels = torch.tensor([6 if protocol is A else 1, label])
    with pytest.raises(DataError, match=f"a label is {label}, no class of {protocol.id}") as bad:
        score(torch.zeros(2, 1000), labels, protocol)
    assert bad.value.where == "image 1"


def test_no_image_counts_twice() -> None:
    part = guesses([True, False])
    with pytest.raises(IntegrityError, match="2 images were scored more than once") as twice:
        concatenate([part, part])
    assert twice.value.where == "first: image 0"


def test_nothing_to_score() -> None:
    unlabelled = score(torch.zeros(2, 1000), label_sets([[], []]).new_full((2, 1), -1), REAL)
    with pytest.raises(DataError, match="no image has a label"):
        summarise(unlabelled, REAL)
