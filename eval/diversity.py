"""Token diversity: how little the tokens of one image resemble one another.

Token similarity is that of Img2Vec (arXiv 2304.12535, its section on token diversity): the mean
cosine over all ordered pairs of different tokens of an image, then over images.  Diversity is
1 − similarity.  The variants beside the headline are ours; docs/diversity.md says what each guards
against.

B images · K tokens · D width of a token · G cells along one side · C cells of the mask · V of them
visible · S image side in pixels
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from eval.crops import images_of
from eval.diversity_protocol import MASK_RATIO, MASK_SEED
from pretrain.index import ImageIndex, PackedNames
from pretrain.masked import CellMask, patch_order, patches_of_cells
from pretrain.teachers.frozen import FrozenTokens
from zoo.errors import DataError, IntegrityError, UsageError
from zoo.images import Preprocess
from zoo.vit import LAYER_NORM_EPS, ViTConfig

USUAL_CELL = 32
"""A ResNet's last cell and Img2Vec's mask unit, in pixels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A mean over images and its standard error."""

    value: float
    error: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Diversity:
    """What was measured of one network.

    Every estimate is a cosine *similarity*: diversity is 1 − its value, with the same error.
    """

    name: str
    digest: str
    """Of the model; empty where there is no network."""
    stride: int | None
    """Of the convnet's stage that was read, in pixels; None for a ViT."""
    cell: int
    """Side of a token's cell, in pixels."""
    grid: int
    """G."""
    width: int
    """D."""
    image_size: int
    """S."""
    images: int
    unit: int
    """Side of the common cell, in pixels: of the pooled tokens and of the mask."""
    raw: Estimate
    """The tokens as they are: the headline."""
    layernorm: Estimate
    """Each token LayerNormed without affine parameters, as Img2Vec's targets are."""
    centred: Estimate
    """Minus the mean token of the whole data set."""
    matched: Estimate | None
    """Tokens mean-pooled to the common cell; None where they cannot be."""
    visible_mean: Estimate | None
    """From a masked token to the visible ones, the mean; None where the mask does not fit."""
    visible_max: Estimate | None
    """The same to the most similar visible one."""

    @property
    def tokens(self) -> int:
        """K."""
        return self.grid**2

    def details(self) -> dict[str, Any]:
        """Every estimate as an object, for a result's JSON; null where there is none."""
        estimates = {name: getattr(self, name) for name in ESTIMATES}
        return {name: found and asdict(found) for name, found in estimates.items()}


ESTIMATES = ("raw", "layernorm", "matched", "centred", "visible_mean", "visible_max")
"""Names of a ``Diversity``'s estimates, in the order of the tables."""


def unit_tokens(tokens_BKD: Tensor) -> Tensor:
    """Tokens at length 1, fp32; a zero token stays zero, so its cosine with any other is 0."""
    tokens = tokens_BKD.float()
    # By the largest channel first: squares of very small or large values leave fp32's range.
    largest = tokens.abs().amax(-1, keepdim=True)
    return F.normalize(tokens / largest.clamp_min(torch.finfo(torch.float32).tiny), dim=-1)


def token_similarity(tokens_BKD: Tensor) -> Tensor:
    """Mean cosine over the K·(K−1) ordered pairs of different tokens of each image: (B,) fp64.

    In O(K·D): for unit vectors u the pairs' sum is ‖Σu‖² − Σ‖u‖², where Σ‖u‖² is K unless
    there are zero tokens.  In [−1/(K−1), 1]; not negative for non-negative tokens.  Raises
    UsageError for fewer than two tokens.
    """
    count = tokens_BKD.shape[1]
    require_pairs(count)
    units = unit_tokens(tokens_BKD)
    together = units.sum(1).double().square().sum(-1)
    alone = units.square().sum((1, 2)).double()
    return (together - alone) / (count * (count - 1))


