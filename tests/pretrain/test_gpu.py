"""What only a CUDA device can show: bf16 and compilation train, and steps do not wait for it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from models import make_convnet, make_model
from runs import TINY, TINY_MAE, last_words, words, zoo

from pretrain.distributed import World
from pretrain.log import Meters, read_log
from pretrain.loop import FiniteGuard, Training, _forward_backward, seed_step
from pretrain.methods.tinymim import TinyMIM
from pretrain.objective import Batch
from pretrain.optim import Optim, WeightAverage, build_optimizer, set_lr
from pretrain.teachers.vit import ViTTeacher
from pretrain.views import TWO_VIEW_DRAWS
from zoo.vit import ViTConfig

pytestmark = pytest.mark.gpu

STUDENT = ViTConfig(width=24, depth=3, heads=3, patch=8, image_size=32)
TRAINING = Training(epochs=1, warmup_epochs=0, global_batch=8, rank_batch=8, precision="bf16")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "teacher")


def recipe_of(method: str, teacher: Path) -> tuple[str, dict[str, str]]:
    if method == "mae":
        return "mae-vit-t", TINY_MAE
    if method == "simclr":
        tiny = {key: value for key, value in TINY.items() if not key.startswith("student")}
        return "demo-convnet", {**tiny, "student.image_size": "32"}
    own = {"method.teacher.source": str(teacher), "method.teacher.precision": "bf16"}
    if method == "img2vec":
        own["method.teacher.source"] = str(make_convnet(teacher.parent / "convnet"))
        return "img2vec-vit-t", {**TINY_MAE, **own, "method.teacher.stride": "16"}
    if method == "tinymim-masked":
        own |= {
            "method.targets": "[qq,kk,class_token,ffn,output]",
            "method.softmax": "false",
            "method.mask_ratio": "0.5",
            "method.teacher.drop_path": "0.1",
            "method.reconstruction.weight": "1.0",
            "method.reconstruction.decoder_width": "24",
            "method.reconstruction.decoder_heads": "3",
        }
    return "tinymim-vit-t", {**TINY, **own}


@pytest.mark.parametrize("method", ["mae", "tinymim", "tinymim-masked", "img2vec", "simclr"])
@pytest.mark.parametrize("compiled", ["false", "true"])
def test_bf16_training_learns(
    photos: Path, teacher: Path, tmp_path: Path, method: str, compiled: str
) -> None:
    recipe, settings = recipe_of(method, teacher)
    own = {
        **settings,
        "training.steps": "60",
        "training.precision": "bf16",
        "training.compile": compiled,
        "data.workers": "2",
    }
    command = [*words(recipe, photos, tmp_path / "run", own), "--device", "cuda"]
    assert zoo(command) == 0
    losses = [row["total"] for row in read_log(tmp_path / "run" / "log.jsonl")]
    assert losses[-1] < losses[0]


def test_continued_run_goes_on_from_its_checkpoint(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = {**TINY_MAE, "training.compile": "false"}
    command = [*words("mae-vit-t", photos, out, settings), "--device", "cuda"]
    assert zoo(command) == 0
    before = (out / "export" / "model.safetensors").read_bytes()
    assert zoo(command) == 0
    assert (out / "export" / "model.safetensors").read_bytes() == before


def test_not_a_number_stops_with_the_last_good_state(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = {**TINY_MAE, "training.optim.lr_per_256": "1e30", "training.warmup_steps": "2"}
    assert zoo([*words("mae-vit-t", photos, out, settings), "--device", "cuda"]) == 7
    left = last_words(out)
    assert (out / "checkpoints" / f"step-{left['step']}").is_dir()


def batches(device: torch.device) -> Iterator[Batch]:
    while True:
        images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8).pin_memory()
        draws = torch.rand(8, TWO_VIEW_DRAWS).pin_memory()
        yield Batch(images=images, indices=torch.arange(8).pin_memory(), draws=draws)


def test_steps_between_two_rows_do_not_wait_for_the_device(teacher: Path) -> None:
    device = torch.device("cuda", 0)
    world = World(device=device)
    method = TinyMIM(teacher=ViTTeacher(source=str(teacher)))
    objective: Any = method.build(STUDENT, seed=0, device=device)
    objective.train()
    optimizer = build_optimizer(objective, Optim())
    trained = {n: p for n, p in objective.named_parameters() if p.requires_grad}
    average, guard, meters = WeightAverage(trained, 0.9), FiniteGuard(world, optimizer), Meters()
    source = batches(device)
    for step in range(4):
        ready = [next(source)]
        if step == 1:  # the first step sets libraries up, and may wait
            torch.cuda.set_sync_debug_mode("error")
        try:
            set_lr(optimizer, 1e-3)
            seed_step(0, step, world)
            losses = _forward_backward(objective, ready, TRAINING, world)
            norm = torch.nn.utils.get_total_norm(
                [p.grad for p in trained.values() if p.grad is not None]
            )
            guard.check(losses, norm, step)
            torch.nn.utils.clip_grads_with_norm_(trained.values(), 1.0, norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            average.update(guard.bad)
            meters.add((*losses, "grad_norm"), guard.seen, guard.bad, ready)
        except BaseException:
            torch.cuda.set_sync_debug_mode("default")
            raise
    torch.cuda.set_sync_debug_mode("default")
    assert guard.bad.item() == 0
    assert meters.row()["total"] > 0
