"""What the tests of segmentation share: a model, drawn streets, one finished run."""

from pathlib import Path

import pytest
from runs import zoo
from segruns import Trained, command, result_in
from streets import make_streets, make_student

from zoo.errors import Exit


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_student(tmp_path_factory.mktemp("models") / "student")


@pytest.fixture(scope="module")
def streets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    counts = {"training": 6, "validation": 3, "testing": 2}
    return make_streets(tmp_path_factory.mktemp("data") / "streets", counts)


@pytest.fixture(scope="module")
def trained(model: Path, streets: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    place = tmp_path_factory.mktemp("trained")
    run, out = place / "run", place / "results"
    assert zoo(command(model, streets, "--run", str(run), "--out", str(out))) == Exit.DONE
    return Trained(run=run, out=out, answer=result_in(out))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty current folder, and a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
