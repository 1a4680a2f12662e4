"""Secrets and absolute paths are found, and ordinary text is left alone."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from zoo.leaks import paths_in, portable, secrets_in, texts_of

SECRETS = [
    "hf_" + "a1B2" * 8,
    "ghp_" + "a1B2" * 9,
    "github_pat_" + "a1B2" * 9,
    "glpat-" + "a1B2" * 5,
    "AKIA" + "A1B2" * 4,
    "AIza" + "a1B2_" * 7,
    "sk-" + "a1B2" * 8,
    "sk-ant-api03-" + "a1B2" * 8,
    "xoxb-1234567890-abcdef",
    "pypi-" + "a1B2" * 15,
    "rk_live_" + "a1B2" * 5,
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl",
    "-----BEGIN RSA PRIVATE KEY-----",
    "-----BEGIN PRIVATE KEY-----",
    "https://alice:hunter2@example.org/x",
    'password = "correct horse"',
    "API_KEY=0123456789abcdef",
    "WANDB_API_KEY=0123456789abcdef",
    "DB_PASSWORD=hunter2222",
    "AWS_SECRET_ACCESS_KEY=abc/DEF+0123456789",
    "CLIENT_SECRET: abc123def456",
    "_hf_" + "a1B2" * 8,
    "HTTPS://alice:hunter2@example.org",
    "postgres://:hunter2222@db/x",
    "https://0123456789abcdef@example.org/x",
]


@pytest.mark.parametrize("secret", SECRETS)
def test_a_secret_is_found_and_not_repeated(secret: str) -> None:
    found = list(secrets_in(f"# A model\n\nuse {secret} here"))
    assert [line for line, _ in found] == [3]
    assert secret not in str(found)


def test_the_publishers_own_token_is_found_whatever_it_looks_like() -> None:
    assert list(secrets_in("x\nmy-odd-token-1", own="my-odd-token-1")) == [(2, "your token")]


ORDINARY = [
    "sha256 2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881",
    "hf-hub:me/name, hf_hub, HF_TOKEN, a token of an image",
    "class token first; tokens: 197; relation heads",
    "https://arxiv.org/abs/2301.01296 and http://www.apache.org/licenses/LICENSE-2.0",
    "ViT-T/16, km/h, and/or, train/val, 1/2, runs/demo/export, models/x.safetensors",
    "(B, C, H, W) / 255, a ratio of 3:4, C: and D:",
    "Linux-6.18.44-fc-v595-x86_64-with-glibc2.36",
    "~5 M parameters, ~0.7/epoch",
    "![curve](images/curve.png) [zoo.json](zoo.json)",
    "folder:train",
    "use `~/.cache/huggingface`, /path/to/imagenet, /dev/null; #!/usr/bin/env python",
    "the secret: attention is everything; no password: none needed",
    "hf_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx, https://user:password@host/, https://me@host",
    "sk-learn-compatible-estimators-and-more",
    '<image href="data:image/png;base64,iVBORw0KGgo+/abc/def/ghi+/jkl/mno=="/>',
    "a formula: $$\\hline\\alpha$$",
]


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_holds_neither(text: str) -> None:
    assert list(secrets_in(text)) == []
    assert list(paths_in(text)) == []


PATHS = [
    "/home/alice/data",
    "/data/imagenet/train",
    "C:\\Users\\alice\\data",
    "C:/Users/alice",
    "\\\\server\\share\\x",
    "~/data/x",
    "~alice/data",
    "file:///home/alice/x.md",
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "around", ["{}", "see {}", '"{}"', "(`{}`)", "folder:{}", "x={}", "[a]({})"]
)
def test_an_absolute_path_is_found(path: str, around: str) -> None:
    assert [line for line, _ in paths_in("first\n" + around.format(path))] == [2]
    # As JSON writes it, too.
    assert list(paths_in(json.dumps({"source": around.format(path)})))


def test_a_recipe_keeps_the_last_part_of_a_path() -> None:
    recipe = {
        "data.source": "folder:/home/alice/imagenette/train",
        "spaces": "folder:/home/alice smith/photos/train set",
        "windows": "C:\\Users\\alice smith\\runs\\mae",
        "home": "/home/alice",
        "data.crop_scale": [0.2, 1.0],
        "more": {"places": ["/a/b/c", "plain", "see /a/b/c and x"]},
        "training.seed": 0,
    }
    assert portable(recipe) == {
        "data.source": "folder:train",
        "spaces": "folder:train set",
        "windows": "mae",
        "home": "…",
        "data.crop_scale": [0.2, 1.0],
        "more": {"places": ["c", "plain", "see c and x"]},
        "training.seed": 0,
    }


@given(st.text(max_size=200))
def test_what_is_portable_holds_no_path(text: str) -> None:
    assert list(paths_in(portable({"key": text})["key"])) == []


def test_every_string_of_a_json_file_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"k\nhf_x": ["first\n/home/alice/x", {"b": "c"}]}))
    texts = list(texts_of(tmp_path / "a.json"))[1:]
    assert texts == ["k\nhf_x", "first\n/home/alice/x", "b", "c"]
    assert [path for text in texts for _, path in paths_in(text)] == ["/home/alice/x"]


def test_the_words_of_a_png_are_looked_at(tmp_path: Path) -> None:
    words = PngInfo()
    words.add_text("Source", "/home/alice/figure.py")
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png", pnginfo=words)
    assert [path for text in texts_of(tmp_path / "a.png") for _, path in paths_in(text)] == [
        "/home/alice/figure.py"
    ]
    Image.new("RGB", (2, 2)).save(tmp_path / "b.png")
    assert list(texts_of(tmp_path / "b.png")) == []


def hidden(folder: Path) -> Iterator[Path]:
    """Files whose words are not to be had in the usual way."""
    (folder / "utf16.txt").write_text("hf_secret", encoding="utf-16")
    (folder / "nul.md").write_bytes(b"a\0b")
    (folder / "latin.txt").write_bytes(b"\xe9t\xe9")
    (folder / "no.png").write_bytes(b"/home/alice/x")
    compressed = PngInfo()
    compressed.add_text("Source", "/home/alice/x", zip=True)
    Image.new("RGB", (2, 2)).save(folder / "zip.png", pnginfo=compressed)
    Image.new("RGB", (2, 2)).save(folder / "tail.png")
    with (folder / "tail.png").open("ab") as file:
        file.write(b"/home/alice/x")
    yield from sorted(folder.iterdir())


def test_words_that_are_hidden_are_refused(tmp_path: Path) -> None:
    for file in hidden(tmp_path):
        with pytest.raises(ValueError):
            list(texts_of(file))
