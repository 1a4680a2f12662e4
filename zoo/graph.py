"""A network of the zoo as an ONNX graph, made by torch's own exporter.

B images · N tokens · D width or channels · S image side in pixels
"""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from zoo.convnet import Stage
from zoo.errors import IntegrityError, UsageError
from zoo.files import is_plain_name
from zoo.folder import (
    AnyViT,
    Classifier,
    Convnet,
    Model,
    count_classes,
    holds_convnet,
    holds_plain_vit,
    load_any_vit,
    load_classifier,
    load_convnet,
    load_model,
)
from zoo.hub import HUB, locate
from zoo.images import Preprocess
from zoo.tokens import block_tokens, stage_tokens
from zoo.vit import final_norm

if TYPE_CHECKING:
    from onnx import ModelProto

INPUT = "images"
LOGITS = ("logits",)
FEATURES = ("features", "tokens")
OPSETS = range(18, 24)
"""18 is the oldest that torch writes; 20 is the first with Gelu, 23 with Attention as one node."""
DEFAULT_OPSET = 20
EXAMPLE_BATCH = 2
"""What the exporter is shown; at 1 it would take the batch for a constant."""
MOST_BYTES = 2_000_000_000
"""Of weights: an ONNX file is a protocol buffer, and those end at 2 GiB."""

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_ORIGIN = ("metadata_props", "doc_string")


def require_onnx() -> None:
    """Raise UsageError where the packages of the extra are not installed."""
    if missing := [name for name in _PACKAGES if find_spec(name) is None]:
        raise UsageError(
            f"an export needs {', '.join(missing)}: not installed",
            where="zoo export",
            fix="pip install 'tinyzoo[onnx]'",
        )


class _Features(nn.Module):
    """What ``zoo.features`` reads of a plain ViT: the mean of the patch tokens, and all tokens."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.net, self.block = model.vit, model.last_trained_block

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        tokens_BND = block_tokens(self.net, images, self.block)
        return tokens_BND[:, 1:].mean(1), tokens_BND


class _AnyFeatures(nn.Module):
    """The same of any ViT of timm's, after its last block; class and register tokens first."""

    def __init__(self, model: AnyViT) -> None:
        super().__init__()
        self.net, self.prefix = model.net, model.net.num_prefix_tokens

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        tokens_BND = self.net.forward_features(images)
        if isinstance(self.net.norm, nn.Identity):
            tokens_BND = final_norm(self.net)(tokens_BND)
        return tokens_BND[:, self.prefix :].mean(1), tokens_BND


class _Cells(nn.Module):
    """The same of a convnet: the mean of its last trained stage's cells, and the cells."""

    def __init__(self, model: Convnet) -> None:
        super().__init__()
        self.net = model.net
        self.stage: Stage = model.stage

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        cells_BKD = stage_tokens(self.net, images, self.stage)
        return cells_BKD.mean(1), cells_BKD


class _Logits(nn.Module):
    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.net = model.net

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (self.net(images),)


@dataclass(frozen=True, kw_only=True, slots=True)
class Readable:
    """A network as it is exported."""

    name: str
    digest: str
    license: str
    preprocess: Preprocess
    net: nn.Module
    """In eval mode: (B, 3, S, S) to a tuple of tensors, one for each output."""
    outputs: tuple[str, ...]
    labels: tuple[str, ...] = ()
    """Names of the classes, in the order of the logits, where they are known."""

    @property
    def size(self) -> int:
        """Of the weights, in bytes."""
        return sum(tensor.nbytes for tensor in self.net.state_dict().values())


def read(source: str) -> Readable:
    """Any model that ``zoo.hub.locate`` finds: its logits, or without a classifier its features.

    Raises UsageError, NetworkError, IntegrityError, DiskError.
    """
    folder = locate(source)
    net: nn.Module
    labels: tuple[str, ...] = ()
    if count_classes(folder):
        model = load_classifier(folder)
        net, outputs, labels = _Logits(model), LOGITS, model.labels
    elif holds_convnet(folder):
        model = load_convnet(folder)
        net, outputs = _Cells(model), FEATURES
    elif holds_plain_vit(folder):
        model = load_model(folder)
        net, outputs = _Features(model), FEATURES
    else:
        model = load_any_vit(folder)
        net, outputs = _AnyFeatures(model), FEATURES
    return Readable(
        name=_name_of(model.card.name if model.card else "", source, folder),
        digest=model.digest,
        license=model.license,
        preprocess=model.preprocess,
        net=net.eval().requires_grad_(False),
        outputs=outputs,
        labels=labels,
    )


