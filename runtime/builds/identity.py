"""What decides what is made of a graph, as one short key, and where two such things differ."""

import dataclasses
import hashlib
import json

from mmgen.runtime.files.json_records import to_json


def key_of(identity: object) -> str:
    """What a dataclass that decides everything is known by: 32 hexadecimal digits of its SHA-256."""
    text = json.dumps(to_json(identity), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def identity_of_graph(sha256: str, data_sha256: str | None) -> str:
    """One hash of an ONNX file and its external data."""
    return hashlib.sha256(f"{sha256} {data_sha256 or ''}".encode()).hexdigest()


def differences(wanted: object, found: object, where: str = "") -> list[str]:
    """The fields in which two of these dataclasses differ, as ``place.version: found '10.3.0', wanted '10.9.0'``."""
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
