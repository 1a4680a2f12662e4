"""MAE for ViT-S/16 on ImageNet-1K: the masked-autoencoding baseline at this size.

    zoo pretrain mae-vit-s data.source=folder:/data/imagenet/train

Decoder of 4 blocks × 256 and 300 epochs, as G2SD trains ViT-S; its 8 heads are our choice.
Hardware, hours and score: not run.
"""

from pretrain.data import Data
from pretrain.loop import Training
from pretrain.methods.mae import MAE
from pretrain.optim import Optim
from pretrain.recipe import Recipe
from zoo.vit import ViTConfig


def mae_vit_s() -> Recipe:
    return Recipe(
        name="mae-vit-s",
        student=ViTConfig(width=384, depth=12, heads=6, patch=16, image_size=224),
        method=MAE(decoder_width=256, decoder_depth=4, decoder_heads=8, mask_ratio=0.75),
        data=Data(source="folder:imagenet/train", crop_scale=(0.2, 1.0)),
        training=Training(
            epochs=300,
            warmup_epochs=40,
            global_batch=4096,
            rank_batch=512,
            optim=Optim(lr_per_256=1.5e-4, betas=(0.9, 0.95), weight_decay=0.05),
        ),
    )
