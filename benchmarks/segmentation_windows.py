"""Sliding evaluation of UPerNet: ours against mmseg's one-window loop, same model and images.

    OMP_NUM_THREADS=1 python -m benchmarks.segmentation_windows [--device cuda --batch 16]

mmseg's side is its ``slide_inference`` and ``postprocess_result``; ours is ``eval.segmentation``'s
windows, decode head and class map.  ViT-T with mmseg's MAE backbone, random weights, images of
drawn sizes as in ADE20K (short side 512).  They take turns, pass by pass; process CPU time of
one thread, or the clock on a GPU.  *Windows* are ours with mmseg's own head: what batches bring.
Goals: 1.2 times the images on a CPU, twice on a GPU, mIoU within 0.01.
"""

import argparse
import multiprocessing
import resource
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eval.segmentation.iou import count, scores_of
from eval.segmentation.upernet import window_logits
from eval.segmentation.windows import class_map, slide

CROP, STRIDE, CLASSES = 512, 341, 150
ASPECTS = (4 / 3, 3 / 4, 4 / 3, 1, 3 / 2, 16 / 9)


def build(width: int, heads: int, channels: int) -> Any:
    """mmseg's EncoderDecoder as the protocol has it; statistics and the last layer are drawn."""
    with warnings.catch_warnings(action="ignore"):
        import mmseg.models  # noqa: F401
        from mmengine.config import ConfigDict
        from mmseg.registry import MODELS

        norm = {"type": "BN", "requires_grad": True}
        shared = {"num_classes": CLASSES, "norm_cfg": norm, "align_corners": False}
        config = ConfigDict(
            type="EncoderDecoder",
            backbone={
                "type": "MAE",
                "img_size": (CROP, CROP),
                "embed_dims": width,
                "num_heads": heads,
                "init_values": 1.0,
                "out_indices": [3, 5, 7, 11],
            },
            neck={
                "type": "Feature2Pyramid",
                "embed_dim": width,
                "rescales": [4, 2, 1, 0.5],
                "norm_cfg": norm,
            },
            decode_head={
                "type": "UPerHead",
                "in_channels": [width] * 4,
                "in_index": [0, 1, 2, 3],
                "channels": channels,
                **shared,
            },
            auxiliary_head={
                "type": "FCNHead",
                "in_channels": width,
                "in_index": 2,
                "channels": 256,
                "num_convs": 1,
                "concat_input": False,
                **shared,
            },
            test_cfg={"mode": "slide", "crop_size": (CROP, CROP), "stride": (STRIDE, STRIDE)},
        )
        model = MODELS.build(config)
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
    nn.init.normal_(model.decode_head.conv_seg.weight, std=0.1)
    return model.eval().requires_grad_(False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """pixels: (3, h, w), normalised.  size: the image's own, (H, W)."""

    pixels: Tensor
    size: tuple[int, int]


def draw(images: int, device: torch.device) -> list[Picture]:
    """Smooth noise at random sizes, so that neighbouring pixels are of a class."""
    rng = np.random.default_rng(0)
    pictures = []
    for i in range(images):
        aspect = ASPECTS[i % len(ASPECTS)]
        h, w = (round(512 * max(1, 1 / aspect)), round(512 * max(1, aspect)))
        scale = rng.uniform(0.6, 1.6)
        coarse = torch.from_numpy(rng.standard_normal((1, 3, h // 24, w // 24))).float()
        pixels = nn.functional.interpolate(coarse, (h, w), mode="bicubic")[0] * 1.5
        size = (round(h * scale), round(w * scale))
        pictures.append(Picture(pixels=pixels.to(device), size=size))
    return pictures


Side = Callable[[list[Picture]], Iterator[Tensor]]
"""The logits (C, h, w) of each picture."""


def of_mmseg(model: Any) -> Side:
    def logits(pictures: list[Picture]) -> Iterator[Tensor]:
        for picture in pictures:
            yield model.slide_inference(picture.pixels[None], [{}])[0]

    return logits


def of_ours(model: Any, batch: int, *, own_head: bool = True) -> Side:
    def mmsegs(pixels: Tensor) -> Tensor:
        return model.encode_decode(pixels, [{"img_shape": pixels.shape[2:]}])

    def logits(pictures: list[Picture]) -> Iterator[Tensor]:
        return slide(
            (lambda pixels: window_logits(model, pixels)) if own_head else mmsegs,
            (picture.pixels for picture in pictures),
            classes=CLASSES,
            crop=CROP,
            stride=STRIDE,
            batch=batch,
        )

    return logits


def mmseg_map(model: Any, logits: Tensor, size: tuple[int, int]) -> Tensor:
    """As its evaluation makes it."""
    from mmseg.structures import SegDataSample

    sample = SegDataSample(metainfo={"ori_shape": size})
    (found,) = model.postprocess_result(logits[None], [sample])
    return found.pred_sem_seg.data[0]


@dataclass(kw_only=True, slots=True)
class Taken:
    """Seconds of each pass over the pictures, and what came out in the last."""

    logits: list[float] = field(default_factory=list)
    maps: list[float] = field(default_factory=list)
    guesses: list[np.ndarray] = field(default_factory=list)
    first: Tensor | None = None
    """The first picture's logits."""

    def total(self, pass_: int) -> float:
        return self.logits[pass_] + self.maps[pass_]


def clock(device: torch.device) -> float:
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    logits: Side
    to_map: Callable[[Tensor, tuple[int, int]], Tensor]


@torch.no_grad()
def run(side: Compared, pictures: list[Picture], taken: Taken | None = None) -> None:
    """One pass over the pictures."""
    device = pictures[0].pixels.device
    began, mapping, guesses, first = clock(device), 0.0, [], None
    found = side.logits(pictures)
    for picture in pictures:
        logits = next(found)
        before = clock(device)
        guesses.append(side.to_map(logits, picture.size))
        mapping += clock(device) - before
        if taken and first is None:
            first = logits
        del logits
    if taken:
        taken.logits.append(clock(device) - began - mapping)
        taken.maps.append(mapping)
        taken.guesses = [guess.cpu().numpy() for guess in guesses]
        taken.first = first


def peak_bytes(side: Compared, pictures: list[Picture]) -> int:
    """The most memory that a pass takes on top of model and pictures."""
    device = pictures[0].pixels.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run(side, pictures)
        return torch.cuda.max_memory_allocated(device) - before
    fork = multiprocessing.get_context("fork")
    answers = fork.SimpleQueue()

    def child() -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        run(side, pictures)
        answers.put(
            1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            - pages * resource.getpagesize()
        )

    process = fork.Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == 0
    return answers.get()


def invented_truth(guess: np.ndarray) -> np.ndarray:
    """The guess in three blocks of five, any class in the others: each has its pixels, as in the
    whole of ADE20K, so that the mean does not hang on a class that a single pixel was taken for."""
    rng = np.random.default_rng(0)
    blocks = [side // 16 + 1 for side in guess.shape]
    right = rng.random(blocks) < 0.6
    drawn = rng.integers(0, CLASSES, blocks)
    tile = np.ones((16, 16), int)
    right, drawn = (np.kron(x, tile)[: guess.shape[0], : guess.shape[1]] for x in (right, drawn))
    return np.where(right, guess, drawn).astype(np.uint8)


def score(guesses: list[np.ndarray], truths: list[np.ndarray]) -> float:
    return scores_of(
        np.stack([count(g, t, CLASSES) for g, t in zip(guesses, truths, strict=True)])
    ).miou


def main() -> None:
    """Print rates, ratios, peak memory and the differences of what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=2, help="windows at once")
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--channels", type=int, default=768, help="of the decode head")
    parser.add_argument("--width", type=int, default=192, help="of the ViT; heads of 64")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(options.device)
    model = build(options.width, options.width // 64, options.channels).to(device)
    pictures = draw(options.images, device)
    sides = {
        "mmseg": Compared(
            logits=of_mmseg(model), to_map=lambda logits, size: mmseg_map(model, logits, size)
        ),
        "windows": Compared(logits=of_ours(model, options.batch, own_head=False), to_map=class_map),
        "ours": Compared(logits=of_ours(model, options.batch), to_map=class_map),
    }
    peaks = {name: peak_bytes(side, pictures) for name, side in sides.items()}  # also warms up
    taken = {name: Taken() for name in sides}
    for _ in range(options.rounds):
        for name, side in sides.items():
            run(side, pictures, taken[name])
    report(taken, peaks, options.images, options.rounds)


def report(taken: dict[str, Taken], peaks: dict[str, int], images: int, rounds: int) -> None:
    """A line a side, then how far ours is from mmseg's."""
    for name, times in taken.items():
        logits, maps = (statistics.median(x) / images for x in (times.logits, times.maps))
        print(
            f"{name:8} {logits:7.3f} s/image logits {maps:6.3f} class map "
            f"{peaks[name] / 2**20:7.0f} MiB"
        )
    base = taken["mmseg"]
    truths = [invented_truth(guess) for guess in base.guesses]
    for name in ("windows", "ours"):
        times = taken[name]
        alone = statistics.median(base.logits[i] / times.logits[i] for i in range(rounds))
        both = statistics.median(base.total(i) / times.total(i) for i in range(rounds))
        print(f"mmseg / {name:8} {alone:.2f}, with class map {both:.2f}")
        equal = statistics.mean(
            float((a == b).mean()) for a, b in zip(base.guesses, times.guesses, strict=True)
        )
        assert base.first is not None
        assert times.first is not None
        furthest = float((base.first - times.first).abs().max())
        miou, reference = score(times.guesses, truths), score(base.guesses, truths)
        print(
            f"  logits within {furthest:.1e}, {100 * equal:.4f} % of pixels equal, "
            f"mIoU {miou:.4f} for {reference:.4f}"
        )


if __name__ == "__main__":
    main()
