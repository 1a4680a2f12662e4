"""Img2Vec ViT-S/16 from DINO ResNet-50 on ImageNet-1K.

    zoo import dino_resnet50_pretrain.pth --as dino-rn50
    zoo pretrain img2vec-vit-s data.source=folder:/data/imagenet/train
    zoo pretrain img2vec-vit-s mask-25 data.source=folder:/data/imagenet/train

The paper trained no ViT-S: a decoder of 2 blocks × 384 and the named mask ratios are our choice.
60 % is the paper's for larger students; CAE v2 found that smaller ones want less (25 % for ViT-S).
Hardware, hours and score: not run.
"""

from pretrain.data import Data
from pretrain.loop import Training
from pretrain.methods.img2vec import Img2Vec
from pretrain.optim import Optim
from pretrain.recipe import Recipe
from pretrain.teachers.tokens import TokenTeacher
from zoo.vit import ViTConfig

NAMED = {
    "mask-25": ["method.mask_ratio=0.25"],
    "mask-40": ["method.mask_ratio=0.4"],
}


def img2vec_vit_s() -> Recipe:
    return Recipe(
        name="img2vec-vit-s",
        student=ViTConfig(width=384, depth=12, heads=6, patch=16, image_size=224),
        method=Img2Vec(
            teacher=TokenTeacher(source="models/dino-rn50"),
            decoder_width=384,
            decoder_depth=2,
            decoder_heads=12,
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