def _name_of(stated: str, source: str, folder: Path) -> str:
    """The card's; else how it was asked for: a snapshot's folder is called after its commit."""
    asked = source.removeprefix(HUB).partition("@")[0].rstrip("/").rpartition("/")[2]
    names = [stated, asked, folder.resolve().name]
    return next((name for name in names if is_plain_name(name)), "model")


def write_graph(path: Path, readable: Readable, opset: int) -> None:
    """Write the network as one ONNX file, batch dimension free, how to use it in its metadata.

    Raises UsageError (over 2 GB, or a network that torch cannot export), IntegrityError where what
    came out is not what was asked for.
    """
    import onnx

    if readable.size > MOST_BYTES:
        raise UsageError(
            f"{readable.size / 1e9:.1f} GB of weights; one ONNX file holds {MOST_BYTES / 1e9:.0f}",
            where=readable.name,
            fix="export a smaller network",
        )
    proto = _export(readable, opset)
    _require_asked(proto, readable, opset)
    onnx.helper.set_model_props(proto, _metadata(readable))
    try:
        onnx.save_model(proto, path)
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise _wrong(f"the checker refuses it: {_first_line(error)}", readable) from error


def _export(readable: Readable, opset: int) -> "ModelProto":
    side = readable.preprocess.image_size
    example = torch.zeros(EXAMPLE_BATCH, 3, side, side)
    with _quiet():
        from torch.onnx import OnnxExporterError

        try:
            program = torch.onnx.export(
                readable.net,
                (example,),
                input_names=[INPUT],
                output_names=list(readable.outputs),
                opset_version=opset,
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
        except OnnxExporterError as error:
            raise UsageError(
                f"torch cannot export this network: {_first_line(error.__cause__ or error)}",
                where=readable.name,
                fix="try another --opset; if that changes nothing, export another network",
            ) from error
        assert program is not None, "dynamo=True returns one"
        return _without_origin(program.model_proto)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the exporter prints, warns and logs to itself; all is as it was afterwards."""
    disabled = logging.root.manager.disable
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(disabled)


def _without_origin(proto: "ModelProto") -> "ModelProto":
    """Drop what the exporter notes of each node: stack traces, with this machine's paths."""
    graph = proto.graph
    values = [*graph.input, *graph.output, *graph.value_info, *graph.initializer]
    for part in [graph, *graph.node, *values]:
        for field in _ORIGIN:
            part.ClearField(field)
    return proto


def _require_asked(proto: "ModelProto", readable: Readable, opset: int) -> None:
    # Both happen silently: an older opset is refused by keeping another, and a network that
    # computes with the batch as a number fixes it to the example's.
    written = {domain.domain: domain.version for domain in proto.opset_import}
    if written.get("") != opset or len(written) > 1:
        raise _wrong(f"it has opset {written}, not {opset}", readable)
    for value in [*proto.graph.input, *proto.graph.output]:
        shape = value.type.tensor_type.shape.dim
        if not shape[0].dim_param or any(side.dim_param for side in shape[1:]):
            sides = ", ".join(side.dim_param or str(side.dim_value) for side in shape)
            raise _wrong(f"{value.name} is ({sides}): not the batch alone is free", readable)


def _metadata(readable: Readable) -> dict[str, str]:
    return {f"tinyzoo.{key}": value for key, value in describe(readable).items()}


def describe(readable: Readable) -> dict[str, str]:
    """What a program needs to know to use the file: the model, and how images become its input."""
    preprocess = readable.preprocess
    named = {"labels": json.dumps(readable.labels, ensure_ascii=False)} if readable.labels else {}
    return {
        "model": readable.name,
        "model_digest": readable.digest,
        "license": readable.license,
        "image_size": str(preprocess.image_size),
        "resize_shorter_side": str(preprocess.shorter),
        "interpolation": f"{preprocess.interpolation}, antialiased",
        "crop_mode": preprocess.crop_mode,
        "mean": json.dumps(preprocess.mean),
        "std": json.dumps(preprocess.std),
        **named,
    }


def shapes_of(path: Path) -> dict[str, list[str | int]]:
    """Of every input and output of an ONNX file."""
    import onnx

    graph = onnx.load_model(path, load_external_data=False).graph
    return {
        value.name: [side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim]
        for value in [*graph.input, *graph.output]
    }


def _wrong(what: str, readable: Readable) -> IntegrityError:
    return IntegrityError(
        f"refused the exported file: {what}",
        where=readable.name,
        fix="try another --opset; if that changes nothing, export another network",
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__
