"""MAE for ViT-T/16 on ImageNet-1K: the masked-autoencoding baseline at this size.

    zoo pretrain mae-vit-t data.source=folder:/data/imagenet/train

Decoder of 1 block × 96 and 400 epochs, as MAE-Lite trains ViT-T (which takes 12 heads:
``student.heads=12``).  G2SD gives ViT-T a decoder of 4 × 128.  Hardware, hours and score: not run.
"""

from pretrain.data import Data
from pretrain.loop import Training
from pretrain.methods.mae import MAE
from pretrain.optim import Optim
from pretrain.recipe import Recipe
from zoo.vit import ViTConfig


def mae_vit_t() -> Recipe:
    return Recipe(
        name="mae-vit-t",
        student=ViTConfig(width=192, depth=12, heads=3, patch=16, image_size=224),
        method=MAE(decoder_width=96, decoder_depth=1, decoder_heads=3, mask_ratio=0.75),
        data=Data(source="folder:imagenet/train", crop_scale=(0.2, 1.0)),
        training=Training(
            epochs=400,
            warmup_epochs=40,
            global_batch=4096,
            rank_batch=512,
            optim=Optim(lr_per_256=1.5e-4, betas=(0.9, 0.95), weight_decay=0.05),
        ),
    )
