"""Img2Vec ViT-L/16 from DINO ResNet-50 on ImageNet-1K.

    zoo import dino_resnet50_pretrain.pth --as dino-rn50
    zoo pretrain img2vec-vit-l data.source=folder:/data/imagenet/train

The paper's ViT-L: decoder of 4 blocks, masks of 32 px at 60 %, smooth-L1 with beta 2, global loss
weighed 0.5.  Decoder width, optimiser and schedule are not in it and are MAE's.
Hardware, hours and score: not run.
"""

from pretrain.data import Data
from pretrain.loop import Training
from pretrain.methods.img2vec import Img2Vec
from pretrain.optim import Optim
from pretrain.recipe import Recipe
from pretrain.teachers.tokens import TokenTeacher
from zoo.vit import ViTConfig


def img2vec_vit_l() -> Recipe:
    return Recipe(
        name="img2vec-vit-l",
        student=ViTConfig(width=1024, depth=24, heads=16, patch=16, image_size=224),
        method=Img2Vec(
            teacher=TokenTeacher(source="models/dino-rn50"),
            decoder_width=512,
            decoder_depth=4,
            decoder_heads=16,
            mask_ratio=0.6,
            global_weight=0.5,
        ),
        data=Data(source="folder:imagenet/train", crop_scale=(0.2, 1.0)),
        training=Training(
            epochs=800,
            warmup_epochs=40,
            global_batch=4096,
            rank_batch=256,
            optim=Optim(lr_per_256=1.5e-4, betas=(0.9, 0.95), weight_decay=0.05),
        ),
    )
