"""Signatures of the OpenSSF's kind (model signing): who made these files, and that they are all.

``model.sig`` is a sigstore bundle over the names and sha256s of a model's files.  What it is worth
says the signer that the reader knows: from the catalog, or a key given by hand.  The extra ``sign``
brings the libraries, which take a second to load: they are imported where a signature is judged.
"""

import base64
import contextlib
import getpass
import hashlib
import json
import logging
import os
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from zoo.entry import Signer, signer_of_key
from zoo.errors import DiskError, IntegrityError, UsageError
from zoo.files import atomic_json, atomic_write, disk_errors, sha256_of
from zoo.tree import is_fetched

SIGNATURE = "model.sig"
MOST_BYTES = 1_000_000
PASSWORD = "ZOO_SIGN_PASSWORD"
NOT_JUDGED = f"signed ({SIGNATURE}), but no signer is known here: the signature was not judged"

_UNSIGNED = {SIGNATURE, ".gitattributes"}
# Beside a model, and no part of it: what git and a pull keep in a folder.
_BESIDE = {*_UNSIGNED, ".git", ".github", ".gitignore", ".cache"}
_PAYLOAD, _PREDICATE = "application/vnd.in-toto+json", "https://model_signing/signature/v1.0"


@dataclass(frozen=True, kw_only=True, slots=True)
class Signature:
    """A signature that was judged and found right."""

    signer: str
    files: tuple[str, ...]
    """What it covers."""

    def as_dict(self) -> dict[str, object]:
        return {"signer": self.signer, "files": list(self.files)}

    def text(self) -> str:
        return f"{self.signer}, over {len(self.files)} files"


# ---- Judging


def require_signing() -> None:
    """Raise UsageError where the extra is not installed: nothing passes for want of a library."""
    try:
        import model_signing._hashing.hashing  # noqa: F401  # what we use of it has no public name
        import sigstore.verify  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "a signature is to be made or judged, and the library for that is not installed",
            where=f"import of {error.name or error}",
            fix="pip install 'tinyzoo[sign]'",
        ) from error


def check_signature(
    files: Mapping[str, str] | Path,
    signature: Path,
    signer: Signer,
    *,
    quick: bool = False,
    where: str = "",
) -> Signature:
    """Whether a signature is this signer's and covers exactly these files.

    files: name to sha256, or a folder, each file of which is hashed.  What a pull does not fetch
    may be signed and not here.  quick: believe an earlier check of the same digests, signature and
    signer.  where: what an error speaks of, if not of the signature's path.  Raises IntegrityError
    that names every differing file, and UsageError where the extra ``sign`` is not installed.
    """
    where = where or str(signature)
    if isinstance(files, Path):
        files = {name: sha256_of(path) for name, path in files_of(files).items()}
    here = {name: sha256 for name, sha256 in files.items() if name not in _UNSIGNED}
    data = _read(signature, signer, where)
    judged = Signature(signer=signer.text(), files=tuple(sorted(here)))
    memory = _memory_of([here, data.hex(), repr(signer)])
    if quick and memory.exists():
        return judged
    require_signing()
    stated = _stated(data, where)
    absent = {n: digest for n, digest in stated.items() if n in _UNSIGNED or not is_fetched(n)}
    expected = absent | here
    prove = _prove_identity if signer.public_key is None else _prove_key
    same = prove(data, signer, expected, where)
    if differing := _differing(stated, expected):
        raise IntegrityError(
            f"the files are not those that {signer.text()} has signed",
            where=f"{where}: " + "; ".join(differing),
            fix="do not use this source; report it to whoever publishes it",
        )
    if not same:  # never seen: two comparisons of the same things
        raise _unproven(where, signer, "it is over other files")
    with contextlib.suppress(DiskError):
        atomic_json(memory, {"where": where, "signer": signer.text()})
    return judged