def require_pairs(tokens: int, where: str = "token similarity") -> None:
    """Raise UsageError where there is no pair of tokens to compare."""
    if tokens < 2:
        raise UsageError(
            f"similarity needs two tokens or more, and here is {tokens}",
            where=where,
            fix="choose larger images, or an earlier stage of a convnet",
        )


def masked_to_visible(tokens_BKD: Tensor, order_BK: Tensor, visible: int) -> tuple[Tensor, Tensor]:
    """Mean and greatest cosine of a masked token to the visible ones, each (B,) fp64.

    order: token indices, of which the first ``visible`` are visible.  Averaged over an image's
    masked tokens.
    """
    units = unit_tokens(tokens_BKD)
    units = units.gather(1, order_BK.unsqueeze(-1).expand_as(units))
    cosine = units[:, visible:] @ units[:, :visible].mT  # (B, masked, visible)
    return cosine.double().mean((1, 2)), cosine.double().amax(2).mean(1)


def pooled(tokens_BKD: Tensor, side: int) -> Tensor:
    """The mean of each ``side``² neighbouring tokens: (B, K/side², D) in row order, fp32."""
    cells = patches_of_cells(round(tokens_BKD.shape[1] ** 0.5), side)
    return tokens_BKD.float()[:, cells.to(tokens_BKD.device)].mean(2)


def layer_normed(tokens_BKD: Tensor) -> Tensor:
    """Each token at zero mean and unit variance over its channels, fp32; a constant one is zero."""
    return F.layer_norm(tokens_BKD.float(), tokens_BKD.shape[-1:], eps=LAYER_NORM_EPS)


def common_cell(cells: Sequence[int], image_size: int) -> int:
    """The cell at which networks with these cells are compared; all in pixels.

    32 px where these tile the image and are whole cells of every network, else the coarsest.
    """
    usual = image_size % USUAL_CELL == 0 and image_size > USUAL_CELL
    if usual and all(USUAL_CELL % cell == 0 for cell in cells):
        return USUAL_CELL
    return max(cells)


def common_mask(image_size: int, unit: int) -> CellMask:
    """Img2Vec's mask in cells of ``unit`` px.  Raises UsageError where they do not tile the image,
    or are too few.
    """
    if unit < 1 or image_size % unit or image_size == unit:
        fitting = [u for u in range(1, image_size) if image_size % u == 0]
        raise UsageError(
            f"cells of {unit} px do not make a grid of an image of {image_size} px",
            where="the common cell",
            fix=f"choose one of {', '.join(map(str, fitting))}" if fitting else "larger images",
        )
    cells = ViTConfig(width=4, depth=1, heads=1, patch=unit, image_size=image_size)
    return CellMask(student=cells, unit=unit, ratio=MASK_RATIO)


def spread(index: ImageIndex, count: int) -> ImageIndex:
    """``count`` of an index's images (or all, if it has fewer), evenly spaced over it.

    Its fingerprint stays that of the whole.
    """
    if count >= len(index):
        return index
    chosen = (2 * np.arange(count) + 1) * len(index) // (2 * count)
    names = PackedNames.of([index.names[int(i)] for i in chosen])
    return replace(index, names=names, folder_ids=index.folder_ids[chosen])


@dataclass(kw_only=True, slots=True)
class _Reader:
    """Goes over the images batch by batch; keeps none of them."""

    teacher: FrozenTokens
    index: ImageIndex
    batch: int
    workers: int
    preprocess: Preprocess = field(init=False)

    def __post_init__(self) -> None:
        # The same pixels for every network of one input size, whatever crop its card prefers.
        self.preprocess = Preprocess(image_size=self.teacher.preprocess.image_size)

    @torch.inference_mode()
    def __iter__(self) -> Iterator[Tensor]:
        """(B, K, D) fp32 per batch, on the network's device."""
        device = device_of(self.teacher)
        batches = images_of(self.index, self.preprocess, batch=self.batch, workers=self.workers)
        for images in batches:
            # Not TF32, which keeps ten bits of what should be fp32.
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                tokens = self.teacher(images.to(device) / 255)
            yield tokens.float()

    def mean_token(self) -> Tensor:
        """(D,) fp64, over all tokens of all images."""
        total, count = torch.zeros((), dtype=torch.float64), 0
        for tokens in self:
            total = total + tokens.double().sum((0, 1)).cpu()
            count += tokens.shape[0] * tokens.shape[1]
        return total / count


