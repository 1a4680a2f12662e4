"""Files as DINO writes them, and files that are none of DINO's, each with what its refusal says."""

import argparse
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from zoo.vit import VIT_T, build_vit

Weights = dict[str, Tensor]


def checkpoint(teacher: Weights, **changes: Any) -> dict[str, Any]:
    """As ``main_dino.py`` saves it: learning rates are numpy's."""
    groups = [{"lr": np.float64(0.3), "weight_decay": np.float64(0.04), "params": [0]}]
    state = {0: {"step": 7, "exp_avg": torch.rand(3)}}
    return {
        "student": {"module.backbone.cls_token": torch.zeros(1)},
        "teacher": teacher,
        "optimizer": {"state": state, "param_groups": groups},
        "epoch": 100,
        "args": argparse.Namespace(arch="vit_tiny", patch_size=16, lr=0.3),
        "dino_loss": {"center": torch.zeros(1, 5)},
        **changes,
    }


def wrapped(weights: Weights, prefix: str, head: str = "head.") -> Weights:
    heads = {f"{head}mlp.0.weight": torch.rand(4, 4), f"{head}last_layer.weight_g": torch.ones(4)}
    return {prefix + name: tensor for name, tensor in weights.items()} | heads


def _with(**changes: Any) -> Callable[[Weights, Any], object]:
    return lambda vit, _: {**vit, **{name.replace("__", "."): t for name, t in changes.items()}}


def _without(*names: str) -> Callable[[Weights, Any], object]:
    return lambda vit, _: {name: tensor for name, tensor in vit.items() if name not in names}


def _of(vit: Weights, prefix: str = "module.backbone.", **changes: Any) -> dict[str, Any]:
    return checkpoint(wrapped(vit, prefix), **changes)


class Evil:
    """Asks for a canary file to be written when it is unpickled."""

    def __reduce__(self) -> tuple:
        return os.system, ("touch canary",)


NAN, SMALL = torch.full((192,), torch.nan), torch.rand(3, 3)
WRONG_OBJECTS: dict[str, tuple[Callable[[Weights, Any], object], str]] = {
    "MAE's container": (lambda vit, _: {"model": vit}, "MAE's ViTs have width 768, 1024, 1280"),
    "SimCLR": (
        lambda vit, _: {"epoch": 1, "arch": "resnet50", "state_dict": {"backbone.conv1": SMALL}},
        "epoch (int), arch (str), state_dict (dict of 1 tensors)",
    ),
    "supervised": (
        lambda _, net: {**net.state_dict(), "fc.weight": torch.rand(9, 2048)},
        "unexpected (1): fc.weight",
    ),
    "another ResNet": (
        lambda vit, _: {"conv1.weight": SMALL, "layer1.0.conv1.weight": SMALL},
        "not DINO's ResNet-50: 0 of 318",
    ),
    "flat with a prefix": (
        lambda vit, _: {f"backbone.{name}": tensor for name, tensor in vit.items()},
        "150 tensors: backbone.cls_token, ",
    ),
    "classifier": (_with(head__weight=torch.rand(10, 192)), "unexpected (1): head.weight"),
    "missing": (_without("norm.weight"), "missing (1): norm.weight"),
    "another shape": (_with(norm__weight=torch.rand(191)), "norm.weight is (191,)"),
    "no positions": (_without("pos_embed"), "not a plain ViT"),
    "no square": (_with(pos_embed=torch.rand(1, 200, 192)), "another shape (1): pos_embed"),
    "no image": (_with(pos_embed=torch.rand(1, 1, 192)), "not a plain ViT"),
    "huge patch": (
        _with(patch_embed__proj__weight=torch.rand(1, 1, 1, 4097)),
        "no ViT has patch 4,097",
    ),
    "another width": (_with(pos_embed=torch.rand(1, 197, 196)), "width 192, 384, 768 and 12"),
    "another depth": (_with(blocks__12__norm1__bias=SMALL), "13 blocks"),
    "sines": (lambda *_: build_vit(VIT_T, seed=0).state_dict(), "fixed sines"),
    "NaN": (_with(norm__weight=NAN), "1 of 150 tensors hold NaN"),
    "integers": (_with(norm__weight=torch.ones(192, dtype=torch.int64)), "no floating-point"),
    "float counters": (
        lambda _, net: {
            n: t.half() if n == "bn1.num_batches_tracked" else t
            for n, t in net.state_dict().items()
        },
        "bn1.num_batches_tracked is torch.float16",
    ),
    "complex": (_with(norm__weight=NAN.to(torch.complex64)), "no weights where"),
    "a text among tensors": (_with(norm__weight="text"), "a dict of 150"),
    "sparse": (_with(norm__weight=torch.eye(4).to_sparse()), "plain weights"),
    "meta": (_with(norm__weight=torch.rand(192, device="meta")), "a dict of 150"),
    "numbered": (lambda *_: {1: SMALL, "\x1b[31m": SMALL}, "1 (float32 tensor), '\\x1b[31m'"),
    "empty dict": (lambda *_: {}, "an empty dict"),
    "list": (lambda *_: [SMALL], "a list"),
    "tensor": (lambda *_: SMALL, "found: a float32 tensor"),
    "10,001 tensors": (lambda *_: {f"a{i}": SMALL for i in range(10_001)}, "a dict of 10001"),
    "teacher alone": (lambda vit, _: {"teacher": vit}, "a dict of 1: teacher (dict of 150"),
    "another key": (lambda vit, _: _of(vit, ema=1), "not a checkpoint of DINO's"),
    "no part": (lambda vit, _: checkpoint({}) | {"teacher": 3}, "teacher (int)"),
    "empty part": (lambda *_: checkpoint({}), "teacher (dict of 0)"),
    "odd part": (lambda vit, _: _of({**vit, "x": 3}), "module.backbone.x (int)"),  # type: ignore[dict-item]
    "extra in the part": (lambda vit, _: _of({**vit, "x": SMALL}), "unexpected (1): x"),
    "head in the backbone": (
        lambda vit, _: _of({**vit, "head.weight": SMALL}),
        "unexpected (1): head.weight",
    ),
    "one name twice": (
        lambda vit, _: _of(vit | {"module.norm.weight": NAN}, ""),
        "module.norm.weight and norm.weight",
    ),
    "code": (lambda *_: {"a": Evil()}, "asks for more than weights: posix.system"),
    "code in a part not wanted": (lambda vit, _: _of(vit, optimizer=Evil()), "posix.system"),
    "a class": (lambda vit, _: _of(vit, args=Path("x")), "asks for more than weights: pathlib."),
    "unfolds": (lambda *_: {"cls_token": torch.zeros(1).expand(2**30)}, "many times its size"),
    "unfolds a little": (
        lambda *_: {"cls_token": torch.zeros(1).expand(2**22)},
        "many times its size",
    ),
}


