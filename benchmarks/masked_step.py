"""Images a second of an Img2Vec step: encoder on visible patches, against all tokens.

    OMP_NUM_THREADS=1 python -m benchmarks.masked_step [--student b] [--batch 4] [--rounds 5]

Ours is ``pretrain.methods.img2vec`` as its recipes have it: ViT-S or ViT-B, masks of 32 px at 60 %,
decoder of 2 blocks, ResNet-50 teacher with random weights.  *All tokens* is the same step with the
hidden patches replaced by a mask token before the encoder (SimMIM's form): same teacher, targets,
decoder and losses.  They take turns, forward and backward, in one process.  Goal: 1.5 times more.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from pretrain.masked import patch_order
from pretrain.methods.img2vec import Img2Vec, MaskedFeaturePrediction
from pretrain.objective import Batch
from pretrain.recipe import find_recipe
from pretrain.views import FLIP_DRAWS, flip
from zoo.card import Card
from zoo.convnet import ConvnetConfig, build_convnet
from zoo.folder import save_model
from zoo.images import normalise
from zoo.vit import embed


class AllTokens(MaskedFeaturePrediction):
    """The same objective with every token in the encoder."""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        images01 = flip(batch.images, batch.draws[:, 0]) / 255
        order = patch_order(batch.draws[:, FLIP_DRAWS:], self.patches_of_mask)
        features = self.teacher(images01).float()
        visible = order[:, : self.mask.visible_patches]
        fused = self.encode_all(normalise(images01), visible)
        everywhere = torch.arange(order.shape[1]).expand_as(order)
        patch = self.patch_loss(self.decoder(fused, everywhere), order, features)
        places = visible.unsqueeze(-1).expand(-1, -1, fused.shape[-1])
        seen = torch.cat([fused[:, :1], fused[:, 1:].gather(1, places)], dim=1)
        return {"total": patch + self.method.global_weight * self.global_loss(seen, features)}

    def encode_all(self, images: Tensor, visible: Tensor) -> Tensor:
        """(B, 1 + P, D): the mean of all blocks' outputs, normed, mask tokens at hidden places."""
        tokens = embed(self.encoder, images)
        hidden = torch.ones(tokens.shape[:2], dtype=torch.bool).scatter(1, 1 + visible, False)
        hidden[:, 0] = False
        mask_token = self.decoder.mask_token[..., :1]  # any learned value will do
        tokens = torch.where(hidden.unsqueeze(-1), mask_token, tokens)
        outputs = []
        for block in self.encoder.blocks:
            tokens = block(tokens)
            outputs.append(tokens)
        return self.encoder.norm(torch.stack(outputs).mean(0))


def cpu_seconds(objective: nn.Module, batch: Batch) -> float:
    """Process CPU time of forward and backward."""
    began = time.process_time()
    objective(batch)["total"].backward()
    taken = time.process_time() - began
    objective.zero_grad(set_to_none=True)
    return taken


def main() -> None:
    """Print the images a second of each and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--student", choices=["s", "b"], default="b")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    recipe = find_recipe(f"img2vec-vit-{options.student}")
    method = cast(Img2Vec, recipe.method)
    with tempfile.TemporaryDirectory() as temp:
        folder = Path(temp) / "rn50"
        config = ConvnetConfig(architecture="resnet50")
        card = Card(name="rn50", method="none", heads=None, last_trained_block=None)
        save_model(folder, config, build_convnet("resnet50", {}, seed=0).state_dict(), card)
        source = replace(method.teacher, source=str(folder))
        teacher = source.load(recipe.student, torch.device("cpu"))
    forms = {
        "visible patches": MaskedFeaturePrediction(recipe.student, teacher, method, seed=0),
        "all tokens": AllTokens(recipe.student, teacher, method, seed=0),
    }
    side = recipe.student.image_size
    batch = Batch(
        images=torch.randint(0, 256, (options.batch, 3, side, side), dtype=torch.uint8),
        indices=torch.arange(options.batch),
        draws=torch.rand(options.batch, forms["visible patches"].draws),
    )
    taken: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(1 + options.rounds):
        for name, objective in forms.items():
            taken[name].append(cpu_seconds(objective, batch))
    for name, figures in taken.items():
        rate = options.batch / statistics.median(figures[1:])  # the first round warms up
        print(f"{name:16} {rate:6.2f} images/s of CPU")
    pairs = zip(taken["all tokens"][1:], taken["visible patches"][1:], strict=True)
    print(f"ratio: {statistics.median(a / b for a, b in pairs):.2f} (goal 1.5)")


if __name__ == "__main__":
    main()
