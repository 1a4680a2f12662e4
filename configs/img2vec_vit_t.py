"""Img2Vec ViT-T/16 from DINO ResNet-50 on ImageNet-1K.

    zoo import dino_resnet50_pretrain.pth --as dino-rn50
    zoo pretrain img2vec-vit-t data.source=folder:/data/imagenet/train
    zoo pretrain img2vec-vit-t mask-25 data.source=folder:/data/imagenet/train

The paper trained no ViT-T: a decoder of 2 blocks × 192 and the named mask ratios are our choice.
60 % is the paper's for larger students; CAE v2 found that smaller ones want less (15 % for ViT-T).
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
    "mask-15": ["method.mask_ratio=0.15"],
    "mask-25": ["method.mask_ratio=0.25"],
    "mask-40": ["method.mask_ratio=0.4"],
}


def img2vec_vit_t() -> Recipe:
    return Recipe(
        name="img2vec-vit-t",
        student=ViTConfig(width=192, depth=12, heads=3, patch=16, image_size=224),
        method=Img2Vec(
            teacher=TokenTeacher(source="models/dino-rn50"),
            decoder_width=192,
            decoder_depth=2,
            decoder_heads=6,
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
