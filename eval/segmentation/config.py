"""From a recipe to mmengine's configuration: plain values in code, no ``_base_`` files.

What the published recipes say is said here once; ``docs/segmentation.md`` has the sources.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.segmentation.data import Split
from eval.segmentation.recipe import IGNORED, LONG_SIDE, Segmentation
from eval.segmentation.record import Network
from zoo.errors import DataError

_META = ("img_path", "seg_map_path", "ori_shape", "img_shape", "pad_shape", "scale_factor")
PARTS = "eval.segmentation.parts"
"""What mmengine imports to find the parts of ours."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What a configuration is made of, beside the recipe."""

    network: Network
    ranks: int = 1
    on_cuda: bool = False
    weights: Path | None = None
    """A file of the backbone's weights; None begins with random ones."""


def network(recipe: Segmentation, given: Setting) -> dict[str, Any]:
    """mmsegmentation's ``model``."""
    method, width, classes = recipe.method, given.network.student.width, len(given.network.classes)
    norm = {"type": "SyncBN" if given.on_cuda or given.ranks == 1 else "BN", "requires_grad": True}
    head = {
        "num_classes": classes,
        "norm_cfg": norm,
        "align_corners": False,
        "dropout_ratio": method.head_dropout,
    }
    crop = [method.crop, method.crop]
    return {
        "type": "EncoderDecoder",
        "data_preprocessor": {
            "type": "SegDataPreProcessor",
            "mean": [255 * m for m in given.network.preprocess.mean],
            "std": [255 * s for s in given.network.preprocess.std],
            "bgr_to_rgb": True,
            "pad_val": 0,
            "seg_pad_val": IGNORED,
            "size": crop,
        },
        "backbone": _backbone(recipe, given),
        "neck": {
            "type": "Feature2Pyramid",
            "embed_dim": width,
            "rescales": [4, 2, 1, 0.5],
            "norm_cfg": norm,
        },
        "decode_head": {
            "type": "UPerHead",
            "in_channels": [width] * 4,
            "in_index": [0, 1, 2, 3],
            "pool_scales": [1, 2, 3, 6],
            "channels": method.head_channels,
            "loss_decode": _cross_entropy(1.0),
            **head,
        },
        "auxiliary_head": {
            "type": "FCNHead",
            "in_channels": width,
            "in_index": 2,
            "channels": method.auxiliary_channels,
            "num_convs": 1,
            "concat_input": False,
            "loss_decode": _cross_entropy(method.auxiliary_weight),
            **head,
        },
        "train_cfg": {},
        "test_cfg": {
            "mode": "slide",
            "crop_size": crop,
            "stride": [recipe.testing.stride, recipe.testing.stride],
        },
    }


def _backbone(recipe: Segmentation, given: Setting) -> dict[str, Any]:
    method, student = recipe.method, given.network.student
    loaded = {"type": "Pretrained", "checkpoint": str(given.weights)} if given.weights else None
    shared = {
        "embed_dims": student.width,
        "num_heads": student.heads,
        "patch_size": student.patch,
        "out_indices": [tap - 1 for tap in method.taps],
        "drop_path_rate": method.drop_path,
        "init_cfg": loaded,
    }
    if method.backbone == "plain":
        return {"type": "PlainViT", "img_size": student.image_size, "depth": student.depth} | shared
    return {
        "type": "MAE",
        "img_size": [method.crop, method.crop],
        "num_layers": student.depth,
        "mlp_ratio": 4,
        "init_values": method.layer_scale,
        "norm_cfg": {"type": "LN", "eps": 1e-6},
    } | shared


