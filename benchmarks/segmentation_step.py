"""A training step of UPerNet: mmseg's plain float32 against our recipe's options.

    python -m benchmarks.segmentation_step [--student b] [--batch 16] [--rounds 20]

The network, losses and optimizer are those of ``ade20k-upernet@1``, with random weights, 150
classes and crops of 512 px that are drawn; forward, backward and update.  The sides take turns in
one process.  bfloat16 and compile need CUDA; on a CPU only the memory layout is compared.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from eval.segmentation.config import Setting, network, optimization
from eval.segmentation.packages import import_mmseg, quiet
from eval.segmentation.recipe import Segmentation, recipe_for
from eval.segmentation.record import Network
from zoo.images import Preprocess
from zoo.vit import VIT_B, VIT_S, VIT_T

CLASSES = 150
SIDES: dict[str, dict[str, Any]] = {
    "float32, as mmseg": {},
    "float32, channels_last": {"channels_last": True},
    "bfloat16": {"precision": "bfloat16"},
    "bfloat16, channels_last": {"precision": "bfloat16", "channels_last": True},
    "bfloat16, channels_last, compile": {
        "precision": "bfloat16",
        "channels_last": True,
        "compile": True,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--student", choices="tsb", default="b")
    parser.add_argument("--batch", type=int, default=16, help="crops a step")
    parser.add_argument("--crop", type=int, default=512, help="pixels")
    parser.add_argument("--rounds", type=int, default=20)
    asked = parser.parse_args()
    import_mmseg()
    on_cuda = torch.cuda.is_available()
    sides = {k: v for k, v in SIDES.items() if on_cuda or not {"precision", "compile"} & v.keys()}
    steps = {name: step(asked, options, on_cuda=on_cuda) for name, options in sides.items()}
    times = {name: [] for name in sides}
    peaks = dict.fromkeys(sides, 0.0)
    for one in steps.values():
        one()  # the first one compiles, tunes and allocates
    idle = 0
    for _ in range(asked.rounds):
        for name, one in steps.items():
            if on_cuda:
                torch.cuda.reset_peak_memory_stats()
                idle = torch.cuda.memory_allocated()
            times[name].append(timed(one, on_cuda=on_cuda))
            if on_cuda:
                peaks[name] = max(peaks[name], (torch.cuda.max_memory_allocated() - idle) / 2**30)
    first = statistics.median(next(iter(times.values())))
    print(f"{'':36}ms a step   times as fast" + ("   GiB over idle" if on_cuda else ""))
    for name, found in times.items():
        middle = statistics.median(found)
        peak = f"{peaks[name]:16.1f}" if on_cuda else ""
        print(f"{name:36}{1000 * middle:9.0f}{first / middle:16.2f}{peak}")


def step(
    asked: argparse.Namespace, options: dict[str, Any], *, on_cuda: bool
) -> Callable[[], None]:
    """One step of a network of its own, on a batch of its own."""
    from mmengine.optim import build_optim_wrapper
    from mmseg.registry import MODELS

    from eval.segmentation.train import speed_up

    config = {"t": VIT_T, "s": VIT_S, "b": VIT_B}[asked.student]
    method, training = recipe_for(config, "tinymim", backbone="mae")
    training = replace(training, global_batch=asked.batch, **options)
    recipe = Segmentation(
        name="step",
        protocol="ade20k-upernet@1",
        model="",
        data="",
        method=replace(method, crop=asked.crop),
        training=training,
    )
    made = Network(
        student=config,
        preprocess=Preprocess(image_size=224),
        model="",
        model_digest="",
        origin="tinymim",
        classes=tuple(str(number) for number in range(CLASSES)),
        palette=((0, 0, 0),) * CLASSES,
    )
    setting = Setting(network=made, on_cuda=on_cuda)
    with quiet():
        from mmengine.model import revert_sync_batchnorm

        net: Any = revert_sync_batchnorm(MODELS.build(network(recipe, setting)))
        net.init_weights()
        net.to("cuda" if on_cuda else "cpu").train()
        speed_up(net, recipe)
        wrapper = build_optim_wrapper(net, optimization(recipe, setting)["optim_wrapper"])
    data = batch(asked.batch, asked.crop)
    return lambda: net.train_step(data, wrapper)


def batch(crops: int, side: int) -> dict[str, list[Any]]:
    """Drawn pixels and labels, as mmseg's loader gives them."""
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    labels = [torch.randint(0, CLASSES, (1, side, side)) for _ in range(crops)]
    samples = [SegDataSample(gt_sem_seg=PixelData(data=label)) for label in labels]
    pixels = [torch.randint(0, 256, (3, side, side), dtype=torch.uint8) for _ in range(crops)]
    return {"inputs": pixels, "data_samples": samples}


def timed(one: Callable[[], None], *, on_cuda: bool) -> float:
    """Seconds: the clock on a GPU, process time on a CPU."""
    if not on_cuda:
        began = time.process_time()
        one()
        return time.process_time() - began
    torch.cuda.synchronize()
    began = time.perf_counter()
    one()
    torch.cuda.synchronize()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