def device_of(teacher: FrozenTokens) -> torch.device:
    """Where the network's weights are; the CPU for one without any."""
    return next((p.device for p in teacher.net.parameters()), torch.device("cpu"))


def measure(
    teacher: FrozenTokens,
    index: ImageIndex,
    *,
    unit: int | None = None,
    name: str | None = None,
    batch: int = 64,
    workers: int = 0,
) -> Diversity:
    """Token diversity of one network over all images of an index.

    The images are read twice, for the mean token comes first; what is kept of an image is a few
    numbers.  unit: the common cell of the networks that are compared, in pixels; null for what
    ``common_cell`` says of this one.  name: null for what its record says.

    Raises DataError (images that cannot be read, or fewer than two), UsageError (fewer than two
    tokens, a unit that does not tile the image), IntegrityError (tokens that are not finite).
    """
    record, size = teacher.record, teacher.preprocess.image_size
    name = name or (record.name if record else "pixels")
    require_pairs(teacher.grid**2, where=f"{name} at {size} px, cells of {teacher.cell} px")
    if len(index) < 2:
        raise DataError(
            "one image has no standard error",
            where=str(index.root),
            fix="give a folder with two images or more",
        )
    unit = unit or common_cell([teacher.cell], size)
    reader = _Reader(teacher=teacher, index=index, batch=batch, workers=workers)
    estimates = _estimates(reader, common_mask(size, unit))
    if not all(np.isfinite(found.value) for found in estimates.values()):
        raise IntegrityError(
            "the network's tokens are not finite", where=name, fix="export or fetch it again"
        )
    return Diversity(
        name=name,
        digest=record.digest if record else "",
        stride=record.stride if record else None,
        cell=teacher.cell,
        grid=teacher.grid,
        width=teacher.width,
        image_size=size,
        images=len(index),
        unit=unit,
        **{estimate: estimates.get(estimate) for estimate in ESTIMATES},  # type: ignore[arg-type]
    )


def _estimates(reader: _Reader, mask: CellMask) -> dict[str, Estimate]:
    """By name; those of the common cell only where the network's cells fill it."""
    mean = reader.mean_token()
    side, rest = divmod(mask.unit, reader.teacher.cell)
    found: dict[str, list[Tensor]] = {}
    seen = 0
    for tokens in reader:
        images = {
            "raw": token_similarity(tokens),
            "layernorm": token_similarity(layer_normed(tokens)),
            "centred": token_similarity(tokens - mean.to(tokens.device, torch.float32)),
        }
        if rest == 0:
            images["matched"] = token_similarity(pooled(tokens, side))
            order = _token_order(mask, reader.teacher, range(seen, seen + len(tokens)))
            visible = masked_to_visible(tokens, order.to(tokens.device), mask.visible * side**2)
            images["visible_mean"], images["visible_max"] = visible
        seen += len(tokens)
        for name, values in images.items():
            found.setdefault(name, []).append(values.cpu())
    return {name: _estimate(torch.cat(values)) for name, values in found.items()}


def _token_order(mask: CellMask, teacher: FrozenTokens, numbers: range) -> Tensor:
    """(B, K) token indices, visible ones first.

    The mask follows from the image's number in the index: it is the same for every network.
    """
    draws = [np.random.default_rng([MASK_SEED, i]).random(mask.cells, np.float32) for i in numbers]
    tokens = patches_of_cells(teacher.grid, mask.unit // teacher.cell)
    return patch_order(torch.from_numpy(np.stack(draws)), tokens)


def _estimate(values: Tensor) -> Estimate:
    error = values.std().item() / len(values) ** 0.5
    return Estimate(value=values.mean().item(), error=error)
