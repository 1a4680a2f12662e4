"""MAE for ViT-B/16 on ImageNet-1K, as published.

    zoo pretrain mae-vit-b data.source=folder:/data/imagenet/train

Decoder of 8 blocks × 512; 800 epochs is the paper's default recipe, the released weights took
1600 (``training.epochs=1600``).  Hardware, hours and score: not run.
"""

from pretrain.data import Data
from pretrain.loop import Training
from pretrain.methods.mae import MAE
from pretrain.optim import Optim
from pretrain.recipe import Recipe
from zoo.vit import ViTConfig


def mae_vit_b() -> Recipe:
    return Recipe(
        name="mae-vit-b",
        student=ViTConfig(width=768, depth=12, heads=12, patch=16, image_size=224),
        method=MAE(decoder_width=512, decoder_depth=8, decoder_heads=16, mask_ratio=0.75),
        data=Data(source="folder:imagenet/train", crop_scale=(0.2, 1.0)),
        training=Training(
            epochs=800,
            warmup_epochs=40,
            global_batch=4096,
            rank_batch=256,
            optim=Optim(lr_per_256=1.5e-4, betas=(0.9, 0.95), weight_decay=0.05),
        ),
    )
