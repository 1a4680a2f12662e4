"""From counted pixels to a result and a page.

C classes · M images
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from eval.results import Result
from eval.segmentation.data import Split
from eval.segmentation.iou import Scores, image_miou
from eval.segmentation.masks import shown
from eval.segmentation.overlays import Example, chosen, shrunk, worst
from eval.segmentation.page import Told, write_page
from eval.segmentation.pixels import read_pixels
from eval.segmentation.plan import VALIDATION, changed
from eval.segmentation.protocols import find_seg_protocol, of_own
from eval.segmentation.recipe import Segmentation
from eval.segmentation.record import Network
from eval.segmentation.score import guesses
from pretrain.distributed import World
from pretrain.export import code_version, environment
from pretrain.log import read_log
from pretrain.recipe import as_record
from pretrain.run import RunFolder

_SHOWN = 8
"""Images of the fixed set; the worst ten stand beside them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """A network and where it came from."""

    recipe: Segmentation
    run: RunFolder
    network: Network
    net: nn.Module
    """On the world's device, in eval mode."""
    sha256: str
    """Of its checkpoint."""
    notes: dict[str, Any]
    """Of its checkpoint."""


def result_of(
    trained: Trained, split: Split, scores: Scores, *, seconds: float, world: World
) -> Result:
    """Of a whole split."""
    recipe, network = trained.recipe, trained.network
    protocol = find_seg_protocol(recipe.protocol)
    if protocol.data == "ADE20K" and not split.is_ade20k:
        protocol = of_own(protocol)
    trained_on, identity = trained.notes["trained_on"], trained.notes["identity"]
    elsewhere = {} if split.split == VALIDATION else {"split": split.split}
    return Result(
        protocol=protocol.id,
        protocol_digest=protocol.digest,
        model=network.model,
        model_digest=network.model_digest,
        metric=protocol.metric,
        value=scores.miou,
        # Of one image there is none; the details say so.
        standard_error=float(np.nan_to_num(scores.standard_error)),
        samples=len(split),
        transform={
            "image_size": recipe.testing.short_side,
            "crop": recipe.method.crop,
            "stride": recipe.testing.stride,
            "interpolation": "bilinear",
            "mean": list(network.preprocess.mean),
            "std": list(network.preprocess.std),
        },
        settings={**elsewhere, **changed(recipe, network)},
        data=", ".join([split.name, *_missing(split, trained_on)]),
        # Of what it was trained on and of what it was scored on: the value depends on both.
        data_fingerprint=_sha256(identity["train_fingerprint"], split.fingerprint),
        complete=split.complete and trained_on["complete"],
        dtype="float32",
        seconds=round(seconds, 2),
        seed=recipe.training.seed,
        ranks=world.size,
        code_version=code_version(),
        environment=environment(world.device),
        details={
            **scores.as_dict(split.labels.names),
            "split": split.split,
            "split_fingerprint": split.fingerprint,
            "training_fingerprint": identity["train_fingerprint"],
            "training_images": trained_on["images"],
            "training_ranks": identity["ranks"],
            "training_environment": trained.notes["environment"],
            "iterations": recipe.training.iterations,
            "training_precision": recipe.training.precision,
            "skipped_crops": trained.notes["skipped_crops"],
            "images_without_a_label": len(split.empty),
            "checkpoint_sha256": trained.sha256,
        },
    )


def _missing(split: Split, trained_on: dict[str, Any]) -> list[str]:
    """What an incomplete ADE20K lacks, of either split."""
    scored = [split.missing] if split.missing else []
    trained = [f"trained on {trained_on['missing']}"] if trained_on["missing"] else []
    return scored + trained


def _sha256(*texts: str) -> str:
    return hashlib.sha256(" ".join(texts).encode()).hexdigest()


def notes_of(result: Result, split: Split) -> list[str]:
    """What a reader must know of the figure, a sentence each."""
    details, said = result.details, []
    if not result.complete:
        said.append(f"An incomplete set: {result.data}.")
    said.append(
        f"{details['iterations']:,} iterations in {details['training_precision']} on "
        f"{details['training_images']:,} images, scored in "
        f"{result.dtype}. Training passed over {details['skipped_crops']:,} crops without a "
        "labelled pixel."
    )
    if split.empty:
        said.append(f"{len(split.empty)} images have no labelled pixel and count nowhere.")
    return said


def _changes(result: Result) -> list[str]:
    if not result.settings:
        return []
    listed = ", ".join(f"{key} {value}" for key, value in result.settings.items())
    return [f"Not as the protocol has it: {listed}."]


def tell(
    trained: Trained,
    split: Split,
    counts: np.ndarray,
    scores: Scores,
    result: Result,
    world: World,
    *,
    workers: int,
) -> Path:
    """Write the page into the run folder, with pictures of what the network takes images for.

    counts: (M, 3, C), of every image.
    """
    fixed = chosen(_SHOWN, len(split))
    poor = worst(np.array([image_miou(part) for part in counts]))
    wanted = sorted({*fixed, *poor})
    found = {
        one.number: shrunk(
            Example(
                name=shown(Path(split.files[one.number][0]).name),
                image_HW3=read_pixels(split.image(one.number)),
                truth_HW=one.truth,
                guess_HW=one.guess,
                miou=image_miou(counts[one.number]),
            )
        )
        for one in guesses(
            trained.net, split, wanted, trained.recipe, workers=workers, device=world.device
        )
    }
    kind = "" if split.split == VALIDATION else f"-{split.split}"
    place = trained.run.path / f"report{kind}.html"
    write_page(
        Told(
            title=trained.recipe.name,
            subtitle=f"{result.protocol} · {split.name}, {split.split}: {len(split):,} images",
            scores=scores,
            names=split.labels.names,
            palette=split.labels.palette,
            pixels=split.pixels,
            images=len(split),
            fixed=[found[number] for number in fixed],
            worst=[found[number] for number in poor],
            log=_rows(trained.run),
            record=as_record(trained.recipe),
            notes=[*notes_of(result, split), *_changes(result)],
        ),
        place,
    )
    return place


def _rows(run: RunFolder) -> list[dict[str, Any]]:
    names = {"step": "iteration", "total": "loss", "val_mIoU": "mIoU", "val_aAcc": "aAcc"}
    rows = read_log(run.log) if run.log.exists() else []
    return [{names.get(key, key): value for key, value in row.items()} for row in rows]
