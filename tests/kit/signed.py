"""Keys of the tests, signed model folders, and a user's catalog that knows who signs."""

import hashlib
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from pulls import FILES, REPOSITORY

from zoo.entry import Signer, signer_of_key
from zoo.signing import SIGNATURE, sign_folder

Files = dict[str, bytes]
Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def public(key: Key) -> str:
    """PEM text of the public half."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.PEM, form).decode()


def key_file(folder: Path, key: Key, password: bytes | None = None) -> Path:
    """The private half in a file that nobody else can read."""
    how: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password:
        how = serialization.BestAvailableEncryption(password)
    form = serialization.PrivateFormat.PKCS8
    file = folder / "key.pem"
    file.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, how))
    file.chmod(0o600)
    return file


def write(folder: Path, files: Files) -> Path:
    """A folder of these files."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def signed(folder: Path, files: Files, key: Key) -> Files:
    """The files and their signature."""
    folder.mkdir()
    sign_folder(write(folder / "model", files), key_file(folder, key))
    return {**files, SIGNATURE: (folder / "model" / SIGNATURE).read_bytes()}


def digests(files: Files) -> dict[str, str]:
    """sha256 of every file but the signature."""
    names = files.keys() - {SIGNATURE}
    return {name: hashlib.sha256(files[name]).hexdigest() for name in names}


KEY, OTHER = new_key(), new_key()
SIGNER = signer_of_key(public(KEY))


def write_catalog(settings: Path, signer: Signer | None = SIGNER, commit: str = "") -> None:
    """The user's catalog, with the published model under the name ``mine``."""
    who = ""
    if signer and signer.public_key:
        who = f'signer = {{public_key = """{signer.public_key}"""}}'
    elif signer:
        who = f'signer = {{identity = "{signer.identity}", issuer = "{signer.issuer}"}}'
    known = f'files = {{"config.json" = {{sha256 = "{digests(FILES)["config.json"]}"}}}}'
    pin = f'commit = "{commit}"\n{known}' if commit else ""
    (settings / "catalog.toml").write_text(
        f"""format = 1
[models.mine]
title = "Mine"
method = "tinymim"
paper = "none"
vit = {{width = 192, depth = 12, heads = 3}}
parameters = 5_524_416
licenses = {{code = "Apache-2.0"}}
[models.mine.hosted]
repository = "{REPOSITORY}"
{pin}
{who}
"""
    )
