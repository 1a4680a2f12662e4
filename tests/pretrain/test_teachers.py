"""Teachers: frozen, cut, and refused before step 0 where they cannot teach."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from faults import assert_error
from models import TEACHER, make_model
from runs import TINY, last_words, words, zoo
from safetensors.torch import load_file, save_file

from pretrain.teachers.tokens import TokenTeacher, open_tokens
from pretrain.teachers.vit import ViTTeacher
from zoo.errors import Exit, IntegrityError, UsageError
from zoo.images import normalise
from zoo.vit import ViTConfig

CPU = torch.device("cpu")
STUDENT = ViTConfig(width=24, depth=3, heads=3, patch=8, image_size=32)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "teacher")


def images(size: int = 2, side: int = 32) -> torch.Tensor:
    return torch.rand(size, 3, side, side, generator=torch.Generator().manual_seed(0))


def test_frozen_whatever_it_is_told(teacher: Path) -> None:
    frozen = ViTTeacher(source=str(teacher)).load(STUDENT, CPU)
    before = frozen(images())
    assert set(before) == {"q", "k", "v"}
    assert not frozen.train().training
    assert not any(module.training for module in frozen.modules())
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    after = frozen(images().requires_grad_())
    assert not any(tensor.requires_grad for tensor in after.values())
    assert all(torch.equal(tensor, after[place]) for place, tensor in before.items())


def test_its_tensors_can_be_saved_for_backward(teacher: Path) -> None:
    q = ViTTeacher(source=str(teacher)).load(STUDENT, CPU)(images())["q"]
    weight = torch.ones((), requires_grad=True)
    (weight * q).sum().backward()  # an inference tensor would refuse
    assert weight.grad is not None


def test_no_block_beyond_the_one_that_is_read_is_loaded(teacher: Path) -> None:
    frozen = ViTTeacher(source=str(teacher), block=1).load(STUDENT, CPU)
    assert len(list(frozen.net.get_submodule("blocks").children())) == 1
    assert frozen.record.block == 1
    whole = ViTTeacher(source=str(teacher)).load(STUDENT, CPU)
    assert whole.record.block == 2
    assert not torch.equal(frozen(images())["q"], whole(images())["q"])


def test_bf16_holds_the_weights_themselves(teacher: Path) -> None:
    half = ViTTeacher(source=str(teacher), precision="bf16").load(STUDENT, CPU)
    full = ViTTeacher(source=str(teacher)).load(STUDENT, CPU)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    expected = full(images())
    for place, tokens in half(images()).items():
        assert tokens.dtype == torch.bfloat16
        torch.testing.assert_close(tokens.float(), expected[place], rtol=0.05, atol=0.05)
    with torch.autocast("cpu", torch.bfloat16):
        assert (
            full(images())["q"].dtype == torch.bfloat16
        )  # fp32 weights follow the run's precision


@pytest.mark.parametrize("block", [3, 99])
def test_a_block_it_does_not_have(teacher: Path, block: int) -> None:
    with pytest.raises(UsageError, match=f"no block {block}: it has 2"):
        ViTTeacher(source=str(teacher), block=block).load(STUDENT, CPU)


def test_patches_that_do_not_correspond(teacher: Path) -> None:
    with pytest.raises(UsageError, match="8 px, the student's 16 px") as caught:
        ViTTeacher(source=str(teacher)).load(replace(STUDENT, patch=16), CPU)
    assert "student.patch=8" in caught.value.fix


def test_relation_heads_come_from_the_card_unless_stated(teacher: Path, tmp_path: Path) -> None:
    distilled = str(make_model(tmp_path / "distilled", relation_heads=12))
    assert ViTTeacher(source=str(teacher)).load(STUDENT, CPU).relation_heads == 6
    assert ViTTeacher(source=distilled).load(STUDENT, CPU).relation_heads == 12
    # Recorded of the last block alone: another one has its own attention heads.
    assert ViTTeacher(source=distilled, block=1).load(STUDENT, CPU).relation_heads == 6
    stated = ViTTeacher(source=distilled, relation_heads=4).load(STUDENT, CPU)
    assert stated.relation_heads == stated.record.relation_heads == 4


def test_heads_that_divide_not_name_those_that_do(teacher: Path) -> None:
    with pytest.raises(UsageError, match="5 relation heads") as caught:
        ViTTeacher(source=str(teacher), relation_heads=5).load(STUDENT, CPU)
    assert "1, 2, 3, 4, 6, 8, 12, 24" in caught.value.fix
    with pytest.raises(UsageError, match="16 relation heads"):  # divides the teacher's width only
        ViTTeacher(source=str(teacher), relation_heads=16).load(STUDENT, CPU)


def test_positions_are_resampled_to_the_students_image_size(teacher: Path) -> None:
    larger = replace(STUDENT, image_size=48)
    frozen = ViTTeacher(source=str(teacher)).load(larger, CPU)
    q = frozen(images(side=48))["q"]
    assert q.shape == (2, 37, 48)
    original = load_file(teacher / "model.safetensors")["pos_embed"]
    resampled = frozen.net.state_dict()["pos_embed"]
    assert torch.equal(resampled[:, 0], original[:, 0])
    assert resampled.shape == (1, 37, 48)
    # The corners of the grid stay about where they were.
    assert (resampled[0, 1] - original[0, 1]).abs().mean() < 0.2


def command(teacher: Path, photos: Path, out: Path) -> list[str]:
    settings = {**TINY, "method.teacher.source": str(teacher), "training.steps": "2"}
    return words("tinymim-vit-t", photos, out, settings)


def rewrite(folder: Path, change) -> None:
    """Change the weights of a model folder that has no record of them."""
    (folder / "zoo.json").unlink()
    weights = load_file(folder / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors")


def renamed(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"module.{name}": tensor for name, tensor in weights.items()}


def poisoned(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    weights["blocks.0.mlp.fc1.weight"][3, 4] = torch.nan
    return weights


def wider(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**weights, "cls_token": torch.zeros(1, 1, 64)}


def fewer(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    del weights["blocks.1.attn.qkv.bias"]
    return weights


@pytest.mark.parametrize(
    ("change", "what", "where"),
    [
        (renamed, "0 of 30 tensors match", "missing (30): "),
        (wider, "29 of 30", "cls_token is (1, 1, 64), the network's is (1, 1, 48)"),
        (fewer, "29 of 30", "missing (1): blocks.1.attn.qkv.bias"),
        (poisoned, "hold NaN or infinity", "not finite (1): blocks.0.mlp.fc1.weight"),
    ],
)
def test_wrong_weights_end_before_step_0(
    photos: Path, tmp_path: Path, change, what: str, where: str
) -> None:
    folder = make_model(tmp_path / "teacher")
    rewrite(folder, change)
    assert zoo(command(folder, photos, tmp_path / "run")) == 4
    told = last_words(tmp_path / "run")
    fix = "fetch or export the model again" if change is poisoned else "belong together"
    assert_error(told, Exit.INTEGRITY, what=what, where=where, fix=fix)
    assert (told["rank"], told["step"]) == (0, None)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_flipped_byte_is_found_by_the_record(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "teacher")
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    with pytest.raises(IntegrityError, match="not what its record says"):
        ViTTeacher(source=str(folder)).load(STUDENT, CPU)


def test_missing_teacher_is_a_usage_error(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert zoo(command(tmp_path / "nowhere", photos, tmp_path / "run")) == 2
    assert "nowhere" in capsys.readouterr().err
    assert last_words(tmp_path / "run")["code"] == 2


def test_card_records_the_teacher(teacher: Path, photos: Path, tmp_path: Path) -> None:
    assert zoo(command(teacher, photos, tmp_path / "run")) == 0
    card = json.loads((tmp_path / "run" / "export" / "zoo.json").read_bytes())
    digest = json.loads((teacher / "zoo.json").read_bytes())["digest"]
    assert card["teacher"]["digest"] == digest
    assert card["teacher"]["block"] == TEACHER.depth
    assert card["relation_heads"] == card["teacher"]["relation_heads"] == 6
    assert card["last_trained_block"] == 2


def test_pixels_have_no_stage() -> None:
    with pytest.raises(UsageError, match="no stage of stride 32"):
        TokenTeacher(source="pixels", stride=32).load(STUDENT, CPU)
    tokens = TokenTeacher(source="pixels").load(STUDENT, CPU)
    assert tokens(images()).shape == (2, 16, 192)


def test_a_norm_kept_behind_the_pooling_is_the_final_norm(tmp_path: Path) -> None:
    """timm's default with mean pooling: norm is an identity, fc_norm the norm."""
    folder = make_model(tmp_path / "pooled")
    before = open_tokens(str(folder))(images())
    layout = json.loads((folder / "config.json").read_text())
    layout["model_args"]["fc_norm"] = True
    weights = load_file(folder / "model.safetensors")
    moved = {
        name.replace("norm.", "fc_norm.") if name.startswith("norm.") else name: t
        for name, t in weights.items()
    }
    (folder / "zoo.json").unlink()
    (folder / "config.json").write_text(json.dumps(layout))
    save_file(moved, folder / "model.safetensors")
    torch.testing.assert_close(open_tokens(str(folder))(images()), before)


