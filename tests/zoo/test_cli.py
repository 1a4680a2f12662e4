"""The front door: exit codes, helpful refusals, and a quick --help."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

import pretrain.recipe
import zoo.cli
from pretrain.recipe import list_recipes
from zoo.errors import DataError, Exit, IntegrityError

VERBS = list(get_command(zoo.cli.app).commands)  # type: ignore[attr-defined]


def code_of(*words: str) -> int:
    """The exit code of a command."""
    with pytest.raises(SystemExit) as caught:
        zoo.cli.main(list(words))
    return int(caught.value.code or 0)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(verb, "--help") == 0
    assert code_of("--help") == 0
    shown = capsys.readouterr().out
    assert verb in shown
    assert "--json" in shown


USAGE = {
    "no verb": ([], "zoo --help"),
    "unknown verb": (["pertrain"], "pretrain"),
    "unknown option": (["pretrain", "--nprocs", "2"], "--nproc"),
    "no recipe": (["pretrain"], "which recipe?"),
    "unknown recipe": (["pretrain", "tinymim-vit-z"], "did you mean 'tinymim-vit-"),
    "unknown key": (
        ["pretrain", "mae-vit-t", "training.epoch=1", "--show"],
        "epochs'?)",
    ),
    "key of a leaf": (["pretrain", "mae-vit-t", "training.epochs.a=1", "--show"], "has no parts"),
    "no equals sign": (["pretrain", "mae-vit-t", "training.epochs", "--show"], "key.path=value"),
    "wrong type": (["pretrain", "mae-vit-t", "training.epochs=many", "--show"], "training.epochs"),
    "wrong number": (["pretrain", "mae-vit-t", "--nproc", "0"], "nproc"),
    "no data": (["eval", "somewhere", "knn"], "--data"),
    "a name no folder can have": (["eval", "x" * 300, "knn", "--data", "."], "no model of this"),
    "the same, verified": (["verify", "x" * 300], "no model of this name"),
    "the same, pushed": (["push", "x" * 300, "--repo", "me/x"], "no run and no model folder"),
    "nobody's home": (["verify", "~nobody-of-this-name/x"], "no model"),
    "no model": (["eval", "./nowhere", "knn", "--data", "."], "no model of this name"),
}


@pytest.mark.parametrize(("words", "hint"), USAGE.values(), ids=USAGE.keys())
def test_wrong_usage_is_refused_with_a_hint(
    words: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code_of(*words) == Exit.USAGE
    shown = capsys.readouterr()
    assert hint in shown.err
    assert "Traceback" not in shown.err
    assert not shown.out


def test_an_error_as_json_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["pretrain", "nothing", "--json"], ["pretrain", "--wrong", "--json"]):
        assert code_of(*words) == Exit.USAGE
        error = json.loads(capsys.readouterr().out)
        assert error["code"] == 2
        assert error.keys() == {"code", "error", "where", "fix"}
        assert error["error"]


def test_list_shows_every_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of("pretrain", "--list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list_recipes()
    assert code_of("pretrain", "--list", "--json") == 0
    summaries = json.loads(capsys.readouterr().out)
    assert list(summaries) == list_recipes()
    assert all(summaries.values())


def test_show_prints_the_recipe_as_it_would_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert code_of("pretrain", "mae-vit-t", "training.epochs=7", "--show", "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["training.epochs"] == 7
    assert record["student.width"] == 192
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DataError("what", where="here", fix="this"), 3),
        (IntegrityError("what", where="here", fix="this"), 4),
        (KeyError("a bug\nof ours"), 1),
    ],
    ids=["data", "integrity", "bug"],
)
def test_errors_become_exit_codes(
    error: Exception,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(pretrain.recipe, "summaries", fail)
    assert code_of("pretrain", "--list") == code
    shown = capsys.readouterr().err
    assert shown.startswith("error: ")
    assert len(shown.splitlines()) == 3
    assert "where: " in shown
    assert "to do: " in shown
    assert code_of("pretrain", "--list", "--debug") == code
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pretrain.recipe, "summaries", interrupt)
    assert code_of("pretrain", "--list") == Exit.INTERRUPTED
    assert capsys.readouterr().err == "interrupted\n"


def test_a_broken_pipe_is_quiet() -> None:
    child = os.fork()
    if child == 0:
        read, write = os.pipe()
        os.close(read)
        os.dup2(write, 1)
        errors = os.memfd_create("stderr")
        os.dup2(errors, 2)
        with os.fdopen(1, "w", closefd=False) as sys.stdout:
            try:
                zoo.cli.main(["pretrain", "--list"])
            except SystemExit as stop:
                said = os.pread(errors, 100, 0)
                os._exit(99 if said else int(stop.code or 0))
        os._exit(98)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 141


def test_help_waits_for_nothing_heavy() -> None:
    program = (
        "import sys, zoo, zoo.cli\n"
        "try: zoo.cli.main(['--help'])\n"
        "except SystemExit as stop: assert not stop.code\n"
        "heavy = {'torch', 'numpy', 'timm', 'huggingface_hub', 'pydantic'} & sys.modules.keys()\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "pretrain" in done.stdout
