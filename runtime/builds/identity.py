"""Identities of what is built from a graph: a short key of one, and the differences between two."""

import dataclasses
import hashlib
import json

from mmgen.runtime.files.json_records import to_json


def key_of(identity: object) -> str:
    """Return the key of an identity, a dataclass: 32 hexadecimal digits of its SHA-256."""
    text = json.dumps(to_json(identity), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def identity_of_graph(sha256: str, data_sha256: str | None) -> str:
    """Hash an ONNX file and its external data to one value."""
    return hashlib.sha256(f"{sha256} {data_sha256 or ''}".encode()).hexdigest()


def differences(wanted: object, found: object, where: str = "") -> list[str]:
    """List the fields in which two such dataclasses differ, as ``place.version: found '10.3.0', wanted '10.9.0'``."""
    if dataclasses.is_dataclass(wanted) and type(wanted) is type(found):
        return [
            line
            for f in dataclasses.fields(wanted)
            for line in differences(getattr(wanted, f.name), getattr(found, f.name), f"{where}.{f.name}".lstrip("."))
        ]
    if wanted == found:
        return []
    return [f"{where}: found {_brief(found)}, wanted {_brief(wanted)}"]


def _brief(value: object) -> str:
    return json.dumps(to_json(value)) if not isinstance(value, str) else repr(value)