def files_of(folder: Path, *, follow_links: bool = True) -> dict[str, Path]:
    """The files of a model folder that a signature covers, by name.

    follow_links: to files; the Hub's cache is made of them.  Raises IntegrityError for what is
    neither file nor folder, and for links to folders.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if name.parts[0] in _BESIDE or (path.is_dir() and not path.is_symlink()):
            continue
        if not path.is_file() or (path.is_symlink() and not follow_links):
            raise IntegrityError(
                "a link, or something else that is not a plain file, stands among the files",
                where=f"{folder}: {name.as_posix()}",
                fix="remove it, or put the file itself in its place",
            )
        found[name.as_posix()] = path
    return found


def signer_from_file(path: Path) -> Signer:
    """Who signs with the private half of this public key.  Raises UsageError."""
    try:
        with path.open("rb") as file:
            return signer_of_key(file.read(10_000).decode())
    except (OSError, ValueError) as error:
        raise UsageError(
            "not a public EC key on the curve P-256, as PEM text",
            where=str(path),
            fix="make it of the private key: openssl ec -in KEY.pem -pubout -out KEY.pub.pem",
        ) from error


def _read(signature: Path, signer: Signer, where: str) -> bytes:
    if not signature.is_file():
        raise missing_signature(signer, where)
    with disk_errors(signature), signature.open("rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise _damaged(where, f"over {MOST_BYTES:,} bytes")
    return data


def _stated(data: bytes, where: str) -> dict[str, str]:
    """Name to sha256 as a bundle states them, before any of it is proven."""
    try:
        envelope = json.loads(data)["dsseEnvelope"]
        statement = json.loads(base64.b64decode(envelope["payload"], validate=True))
        kinds = envelope["payloadType"], statement["predicateType"]
        form = statement["predicate"]["serialization"]
        resources = [
            (r["name"], r["algorithm"], r["digest"]) for r in statement["predicate"]["resources"]
        ]
        manner = form["method"], form["hash_type"], *{algorithm for _, algorithm, _ in resources}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(where, f"{type(error).__name__}: {error}") from error
    if kinds != (_PAYLOAD, _PREDICATE) or manner != ("files", "sha256", "sha256"):
        raise _damaged(where, f"not sha256 file by file, but {kinds} and {manner}")
    stated = {str(name): str(digest) for name, _, digest in resources}
    if len(stated) != len(resources):
        raise _damaged(where, "a name stands in it twice")
    return stated


def _prove_key(data: bytes, signer: Signer, expected: Mapping[str, str], where: str) -> bool:
    """Whether the key signed this over the expected files.  Raises where it did not sign this."""
    from model_signing import hashing, manifest, verifying
    from model_signing._hashing.hashing import Digest  # a manifest's values; no public name

    proven = False

    class Known(hashing.Config):
        """In place of hashing a folder: digests known already, and no path ignored."""

        def hash(self, model_path: Any, *, files_to_hash: Any = None) -> manifest.Manifest:
            nonlocal proven
            proven = True  # the library proves the signature first, and then asks for the files
            form = manifest.SerializationType.from_args(
                {"method": "files", "hash_type": "sha256", "allow_symlinks": False}
            )
            items = [
                form.new_item(name, Digest("sha256", bytes.fromhex(sha256)))
                for name, sha256 in expected.items()
            ]
            return manifest.Manifest("model", items, form)

    with disk_errors(Path(tempfile.gettempdir())), tempfile.TemporaryDirectory() as temp:
        key, bundle = Path(temp, "key.pem"), Path(temp, SIGNATURE)
        key.write_text(signer.public_key or "")
        bundle.write_bytes(data)
        try:
            verifier = verifying.Config().use_elliptic_key_verifier(public_key=key)
        except ValueError as error:
            raise UsageError(
                "the known public key is none: its point is not on the curve",
                where=signer.text(),
                fix="correct the key in the catalog, or give the right file",
            ) from error
        try:
            with contextlib.redirect_stdout(sys.stderr):  # the library prints its warnings
                verifier.set_hashing_config(Known()).verify(temp, bundle)
        except OSError:
            raise
        except Exception as error:  # of any kind: the bundle is a stranger's, the parsers are many
            if not proven:
                raise _unproven(where, signer, error) from error
            return False
    return True


def _prove_identity(data: bytes, signer: Signer, expected: Mapping[str, str], where: str) -> bool:
    """The same for an identity: by sigstore's root of trust as it is on this machine, offline."""
    from sigstore.models import Bundle
    from sigstore.verify import Verifier, policy

    with disk_errors(user_cache_path("sigstore-python")), _without_warnings("sigstore"):
        verifier = Verifier.production(offline=True)
    identity = policy.Identity(identity=str(signer.identity), issuer=signer.issuer)
    try:
        kind, payload = verifier.verify_dsse(Bundle.from_json(data), identity)
    except Exception as error:  # as above
        raise _unproven(where, signer, error) from error
    return kind == _PAYLOAD and _of_payload(payload) == dict(expected)


@contextlib.contextmanager
def _without_warnings(library: str) -> Iterator[None]:
    """Sigstore warns that it is offline, as it was asked to be."""
    logger = logging.getLogger(library)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _of_payload(payload: bytes) -> dict[str, str]:
    resources = json.loads(payload)["predicate"]["resources"]
    return {resource["name"]: resource["digest"] for resource in resources}


