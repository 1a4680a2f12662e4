"""Protocols of segmentation: which exist, and all that they pin.

``ade20k-…`` is of ADE20K whole; ``upernet…`` is the same of any set in its layout, with classes of
its own.  A protocol never changes: another rule is another version.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from types import MappingProxyType
from typing import Any, Literal

from eval.pinned import Pinned
from eval.segmentation.recipe import LAYER_DECAY, Backbone, SegTraining, Testing, UPerNet
from zoo.errors import UsageError

TEST = "ade20k-test"
"""Asks for the score of a network that was trained before."""
_OF_SIZE = {"taps", "drop_path", "layer_decay"}
"""Fields that follow from the model's size and origin."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SegProtocol(Pinned):
    """One way to train and to score, one version."""

    data: Literal["ADE20K", "own"]
    backbone: Backbone
    metric: str = "mIoU"
    """In percent: over the classes that are labelled or guessed somewhere, of pixels that have a
    label; sums over all images before the ratio."""
    scale: Literal["single"] = "single"
    neck: str = "Feature2Pyramid"
    augmentation: str = "scale 0.5-2, crop, mirror, photometric distortion"
    optimizer: str = "AdamW (0.9, 0.999)"
    schedule: str = "linear warm-up from 1e-6, polynomial of power 1"

    def pinned(self) -> dict[str, Any]:
        """Every rule, and the recipe as it stands unless overridden."""
        rules = Pinned.pinned(self)  # super() does not go with slots
        defaults = {
            "method": asdict(UPerNet(backbone=self.backbone)),
            "training": asdict(SegTraining()),
            "testing": asdict(Testing()),
        }
        kinds = {"method": UPerNet, "training": SegTraining, "testing": Testing}
        for part, kind in kinds.items():
            free = {f.name for f in fields(kind) if f.metadata.get("runtime")} | _OF_SIZE
            rules |= {f"{part}.{k}": v for k, v in defaults[part].items() if k not in free}
        rules |= {
            "method.taps": "thirds, halves, two thirds and all of the depth",
            "method.drop_path": {"below L": 0.1, "L": 0.2},
            "training.layer_decay": LAYER_DECAY,
        }
        if self.data == "ADE20K":
            rules |= {"classes": 150, "train_images": 20_210, "val_images": 2_000}
        return rules


_ALL = (
    SegProtocol(
        name="ade20k-upernet",
        about="ADE20K, UPerNet on the ViT with relative positions, as MAE's and TinyMIM's papers",
        data="ADE20K",
        backbone="mae",
    ),
    SegProtocol(
        name="ade20k-upernet-plain",
        about="ADE20K, UPerNet on the ViT as it was pre-trained",
        data="ADE20K",
        backbone="plain",
    ),
    SegProtocol(
        name="upernet",
        about="A set of one's own in ADE20K's layout, by the rules of ade20k-upernet",
        data="own",
        backbone="mae",
    ),
    SegProtocol(
        name="upernet-plain",
        about="A set of one's own in ADE20K's layout, by the rules of ade20k-upernet-plain",
        data="own",
        backbone="plain",
    ),
)

SEG_PROTOCOLS: Mapping[str, SegProtocol] = MappingProxyType({p.id: p for p in _ALL})
"""By name and version."""
SEGMENTATION = frozenset([TEST, *(p.name for p in _ALL)])
"""The benchmarks that this package answers for, by name."""


def find_seg_protocol(name: str) -> SegProtocol:
    """The protocol of a name, its newest version, or of a name with a version.

    Raises UsageError that lists the known ones.
    """
    newest = {p.name: p for p in sorted(_ALL, key=lambda p: p.version)}
    found = SEG_PROTOCOLS.get(name) or newest.get(name)
    if found:
        return found
    known = ", ".join(SEG_PROTOCOLS)
    raise UsageError(f"no benchmark is called {name!r}", fix=f"choose one of: {known}")


def of_own(protocol: SegProtocol) -> SegProtocol:
    """The same rules for a set of one's own."""
    return find_seg_protocol(protocol.name.removeprefix("ade20k-"))
