"""What happens to a batch of crops on the device: flip, colour jitter, two views of one image.

Everything is drawn on the host and arrives with the batch, so these are pure functions without
data-dependent Python: they compile, and a sample looks the same in any batch on any rank.

B images, S pixels a side, D draws a sample, each uniform in [0, 1).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

FLIP_DRAWS = 1
JITTER_DRAWS = 4
ZOOM_DRAWS = 3
TWO_VIEW_DRAWS = FLIP_DRAWS + JITTER_DRAWS
STRONG_VIEW_DRAWS = ZOOM_DRAWS + FLIP_DRAWS + JITTER_DRAWS + 1
"""Each says how many draws its function takes from the front of a sample's."""


def flip(images: Tensor, draws_B: Tensor) -> Tensor:
    """Mirror left and right where the draw is below one half.  (B, 3, S, S), any type."""
    return torch.where(draws_B[:, None, None, None] < 0.5, images.flip(-1), images)


def color_jitter(
    images01_B3SS: Tensor, strength: tuple[float, float, float], draws_B4: Tensor
) -> Tensor:
    """Change brightness, contrast and saturation of every image, in an order of its own.

    (B, 3, S, S) floats in [0, 1] to the same.  ``strength`` s, in that order: the factor is uniform
    in [max(0, 1 - s), 1 + s].  The first three draws give the factors, the fourth one of the six
    orders.  Per image it equals torchvision's float ``ColorJitter`` with that order and factors.
    """
    bounds = [(max(0.0, 1 - s), 1 + s) for s in strength]
    factors = [low + (high - low) * draws_B4[:, i] for i, (low, high) in enumerate(bounds)]
    images = images01_B3SS
    for operation_B in _order(draws_B4[:, 3]):
        operation = operation_B[:, None, None, None]
        grey = _grey(images)
        # Each operation moves away from, or towards, a reference: black, the mean grey, the grey.
        reference = _choose(operation, torch.zeros_like(grey), grey.mean((2, 3), True), grey)
        factor = _choose(operation, *(f[:, None, None, None] for f in factors))
        images = (factor * images + (1 - factor) * reference).clamp(0, 1)
    return images


def _order(draws_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which operation, 0 to 2, comes first, second and third: one of six, equally likely."""
    code = (draws_B * 6).long()
    first = code // 2
    second = (first + 1 + code % 2) % 3
    return first, second, 3 - first - second


def _choose(operation: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor) -> Tensor:
    return torch.where(
        operation == 0, brightness, torch.where(operation == 1, contrast, saturation)
    )


def _grey(images: Tensor) -> Tensor:
    red, green, blue = images.unbind(1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).unsqueeze(1)  # torchvision's weights


def zoom(images01_B3SS: Tensor, least: float, draws_B3: Tensor) -> Tensor:
    """A square crop of every image at a place of its own, brought back to full size (bilinear).

    (B, 3, S, S) floats to the same.  The crop's side is uniform in [``least``, 1] of the image's
    (first draw), its place uniform (the other two).
    """
    size = images01_B3SS.shape[-1]
    side = least + (1 - least) * draws_B3[:, 0]
    centre_x, centre_y = ((1 - side)[:, None] * (2 * draws_B3[:, 1:] - 1)).T  # in [-1, 1]
    # Pixel centres.  Not affine_grid, whose product autocast would round to half precision.
    line = (2 * torch.arange(size, device=side.device) + 1) / size - 1
    x, y = (c[:, None] + side[:, None] * line for c in (centre_x, centre_y))
    grid = torch.stack([x[:, None, :].expand(-1, size, -1), y[:, :, None].expand(-1, -1, size)], -1)
    return F.grid_sample(images01_B3SS, grid, padding_mode="border", align_corners=False)


def strong_view(
    images01: Tensor,
    draws_BD: Tensor,
    *,
    least_side: float,
    jitter: tuple[float, float, float],
    grey: float,
) -> Tensor:
    """Zoom, flip, colour jitter and, with probability ``grey``, no colour: SimCLR's, unblurred.

    (B, 3, S, S) floats in [0, 1] to the same.  ``draws_BD``: ``STRONG_VIEW_DRAWS`` a sample.
    """
    zooming, flipping, jittering, greying = draws_BD.split([ZOOM_DRAWS, 1, JITTER_DRAWS, 1], dim=1)
    view = flip(zoom(images01, least_side, zooming), flipping[:, 0])
    view = color_jitter(view, jitter, jittering)
    return torch.where(greying[:, :, None, None] < grey, _grey(view), view)


def two_views(
    images: Tensor, draws_BD: Tensor, strength: tuple[float, float, float]
) -> tuple[Tensor, Tensor]:
    """The student's and the teacher's view of one crop: the same flip, jitter for the student only.

    (B, 3, S, S) uint8 to two of (B, 3, S, S) float32 in [0, 1]: each network normalises its own.
    ``draws_BD``: ``TWO_VIEW_DRAWS`` or more a sample.
    """
    clean = flip(images, draws_BD[:, 0]) / 255
    student = color_jitter(clean, strength, draws_BD[:, FLIP_DRAWS:TWO_VIEW_DRAWS])
    return student, clean