def _cross_entropy(weight: float) -> dict[str, Any]:
    # The mean is over all pixels, ignored ones included: mmsegmentation's default.
    return {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": weight}


def train_pipeline(recipe: Segmentation, *, strict: bool = False) -> list[dict[str, Any]]:
    """From a file to a crop, by mmsegmentation's transforms.

    strict: a damaged file is an error, where OpenCV fills in grey, and a crop without a labelled
    pixel is passed over; both by parts of ours.
    """
    training, crop = recipe.training, recipe.method.crop
    return [
        {"type": "ReadImage"} if strict else {"type": "LoadImageFromFile"},
        {"type": "LoadAnnotations", "reduce_zero_label": True},
        {
            "type": "RandomResize",
            "scale": (LONG_SIDE * training.short_side, training.short_side),
            "ratio_range": (0.5, 2.0),
            "keep_ratio": True,
        },
        {
            "type": "RandomCrop",
            "crop_size": (crop, crop),
            "cat_max_ratio": training.most_of_one_class,
        },
        *([{"type": "SkipIgnored"}] if strict else []),
        {"type": "RandomFlip", "prob": 0.5},
        {"type": "PhotoMetricDistortion"},
        {"type": "PackSegInputs", "meta_keys": ("skipped",) if strict else _META},
    ]


def test_pipeline(recipe: Segmentation) -> list[dict[str, Any]]:
    """From a file to the resized image and its mask, which keeps its own size."""
    scale = (LONG_SIDE * recipe.testing.short_side, recipe.testing.short_side)
    return [
        {"type": "LoadImageFromFile"},
        {"type": "Resize", "scale": scale, "keep_ratio": True},
        {"type": "LoadAnnotations", "reduce_zero_label": True},
        {"type": "PackSegInputs"},
    ]


def dataset(split: Split, pipeline: list[dict[str, Any]]) -> dict[str, Any]:
    """mmsegmentation's data set of a split.  Raises DataError where it would not see all of it."""
    if split.endings is None:
        raise DataError(
            "mmsegmentation reads images of one kind, and these files have several endings",
            where=str(split.root / "images" / split.split),
            fix="make all of them .jpg, or all .png",
        )
    image, mask = split.endings
    return {
        "type": "BaseSegDataset",
        "data_root": str(split.root),
        "data_prefix": {
            "img_path": f"images/{split.split}",
            "seg_map_path": f"annotations/{split.split}",
        },
        "metainfo": {
            "classes": list(split.labels.names),
            "palette": split.labels.palette.tolist(),
        },
        "img_suffix": image,
        "seg_map_suffix": mask,
        "reduce_zero_label": True,
        "pipeline": pipeline,
    }


def optimization(recipe: Segmentation, given: Setting) -> dict[str, Any]:
    """``optim_wrapper`` and ``param_scheduler``."""
    training, plain = recipe.training, recipe.method.backbone == "plain"
    kind = {"float32": "OptimWrapper"}.get(training.precision, "AmpOptimWrapper")
    wrapper: dict[str, Any] = {
        "type": kind,
        "optimizer": {
            "type": "AdamW",
            "lr": training.lr,
            "betas": (0.9, 0.999),
            "weight_decay": training.weight_decay,
        },
        "paramwise_cfg": {
            "num_layers": given.network.student.depth,
            "decay_rate": training.layer_decay,
            "decay_type": "layer_wise_vit",
        },
        # mmsegmentation's own where it does what the recipe says.
        "constructor": "LearningRateDecayOptimizerConstructor"
        if training.decay_tokens and not plain
        else "LayerDecay",
    }
    if wrapper["constructor"] == "LayerDecay":
        wrapper["paramwise_cfg"] = {
            "depth": given.network.student.depth,
            "layer_decay": training.layer_decay,
            "decay_tokens": training.decay_tokens,
        }
    if kind == "AmpOptimWrapper":
        wrapper["dtype"] = training.precision
        wrapper["loss_scale"] = "dynamic" if training.precision == "float16" else 1.0
    warmup, last = training.warmup_iterations, training.iterations
    falling = {"type": "PolyLR", "power": 1.0, "eta_min": 0.0, "begin": warmup, "end": last}
    rising = {"type": "LinearLR", "start_factor": 1e-6, "begin": 0, "end": warmup}
    steps = [rising, falling] if warmup else [falling]
    return {
        "optim_wrapper": wrapper,
        "param_scheduler": [{**step, "by_epoch": False} for step in steps],
    }


def loader(
    recipe: Segmentation, given: Setting, data: dict[str, Any], *, training: bool
) -> dict[str, Any]:
    """mmengine's data loader: crops without end, or each image once."""
    workers = recipe.training.workers
    return {
        "batch_size": recipe.training.global_batch // given.ranks if training else 1,
        "num_workers": workers,
        "persistent_workers": workers > 0,
        "sampler": {"type": "InfiniteSampler", "shuffle": True, "seed": recipe.training.seed}
        if training
        else {"type": "DefaultSampler", "shuffle": False},
        "dataset": data,
    }


def whole_config(recipe: Segmentation, given: Setting, train: Split, val: Split) -> dict[str, Any]:
    """The configuration that mmsegmentation's own tools train and test with."""
    training = recipe.training
    scored = loader(recipe, given, dataset(val, test_pipeline(recipe)), training=False)
    parts = recipe.method.backbone == "plain" or not training.decay_tokens
    model = network(recipe, given)
    # Images smaller than the crop are filled up, as ours are before they become windows.
    model["data_preprocessor"]["test_cfg"] = {"size": [recipe.method.crop] * 2}
    return {
        "default_scope": "mmseg",
        **({"custom_imports": {"imports": [PARTS]}} if parts else {}),
        "model": model,
        "train_dataloader": loader(
            recipe, given, dataset(train, train_pipeline(recipe)), training=True
        ),
        "val_dataloader": scored,
        "test_dataloader": scored,
        "val_evaluator": {"type": "IoUMetric", "iou_metrics": ["mIoU"]},
        "test_evaluator": {"type": "IoUMetric", "iou_metrics": ["mIoU"]},
        **optimization(recipe, given),
        "train_cfg": {
            "type": "IterBasedTrainLoop",
            "max_iters": training.iterations,
            "val_interval": training.validate_every,
        },
        "val_cfg": {"type": "ValLoop"},
        "test_cfg": {"type": "TestLoop"},
        "default_hooks": {
            "timer": {"type": "IterTimerHook"},
            "logger": {
                "type": "LoggerHook",
                "interval": training.log_every,
                "log_metric_by_epoch": False,
            },
            "param_scheduler": {"type": "ParamSchedulerHook"},
            "checkpoint": {
                "type": "CheckpointHook",
                "by_epoch": False,
                "interval": training.save_every,
                "max_keep_ckpts": training.keep_checkpoints,
            },
            "sampler_seed": {"type": "DistSamplerSeedHook"},
        },
        "env_cfg": {"cudnn_benchmark": True, "dist_cfg": {"backend": "nccl"}},
        "log_processor": {"by_epoch": False},
        "visualizer": {
            "type": "SegLocalVisualizer",
            "vis_backends": [{"type": "LocalVisBackend"}, {"type": "TensorboardVisBackend"}],
        },
        "randomness": {"seed": training.seed},
        "work_dir": f"work_dirs/{recipe.name}",
    }