def _differing(stated: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    differing = []
    for name in sorted(stated.keys() | found.keys()):
        if name not in found:
            differing.append(f"{_shown(name)} was signed and is missing")
        elif name not in stated:
            differing.append(f"{_shown(name)} is not covered by the signature")
        elif stated[name] != found[name]:
            differing.append(f"{_shown(name)} has other bytes than when it was signed")
    return differing


def _shown(name: str) -> str:
    return name if name.isprintable() and len(name) <= 200 else repr(name[:200])


def _memory_of(checked: object) -> Path:
    """A file that is there if this very check was made and passed before."""
    key = hashlib.sha256(json.dumps(checked, sort_keys=True).encode()).hexdigest()
    return user_cache_path("tinyzoo") / "signatures" / f"{key}.json"


def missing_signature(signer: Signer, where: str) -> IntegrityError:
    """What to raise where there is none."""
    return IntegrityError(
        f"the signature of {signer.text()} is missing",
        where=f"{where}: no {SIGNATURE}",
        fix="do not use this source; report it to whoever publishes it",
    )


def _damaged(where: str, why: str) -> IntegrityError:
    return IntegrityError(
        f"the signature cannot be read: {' '.join(why.split())[:200]}",
        where=where,
        fix="do not use this source; report it to whoever publishes it",
    )


def _unproven(where: str, signer: Signer, why: object) -> IntegrityError:
    reason = " ".join(str(why).split())[:300] or type(why).__name__
    return IntegrityError(
        f"the signature is not that of {signer.text()}",
        where=f"{where}: {reason}",
        fix="do not use this source; report it to whoever publishes it",
    )


# ---- Signing


def sign_folder(
    folder: Path, private_key: Path, *, ask: Callable[[str], str] = getpass.getpass
) -> Signer:
    """Sign every file of a model folder; ``model.sig`` appears whole or not at all.

    Returns who signed, as a catalog says it.

    private_key: PEM file of an EC key on the curve P-256.  The password of an encrypted one is that
    of ``ZOO_SIGN_PASSWORD``, or is asked for on a terminal.  A key that other users can read is
    warned of on stderr.  Raises UsageError (no such key or folder, a wrong password),
    IntegrityError (links among the files), DiskError.
    """
    require_signing()
    from model_signing import hashing, signing

    if not folder.is_dir():
        raise _usage("there is no such model folder", folder, "give an export/ folder of a run")
    if private_key.resolve().is_relative_to(folder.resolve()):
        fix = "move the key out of the folder, and never publish it"
        raise _usage("the private key stands among the files to publish", private_key, fix)
    password, signer = _open_key(private_key, ask)
    files_of(folder, follow_links=False)
    ignored = hashing.Config().set_ignored_paths(paths=sorted(_BESIDE))
    # The library hands the password on as it is, and cryptography takes bytes alone.
    keyed = signing.Config().use_elliptic_key_signer(
        private_key=private_key,
        password=password,  # pyright: ignore[reportArgumentType]
    )
    with disk_errors(folder), tempfile.TemporaryDirectory() as temp:
        made = Path(temp, SIGNATURE)
        keyed.set_hashing_config(ignored).sign(folder, made)
        atomic_write(folder / SIGNATURE, made.read_bytes())
    check_signature(folder, folder / SIGNATURE, signer)
    return signer


def _open_key(path: Path, ask: Callable[[str], str]) -> tuple[bytes | None, Signer]:
    """The key's password, if it has one, and who it signs as."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization as pem

    fix = "make one: openssl ecparam -genkey -name prime256v1 -noout -out KEY.pem"
    try:
        data = path.read_bytes()
        others = path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    except OSError as error:
        raise _usage("the private key cannot be read", path, fix) from error
    if others and os.name == "posix":
        print(f"warning: others can read the key: chmod 600 {path}", file=sys.stderr)
    password = None
    try:
        try:
            key = pem.load_pem_private_key(data, None)
        except TypeError:  # encrypted
            password = _password(path, ask)
            key = pem.load_pem_private_key(data, password)
        public = key.public_key().public_bytes(
            pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo
        )
        return password, signer_of_key(public.decode())
    except (ValueError, UnsupportedAlgorithm) as error:
        what = "not a private EC key on the curve P-256"
        wrong = what if password is None else f"{what}, or the password is wrong"
        raise _usage(wrong, path, fix) from error


def _password(path: Path, ask: Callable[[str], str]) -> bytes:
    if given := os.environ.get(PASSWORD):
        return given.encode()
    if not sys.stdin.isatty():
        fix = f"set {PASSWORD}, or run it in a terminal"
        raise _usage("the private key is encrypted, and nobody can be asked", path, fix)
    return ask(f"password of {path}: ").encode()


def _usage(what: str, where: Path, fix: str) -> UsageError:
    return UsageError(what, where=str(where), fix=fix)
