"""`keys`: pairs of Ed25519 keys as PEM files, with which caches and exports are signed (`ops.export.signing`).

The files are the same as OpenSSL's: `openssl genpkey -algorithm ed25519`, `openssl pkey -pubout`.
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from shlex import quote

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from kdcore.errors import Refused
from ops.console import say
from pipelines.files import make_folder, not_written, require_file_place, write_whole

OTHERS = stat.S_IRWXG | stat.S_IRWXO


def keys(file: str) -> int:
    """Make a pair of keys: the private one in the file, the public one next to it. Refused where either exists."""
    path = Path(file)
    require_file_place(path, "keys")
    public = path.with_suffix(".pub")
    if public == path:
        raise Refused(f"{path} is the name of the public key; give that of the private one: {path.stem}.pem")
    if public.exists():
        raise Refused(f"{public} exists, and may be the public key of another private one; give another name")
    private = Ed25519PrivateKey.generate()
    write_private(path, private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    write_whole(public, private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    sign, verify = f"sign DIR --key {quote(str(path))}", f"lineage DIR --trust {quote(str(public))}"
    say(
        f"{path} signs (`python -m ops {sign}`): keep it to yourself. {public} verifies (`python -m ops {verify}`): "
        f"give it to others, with its fingerprint {fingerprint(private.public_key())}"
    )
    return 0


def write_private(path: Path, content: bytes) -> None:
    """Write a file that only its owner may read. Refused where it exists: an overwritten key is lost for ever."""
    make_folder(path.parent, "FILE")
    try:
        number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise Refused(f"{path} exists, and something may have been signed with it; give another name") from None
    except OSError as error:
        raise Refused(not_written(path, error)) from error
    with os.fdopen(number, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(number)


def read_private(path: Path) -> Ed25519PrivateKey:
    """Return the private key in a PEM file. Refused where others may read it, or where it holds no such key."""
    content = read_pem(path)
    if path.stat().st_mode & OTHERS:
        raise Refused(f"{path} may be read by others; keep a private key to yourself: chmod 600 {path}")
    try:
        key = load_pem_private_key(content, password=None)
    except TypeError as error:
        raise Refused(f"{path} needs a password; give a key without one: openssl pkey -in {path} -out FILE") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise Refused(f"{path} holds no private key; `python -m ops keys FILE` makes one") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise Refused(f"{path} is not an Ed25519 key; `python -m ops keys FILE` makes one")
    return key


def read_public(path: Path) -> Ed25519PublicKey:
    """Return the public key in a PEM file. Refused where it holds none."""
    try:
        key = load_pem_public_key(read_pem(path))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise Refused(f"{path} holds no public key; give the .pub file that belongs to the signer's key") from error
    if not isinstance(key, Ed25519PublicKey):
        raise Refused(f"{path} is not an Ed25519 key; give the .pub file that belongs to the signer's key")
    return key


def read_pem(path: Path) -> bytes:
    """Return the content of a key file. Refused where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise Refused(f"the key {path} cannot be read ({error.strerror}); give a PEM file") from error


def raw(key: Ed25519PublicKey) -> bytes:
    """Return the 32 bytes of a public key."""
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw)


def fingerprint(key: Ed25519PublicKey) -> str:
    """Return the beginning of a key's SHA-256, by which people compare keys."""
    return hashlib.sha256(raw(key)).hexdigest()[:16]
