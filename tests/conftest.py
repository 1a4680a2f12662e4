"""What every test stands on: no network, one thread, caches and settings of its own."""

import os
import resource
import signal
from collections.abc import Iterator

# Before anything imports the Hub client, which reads it once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.pop("ZOO_NAMESPACE", None)

from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from hypothesis import settings as hypothesis_settings
from photos import make_photos

import zoo.settings

# Machines are shared: how long an example took says nothing of it.
hypothesis_settings.register_profile("shared", deadline=None)
hypothesis_settings.load_profile("shared")


@pytest.fixture(scope="session", autouse=True)
def _own_caches(tmp_path_factory: pytest.TempPathFactory) -> None:
    cache = tmp_path_factory.mktemp("cache")
    os.environ["XDG_CACHE_HOME"] = str(cache)
    os.environ["XDG_CONFIG_HOME"] = str(tmp_path_factory.mktemp("config"))
    os.environ["HF_HOME"] = str(cache / "huggingface")
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 small JPEGs in three class folders."""
    return make_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of the user's settings, empty; the current directory is empty too."""
    folder, here = tmp_path / "settings", tmp_path / "here"
    folder.mkdir()
    here.mkdir()
    monkeypatch.setattr(zoo.settings, "user_config_path", lambda _: folder)
    monkeypatch.delenv("ZOO_NAMESPACE", raising=False)
    monkeypatch.chdir(here)
    return folder


@pytest.fixture
def token_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where the Hub client looks for its token; not there yet."""
    file = tmp_path / "home" / "token"
    file.parent.mkdir()
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(file))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(file.with_name("stored_tokens")))
    return file


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What tests of many trials have counted, a line each."""
    for report in terminalreporter.getreports("passed"):
        for name, line in report.user_properties:
            if name == "figures" and report.when == "call":
                place = report.nodeid.rpartition("::")[2]
                terminalreporter.write_line(f"{place}: {line} ({report.duration:.0f} s)")


@pytest.fixture
def full_disk() -> Iterator[int]:
    """No file may grow beyond this many bytes."""
    earlier = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    # Above what pytest itself may have written to a file by now.
    limit = 8 * 2**20
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, earlier[1]))
    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, earlier)
    signal.signal(signal.SIGXFSZ, handler)
