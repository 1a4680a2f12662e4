"""``zoo list`` and ``zoo info``: what they show, leave out and refuse."""

import ast
import json
import math
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import zoo.cli
from zoo import info, listing
from zoo.catalog import Catalog, load_catalog
from zoo.entry import METRICS, Entry, Figure, Hosted, Licenses
from zoo.errors import Exit, UsageError
from zoo.listing import SORTS, TASKS, WIDTH, parse_count, select

SHIPPED = load_catalog()
MINE = replace(
    SHIPPED.models["tinymim-vit-t"],
    name="a-model-of-mine-whose-name-is-as-long-as-a-name-can-be-" + 45 * "x",
    parameters=123_456_789_012,
    gflops=12345.678,
    teacher=None,
    licenses=Licenses(code="GPL-3.0", weights="a licence of which the name is rather long"),
    figures=(),
    measured=(Figure(metric="top1", value=70, source="in1k-finetune@1", note="10 epochs"),),
    hosted=Hosted(repository="me/mine", commit="a" * 40),
)


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    with pytest.raises(SystemExit) as caught:
        zoo.cli.main(list(words))
    shown = capsys.readouterr()
    return int(caught.value.code or 0), shown.out, shown.err


def names(entries: list[Entry]) -> list[str]:
    return [entry.name for entry in entries]


def with_mine(*entries: Entry) -> Catalog:
    return Catalog(models={**SHIPPED.models, **{e.name: e for e in entries}})


@pytest.mark.usefixtures("settings")
def test_the_table_has_every_model_and_fits(capsys: pytest.CaptureFixture[str]) -> None:
    code, shown, errors = run(capsys, "list")
    assert (code, errors) == (0, "")
    table = shown.partition("\n\n")[0].splitlines()
    assert [line.split()[0] for line in table[1:]] == sorted(SHIPPED.models)
    assert max(map(len, shown.splitlines())) <= WIDTH
    row = next(line.split() for line in table if line.startswith("tinymim-vit-s "))
    assert row[1:] == ["21.7", "M", "9.2", "83.0", "48.4", "27.5", "48.8", "35.8", "recipe", "–"]


def test_a_table_with_anything_in_it_fits() -> None:
    shown = listing.text(select(with_mine(MINE)))
    assert max(map(len, shown.splitlines())) <= WIDTH
    row = next(line for line in shown.splitlines() if line.startswith("a-model"))
    assert "…" in row
    assert "70.0*" in row
    plain = replace(MINE, measured=(Figure(metric="top1", value=70, source="in1k-finetune@1"),))
    shown = listing.text(select(with_mine(plain)))
    assert "70.0+" in shown
    assert "+ measured by us" in shown
    assert "+ measured by us" not in listing.text(select(SHIPPED))
    assert "no model" in listing.text([])


@pytest.mark.parametrize("key", SORTS)
def test_sorted_with_missing_values_last(key: str) -> None:
    found = select(with_mine(MINE, replace(MINE, name="no-flops", gflops=None)), sort=key)
    assert len(found) == len(SHIPPED.models) + 2
    if key == "name":
        assert names(found) == sorted(names(found))
        return
    if key in ("params", "gflops"):
        values = [e.parameters if key == "params" else e.gflops for e in found]
    else:
        sign = 1 if METRICS[key].low_is_good else -1
        values = [(f := e.headline(key)) and sign * f.value for e in found]
    numbers = [math.inf if value is None else value for value in values]
    assert numbers == sorted(numbers)
    assert len(set(numbers)) > 4


def test_the_best_come_first() -> None:
    assert names(select(SHIPPED, sort="top1"))[:3] == [
        "img2vec-vit-l",
        "mae-vit-l",
        "img2vec-vit-b",
    ]
    assert names(select(SHIPPED, sort="c"))[0] == "tinymim-vit-b"
    assert names(select(SHIPPED, sort="params"))[0] == "img2vec-vit-t"


def test_filters() -> None:
    features = select(SHIPPED, task="features")
    assert names(features) == ["dino-rn50", "mae-vit-b", "mae-vit-l"]
    assert "mae-vit-l" not in names(select(SHIPPED, task="segmentation"))
    assert len(select(SHIPPED, task="classification")) == 10
    assert {e.vit.width for e in select(SHIPPED, max_params="5.7e6") if e.vit} == {192}
    assert len(select(SHIPPED, max_params="30M")) == 8
    assert names(select(SHIPPED, state="hosted")) == ["mae-vit-b", "mae-vit-l"]
    both = select(SHIPPED, state="recipe", max_params="30M", sort="top1", task="classification")
    assert names(both) == ["tinymim-vit-s", "mae-vit-s", "tinymim-vit-t", "mae-vit-t"]


