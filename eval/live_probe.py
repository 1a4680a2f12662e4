"""The live signal's probe: how well each image's class follows from the others'.

No benchmark: a few images, which are trained on, each voted on by the rest.  Hence a name of its
own.  M images · D width
"""

import torch
from torch import Tensor

from eval.nearest import nearest, vote
from eval.probe import accuracy

NAME = "probe@1"
NEIGHBOURS, TEMPERATURE = 10, 0.07


def probe(features: Tensor, labels: Tensor) -> dict[str, float]:
    """Top-1 in percent of a weighted vote of the nearest neighbours by cosine, each image left out
    of its own, and its standard error.

    features: (M, D) float32.  labels: (M,) int64.
    """
    # One more than vote: an image is its own nearest, unless others have the very same features.
    count = min(NEIGHBOURS + 1, len(features))
    similarity, places = nearest([features], features, count)
    itself = places == torch.arange(len(features))[:, None]
    guesses, _ = vote(
        similarity.masked_fill(itself, -torch.inf),
        labels[places],
        neighbours=count,
        temperature=TEMPERATURE,
        classes=int(labels.max()) + 1,
    )
    top1, error = accuracy(guesses[:, 0], labels)
    return {NAME: top1, f"{NAME}_error": error}
