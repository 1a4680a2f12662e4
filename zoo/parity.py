"""Whether an exported file computes what the network does, on images, in batches of several sizes.

B images · D width, channels or classes
"""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from pydantic import ConfigDict
from torch import nn

from zoo.errors import DataError, IntegrityError, UsageError
from zoo.files import sha256_of
from zoo.graph import INPUT, LOGITS, Readable
from zoo.images import read_image
from zoo.tokens import Transform

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")
BATCHES = (1, 5)
"""Neither is the example's size: what runs at both has a free batch dimension."""
FEWEST = sum(BATCHES)
TOLERANCE = 2e-4
"""Largest difference of any value, over the root mean square of the network's output.

The same network in another order of summation is 1e-6 … 1e-5 away (ViT-T to ViT-L, ResNet-50, at
opsets 18 to 23).  A GELU by tanh, a norm's eps of 1e-5 for 1e-6, weights rounded to fp16 or one
weight's sign are 1e-3 … 3e-2 away in the worst of its values.
"""

_STRICT = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """How far one output of the file is from the network's, over all images."""

    __pydantic_config__ = _STRICT

    max_difference: float
    mean_difference: float
    scale: float
    """Root mean square of the network's output."""
    relative_difference: float
    """``max_difference`` over ``scale``: what the tolerance is for."""
    least_cosine: float
    """Of one image's output and the network's, the worst of all images."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Parity:
    """A file beside its network, on the same images."""

    __pydantic_config__ = _STRICT

    images: int
    batches: tuple[int, ...]
    """Sizes of batch that the file was run with."""
    tolerance: float
    outputs: dict[str, Agreement]
    top1_agreement: float | None
    """Share of images with the same first class, in [0, 1]; null without a classifier."""
    nearest_neighbour_agreement: float | None
    """Share of images with the same nearest other image, by cosine of the features, in [0, 1]; null
    with a classifier."""

    def line(self) -> str:
        worst = max(agreement.relative_difference for agreement in self.outputs.values())
        same, what = self.top1_agreement, "first class"
        if same is None:
            same, what = self.nearest_neighbour_agreement, "nearest neighbour"
        return (
            f"{self.images} images, up to {worst:.1e} of the scale away "
            f"({self.tolerance:.0e} allowed), {what} same: {same:.1%}"
        )


def choose_images(folder: Path, count: int) -> list[Path]:
    """``count`` images below a folder, evenly spaced over their sorted names, or all of them.

    Hidden files and folders are left out.  Raises UsageError, DataError (fewer than FEWEST).
    """
    if count < FEWEST:
        raise UsageError(
            f"{count} images are too few: the file is run on {FEWEST} at least",
            where="--images",
            fix=f"choose {FEWEST} or more",
        )
    if not folder.is_dir():
        raise DataError("there is no such folder", where=str(folder), fix="check --data")
    found = sorted(_images_below(folder))
    if len(found) < FEWEST:
        raise DataError(
            f"{len(found)} images (JPEG, PNG, WebP) in this folder; {FEWEST} are needed",
            where=str(folder),
            fix="give --data a folder of photographs such as the network is for",
        )
    count = min(count, len(found))
    return [found[i * len(found) // count] for i in range(count)]


def _images_below(folder: Path) -> Iterator[Path]:
    seen = set()  # links are followed, and may lead upwards
    for place, folders, files in os.walk(folder, followlinks=True):
        status = Path(place).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            if name.lower().endswith(EXTENSIONS) and not name.startswith("."):
                yield Path(place) / name


def read_digests(images: Sequence[Path], folder: Path) -> dict[str, str]:
    """sha256 of each image, by its name below the folder.

    Raises DataError for one that cannot be decoded: before the work, not in the midst of it.
    """
    for path in images:
        read_image(path)
    return {_shown(path.relative_to(folder)): sha256_of(path) for path in images}


def _shown(path: Path) -> str:
    return os.fsencode(path.as_posix()).decode(
        errors="backslashreplace"
    )  # a name need not be UTF-8


def measure(file: Path, readable: Readable, images: Sequence[Path]) -> Parity:
    """Run the file by onnxruntime and the network by torch, on the CPU, and compare.

    Raises DataError (an image that cannot be read), IntegrityError where the file does not run, or
    its outputs are not finite or beyond the tolerance.
    """
    session = _Session(file, readable.name)
    tallies = {name: _Tally() for name in readable.outputs}
    first = readable.outputs[0]
    theirs, ours = [], []
    sizes = set()
    for batch in _batches(images, Transform(preprocess=readable.preprocess)):
        sizes.add(len(batch))
        expected = _run(readable.net, batch)
        got = session.run(batch.numpy(), readable.outputs, [output.shape for output in expected])
        for name, wanted, found in zip(readable.outputs, expected, got, strict=True):
            tallies[name].add(wanted, found)
        ours.append(expected[0])
        theirs.append(got[0])
    reference, output = np.concatenate(ours), np.concatenate(theirs)
    is_classifier = first == LOGITS[0]
    parity = Parity(
        images=len(images),
        batches=tuple(sorted(sizes)),
        tolerance=TOLERANCE,
        outputs={name: tally.agreement() for name, tally in tallies.items()},
        top1_agreement=_same(reference.argmax(1), output.argmax(1)) if is_classifier else None,
        nearest_neighbour_agreement=(
            None if is_classifier else _same(_neighbours(reference), _neighbours(output))
        ),
    )
    _require_parity(parity, readable.name)
    return parity


def _batches(images: Sequence[Path], transform: Transform) -> Iterator[torch.Tensor]:
    """One image, then batches of five; what is left over comes last."""
    small, large = BATCHES
    starts = [0, *range(small, len(images), large)]
    for start, stop in zip(starts, [*starts[1:], len(images)], strict=True):
        yield torch.stack([transform(path) for path in images[start:stop]])


def _run(net: nn.Module, batch: torch.Tensor) -> list[np.ndarray]:
    with torch.inference_mode():
        return [output.numpy() for output in net(batch)]


class _Session:
    """An ONNX file in onnxruntime, on as many threads as torch has."""

    def __init__(self, file: Path, name: str) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4  # it prints what it then raises
        self._name = name
        try:
            self._session = onnxruntime.InferenceSession(
                str(file), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its own kinds derive from Exception alone
            raise self._refused(error) from error

    def run(
        self, batch: np.ndarray, outputs: Sequence[str], shapes: Sequence[tuple[int, ...]]
    ) -> list[np.ndarray]:
        """These outputs, of these shapes.  Raises IntegrityError."""
        try:
            found = [np.asarray(output) for output in self._session.run(outputs, {INPUT: batch})]
        except Exception as error:
            raise self._refused(error) from error
        if [output.shape for output in found] != list(shapes):
            raise self._refused(f"it gives {found[0].shape} where the network gives {shapes[0]}")
        return found

    def _refused(self, reason: object) -> IntegrityError:
        line = str(reason).strip().partition("\n")[0][:200]
        return IntegrityError(
            f"refused the exported file: onnxruntime does not run it as it should: {line}",
            where=self._name,
            fix="try another --opset, or another version of onnxruntime",
        )


@dataclass(slots=True)
class _Tally:
    """Differences of one output, summed up batch by batch."""

    largest: float = 0.0
    total: float = 0.0
    squares: float = 0.0
    values: int = 0
    cosines: list[float] = field(default_factory=list)

    def add(self, expected: np.ndarray, got: np.ndarray) -> None:
        wanted = expected.reshape(len(expected), -1).astype(np.float64)
        found = got.reshape(len(got), -1).astype(np.float64)
        difference = np.abs(found - wanted)
        # Not max(): that would let NaN pass.
        self.largest = float(np.maximum(self.largest, difference.max()))
        self.total += float(difference.sum())
        self.squares += float(np.square(wanted).sum())
        self.values += wanted.size
        self.cosines += [float(c) for c in (_unit(wanted) * _unit(found)).sum(1)]

    def agreement(self) -> Agreement:
        scale = math.sqrt(self.squares / max(1, self.values))
        return Agreement(
            max_difference=self.largest,
            mean_difference=self.total / max(1, self.values),
            scale=scale,
            # Of a network that gives nothing but zeros, any difference is too much.
            relative_difference=self.largest / (scale or math.ulp(0)) if self.largest else 0.0,
            least_cosine=min(self.cosines, default=math.nan),
        )


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)


def _neighbours(features_BD: np.ndarray) -> np.ndarray:
    """(B,) for each image the most similar other one."""
    unit = _unit(features_BD.astype(np.float64))
    similar = unit @ unit.T
    np.fill_diagonal(similar, -np.inf)
    return similar.argmax(1)


def _same(one: np.ndarray, other: np.ndarray) -> float:
    return float((one == other).mean())


def _require_parity(parity: Parity, name: str) -> None:
    for output, agreement in parity.outputs.items():
        if agreement.relative_difference <= parity.tolerance:
            continue
        raise IntegrityError(
            f"refused the exported file: its {output} differ from the network's by up to "
            f"{agreement.relative_difference:.2g} of their scale; {parity.tolerance:g} is allowed",
            where=f"{name}: {parity.images} images, largest difference "
            f"{agreement.max_difference:.3g}, root mean square {agreement.scale:.3g}",
            fix="try another --opset; if that changes nothing, report it: no file was left",
        )
