"""The verb zoo serve: what it says, what it refuses, and how it ends."""

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from models import make_model

import zoo.cli
from zoo.errors import Exit, UsageError
from zoo.server.start import Served, Server

TOKEN = "hf_canary0123456789"


@pytest.fixture
def served(tmp_path: Path) -> Path:
    make_model(tmp_path / "served" / "org" / "tiny")
    return tmp_path / "served"


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZOO_SERVE_TOKEN", raising=False)


def refused(folder: Path, **options: object) -> UsageError:
    with pytest.raises(UsageError) as caught:
        Server(folder, port=0, **options)  # type: ignore[arg-type]
    return caught.value


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "zoo", "serve", str(folder), "--port", "0", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def lines_until(process: subprocess.Popen[str], last: str) -> Iterator[str]:
    assert process.stdout is not None
    for line in process.stdout:
        yield line
        if line.startswith(last):
            return


def status_for(endpoint: str, host: str) -> int:
    connection = HTTPConnection(endpoint.removeprefix("http://"), timeout=10)
    connection.request("GET", "/api/models", headers={"Host": host})
    try:
        return connection.getresponse().status
    finally:
        connection.close()


def test_from_start_to_stop(served: Path, tmp_path: Path) -> None:
    server = start(served, "--verbose")
    try:
        said = "".join(lines_until(server, "stop:"))
        endpoint = re.findall(r"export HF_ENDPOINT=(http://127\.0\.0\.1:\d+)", said)[0]
        assert "org/tiny" in said
        assert status_for(endpoint, "page.example") == 400
        token = (served / ".zoo-serve" / "token").read_text().strip()
        environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0"}
        environment |= {"HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": token}
        pulled = subprocess.run(
            [sys.executable, "-m", "zoo", "pull", "org/tiny", "--json"],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert pulled.returncode == 0, pulled.stderr
        got = Path(json.loads(pulled.stdout)["folder"]) / "model.safetensors"
        assert got.read_bytes() == (served / "org" / "tiny" / "model.safetensors").read_bytes()
        server.send_signal(signal.SIGINT)
        rest, log = server.communicate(timeout=30)
    finally:
        server.kill()
        server.communicate()
    assert server.returncode == Exit.DONE
    line = r"^GET /org/tiny/resolve/[0-9a-f]{40}/model.safetensors 200 \d+ ms$"
    assert re.search(line, log, re.MULTILINE)
    assert token not in said + rest + log
    assert "Traceback" not in log


def test_a_scheduler_may_end_it(served: Path) -> None:
    server = start(served, "--json", "--host", "0.0.0.0")
    try:
        said = json.loads("".join(lines_until(server, "}")))
        assert status_for(said["endpoint"], said["elsewhere"].removeprefix("http://")) == 200
        with socket.create_connection(("127.0.0.1", int(said["endpoint"].rpartition(":")[2]))):
            server.terminate()
            rest, log = server.communicate(timeout=30)
    finally:
        server.kill()
        server.communicate()
    assert server.returncode == Exit.DONE
    assert rest + log == ""


def test_the_token_is_made_once_and_for_the_user_alone(served: Path) -> None:
    places = []
    for _ in range(2):
        server = Server(served, port=0)
        server.close()
        places.append(Path(server.served.token))
        assert places[0].read_text() == places[-1].read_text()
        assert places[0].read_text().strip() not in server.served.text()
    assert places[0] == served.resolve() / ".zoo-serve" / "token"
    assert stat.S_IMODE(places[0].stat().st_mode) == 0o600
    assert re.fullmatch(r"hf_[0-9a-f]{40}\n", places[0].read_text())


def test_the_token_may_come_from_elsewhere(
    served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOO_SERVE_TOKEN", TOKEN)
    server = Server(served, port=0)
    server.close()
    assert "ZOO_SERVE_TOKEN" in server.served.text()
    assert TOKEN not in server.served.text() + json.dumps(server.served.as_dict())
    assert not (served / ".zoo-serve" / "token").exists()
    own = tmp_path / "token"
    own.write_text("hf_of_a_file\n")
    server = Server(served, port=0, token_file=own)
    server.close()
    assert server.served.token == str(own)
    for text in ("", "short", "two words here", "línea-no-ascii"):
        own.write_text(text)
        error = refused(served, token_file=own)
        assert not text or text not in str(error)
    assert "cannot be read" in str(refused(served, token_file=tmp_path / "nowhere"))


@pytest.mark.parametrize("how", ["read", "written", "another user's", "a link"])
def test_a_token_that_others_may_know_is_refused(
    served: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    own = served / ".zoo-serve" / "token"
    own.parent.mkdir()
    own.write_text(TOKEN)
    own.chmod({"read": 0o640, "written": 0o602}.get(how, 0o600))
    if how == "another user's":
        give_away(own, monkeypatch)
    if how == "a link":
        own.symlink_to(own.rename(served / "elsewhere"))
    error = refused(served)
    assert error.where == str(own)
    assert TOKEN not in str(error)
    with pytest.raises(SystemExit) as stopped:
        zoo.cli.main(["serve", str(served), "--port", "0"])
    assert stopped.value.code == Exit.USAGE
    own.unlink()
    Server(served, port=0).close()
    assert TOKEN not in own.read_text()


def test_a_given_token_that_others_may_know_is_warned_of(
    served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "token"
    own.write_text(TOKEN)
    own.chmod(0o600)
    assert not _served(served, token_file=own).warnings
    own.chmod(0o644)
    assert re.search(r"warning: .*token: it has mode 644", _served(served, token_file=own).text())
    own.chmod(0o600)
    give_away(own, monkeypatch)
    assert "another user's" in _served(served, token_file=own).text()


def give_away(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() == 0:
        os.chown(file, 12345, -1)
    else:  # only root can; the others become somebody else
        monkeypatch.setattr(os, "geteuid", lambda: 12345)


def test_a_port_that_is_taken_is_refused_with_another_way(
    served: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(SystemExit) as stopped:
            zoo.cli.main(["serve", str(served), "--port", str(port)])
    assert stopped.value.code == Exit.USAGE
    shown = capsys.readouterr()
    assert f"port {port}" in shown.err
    assert "--port" in shown.err
    assert not shown.out
    assert not (served / ".zoo-serve").exists()


def test_folders_without_models_are_refused(tmp_path: Path) -> None:
    assert "no such folder" in str(refused(tmp_path / "nowhere"))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"")
    assert "no model" in str(refused(tmp_path / "photos"))
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat.jpg"]
    (tmp_path / "empty").mkdir()
    server = Server(tmp_path / "empty", port=0)
    server.close()
    assert "none yet" in server.served.text()


def test_what_is_not_served_is_said(served: Path) -> None:
    (served / "linked").symlink_to(served / "org" / "tiny")
    unreadable = make_model(served / "other")
    (unreadable / "zoo.json").unlink()
    (unreadable / "zoo.json").symlink_to("/etc/hostname")
    server = Server(served, port=0)
    server.close()
    assert re.search(r"skipped: .*linked: a link", server.served.text())
    assert server.served.as_dict()["models"].keys() == {"org/tiny", "local/other"}


def test_more_than_this_machine_is_warned_of(served: Path) -> None:
    local = _served(served)
    assert not local.warnings
    assert "elsewhere" not in local.text()
    assert "cannot listen" in str(refused(served, host="host.invalid"))


def test_what_listens_everywhere_has_two_addresses(served: Path) -> None:
    both = _served(served, host="0.0.0.0")
    here, elsewhere = both.text().splitlines()[:2]
    assert re.fullmatch(r"export HF_ENDPOINT=http://127\.0\.0\.1:\d+", here)
    assert elsewhere == f"# elsewhere: export HF_ENDPOINT={both.elsewhere}"
    assert socket.gethostname() in both.elsewhere
    assert "no TLS" in both.text()
    assert "zoo pull from other machines needs a server that speaks TLS" in both.text()


def _served(folder: Path, **options: Any) -> Served:
    server = Server(folder, port=0, **options)
    server.close()
    return server.served


def test_without_the_extra_the_way_to_it_is_named(
    served: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    error = refused(served)
    assert "uvicorn" in error.what
    assert 'pip install "tinyzoo[serve]"' in error.fix
