"""From what a user asked for to a run: the recipe resolved, the data opened and checked."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eval.finetune_run import lasting_name, name_of, slug
from eval.segmentation.data import Split, open_split
from eval.segmentation.protocols import find_seg_protocol, of_own
from eval.segmentation.recipe import Segmentation, Testing, recipe_for
from eval.segmentation.record import Network
from pretrain.distributed import World
from pretrain.recipe import flatten, override
from pretrain.run import RunFolder
from zoo.errors import DataError, UsageError
from zoo.files import typed_path
from zoo.folder import Model, holds_convnet, load_model
from zoo.hub import locate

TRAINING, VALIDATION = "training", "validation"
_FOLLOWS = {
    "name": "a run is called by its folder, --run",
    "protocol": "name the benchmark",
    "model": "name the model",
    "data": "give --data DIR",
    "from_scratch": "give --from-scratch",
}
"""Fields of a recipe, and what decides each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SegOptions:
    """What may be asked of a segmentation beside model, benchmark and data."""

    overrides: Sequence[str] = ()
    """``key.path=value`` of the recipe."""
    run: Path | None = None
    """The run folder; below ``runs`` where not given."""
    split: str = VALIDATION
    """Which images ``ade20k-test`` scores."""
    from_scratch: bool = False
    partial: bool = False
    """Take an incomplete ADE20K; the result says so."""
    workers: int = 2
    device: str = "auto"
    out: Path = Path("results")


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """A run as it was planned, with its data opened."""

    recipe: Segmentation
    run: RunFolder
    model: Model
    train: Split
    val: Split

    def network(self) -> Network:
        """What the run folder keeps of the network."""
        return Network(
            student=self.model.config,
            preprocess=self.model.preprocess,
            model=self.model.name,
            model_digest=self.model.digest,
            origin=origin_of(self.model),
            classes=tuple(self.train.labels.names),
            palette=tuple(tuple(colour) for colour in self.train.labels.palette.tolist()),
        )


def origin_of(model: Model) -> str:
    """How a model was pre-trained, by its card; empty where it has none."""
    return model.card.method if model.card else ""


def plan(model: str, benchmark: str, data: str, options: SegOptions, world: World) -> Task:
    """Look at model and data, on every rank alike, and resolve the recipe.

    Raises UsageError, DataError, IntegrityError, NetworkError.
    """
    protocol = find_seg_protocol(benchmark)
    _require_own_keys(options.overrides)
    folder = locate(model)
    if holds_convnet(folder):
        raise UsageError(
            "the protocol is of plain ViTs, and this is a convnet",
            where=str(folder),
            fix="give a ViT: zoo list shows them",
        )
    found = load_model(folder)
    root = _spelt(typed_path(data).resolve())
    train, val = (
        world.main_first(lambda s=split: open_split(root, s, partial=options.partial))
        for split in (TRAINING, VALIDATION)
    )
    if protocol.data == "ADE20K" and not (train.is_ade20k and val.is_ade20k):
        protocol = of_own(protocol)
    _require_labels(train, val)
    method, training = recipe_for(found.config, origin_of(found), backbone=protocol.backbone)
    kind = "-scratch" if options.from_scratch else ""
    recipe = Segmentation(
        name=slug(f"{protocol.name}-{name_of(folder, model)}-{root.name}{kind}"),
        protocol=protocol.id,
        model=lasting_name(folder, model),
        from_scratch=options.from_scratch,
        data=str(root),
        method=method,
        training=training,
    )
    recipe = _warmed(override(recipe, options.overrides), options.overrides)
    _require_tiled(recipe, found)
    _require_schedule(recipe)
    run = RunFolder((options.run or Path("runs") / recipe.name).absolute())
    return Task(recipe=recipe, run=run, model=found, train=train, val=val)


def _require_own_keys(overrides: Sequence[str]) -> None:
    """Raise UsageError for what follows from the command's words: a result is called by it."""
    for text in overrides:
        key = text.partition("=")[0]
        if key in _FOLLOWS:
            raise UsageError(
                f"{key!r} follows from the command, and is no override",
                where=text,
                fix=f"leave it out: {_FOLLOWS[key]}",
            )


def _warmed(recipe: Segmentation, overrides: Sequence[str]) -> Segmentation:
    """With a warm-up that fits a run made shorter: a tenth of it, unless that was said too."""
    training = recipe.training
    if any(text.startswith("training.warmup_") for text in overrides):
        return recipe
    warmup = min(training.warmup_iterations, training.iterations // 10)
    warmup = warmup if warmup > 1 else 0  # mmengine's of one iteration would never end
    return replace(recipe, training=replace(training, warmup_iterations=warmup))


def _spelt(root: Path) -> Path:
    """Raise DataError for a name that no recipe can hold."""
    try:
        str(root).encode()
    except UnicodeEncodeError as error:
        raise DataError(
            "the folder's name is not UTF-8", where=ascii(str(root)), fix="rename the folder"
        ) from error
    return root


def _require_labels(train: Split, val: Split) -> None:
    if len(train.labels.names) < 2:
        raise DataError(
            "one class alone is everywhere right",
            where=str(train.labels.source),
            fix="give what surrounds it a class of its own: 0 in a mask is ignored",
        )
    for split in (train, val):
        if not split.pixels.any():
            raise DataError(
                f"no pixel of {len(split):,} masks has a label: 0 and 255 are ignored",
                where=str(split.root / "annotations" / split.split),
                fix="number the classes from 1",
            )


def _require_schedule(recipe: Segmentation) -> None:
    warmup, iterations = recipe.training.warmup_iterations, recipe.training.iterations
    if warmup == 1 or warmup >= iterations:
        raise UsageError(
            f"a warm-up of {warmup:,} in a run of {iterations:,} iterations",
            where="training.warmup_iterations",
            fix=f"choose 0, or 2 … {iterations - 1:,}" if iterations > 2 else "choose 0",
        )


def _require_tiled(recipe: Segmentation, model: Model) -> None:
    method, config = recipe.method, model.config
    if method.crop % config.patch or method.crop < 2 * config.patch:
        raise UsageError(
            f"patches of {config.patch} px do not tile a crop of {method.crop} px, two a side",
            where="method.crop",
            fix=f"choose {max(2, method.crop // config.patch) * config.patch}",
        )
    if not 1 <= recipe.testing.stride <= method.crop:
        raise UsageError(
            f"windows of {method.crop} px at every {recipe.testing.stride} px leave gaps",
            where="testing.stride",
            fix=f"choose 1 … {method.crop}; two thirds are {method.crop * 2 // 3}",
        )
    if list(method.taps) != sorted(set(method.taps)) or method.taps[-1] > config.depth:
        raise UsageError(
            f"taps {list(method.taps)} are not four blocks in order, of {config.depth}",
            where="method.taps",
            fix="for example method.taps=[4, 6, 8, 12]",
        )


def changed(recipe: Segmentation, network: Network) -> dict[str, Any]:
    """The fields that reach the score and are not as the protocol has them for this model."""
    protocol = find_seg_protocol(recipe.protocol)
    method, training = recipe_for(network.student, network.origin, backbone=protocol.backbone)
    standard = replace(recipe, method=method, training=training, testing=Testing())
    ours, theirs = (dict(flatten(r, runtime=False)) for r in (recipe, standard))
    # The seed has a place of its own in a result.
    found = {k: v for k, v in ours.items() if v != theirs[k] and k != "training.seed"}
    found |= {"from_scratch": True} if recipe.from_scratch else {}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in found.items()}
