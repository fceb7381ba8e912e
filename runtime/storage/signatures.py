"""Detached signatures, next to what they sign: who made a bundle, for those who have the maker's public key.

A bundle's is over the manifest's checksum, and so over the hashes of all files that the manifest names.  Engines are
made later and elsewhere, so each build has a signature of its own, over its sidecar, which has their hashes.  Keys are
Ed25519 (RFC 8032), as ``ssh-keygen -t ed25519`` and ``openssl genpkey -algorithm ed25519`` write them.
"""

import base64
import binascii
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmgen.runtime.base.distribution import extra
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.files.atomic import whole_file
from mmgen.runtime.files.regular import read_regular

SUFFIX = ".sig"
KEY = 1 << 16  # bytes that a key's file may have
PURPOSE = b"mmgen signature 1\n"  # so that a signature made for something else isn't valid here


def signature_of(path: Path) -> Path:
    """Return the path of a file's signature."""
    return path.with_name(path.name + SUFFIX)


def sign(path: Path, content: bytes, private_key: Path, passphrase: Callable[[], str]) -> Path:
    """Write the signature of a file.

    Args:
        path: of the file.
        content: the bytes that are signed for it.
        private_key: a file.
        passphrase: called if the key is encrypted.

    Returns:
        The signature's path.

    Raises:
        MmgenError: not an Ed25519 private key, a wrong passphrase, or the signature can't be written.
    """
    signature = base64.b64encode(_private(private_key, passphrase).sign(_message(content)))
    with whole_file(signature_of(path)) as write:
        write(signature + b"\n")
    return signature_of(path)


def check(path: Path, content: bytes, public_key: Path) -> None:
    """Check that a file has a signature, made with this key.

    Raises:
        MmgenError: it has none, or one of another key or other content; or this isn't an Ed25519 public key.
    """
    from_key, file = _public(public_key), signature_of(path)
    if not file.exists():
        raise MmgenError(f"{path} is not signed", remedy="do not use it, or ask its maker for a signature")
    try:
        signature = base64.b64decode(read_regular(file, KEY).strip(), validate=True)
        from_key.verify(signature, _message(content))
    except binascii.Error as error:
        raise MmgenError(f"{file} is no signature", remedy="do not use what it is of") from error
    except _library().exceptions.InvalidSignature as error:
        what = f"{path} was not signed with the key of {public_key}, or has changed since"
        raise MmgenError(what, remedy="do not use it") from error


def _message(content: bytes) -> bytes:
    return PURPOSE + hashlib.sha256(content).hexdigest().encode()


def _private(file: Path, passphrase: Callable[[], str]) -> Any:
    formats = _library().hazmat.primitives.serialization
    content = read_regular(file, KEY)
    load = formats.load_ssh_private_key if b"OPENSSH PRIVATE" in content else formats.load_pem_private_key
    try:
        return _loaded(file, "private", lambda: load(content, None))
    except TypeError:  # it has a passphrase
        return _loaded(file, "private", lambda: load(content, passphrase().encode()))


def _public(file: Path) -> Any:
    formats = _library().hazmat.primitives.serialization
    content = read_regular(file, KEY).strip()
    load = formats.load_pem_public_key if b"BEGIN PUBLIC" in content else formats.load_ssh_public_key
    return _loaded(file, "public", lambda: load(content))


def _loaded(file: Path, kind: str, load: Callable[[], Any]) -> Any:
    try:
        key = load()
    except (ValueError, _library().exceptions.UnsupportedAlgorithm) as error:
        raise _no_key(file, kind) from error
    if type(key).__name__ != f"Ed25519{kind.capitalize()}Key":
        raise _no_key(file, kind)
    return key


def _no_key(file: Path, kind: str) -> MmgenError:
    what = f"{file} is no {kind} key of Ed25519, or its passphrase is another"
    return MmgenError(what, remedy="make keys with ssh-keygen -t ed25519")


def _library() -> Any:
    try:
        import cryptography
        import cryptography.exceptions
        import cryptography.hazmat.primitives.serialization
    except ImportError as error:
        raise MmgenError("signatures need the package cryptography", remedy=extra("signing")) from error
    return cryptography
