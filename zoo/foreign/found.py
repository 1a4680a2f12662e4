"""What a foreign file was found to hold, and what a format makes of it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from zoo.convnet import ConvnetConfig, empty_convnet
from zoo.errors import IntegrityError
from zoo.foreign.quarantine import unfit
from zoo.foreign.unpickle import Seen
from zoo.tensors import require_match
from zoo.vit import ViTConfig, empty_vit, sincos_positions

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """A file that has been read, under limits; nothing of it is believed yet."""

    file: Path
    seen: Seen
    shapes: Shapes
    """Name → shape of every tensor, as the file names them."""
    read: Callable[[Iterable[str]], dict[str, Tensor]]
    """The tensors of these names."""
    expected: str
    """All the files that would do, for errors."""

    def unfit(self, what: str, detail: str = "", fix: str = "") -> IntegrityError:
        """The error for a file of another kind, with what was found in it."""
        return unfit(self.file, what, detail, fix or f"give {self.expected}")

    @property
    def contents(self) -> str:
        """The file's outermost object, in a line."""
        seen = self.seen
        if seen.kind != "dict":
            return f"a {seen.kind}"
        if not seen.entries:
            return "an empty dict"
        if seen.tensors and not seen.part:
            more = " …" if seen.tensors > len(seen.names) else ""
            return f"{seen.tensors} tensors: {', '.join(seen.names)}{more}"
        more = " …" if seen.entries > len(seen.keys) else ""
        keys = ", ".join(f"{key} ({kind})" for key, kind in seen.keys.items())
        return f"a dict of {seen.entries}: {keys}{more}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Recognised:
    """Which network a file holds, and where; and what the card has to say of it."""

    config: ConvnetConfig | ViTConfig
    names: dict[str, str]
    """Of every tensor: in timm's network → in the file."""
    format: str
    """The kind of file, in words; what was left out is said here."""
    method: str
    licenses: dict[str, str]
    """Of the code, the weights and each ancestor, as they are stated upstream."""
    weights: str = "raw"
    """``raw`` or ``ema``."""
    last_trained_block: int | None = None
    """1-based; null for a convnet."""
    relation_heads: int | None = None
    fresh: tuple[str, ...] = ()
    """Never trained."""
    zeroed: tuple[str, ...] = ()
    """Of these, what becomes zero: so the last block adds nothing, instead of noise."""
    facts: dict[str, str] = field(default_factory=dict)
    """What else the card records of the source: heads, norm, teacher."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """The files of one upstream project."""

    part: str
    """The key under which its full checkpoints hold the wanted tensors."""
    expected: str
    """Its files, for errors."""
    claims: Callable[[Found], bool]
    """Whether a file is this project's rather than another's, sound or not."""
    recognise: Callable[[Found], Recognised]
    """What is in it.  Raises IntegrityError for all but this project's files, sound ones."""


def require_network(
    found: Found, kind: str, config: ConvnetConfig | ViTConfig, own: Shapes
) -> None:
    """Raise IntegrityError unless the names and shapes are the network's, to the last.

    kind: whose network it is, for errors.  own: name → shape, by the network's names.
    """
    convnet = isinstance(config, ConvnetConfig)
    net = empty_convnet(config.architecture, {}) if convnet else empty_vit(config)
    expected = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    try:
        require_match(found.file, own, expected)
    except IntegrityError as error:
        raise IntegrityError(
            f"not {kind}: {error.what.rpartition(': ')[2]}",
            where=error.where,
            fix=f"give {found.expected}",
        ) from error


def has_fixed_positions(config: ViTConfig, positions: Tensor) -> bool:
    """Whether positions (1, 1 + P, D) of the patches are MAE's fixed sines, which are not learned.

    Half precision's rounding, at most 0.004, is forgiven.
    """
    fixed = sincos_positions(config.width, config.grid)[:, 1:]
    return torch.allclose(positions[:, 1:].float(), fixed, rtol=0, atol=5e-3)