@pytest.mark.parametrize(
    "own",
    [
        {"reg_tokens": 4, "no_embed_class": True},  # as DINOv2's with registers
        {"reg_tokens": 2},
        {"class_token": False, "global_pool": "avg"},
        {"qk_norm": True},
    ],
    ids=["registers", "positioned registers", "no class token", "qk norm"],
)
def test_a_vit_that_is_not_plain_gives_its_patch_tokens(tmp_path: Path, own: dict) -> None:
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 6, **own}
    net: Any = timm.create_model("vit_tiny_patch16_224", num_classes=0, **sizes).eval()
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    layout = {"architecture": "vit_tiny_patch16_224", "num_classes": 0, "model_args": sizes}
    (tmp_path / "config.json").write_text(json.dumps(layout))
    teacher = open_tokens(str(tmp_path))
    with torch.no_grad():
        expected = net.forward_features(normalise(images()))[:, net.num_prefix_tokens :]
        expected = net.fc_norm(expected)  # an identity where the norm stands before the pooling
    torch.testing.assert_close(teacher(images()), expected)
    assert (teacher.cell, teacher.grid, teacher.width) == (8, 4, 48)
    larger = open_tokens(str(tmp_path), image_size=48)
    assert larger(images(side=48)).shape == (2, 36, 48)
    with pytest.raises(UsageError, match="do not tile an image of 36 px"):
        open_tokens(str(tmp_path), image_size=36)
    with pytest.raises(UsageError, match="not a plain ViT"):
        ViTTeacher(source=str(tmp_path)).load(STUDENT, CPU)
