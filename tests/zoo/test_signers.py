"""Who signs: keys and identities, in catalogs and by hand."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from fakehub import FakeHub
from fakesigstore import FakeSigstore
from hypothesis import given
from hypothesis import strategies as st
from model_signing import hashing, signing, verifying
from models import make_model
from pulls import FILES, REPOSITORY, published
from runs import zoo
from signed import (
    KEY,
    OTHER,
    SIGNER,
    Files,
    digests,
    key_file,
    new_key,
    public,
    signed,
    write,
    write_catalog,
)

from zoo.catalog import add_to_user_catalog, load_catalog, resolve
from zoo.entry import Signer, parse_entry, signer_of_key
from zoo.errors import Exit, IntegrityError, UsageError
from zoo.signing import SIGNATURE, check_signature, sign_folder

ME, ISSUER = "me@example.org", "https://accounts.example.org"
NOT_JUDGED = "the signature was not judged"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return signed(tmp_path_factory.mktemp("good") / "new", FILES, KEY)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    with published(monkeypatch, tmp_path / "cache") as hub:
        yield hub


# ---- Identities


def statement(files: Files) -> bytes:
    resources = [
        {"name": name, "algorithm": "sha256", "digest": digest}
        for name, digest in sorted(digests(files).items())
    ]
    form = {"method": "files", "hash_type": "sha256", "allow_symlinks": False}
    return json.dumps(
        {
            "_type": "https://in-toto.io/Statement/v1",
            "subject": [{"name": "model", "digest": {"sha256": "0" * 64}}],
            "predicateType": "https://model_signing/signature/v1.0",
            "predicate": {"serialization": form, "resources": resources},
        }
    ).encode()


def test_an_identity(
    hub: FakeHub, settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sigstore = FakeSigstore()
    sigstore.trust()
    bundle = sigstore.sign(statement(FILES), ME, ISSUER)
    hub.add(REPOSITORY, {**FILES, SIGNATURE: json.dumps(bundle).encode()})
    write_catalog(settings, Signer(identity=ME, issuer=ISSUER))
    assert zoo(["pull", "mine"]) == 0
    said = capsys.readouterr()
    assert f"signed by:   {ME} (by {ISSUER}), over {len(FILES)} files" in said.out
    assert said.err == ""
    assert zoo(["verify", "mine"]) == 0


IMPOSTORS: dict[str, Callable[[FakeSigstore], dict[str, Any]]] = {
    "another": lambda s: s.sign(statement(FILES), "you@example.org", ISSUER),
    "another issuer": lambda s: s.sign(statement(FILES), ME, "https://accounts.example.com"),
    "another authority": lambda s: FakeSigstore().sign(statement(FILES), ME, ISSUER),
    "another's files": lambda s: s.sign(statement({"config.json": b"{}"}), ME, ISSUER),
    "another statement": lambda s: {
        **s.sign(statement({"config.json": b"{}"}), ME, ISSUER),
        "dsseEnvelope": s.sign(statement(FILES), "you@example.org", ISSUER)["dsseEnvelope"],
    },
    "no log": lambda s: without_log(s.sign(statement(FILES), ME, ISSUER)),
}


def without_log(bundle: dict[str, Any]) -> dict[str, Any]:
    bundle["verificationMaterial"]["tlogEntries"] = []
    return bundle


@pytest.mark.parametrize("case", IMPOSTORS)
def test_an_impostor(case: str, tmp_path: Path) -> None:
    sigstore = FakeSigstore()
    sigstore.trust()
    file = tmp_path / SIGNATURE
    file.write_text(json.dumps(IMPOSTORS[case](sigstore)))
    with pytest.raises(IntegrityError):
        check_signature(digests(FILES), file, Signer(identity=ME, issuer=ISSUER))


def test_a_key_is_no_identity_and_an_identity_no_key(good: Files, tmp_path: Path) -> None:
    sigstore = FakeSigstore()
    sigstore.trust()
    file = tmp_path / SIGNATURE
    file.write_bytes(good[SIGNATURE])
    with pytest.raises(IntegrityError, match="is not that of me@"):
        check_signature(digests(good), file, Signer(identity=ME, issuer=ISSUER))
    file.write_text(json.dumps(sigstore.sign(statement(FILES), ME, ISSUER)))
    with pytest.raises(IntegrityError, match="is not that of the key"):
        check_signature(digests(FILES), file, SIGNER)


# ---- Signing


def test_a_folder_of_our_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_model(tmp_path / "ours")
    write(folder, {".gitattributes": b"", ".git/config": b"", ".cache/x.json": b"{}"})
    assert sign_folder(folder, key_file(tmp_path, KEY)) == SIGNER
    signature = folder / SIGNATURE
    assert zoo(["verify", str(folder)]) == 0
    assert NOT_JUDGED in capsys.readouterr().out
    (tmp_path / "key.pub.pem").write_text(public(KEY))
    signer = ["--signer", str(tmp_path / "key.pub.pem")]
    assert zoo(["verify", str(folder), *signer]) == 0
    names = {"README.md", "config.json", "model.safetensors", "zoo.json"}
    assert f"over {len(names)} files" in capsys.readouterr().out
    # The library's own verifier, as anyone has it, agrees.
    theirs = verifying.Config().use_elliptic_key_verifier(public_key=tmp_path / "key.pub.pem")
    theirs.verify(folder, signature)
    before = signature.read_bytes()
    sign_folder(folder, key_file(tmp_path, OTHER))
    assert signature.read_bytes() != before
    assert zoo(["verify", str(folder), *signer]) == Exit.INTEGRITY
    assert not list(tmp_path.rglob(".tmp-*"))


def test_a_signature_by_the_library_alone(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", FILES)
    signer = signing.Config().use_elliptic_key_signer(private_key=key_file(tmp_path, KEY))
    signer.set_hashing_config(hashing.Config()).sign(folder, tmp_path / "made.sig")
    assert check_signature(folder, tmp_path / "made.sig", SIGNER).files == tuple(sorted(FILES))


def test_an_encrypted_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "model", FILES)
    file = key_file(tmp_path, KEY, b"correct horse")
    with pytest.raises(UsageError, match="nobody can be asked"):
        sign_folder(folder, file)
    monkeypatch.setenv("ZOO_SIGN_PASSWORD", "wrong")
    with pytest.raises(UsageError, match="password is wrong"):
        sign_folder(folder, file)
    monkeypatch.setenv("ZOO_SIGN_PASSWORD", "correct horse")
    check_signature(folder, folder / SIGNATURE, sign_folder(folder, file))
    monkeypatch.delenv("ZOO_SIGN_PASSWORD")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    asked: list[str] = []
    sign_folder(folder, file, ask=lambda text: asked.append(text) or "correct horse")
    assert str(file) in asked[0]


def test_a_key_that_others_can_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = key_file(tmp_path, KEY)
    sign_folder(write(tmp_path / "model", FILES), file)
    assert capsys.readouterr().err == ""
    file.chmod(0o644)
    sign_folder(tmp_path / "model", file)
    assert f"chmod 600 {file}" in capsys.readouterr().err


UNFIT = {
    "RSA": lambda: rsa.generate_private_key(65537, 2048),
    "another curve": lambda: ec.generate_private_key(ec.SECP384R1()),
}


@pytest.mark.parametrize("case", UNFIT)
def test_an_unfit_key(case: str, tmp_path: Path) -> None:
    key = UNFIT[case]()
    with pytest.raises(UsageError, match="P-256"):
        sign_folder(write(tmp_path / "model", FILES), key_file(tmp_path, key))
    with pytest.raises(ValueError, match="P-256"):
        signer_of_key(public(key))
    assert not (tmp_path / "model" / SIGNATURE).exists()


def test_what_is_not_signed(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", FILES)
    file = key_file(tmp_path, KEY)
    with pytest.raises(UsageError, match="no such model folder"):
        sign_folder(tmp_path / "none", file)
    with pytest.raises(UsageError, match="cannot be read"):
        sign_folder(folder, tmp_path / "none.pem")
    with pytest.raises(UsageError, match="among the files to publish"):
        sign_folder(folder, key_file(folder, KEY))
    (folder / "key.pem").unlink()
    (folder / "notes.txt").symlink_to(file)
    with pytest.raises(IntegrityError, match="a link"):
        sign_folder(folder, file)
    assert not (folder / SIGNATURE).exists()


def test_a_link_to_a_folder_hides_nothing(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", FILES)
    sign_folder(folder, key_file(tmp_path, KEY))
    write(tmp_path / "elsewhere", {"evil.json": b"{}"})
    (folder / "more").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IntegrityError, match="a link"):
        check_signature(folder, folder / SIGNATURE, SIGNER)


# ---- Signers in a catalog


def entry(signer: object) -> Any:
    return parse_entry(
        "mine",
        {
            "title": "Mine",
            "method": "tinymim",
            "paper": "none",
            "vit": {"width": 192, "depth": 12, "heads": 3},
            "parameters": 1,
            "licenses": {"code": "Apache-2.0"},
            "hosted": {"repository": "me/mine", "signer": signer},
        },
    )


def test_a_signer_in_the_catalog(settings: Path) -> None:
    by_key = entry({"public_key": public(KEY).replace("\n", "\r\n") + "\n"})
    assert by_key.hosted.signer == SIGNER
    assert by_key.hosted.text() == f"me/mine (not pinned), signed by {SIGNER.text()}"
    by_name = entry({"identity": ME, "issuer": ISSUER})
    for made in (by_key, by_name):
        add_to_user_catalog(made)
        assert load_catalog().find("mine") == made
        pin = resolve("mine@v2")
        assert pin is not None
        assert pin.signer == made.hosted.signer


BAD_SIGNERS = {
    "nobody": {},
    "a path": {"public_key": "/home/me/key.pub.pem"},
    "a file": {"public_key_file": "key.pub.pem"},
    "a private key": {"public_key": "-----BEGIN PRIVATE KEY-----\nMIGH\n-----END PRIVATE KEY-----"},
    "half a key": {"public_key": public(KEY)[:-60] + "-----END PUBLIC KEY-----"},
    "two": {"public_key": public(KEY), "identity": ME, "issuer": ISSUER},
    "no issuer": {"identity": ME},
    "an issuer alone": {"issuer": ISSUER},
    "a key and an issuer": {"public_key": public(KEY), "issuer": ISSUER},
    "two lines": {"identity": "me\nyou", "issuer": ISSUER},
    "a number": {"public_key": 3},
    "long": {"public_key": public(KEY) + " " * 2000},
}


@pytest.mark.parametrize("signer", BAD_SIGNERS.values(), ids=BAD_SIGNERS.keys())
def test_a_bad_signer_in_the_catalog(signer: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        entry(signer)


@given(st.text(max_size=200))
def test_no_text_is_a_key(text: str) -> None:
    for whole in (text, f"-----BEGIN PUBLIC KEY-----\n{text}\n-----END PUBLIC KEY-----\n"):
        with pytest.raises(ValueError, match="P-256"):
            signer_of_key(whole)


def test_a_key_that_is_no_point(good: Files, tmp_path: Path) -> None:
    lines = public(new_key()).splitlines()
    lines[2] = lines[2][:-8] + "AAAAAA=="
    file = tmp_path / SIGNATURE
    file.write_bytes(good[SIGNATURE])
    with pytest.raises(UsageError, match="not on the curve"):
        check_signature(digests(good), file, signer_of_key("\n".join(lines)))


def test_no_key_in_the_file(tmp_path: Path) -> None:
    make_model(tmp_path / "ours")
    assert zoo(["verify", str(tmp_path / "ours"), "--signer", str(tmp_path)]) == Exit.USAGE
    assert zoo(["verify", str(tmp_path / "ours"), "--signer", "none.pem"]) == Exit.USAGE


def test_the_catalog_loads_no_library() -> None:
    code = (
        "import sys, zoo.signing, zoo.info, zoo.listing\n"
        "from zoo.catalog import load_catalog\n"
        "load_catalog()\n"
        "sys.exit(bool({'model_signing', 'sigstore', 'cryptography'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
