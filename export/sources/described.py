"""A model that exists only as ONNX files, with a TOML file that says what no graph says of itself."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from mmgen.export.base.model import Model
from mmgen.export.graph_files.module import OnnxModule
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.files.json_records import from_json
from mmgen.runtime.files.regular import read_regular
from mmgen.runtime.storage.process import Masked, Process
from mmgen.runtime.storage.schema import Condition, Defaults, Media

LARGEST, LARGEST_TOKENIZER = 1 << 20, 40 << 20  # bytes of a description, and of a tokenizer
SEE = "docs/exporting.md shows a description"


@dataclass(frozen=True)
class Description:
    """The TOML file.  Files are relative to it; names of inputs and outputs are the graphs'."""

    name: str
    process: Process
    latent_shape: tuple[int, ...]
    media: Media
    defaults: Defaults
    x: str  # the denoiser's input that is the latents or the tokens
    timestep: str | None = None  # and the one that is the timestep, or sigma
    output: str | None = None  # the output to take, of several
    conditions: tuple[Condition, ...] = ()  # whose ``graph_name`` is the input's, where that isn't the name
    condition: str | None = None  # file; the names of its outputs are those of the denoiser's inputs
    decoder: str | None = None  # file; without it, the latents are the media
    encoder: str | None = None  # file
    tokenizer: str | None = None  # file, where a condition is text
    guided_channels: int | None = None
    licence: str = "unknown"
    source: str = ""


def load(path: Path, description: Path) -> Model:
    """Read a denoiser in an ONNX file, and what its description names.

    Raises:
        MmgenError: a file that can't be read, an unknown or missing field, one of a wrong type, or a name that a graph
            doesn't have.
    """
    said = _read(description)
    folder = description.parent
    condition = None if said.condition is None else _module(folder, said.condition, [c.tensor for c in said.conditions])
    conditioning = tuple(spec.name for spec in condition.outputs) if condition else ()
    timed = [] if said.timestep is None else [said.timestep]
    if said.timestep is None and not (isinstance(said.process, Masked) and not said.process.train_timesteps):
        raise MmgenError(f"{description}: field 'timestep' is missing", wanted=f"an input of {path.name}", remedy=SEE)
    given = conditioning if condition else tuple(c.tensor for c in said.conditions)
    outputs = None if said.output is None else [said.output]
    denoiser = OnnxModule(path, inputs=[said.x, *timed, *given], outputs=outputs)
    if len(denoiser.outputs) != 1:
        names = ", ".join(spec.name for spec in denoiser.outputs)
        raise MmgenError(f"{path.name}: outputs", got=names, wanted="one of them", remedy="name it: output = ...")
    decoder: nn.Module = nn.Identity() if said.decoder is None else _module(folder, said.decoder)
    return Model(
        name=said.name, process=said.process, latent_shape=said.latent_shape, denoiser=denoiser,
        conditions=said.conditions, media=said.media, defaults=said.defaults,
        decoder=None if said.media.kind in ("text", "codes") else decoder,
        encoder=None if said.encoder is None else _module(folder, said.encoder),
        condition=condition, conditioning=conditioning, guided_channels=said.guided_channels,
        tokenizer=None if said.tokenizer is None else _tokenizer(folder / said.tokenizer),
        licence=said.licence, source=said.source or str(path),
    )  # fmt: skip


def _read(path: Path) -> Description:
    try:
        toml: Any = importlib.import_module("tomllib")  # from Python 3.11 on
    except ImportError as error:
        raise MmgenError(f"{path}: descriptions are read with Python 3.11 or newer") from error
    content = read_regular(path, LARGEST, remedy="give the path of a TOML file")
    try:
        record = toml.loads(content.decode("utf-8"))
    except ValueError as error:
        raise MmgenError(f"{path} is not TOML ({error})", remedy=SEE) from error
    try:
        return from_json(Description, record, str(path))
    except MmgenError as error:
        raise MmgenError(error.what, got=error.got, wanted=error.wanted, remedy=SEE) from error


def _module(folder: Path, file: str, inputs: list[str] | None = None) -> OnnxModule:
    return OnnxModule(folder / file, inputs=inputs)


def _tokenizer(path: Path) -> bytes:
    return read_regular(path, LARGEST_TOKENIZER, remedy=SEE)
