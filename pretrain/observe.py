"""What can be seen of a ViT that learns: its features, how many directions they fill, and how far
its heads look.

B images · N tokens, class token first · P patches · D width · H heads · K channels per head
"""

from collections.abc import Mapping
from types import MappingProxyType

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from pretrain.objective import Observation
from zoo.vit import Tap, config_of, final_norm, taps


def observe_vit(
    vit: VisionTransformer,
    images: Tensor,
    *,
    last: Tap,
    errors: Mapping[str, Tensor] = MappingProxyType({}),
) -> Observation:
    """Mean patch token behind a place and the final norm, as ``zoo.features`` pools them; and the
    attention distances of the blocks up to there.

    images: (B, 3, S, S), normalised.  last: the last place that is trained.  errors: handed on.
    """
    config = config_of(vit)
    pairs = [(Tap(number, "q"), Tap(number, "k")) for number in range(1, last.block + 1)]
    found = taps(vit, images, [last, *(tap for pair in pairs for tap in pair)])
    distances = [
        attention_distance(found[q], found[k], heads=config.heads, patch=config.patch)
        for q, k in pairs
    ]
    features = final_norm(vit)(found[last])[:, 1:].mean(1)
    return Observation(features=features, distances=torch.stack(distances), errors=errors)


def attention_distance(q_BND: Tensor, k_BND: Tensor, *, heads: int, patch: int) -> Tensor:
    """(H,) float32: how far away, in pixels, what a head attends to lies; mean over the queries.

    Dosovitskiy et al., ICLR 2021 (arXiv 2010.11929), appendix D.7; Raghu et al., NeurIPS 2021
    (arXiv 2108.08810).  From centre to centre of patches, weighted by the attention between them;
    the class token, which lies nowhere, is left out on both sides.  patch: its side in pixels.
    """
    q, k = (x[:, 1:].float().unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q_BND, k_BND))
    with torch.autocast(q.device.type, enabled=False):
        attention_BHPP = ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(-1)
    grid = round(q.shape[2] ** 0.5)
    line = torch.arange(grid, device=q.device)
    places = patch * torch.cartesian_prod(line, line).float()
    return (attention_BHPP * torch.cdist(places, places)).sum(-1).mean((0, 2))


def rankme(features: Tensor) -> float:
    """How many directions features (M, D) fill, from 1 to min(M, D).

    Garrido et al., ICML 2023 (arXiv 2210.02885), Eq. 1 and 2: exp of the entropy of the singular
    values, as shares of their sum.  Computed in fp64.
    """
    values = torch.linalg.svdvals(features.double())
    shares = values / values.sum() + 1e-7  # the paper's, against log 0
    return (-(shares * shares.log()).sum()).exp().item()