def test_the_licence_is_asked_of_every_ancestor() -> None:
    assert names(select(SHIPPED, terms="apache")) == [
        "dino-rn50",
        *(f"img2vec-vit-{size}" for size in "blst"),
        "mae-vit-s",
        "mae-vit-t",
    ]
    assert names(select(SHIPPED, terms="cc-by-NC")) == ["mae-vit-b", "mae-vit-l"]
    assert select(SHIPPED, terms="MIT") == []


COUNTS = {"30M": 3e7, "5.7e6": 5.7e6, "30000000": 3e7, "86m": 8.6e7, "900k": 9e5, "1.2G": 1.2e9}


@pytest.mark.parametrize(("text", "number"), COUNTS.items())
def test_counts(text: str, number: float) -> None:
    assert parse_count(text) == pytest.approx(number)


@pytest.mark.parametrize("text", ["", "M", "30 M", "-1", "nan", "inf", "3x", "1e999", "1_000"])
def test_what_is_no_count(text: str) -> None:
    with pytest.raises(UsageError, match="not a number of parameters"):
        parse_count(text)


WRONG = {
    "sort": (["--sort", "tpo1"], "did you mean 'top1'?"),
    "task": (["--task", "detection"], "classification, segmentation, features"),
    "state": (["--state", "host"], "did you mean 'hosted'?"),
    "params": (["--max-params", "many"], "30M"),
}


