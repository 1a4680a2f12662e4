"""Fine-tuning's objective: where it begins, what it is asked, and how fast each layer learns."""

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from models import TEACHER, make_model, make_timm
from timm.loss.cross_entropy import LabelSmoothingCrossEntropy
from timm.optim._param_groups import param_groups_layer_decay
from torch import Tensor, nn

import zoo
from eval.finetune import HEAD, Classification, Finetune, begin, layer_groups, read_base
from pretrain.distributed import World
from pretrain.launch import _new_state
from pretrain.loop import seed_step
from pretrain.objective import Batch, Validated
from pretrain.recipe import find_recipe
from zoo.card import Card
from zoo.errors import UsageError
from zoo.folder import load_model, save_model
from zoo.images import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from zoo.vit import VIT_T, Tap, ViTConfig, build_vit, empty_vit, taps

CPU = torch.device("cpu")
STUDENT = ViTConfig(width=24, depth=3, heads=3, patch=8, image_size=32)
PLAIN = Finetune(
    init=None, classes=7, drop_path=0.0, mixup=0.0, cutmix=0.0, smoothing=0.0, erase=0.0
)
WORLD = World(device=CPU)


def build(method: Finetune = PLAIN, student: ViTConfig = STUDENT, seed: int = 0) -> Classification:
    return method.build(student, seed=seed, device=CPU)


def batch_of(size: int, seed: int = 0, classes: int = 7) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        images=torch.randint(0, 256, (size, 3, 32, 32), dtype=torch.uint8, generator=generator),
        indices=torch.arange(size),
        draws=torch.empty(size, 0),
        labels=torch.randint(0, classes, (size,), generator=generator),
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "base")


def test_it_is_an_objective_that_validates() -> None:
    assert isinstance(build(), Validated)
    assert build().draws == 0


def test_layers_learn_at_the_published_rates() -> None:
    dimensions = {f"net.{n}": p.ndim for n, p in empty_vit(VIT_T, 1000).named_parameters()}
    groups = layer_groups(dimensions, depth=12, layer_decay=0.65, weight_decay=0.05)
    scale = {name: group.lr_scale for group in groups for name in group.names}
    decay = {name: group.weight_decay for group in groups for name in group.names}
    assert scale.keys() == decay.keys() == dimensions.keys()
    for name in ("cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"):
        assert scale[f"net.{name}"] == pytest.approx(0.003697, rel=1e-3) == 0.65**13
    assert scale["net.blocks.0.norm1.weight"] == 0.65**12
    assert scale["net.blocks.1.attn.qkv.bias"] == 0.65**11
    assert scale["net.blocks.10.mlp.fc1.weight"] == 0.65**2
    assert scale["net.blocks.11.mlp.fc2.weight"] == 0.65
    assert {scale[f"net.{name}"] for name in HEAD} == {1.0}
    bare = {name for name, value in decay.items() if value == 0.0}
    assert {name for name in bare if dimensions[name] > 1} == {"net.cls_token", "net.pos_embed"}
    assert {dimensions[name] for name in dimensions.keys() - bare} == {2, 4}
    assert set(decay.values()) == {0.0, 0.05}
    assert len(groups) == 2 * 14


def test_layers_learn_as_in_timm() -> None:
    """timm's rule, too, puts the head and its norm one place behind the last block."""
    net = timm.create_model("vit_tiny_patch16_224", global_pool="avg", fc_norm=True)
    names = {id(p): name for name, p in net.named_parameters()}
    theirs = param_groups_layer_decay(
        net,
        weight_decay=0.05,
        no_weight_decay_list=net.no_weight_decay(),  # type: ignore[operator]
        layer_decay=0.75,
    )
    stated = {names[id(p)]: (g["lr_scale"], g["weight_decay"]) for g in theirs for p in g["params"]}
    dimensions = {name: p.ndim for name, p in net.named_parameters()}
    ours = layer_groups(dimensions, depth=12, layer_decay=0.75, weight_decay=0.05)
    found = {name: (g.lr_scale, g.weight_decay) for g in ours for name in g.names}
    assert found.keys() == stated.keys()
    for name, value in found.items():
        assert value == pytest.approx(stated[name]), name


def test_the_optimizer_takes_every_parameter_once() -> None:
    objective = build()
    optimizer = _new_state(objective, find_recipe("finetune-in1k-vit-t")).optimizer
    grouped = [name for group in optimizer.param_groups for name in group["names"]]
    assert sorted(grouped) == sorted(name for name, _ in objective.named_parameters())
    assert {p.requires_grad for p in objective.parameters()} == {True}


