"""Ed25519 signatures in DSSE envelopes, by securesystemslib; the key is a file of the user's.

Source: Dead Simple Signing Envelope 1.0, https://github.com/secure-systems-lab/dsse.
"""

from __future__ import annotations

import argparse
import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conceptome.errors import DataError
from conceptome.provenance.closure import repository


def new_key(path: str | os.PathLike) -> str:
    """Write a new key pair: the private key to `path` (PEM, readable by the owner only), the public one to `path`.pub.

    Returns
    -------
    The key's identity, which signatures made with it carry.

    Raises
    ------
    DataError
        One of the two files exists, or `path` lies inside this repository, from where keys get published.
    """
    from cryptography.hazmat.primitives import serialization
    from securesystemslib.signer import CryptoSigner

    path = Path(path).expanduser()
    public = path.with_name(f"{path.name}.pub")
    if path.resolve().is_relative_to(repository()):
        raise DataError(f"{path}: lies inside the repository, where keys get published: choose a folder outside")
    for file in (path, public):
        if file.exists():
            raise DataError(f"{file} exists: choose another name; a key is never overwritten")
    signer = CryptoSigner.generate_ed25519()
    pem = serialization.load_pem_private_key(signer.private_bytes, None).public_key()
    texts = {
        path: signer.private_bytes,
        public: pem.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        for file, text in texts.items():
            # Born with its mode: at no moment may others read the private key.
            with open(
                os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if file == path else 0o644), "wb"
            ) as out:
                out.write(text)
    except OSError:
        for file in texts:
            file.unlink(missing_ok=True)
        raise
    return signer.public_key.keyid


def signer_of(key_path: str | os.PathLike) -> Any:
    """Read a private key.

    Raises
    ------
    DataError
        The file is missing, unreadable, or holds no unencrypted Ed25519 private key in PEM.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from securesystemslib.signer import CryptoSigner

    try:
        key = load_pem_private_key(_read(key_path, "signing key"), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise DataError(f"{key_path}: no Ed25519 private key without passphrase; `conceptome key new FILE` writes one")
    return CryptoSigner(key)


def sign(payload: bytes, payload_type: str, key_path: str | os.PathLike) -> dict[str, Any]:
    """Sign bytes and their type; gives the DSSE envelope.

    Raises
    ------
    DataError
        See `signer_of`.
    """
    from securesystemslib.dsse import Envelope

    envelope = Envelope(payload, payload_type, {})
    envelope.sign(signer_of(key_path))
    return envelope.to_dict()


def verify(envelope: Mapping[str, Any], public_key_path: str | os.PathLike) -> bytes:
    """Give the payload of an envelope after checking that the key signed it.

    Raises
    ------
    DataError
        The public key cannot be read, this is no envelope, it is unsigned or signed with another key, or payload, type
        or signature were altered.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key
    from securesystemslib.dsse import Envelope
    from securesystemslib.exceptions import VerificationError
    from securesystemslib.signer import SSlibKey

    try:
        public = load_pem_public_key(_read(public_key_path, "public key"))
    except (ValueError, UnsupportedAlgorithm):
        public = None
    if not isinstance(public, Ed25519PublicKey):
        raise DataError(f"{public_key_path}: no Ed25519 public key in PEM")
    key = SSlibKey.from_crypto(public)
    try:
        read = Envelope.from_dict(copy.deepcopy(dict(envelope)))  # from_dict changes what it is given
    except Exception:  # of many kinds, for many ways of being no envelope
        raise DataError(
            "not a DSSE envelope: payload, payloadType and signatures are expected; it was altered"
        ) from None
    if key.keyid not in read.signatures:
        others = ", ".join(f"{name[:12]}…" for name in read.signatures) or "nobody"
        raise DataError(f"not signed with {public_key_path} (key {key.keyid[:12]}…), but by {others}")
    try:
        read.verify([key], 1)
    except VerificationError:
        raise DataError(f"the signature does not fit {public_key_path}: it was altered since signing") from None
    return read.payload


def _read(path: str | os.PathLike, what: str) -> bytes:
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as error:
        raise DataError(f"{what} {path} cannot be read: {error.strerror}") from None


def command(arguments: argparse.Namespace) -> int:
    """`conceptome key new FILE`."""
    identity = new_key(arguments.file)
    print(f"private key: {arguments.file} (keep it; run.signing_key names it)\npublic key: {arguments.file}.pub")
    print(f"key id: {identity}")
    return 0