@pytest.mark.usefixtures("settings")
@pytest.mark.parametrize(("words", "hint"), WRONG.values(), ids=WRONG.keys())
def test_wrong_filters_are_refused(
    words: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, shown, errors = run(capsys, "list", *words)
    assert (code, shown) == (Exit.USAGE, "")
    assert hint in errors


BROKEN = {
    "half an entry": "format = 1\n[models.mine]\ntitle = 'Mine'\n",
    "half a file": "format = 1\n[models.mine",
    "a foreign file": "[tool.ruff]\n",
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN.keys())
def test_what_is_broken_is_skipped_with_a_note(
    text: str, settings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = settings / "catalog.toml"
    file.write_text(text)
    code, shown, errors = run(capsys, "list")
    assert code == 0
    assert shown.splitlines()[:14] == listing.text(select(SHIPPED)).splitlines()[:14]
    assert errors.startswith(f"skipped: {file}: ")
    assert len(errors.splitlines()) == 1
    code, shown, _ = run(capsys, "list", "--json")
    assert code == 0
    assert json.loads(shown)["skipped"] == [errors.removeprefix("skipped: ").strip()]


def test_ten_thousand_models(settings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entry = """
[models.m{n}]
title = "M"
method = "mae"
paper = "none"
vit = {{width = 192, depth = 12, heads = 3}}
parameters = {n}
licenses = {{code = "MIT"}}
recipe = "mae-vit-t"
"""
    text = "format = 1\n" + "".join(entry.format(n=n) for n in range(1, 10_001))
    (settings / "catalog.toml").write_text(text)
    start = time.process_time()
    code, shown, errors = run(capsys, "list", "--sort", "params")
    assert time.process_time() - start < 30  # some 3 s on an idle core; most of it reads TOML
    assert (code, errors) == (0, "")
    assert shown.splitlines()[10_000].startswith("m10000 ")


@pytest.mark.usefixtures("settings")
def test_list_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    code, shown, _ = run(capsys, "list", "--json", "--sort", "params", "--max-params", "6M")
    found = json.loads(shown)
    assert code == 0
    assert found["skipped"] == []
    assert [m["name"] for m in found["models"]][-1] == "tinymim-vit-t-star"
    assert found["models"][0]["vit"]["heads"] == 3


@pytest.mark.usefixtures("settings")
def test_the_docs_show_it_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "catalog.md").read_text()
    command, _, shown = page.partition("\n$ zoo ")[2].partition("```")[0].partition("\n")
    assert run(capsys, *command.split())[1] == shown


# ---- info


@pytest.mark.usefixtures("settings")
@pytest.mark.parametrize("entry", SHIPPED.models.values(), ids=lambda entry: entry.name)
def test_a_page_says_all_and_fits(entry: Entry, capsys: pytest.CaptureFixture[str]) -> None:
    code, page, errors = run(capsys, "info", entry.name)
    assert (code, errors) == (0, "")
    assert max(map(len, page.splitlines())) <= WIDTH
    said = " ".join(page.split())
    assert f"{entry.parameters:,}" in said
    for ancestor in SHIPPED.lineage(entry):
        assert f"{ancestor.name} code {ancestor.licenses.code}, weights" in said
    for figure in entry.figures:
        assert f"{METRICS[figure.metric].title}" in said
        assert f"{figure.value:.1f}" in said
        assert figure.source in said
        assert (figure.note or "") in said
    assert "not measured" in said
    for way in info.ways(entry):
        assert way.command in said
    code, shown, _ = run(capsys, "info", entry.name, "--json")
    found = json.loads(shown)
    assert code == 0
    assert [e["name"] for e in found["lineage"]] == [e.name for e in SHIPPED.lineage(entry)]
    assert found["measured"] == []
    assert len(found["figures"]) == len(entry.figures)
    for lines in found["load"].values():
        assert len(lines) == 3
        ast.parse("\n".join(lines))
        assert all(f"  {line}" in page for line in lines)


@pytest.mark.usefixtures("settings")
def test_how_to_get_and_load_by_state(monkeypatch: pytest.MonkeyPatch) -> None:
    def told(name: str) -> str:
        return info.text(SHIPPED, name).partition("How to get it")[2]

    assert "timm/vit_large_patch16_224.mae (not pinned)" in told("mae-vit-l")
    assert '"hf-hub:timm/vit_large_patch16_224.mae"' in told("mae-vit-l")
    assert "zoo import dino_resnet50_pretrain.pth --as dino-rn50" in told("dino-rn50")
    assert '"local-dir:models/dino-rn50"' in told("dino-rn50")
    assert "zoo pull" not in told("dino-rn50")
    assert "once a namespace is set (ZOO_NAMESPACE)" in told("tinymim-vit-s")
    assert '"local-dir:runs/tinymim-vit-s/export"' in told("tinymim-vit-s")
    monkeypatch.setenv("ZOO_NAMESPACE", "org")
    assert "from org/tinymim-vit-s" in told("tinymim-vit-s")
    assert '"hf-hub:org/tinymim-vit-s"' in told("tinymim-vit-s")
    assert 'zoo.load("tinymim-vit-s")' in told("tinymim-vit-s")
    assert told("dino-rn50") == info.text(SHIPPED, "dino-rn50").partition("How to get it")[2]


def test_our_figures_stand_beside_the_papers() -> None:
    measured = (
        Figure(metric="top1", value=75.2, source="in1k-finetune@1"),
        Figure(metric="knn", value=60.1, source="in1k-knn@1", note="pooling mean"),
    )
    entry = replace(SHIPPED.models["tinymim-vit-t"], measured=measured)
    page = info.text(with_mine(entry), entry.name)
    scores = page.partition("Scores\n")[2].partition("\n\n")[0].splitlines()
    assert scores[1].split()[-5:] == ["75.8", "%", "TinyMIM", "Table", "3"]
    assert scores[2].split()[-3:] == ["75.2", "%", "in1k-finetune@1"]
    assert "not measured" not in scores[1]
    assert "not measured" in scores[3]
    assert scores[-2].split()[-4:] == ["–", "60.1", "%", "in1k-knn@1"]
    assert scores[-1].strip() == "pooling mean"
    long = replace(measured[1], source="somewhere " * 30 + "else")
    page = info.text(with_mine(replace(entry, measured=(long,))), entry.name)
    assert max(map(len, page.splitlines())) <= WIDTH
    assert "somewhere else: pooling mean" in " ".join(page.split())
    pinned = info.text(with_mine(MINE), MINE.name)
    assert f"me/mine at {12 * 'a'} (no sha256 of its files)" in pinned
    assert f"hf-hub:me/mine@{40 * 'a'}" in pinned


@pytest.mark.usefixtures("settings")
@pytest.mark.parametrize(
    ("name", "hint"),
    [("tinymin-vit-s", "'tinymim-vit-s'"), ("MAE-ViT-L", "'mae-vit-l'"), ("../x", "zoo list")],
)
def test_an_unknown_name_is_refused(
    name: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, shown, errors = run(capsys, "info", name)
    assert (code, shown) == (Exit.USAGE, "")
    assert hint in errors


def test_a_broken_entry_is_no_page(settings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (settings / "catalog.toml").write_text("format = 1\n[models.mine]\ntitle = 'Mine'\n")
    assert run(capsys, "info", "mae-vit-l")[0] == 0
    code, _, errors = run(capsys, "info", "mine")
    assert code == Exit.USAGE
    assert f"{settings / 'catalog.toml'}: models.mine." in errors


@pytest.mark.parametrize("verb", ["list", "info"])
def test_help_names_every_choice(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, shown, _ = run(capsys, verb, "--help")
    assert code == 0
    words = shown.replace(",", " ").replace(".", " ").split()
    assert "--json" in words
    if verb == "list":
        assert {*SORTS, *TASKS} <= set(words)


@pytest.mark.parametrize("words", [["list"], ["info", "mae-vit-l"]], ids=["list", "info"])
def test_nothing_heavy_is_waited_for(words: list[str]) -> None:
    program = (
        "import sys, zoo, zoo.cli\n"
        f"try: zoo.cli.main({words})\n"
        "except SystemExit as stop: assert not stop.code\n"
        "heavy = {'torch', 'numpy', 'timm', 'huggingface_hub', 'rich'} & sys.modules.keys()\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "mae-vit-l" in done.stdout