def _zip_of(path: Path, size: int) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("model/data.txt", b"\0" * size)


def _cut(path: Path) -> None:
    torch.save({"cls_token": torch.rand(500)}, path)
    path.write_bytes(path.read_bytes()[:-900])


def _script(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("data.pkl", "constants.pkl", "version", "code/__torch__.py"):
            archive.writestr(f"model/{name}", b"3\n")


def _flip(path: Path) -> None:
    torch.save({"cls_token": torch.ones(500)}, path)
    content = bytearray(path.read_bytes())
    content[content.find(torch.ones(500).numpy().tobytes()) + 99] ^= 1
    path.write_bytes(content)


def _pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"a": Evil()}, protocol=2))


def _legacy(path: Path) -> None:
    torch.save({"a": Evil()}, path, _use_new_zipfile_serialization=False)


WRONG_FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (Path.touch, "it is empty"),
    "text": (lambda path: path.write_text("conv1.weight\n" * 100), "it is text"),
    "text cut in a letter": (lambda path: path.write_text("ä" * 300 + "x"), "it is text"),
    "HTML": (lambda path: path.write_text(" <!DOCTYPE html>"), "a web page"),
    "git-lfs": (lambda path: path.write_text("version https://git-lfs.github.com"), "git-lfs"),
    "safetensors": (lambda path: save_file({"a": SMALL}, path), "a safetensors file"),
    "JPEG": (lambda path: path.write_bytes(b"\xff\xd8\xff\xe0" + bytes(50)), "an image"),
    "noise": (lambda path: path.write_bytes(b"\x01\xff\x02"), "unknown bytes"),
    "truncated": (_cut, "damaged or cut short"),
    "zip": (lambda path: _zip_of(path, 99), "torch.save did not write"),
    "TorchScript": (_script, "a TorchScript archive"),
    "flipped bit": (_flip, "damaged: 'file/data/0' does not have its checksum"),
    "pickle": (_pickle, "asks for more than weights: posix.system"),
    "pickle header": (lambda path: path.write_bytes(b"\x80\x02"), "damaged or cut short"),
    "code before zip": (_legacy, "asks for more than weights: posix.system"),
}
