"""What each benchmark of the ImageNet family is, to the last detail that moves its number.

A protocol never changes: another rule is another version.  Its digest covers all that it pins,
class lists and label files included.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from eval.classes import (
    CLASSES,
    Subset,
    class_order_sha256,
    columns,
    real_labels_sha256,
)
from eval.corruptions import SEVERITIES, TYPES
from eval.pinned import Pinned
from zoo.errors import UsageError

Labels = Literal["single", "sets"]
"""One class per image; or a set of classes, any of which is right (ReaL)."""

TransformRule = Literal["card", "whole"]
"""How files become inputs, unless overridden.

card: the evaluation transform of the model's card.  whole: no resize and no crop where the file has
the network's input size, as ImageNet-C's files of 224 px have; else resized whole to that size.
"""

Metric = Literal[
    "top-1",
    "top-5",
    "rms-calibration",
    "rms-calibration-as-published",
    "aurra",
    "mce-alexnet-normalised",
    "mean-error-unnormalised",
]

SCORES: tuple[Metric, ...] = (
    "top-1",
    "top-5",
    "rms-calibration",
    "rms-calibration-as-published",
    "aurra",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Protocol(Pinned):
    """One benchmark, one version."""

    data: str
    """The data set, by the name its authors gave it."""
    subset: Subset | Literal["own"] = "all"
    """The columns of the 1000 that are selected before softmax and argmax; or the model's own
    classes, all of them."""
    labels: Labels = "single"
    images: tuple[int, ...]
    """How many the complete set has (of ImageNet-C: each part).  Several where sources differ."""
    classes: int = CLASSES
    """How many class folders the complete set has."""
    parts: tuple[str, ...] = ()
    """Folders that are scored one by one, each with all the images: ImageNet-C's types/severities.
    """
    metrics: tuple[Metric, ...] = SCORES
    """In percent.  Of a masked protocol, top-5 is among its 200 classes."""
    transform: TransformRule = "card"
    precision: Literal["float32"] = "float32"
    """Of the forward pass and of all after it; another one enters the result by its name."""
    calibration_bin: int = 100
    """Samples in a bin of the calibration errors."""
    companion: str = ""
    """The protocol whose figure stands beside this one's: the clean one of the same classes."""

    def pinned(self) -> dict[str, Any]:
        """Every rule of the protocol, and what the names in it mean."""
        rules = Pinned.pinned(self)  # super() does not go with slots
        if self.subset == "own":
            return rules
        return {
            **rules,
            "columns": columns(self.subset).tolist(),
            "class_order_sha256": class_order_sha256(),
            "labels_sha256": real_labels_sha256() if self.labels == "sets" else None,
        }


_VAL = "ImageNet-1k validation"

_ALL = (
    Protocol(name="in1k-val", about="ImageNet-1k validation", data=_VAL, images=(50_000,)),
    Protocol(
        name="in1k-real",
        about="The same images with the labels of Beyer et al. 2020; those without one left out",
        data=_VAL,
        labels="sets",
        images=(50_000,),
    ),
    Protocol(
        name="in1k-finetune",
        about="ImageNet-1k validation of a pre-trained model that was fine-tuned on its training "
        "images, after the last epoch",
        data=_VAL,
        images=(50_000,),
    ),
    Protocol(
        name="in1k-v2",
        about="ImageNetV2, matched frequency: 10 new images per class",
        data="ImageNetV2 matched-frequency",
        images=(10_000,),
    ),
    Protocol(
        name="in1k-a",
        about="ImageNet-A: natural images that a ResNet-50 gets wrong; 200-way",
        data="ImageNet-A",
        subset="a",
        images=(7_500,),
        classes=200,
        companion="in1k-a-clean@1",
    ),
    Protocol(
        name="in1k-a-clean",
        about="The validation images of ImageNet-A's classes; 200-way",
        data=_VAL,
        subset="a",
        images=(10_000,),
        classes=200,
    ),
    Protocol(
        name="in1k-r",
        about="ImageNet-R: renditions (art, toys, …) of 200 classes; 200-way",
        data="ImageNet-R",
        subset="r",
        images=(30_000,),
        classes=200,
        companion="in1k-r-clean@1",
    ),
    Protocol(
        name="in1k-r-clean",
        about="The validation images of ImageNet-R's classes; 200-way",
        data=_VAL,
        subset="r",
        images=(10_000,),
        classes=200,
    ),
    Protocol(
        name="in1k-sketch",
        about="ImageNet-Sketch: black and white drawings",
        data="ImageNet-Sketch",
        # As its Hub copy counts them, and as its authors' list does; their "50,000" is round.
        images=(50_889, 50_874),
    ),
    Protocol(
        name="in1k-c",
        about="ImageNet-C: validation images, corrupted in 15 ways at 5 severities",
        data="ImageNet-C",
        images=(50_000,),
        parts=tuple(f"{kind}/{severity}" for kind in TYPES for severity in SEVERITIES),
        metrics=("mce-alexnet-normalised", "mean-error-unnormalised"),
        transform="whole",
    ),
    Protocol(
        name="own",
        about="Class folders of one's own, named as the model's classes are",
        data="",
        subset="own",
        images=(),
        classes=0,
    ),
)

PROTOCOLS: Mapping[str, Protocol] = MappingProxyType({p.id: p for p in _ALL})
"""By name and version."""


def find_protocol(name: str) -> Protocol:
    """The protocol of a name, its newest version, or of a name with a version.

    Raises UsageError that lists the known ones.
    """
    newest = {p.name: p for p in sorted(_ALL, key=lambda p: p.version)}
    found = PROTOCOLS.get(name) or newest.get(name)
    if found:
        return found
    bare = name.partition("@")[0]
    known = newest[bare].id if bare in newest else ", ".join(PROTOCOLS)
    raise UsageError(f"no benchmark is called {name!r}", fix=f"choose one of: {known}")
