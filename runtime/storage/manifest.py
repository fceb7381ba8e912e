"""The bundle, format 2: inputs and outputs by name.  Each output is read as a ``Bundle``, with all that it needs."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mmgen.runtime.base.errors import MmgenError, shown
from mmgen.runtime.storage.process import Process
from mmgen.runtime.storage.schema import (
    FORMAT_2,
    TOKENIZER,
    Axis,
    Bundle,
    Condition,
    Defaults,
    Graph,
    Hoisting,
    Media,
    Precision,
    Provenance,
    Receipt,
)


@dataclass(frozen=True)
class Output:
    """What one output has for itself: the fields of a ``Bundle`` that no other output shares."""

    process: Process
    latent_shape: tuple[int, ...]
    inputs: tuple[str, ...]  # names of those it takes
    media: Media
    graphs: dict[str, Graph]  # by role
    axes: dict[str, Axis]
    precision: Precision
    receipts: tuple[Receipt, ...]
    defaults: Defaults
    golden: str
    golden_sha256: str | None = None
    made_up: tuple[str, ...] = ()
    hoisting: Hoisting | None = None
    cpu_only: dict[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """``bundle.json``, format 2."""

    name: str
    licence: str
    provenance: Provenance
    inputs: tuple[Condition, ...]
    outputs: dict[str, Output]
    default: str  # the output that a request gets that names none
    tokenizers: dict[str, str] = field(default_factory=dict)  # SHA-256 by file
    format: str = FORMAT_2


def manifest_of(bundles: Mapping[str, Bundle], default: str) -> Manifest:
    """Combine outputs, by name, to a manifest.

    Raises:
        MmgenError: two outputs take different inputs of one name.
    """
    first = bundles[default]
    inputs: dict[str, Condition] = {}
    tokenizers: dict[str, str] = {}
    for bundle in bundles.values():
        for condition in bundle.conditions:
            if inputs.setdefault(condition.name, condition) != condition:
                what = f"input {condition.name!r} differs between outputs"
                raise MmgenError(what, got=shown(condition), wanted=shown(inputs[condition.name]))
        tokenizers |= bundle.tokenizer_files
    outputs = {name: _output(bundle) for name, bundle in bundles.items()}
    return Manifest(first.name, first.licence, first.provenance, tuple(inputs.values()), outputs, default, tokenizers)


def bundles_of(manifest: Manifest, where: str) -> dict[str, Bundle]:
    """Return each output as a ``Bundle``, by name, the default one first.

    Args:
        where: begins each error.

    Raises:
        MmgenError: a default that is no output, or an output that takes an input that isn't there.
    """
    if manifest.default not in manifest.outputs:
        wanted = " or ".join(map(shown, manifest.outputs)) or "an output"
        raise MmgenError(f"{where}: default", got=shown(manifest.default), wanted=wanted)
    names = sorted(manifest.outputs, key=lambda name: name != manifest.default)
    return {name: _bundle(manifest, name, where) for name in names}


def _output(bundle: Bundle) -> Output:
    own = {f.name: getattr(bundle, f.name) for f in dataclasses.fields(Output) if f.name != "inputs"}
    return Output(inputs=tuple(condition.name for condition in bundle.conditions), **own)


def _bundle(manifest: Manifest, name: str, where: str) -> Bundle:
    output, inputs = manifest.outputs[name], {each.name: each for each in manifest.inputs}
    for taken in output.inputs:
        if taken not in inputs:
            wanted = " or ".join(map(shown, inputs)) or "no input"
            raise MmgenError(f"{where}: outputs.{name}: inputs", got=shown(taken), wanted=wanted)
    own: dict[str, Any] = {f.name: getattr(output, f.name) for f in dataclasses.fields(output) if f.name != "inputs"}
    conditions = tuple(inputs[taken] for taken in output.inputs)
    tokenizers = dict(_tokenizers(manifest, conditions, output.media))
    return Bundle(
        name=manifest.name, licence=manifest.licence, provenance=manifest.provenance, conditions=conditions,
        tokenizer_sha256=tokenizers.pop(TOKENIZER, None), tokenizers=tokenizers, format=manifest.format, output=name,
        **own,
    )  # fmt: skip


def _tokenizers(manifest: Manifest, conditions: tuple[Condition, ...], media: Media) -> Iterator[tuple[str, str]]:
    """Yield the tokenizers that an output needs, and their hashes; a missing one is found by ``check_parts``."""
    used = {condition.tokenizer for condition in conditions if condition.kind == "text"}
    used |= {media.tokenizer} if media.kind == "text" else set()
    return ((file, hashed) for file, hashed in manifest.tokenizers.items() if file in used)