def test_it_begins_with_the_features_of_its_base(base: Path) -> None:
    model = load_model(base)
    objective = build(replace(PLAIN, init=str(base)), TEACHER).eval()
    pixels = batch_of(3).images
    images = model.preprocess.normalise(pixels)
    with torch.no_grad():
        tokens = objective.net.forward_features(images)
        pooled = objective.net.pool(tokens)
        last = Tap(TEACHER.depth, "block")
        expected = taps(model.vit, images, [last])[last]
    torch.testing.assert_close(tokens, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(pooled, expected[:, 1:].mean(1), atol=1e-6, rtol=0)
    # zoo.features reads behind the base's own norm, which is dropped here.
    told = zoo.features(str(base), images, pooling="tokens")
    torch.testing.assert_close(model.vit.norm(tokens), told, atol=1e-6, rtol=0)
    assert "norm.weight" not in objective.net.state_dict()


def test_the_head_is_new(base: Path) -> None:
    net = begin(TEACHER, load_model(base), 1000, seed=0)
    assert tuple(net.head.weight.shape) == (1000, 48)  # type: ignore[union-attr]
    assert net.head.weight.std().item() == pytest.approx(2e-5, rel=0.02)  # type: ignore[operator]
    assert net.head.weight.abs().max() < 1.2e-4  # type: ignore[operator]
    assert not net.head.bias.any()  # type: ignore[operator]
    assert torch.equal(net.fc_norm.weight, torch.ones(48))  # type: ignore[arg-type]
    assert net.fc_norm.eps == 1e-6
    other = begin(TEACHER, load_model(base), 1000, seed=1)
    assert not torch.equal(net.head.weight, other.head.weight)  # type: ignore[arg-type]


def test_without_a_base_it_begins_as_pre_training_does() -> None:
    net, fresh = (
        begin(STUDENT, None, 7, seed=3).state_dict(),
        build_vit(STUDENT, seed=3).state_dict(),
    )
    assert [n for n in fresh if n not in net] == ["norm.weight", "norm.bias"]
    assert all(torch.equal(net[n], fresh[n]) for n in fresh if n in net)


def test_fresh_parameters_are_drawn_anew(tmp_path: Path) -> None:
    """What TinyMIM's export made an identity is a block again; nothing else is touched."""
    fresh = [
        f"blocks.1.{p}.{k}"
        for p in ("attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
        for k in ("weight", "bias")
    ]
    weights = dict(build_vit(TEACHER, seed=0).state_dict())
    for name in fresh:
        weights[name] = torch.full_like(
            weights[name], 0.0 if "proj" in name or "fc2" in name else 9
        )
    card = Card(
        name="m",
        method="tinymim",
        heads=6,
        last_trained_block=1,
        fresh_parameters=[*fresh, "norm.weight", "norm.bias"],
    )
    save_model(tmp_path / "m", TEACHER, weights, card)
    net = begin(TEACHER, load_model(tmp_path / "m"), 7, seed=0).state_dict()
    for name in fresh:
        if name.endswith("bias"):
            assert not net[name].any()
        elif "norm2" in name:
            assert torch.equal(net[name], torch.ones_like(net[name]))
        else:
            assert net[name].std().item() == pytest.approx(0.02, rel=0.05)
    kept = [n for n in net if n not in {*fresh, *HEAD}]
    assert all(torch.equal(net[n], weights[n]) for n in kept)
    again = begin(TEACHER, load_model(tmp_path / "m"), 7, seed=0).state_dict()
    assert all(torch.equal(net[n], again[n]) for n in net)


def test_a_base_of_other_statistics_sees_what_it_saw(tmp_path: Path) -> None:
    folder = make_timm(
        tmp_path / "m",
        "vit_tiny_patch16_224",
        img_size=32,
        patch_size=8,
        embed_dim=24,
        depth=1,
        num_heads=3,
        num_classes=0,
    )
    model = load_model(folder)
    assert (model.preprocess.mean, model.preprocess.std) != (IMAGENET_MEAN, IMAGENET_STD)
    net = begin(model.config, model, 7, seed=0).eval()
    pixels = batch_of(2).images
    last = Tap(1, "block")
    with torch.no_grad():
        expected = taps(model.vit, model.preprocess.normalise(pixels), [last])[last]
        found = net.forward_features(Preprocess(image_size=32).normalise(pixels))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_positions_are_resampled_as_load_model_does(base: Path) -> None:
    larger = replace(TEACHER, image_size=48)
    net = begin(larger, read_base(str(base), larger), 7, seed=0)
    assert torch.equal(net.pos_embed, load_model(base, image_size=48).vit.pos_embed)  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [{"width": 96}, {"depth": 3}, {"heads": 3}, {"patch": 16}])
def test_a_base_of_another_size_is_refused(base: Path, change: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="not of the recipe's size") as caught:
        read_base(str(base), replace(TEACHER, **change))
    ((key, _),) = change.items()
    assert f"student.{key}={getattr(TEACHER, key)}" in caught.value.fix


def test_without_mixing_the_loss_is_label_smoothings() -> None:
    for smoothing in (0.0, 0.1):
        objective = build(replace(PLAIN, smoothing=smoothing))
        batch = batch_of(5)
        assert batch.labels is not None
        logits = objective.logits(objective.preprocess.normalise(batch.images))
        expected = LabelSmoothingCrossEntropy(smoothing)(logits, batch.labels)
        torch.testing.assert_close(objective(batch)["total"], expected)


MIXED = replace(PLAIN, mixup=0.8, cutmix=1.0, smoothing=0.1, erase=0.25, drop_path=0.2)


def varied(step: int, method: Finetune = MIXED, size: int = 8) -> tuple[Tensor, Tensor]:
    seed_step(0, step, WORLD)
    return build(method)._vary(batch_of(size))  # type: ignore


def test_mixing_is_a_function_of_seed_and_step_alone() -> None:
    again = [varied(step) for step in (0, 1, 0)]
    assert torch.equal(again[0][0], again[2][0])
    assert torch.equal(again[0][1], again[2][1])
    assert not torch.equal(again[0][0], again[1][0])


def test_targets_are_shares_and_images_are_blended_or_pasted() -> None:
    """λ of the image, 1 - λ of its partner from the batch's other end, smoothing folded in."""
    batch, clean = batch_of(8), Preprocess(image_size=32).normalise(batch_of(8).images)
    assert batch.labels is not None
    kinds = set()
    for step in range(12):
        images, targets = varied(step, replace(MIXED, erase=0.0, smoothing=0.0))
        torch.testing.assert_close(targets.sum(1), torch.ones(8))
        label, partner = batch.labels, batch.labels.flip(0)
        row = int((label != partner).nonzero()[0])
        share = targets[row, label[row]].item()
        blended = share * clean + (1 - share) * clean.flip(0)
        pasted = ((images == clean) | (images == clean.flip(0))).all()
        assert pasted or torch.allclose(images, blended, atol=1e-5)
        if pasted:
            own = (images == clean).all(1).float().mean((1, 2))
            assert own[row].item() == pytest.approx(share, abs=0.02)
        kinds.add(bool(pasted))
    assert kinds == {True, False}


def test_erasing_puts_noise_into_some_images() -> None:
    clean = Preprocess(image_size=32).normalise(batch_of(64).images)
    images, _ = varied(0, replace(PLAIN, erase=0.5), 64)
    changed = (images != clean).flatten(1).any(1)
    assert 20 <= int(changed.sum()) <= 44
    hole = (images != clean).any(1)[changed].float().mean((1, 2))
    assert hole.min() > 0.01
    assert hole.max() < 0.4


def test_drop_path_grows_over_depth() -> None:
    blocks = build(MIXED).net.blocks
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2])


def test_two_steps_give_the_losses_they_gave() -> None:
    """The reference values were computed on a CPU in fp32."""
    objective = build(MIXED)
    # As it begins, the head is so small that every loss is the logarithm of the classes.
    generator = torch.Generator().manual_seed(0)
    nn.init.normal_(objective.net.get_parameter("head.weight"), generator=generator)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-2)
    losses = []
    for step in range(2):
        seed_step(0, step, WORLD)
        loss = objective(batch_of(8, seed=step))["total"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses == pytest.approx([6.3702588, 12.8478909], abs=1e-3)


def test_every_parameter_learns() -> None:
    objective = build()
    nn.init.normal_(objective.net.get_parameter("head.weight"))
    objective(batch_of(8))["total"].backward()
    still = [n for n, p in objective.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []  # the class token too: by way of attention


def test_halves_do_not_reach_the_head() -> None:
    objective = build().eval()
    images = torch.randn(4, 3, 32, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert objective.net(images).dtype == torch.bfloat16  # as timm has it
        assert objective.logits(images).dtype == torch.float32
