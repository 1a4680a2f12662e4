"""A sigstore of our own: authority, two logs, and the bundles that an identity signs with them.

Everything that sigstore's verifier asks for is there and right, made with keys of the test: the
certificate and its timestamp in the certificate log, the entry in the signature log, its inclusion
in a tree of one leaf, and the root of trust that names them all.
"""

import base64
import hashlib
import json
import struct
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import platformdirs
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

PRODUCTION = "https://tuf-repo-cdn.sigstore.dev"
_ISSUER = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.1")
_TIMESTAMPS = x509.ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")
_START = datetime(2025, 1, 1, tzinfo=UTC)
_SIGNED = _START + timedelta(minutes=2)


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def der_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The public half."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.DER, form)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


class FakeSigstore:
    """Signs for any identity."""

    def __init__(self) -> None:
        self.authority_key, self.certificate_log, self.signature_log = (
            new_key(),
            new_key(),
            new_key(),
        )
        self.authority = self._authority()

    def trust(self) -> None:
        """Make this the root of trust in the test's own cache, where sigstore keeps it."""
        folder = Path(platformdirs.user_cache_dir("sigstore-python", "sigstore"))
        folder = folder / "tuf" / quote(PRODUCTION, safe="")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "trusted_root.json").write_text(json.dumps(self._trusted_root()))

    def sign(self, payload: bytes, identity: str, issuer: str) -> dict[str, Any]:
        """A bundle over a payload."""
        key = new_key()
        certificate = self._certificate(key, identity, issuer)
        kind = "application/vnd.in-toto+json"
        signed = b"DSSEv1 %d %b %d %b" % (len(kind), kind.encode(), len(payload), payload)
        signature = _text(_sign(key, signed))
        return {
            "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
            "verificationMaterial": {
                "certificate": {"rawBytes": _text(_der(certificate))},
                "tlogEntries": [self._entry(payload, signature, certificate)],
            },
            "dsseEnvelope": {
                "payload": _text(payload),
                "payloadType": kind,
                "signatures": [{"sig": signature}],
            },
        }

    def _authority(self) -> x509.Certificate:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority of a test")])
        public = self.authority_key.public_key()
        builder = (
            _builder(name, name, self.authority_key)
            .not_valid_after(_START + timedelta(days=9999))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_usage(authority=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        )
        return builder.sign(self.authority_key, hashes.SHA256())

    def _certificate(
        self, key: ec.EllipticCurvePrivateKey, identity: str, issuer: str
    ) -> x509.Certificate:
        authority = self.authority_key.public_key()
        builder = (
            _builder(x509.Name([]), self.authority.subject, key)
            .not_valid_after(_START + timedelta(minutes=10))
            .add_extension(_usage(authority=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority), critical=False
            )
            .add_extension(x509.SubjectAlternativeName([x509.RFC822Name(identity)]), critical=True)
            .add_extension(x509.UnrecognizedExtension(_ISSUER, issuer.encode()), critical=False)
        )
        before = builder.sign(self.authority_key, hashes.SHA256())
        stamp = x509.UnrecognizedExtension(_TIMESTAMPS, self._timestamp(before))
        return builder.add_extension(stamp, critical=False).sign(
            self.authority_key, hashes.SHA256()
        )

    def _timestamp(self, before: x509.Certificate) -> bytes:
        """The certificate log's promise, as RFC 6962 encodes it."""
        body = before.tbs_certificate_bytes
        when = struct.pack("!Q", int(_SIGNED.timestamp() * 1000))
        entry = hashlib.sha256(der_of(self.authority_key)).digest()
        entry += len(body).to_bytes(3, "big") + body
        signature = _sign(self.certificate_log, b"\0\0" + when + b"\0\1" + entry + b"\0\0")
        log = hashlib.sha256(der_of(self.certificate_log)).digest()
        stamp = b"\0" + log + when + b"\0\0" + b"\4\3" + _sized(signature)
        stamps = _sized(_sized(stamp))
        return (
            b"\x04"
            + (bytes([len(stamps)]) if len(stamps) < 128 else b"\x81" + bytes([len(stamps)]))
            + stamps
        )

    def _entry(
        self, payload: bytes, signature: str, certificate: x509.Certificate
    ) -> dict[str, Any]:
        """The signature log's, the only leaf of its tree."""
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        body = _canonical(
            {
                "apiVersion": "0.0.1",
                "kind": "dsse",
                "spec": {
                    "envelopeHash": {"algorithm": "sha256", "value": "0" * 64},
                    "payloadHash": {
                        "algorithm": "sha256",
                        "value": hashlib.sha256(payload).hexdigest(),
                    },
                    "signatures": [{"signature": signature, "verifier": _text(pem)}],
                },
            }
        )
        log = hashlib.sha256(der_of(self.signature_log)).digest()
        when = int(_SIGNED.timestamp())
        promise = {"body": _text(body), "integratedTime": when, "logID": log.hex(), "logIndex": 0}
        root = hashlib.sha256(b"\0" + body).digest()
        note = f"log of a test\n1\n{_text(root)}\n"
        seal = _text(log[:4] + _sign(self.signature_log, note.encode()))
        return {
            "logIndex": "0",
            "logId": {"keyId": _text(log)},
            "kindVersion": {"kind": "dsse", "version": "0.0.1"},
            "integratedTime": str(when),
            "inclusionPromise": {
                "signedEntryTimestamp": _text(_sign(self.signature_log, _canonical(promise)))
            },
            "inclusionProof": {
                "logIndex": "0",
                "rootHash": _text(root),
                "treeSize": "1",
                "hashes": [],
                "checkpoint": {"envelope": f"{note}\n— log {seal}\n"},
            },
            "canonicalizedBody": _text(body),
        }

    def _trusted_root(self) -> Mapping[str, Any]:
        start = {"start": "2024-01-01T00:00:00Z"}

        def log(key: ec.EllipticCurvePrivateKey) -> dict[str, Any]:
            return {
                "baseUrl": "https://log.invalid",
                "hashAlgorithm": "SHA2_256",
                "publicKey": {
                    "rawBytes": _text(der_of(key)),
                    "keyDetails": "PKIX_ECDSA_P256_SHA_256",
                    "validFor": start,
                },
                "logId": {"keyId": _text(hashlib.sha256(der_of(key)).digest())},
            }

        return {
            "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
            "tlogs": [log(self.signature_log)],
            "ctlogs": [log(self.certificate_log)],
            "certificateAuthorities": [
                {
                    "subject": {"organization": "test", "commonName": "authority of a test"},
                    "uri": "https://authority.invalid",
                    "certChain": {"certificates": [{"rawBytes": _text(_der(self.authority))}]},
                    "validFor": start,
                }
            ],
            "timestampAuthorities": [],
        }


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_START)
    )


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _sign(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    return key.sign(data, ec.ECDSA(hashes.SHA256()))


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)


def _sized(data: bytes) -> bytes:
    return struct.pack("!H", len(data)) + data
