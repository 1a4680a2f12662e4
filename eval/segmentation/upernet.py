"""UPerNet's decode head at less than two thirds of its cost, with the same logits.

The head's last 3 × 3 convolution reads all levels of the pyramid, resized to the finest one and
concatenated; in mmseg it is most of an evaluation.  Resizing is linear and treats every channel
alike, so it may as well come after the mixing of channels, which then happens at each level's own
resolution: for four levels a third of the multiplications.

The modules are those of mmseg's ``UPerHead``; nothing is copied from them, and nothing kept.

B windows · D channels in · O channels out · K the kernel's side · h, w a level's size · H, W the
finest level's
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def window_logits(model: Any, pixels: Tensor) -> Tensor:
    """(B, C, height, width) logits of windows (B, 3, height, width), normalised.

    model: mmseg's ``EncoderDecoder`` with an ``UPerHead``, in evaluation mode.  What its
    ``encode_decode`` gives, to float32's rounding.
    """
    logits = decode(model.decode_head, model.extract_feat(pixels))
    align_corners = model.decode_head.align_corners
    return F.interpolate(logits, pixels.shape[2:], mode="bilinear", align_corners=align_corners)


def decode(head: Any, levels: Sequence[Tensor]) -> Tensor:
    """(B, C, H, W) logits, what ``UPerHead.forward`` gives, gradients included.

    levels: (B, D, h, w) each, finest first.
    """
    return head.cls_seg(features(head, levels))


def features(head: Any, levels: Sequence[Tensor]) -> Tensor:
    """(B, O, H, W), what ``UPerHead._forward_feature`` gives."""
    first, *rest = _outputs(head, head._transform_inputs(levels))
    bottleneck = head.fpn_bottleneck
    first_weight, *weights = bottleneck.conv.weight.split(head.channels, dim=1)
    mixed = F.conv2d(first, first_weight, padding="same")
    for output, weight in zip(rest, weights, strict=True):
        mixed += convolve_resized(
            output, weight, (first.shape[2], first.shape[3]), align_corners=head.align_corners
        )
    return bottleneck.activate(bottleneck.norm(mixed))


def _outputs(head: Any, levels: Sequence[Tensor]) -> list[Tensor]:
    """The feature pyramid: each level with the coarser ones added, convolved."""
    laterals = [conv(level) for conv, level in zip(head.lateral_convs, levels[:-1], strict=True)]
    laterals.append(head.psp_forward(levels))
    for i in range(len(laterals) - 1, 0, -1):
        size = laterals[i - 1].shape[2:]
        laterals[i - 1] = laterals[i - 1] + F.interpolate(
            laterals[i], size, mode="bilinear", align_corners=head.align_corners
        )
    outputs = [conv(lateral) for conv, lateral in zip(head.fpn_convs, laterals[:-1], strict=True)]
    return [*outputs, laterals[-1]]


def convolve_resized(
    low_BDhw: Tensor, weight_ODKK: Tensor, size: tuple[int, int], *, align_corners: bool
) -> Tensor:
    """(B, O, H, W): a map resized bilinearly to ``size``, then convolved, zeros around it.

    Each of the kernel's K² taps mixes the channels of the small map.  Resizing, the tap's shift and
    the sum over taps are two matrix products, along the rows and then along the columns.
    """
    batch, _, h, w = low_BDhw.shape
    channels, _, kernel, _ = weight_ODKK.shape
    along_KwW = _resize_and_shift(w, size[1], kernel, low_BDhw, align_corners)
    down_KhH = _resize_and_shift(h, size[0], kernel, low_BDhw, align_corners)
    mixed = low_BDhw.new_zeros((batch, channels * kernel, h, size[1]))
    for taps_ODK, along_wW in zip(weight_ODKK.unbind(3), along_KwW, strict=True):
        taps = taps_ODK.transpose(1, 2).flatten(0, 1)
        mixed += F.conv2d(low_BDhw, taps[:, :, None, None]) @ along_wW
    down_HKh = down_KhH.flatten(0, 1).T
    return down_HKh @ mixed.view(batch, channels, kernel * h, size[1])


def _resize_and_shift(
    length: int, resized: int, kernel: int, like: Tensor, align_corners: bool
) -> Tensor:
    """(K, length, resized): the matrix of a linear resize for each tap's shift, zeros beyond."""
    matrix = F.interpolate(
        torch.eye(length, device=like.device)[None],
        resized,
        mode="linear",
        align_corners=align_corners,
    )[0]
    beyond = F.pad(matrix, (kernel // 2, kernel // 2)).to(like.dtype)
    return torch.stack([beyond[:, tap : tap + resized] for tap in range(kernel)])
