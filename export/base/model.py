"""What the exporter takes: trained modules and the facts about them that no module states."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from mmgen.runtime.storage.process import Process
from mmgen.runtime.storage.schema import Condition, Defaults, Media

Example = Mapping[str, Any]  # values by condition name


@dataclass(frozen=True)
class Output:
    """One output of a model that has several; all modules are as ``Model`` says."""

    process: Process
    latent_shape: tuple[int, ...]  # L
    denoiser: nn.Module
    media: Media
    defaults: Defaults
    decoder: nn.Module | None = None
    inputs: tuple[str, ...] | None = None  # names of the model's inputs that the modules take, in order; None: all
    guided_channels: int | None = None
    guidance_rescale: bool = True
    quantiser: nn.Module | None = None
    encoder: nn.Module | None = None
    condition: nn.Module | None = None
    conditioning: tuple[str, ...] = ()


_NEEDED: Any = None  # of a model with one output: ``check`` says what is missing


@dataclass(frozen=True)
class Model:
    """A trained generator, ready to leave torch.

    All modules take and return float32 tensors and are called in evaluation mode.  L is the latent shape, B the
    number of samples, R = G B the branch batch: every sample once per guidance branch.

    A model with one output says with the first fields what that is.  One with several has ``outputs`` in their place,
    each with fields of these names, and ``inputs``; modules that outputs share are stored once.
    """

    name: str  # the bundle's default name
    process: Process = _NEEDED
    latent_shape: tuple[int, ...] = _NEEDED  # L
    denoiser: nn.Module = _NEEDED  # (x (R, *L), timestep (R,), *conditioning (R, ...)) -> (R, *L), and nothing else
    conditions: tuple[Condition, ...] = ()
    media: Media = _NEEDED
    defaults: Defaults = _NEEDED
    # Latents (B, *L), quantised if there is a quantiser -> media as ``module_shape`` says.  None: texts or codes, which
    # are the tokens of a masked process.
    decoder: nn.Module | None = None
    guided_channels: int | None = None  # guidance acts on the first n of L[0] alone, as DiT's does; None: on all
    guidance_rescale: bool = True  # whether requests can ask for it, where there is guidance; under 1 % of a DiT's step
    quantiser: nn.Module | None = None  # latents (B, *L) -> (decoder's input, codes int64 (B, ...)); stays float32
    encoder: nn.Module | None = None  # media as the decoder makes it -> latents (B, *L), or codes int64 where masked
    condition: nn.Module | None = None  # (one tensor (R, ...) per condition) -> tuple of conditioning tensors (R, ...)
    conditioning: tuple[str, ...] = ()  # names of what ``condition`` returns
    tokenizer: bytes | None = None  # Hugging Face ``tokenizers`` JSON, where a condition or the media are text
    examples: tuple[Example, ...] = ()  # typical requests, to validate with; made up where there are none
    licence: str = "unknown"
    source: str = ""  # where the weights came from
    source_sha256: str = ""  # over the weight files
    versions: Mapping[str, str] = field(default_factory=dict)  # of the libraries that made the modules
    # By the name of an input of a medium: media (B, ...), as ``module_shape`` says -> what the other modules take.
    encoders: Mapping[str, nn.Module] = field(default_factory=dict)
    embeds: Mapping[str, nn.Module] = field(default_factory=dict)  # by the name of an input: that -> vectors (B, D)
    tokenizers: Mapping[str, bytes] = field(default_factory=dict)  # further ones, by file name
    inputs: tuple[Condition, ...] = ()  # of all outputs
    outputs: Mapping[str, Output] = field(default_factory=dict)  # by name; the first is the bundle's default


def modules(model: Model) -> dict[str, nn.Module]:
    """Return the parts that a model has, by field name; those of outputs with the output's name."""
    found = _parts(model)
    for name, output in model.outputs.items():
        found |= {f"{name}'s {part}": module for part, module in _parts(output).items()}
    found |= {f"encoder of {name!r}": module for name, module in model.encoders.items()}
    return found | {f"embedding of {name!r}": module for name, module in model.embeds.items()}


def _parts(owner: Model | Output) -> dict[str, nn.Module]:
    parts: Mapping[str, nn.Module | None] = {
        "denoiser": owner.denoiser,
        "decoder": owner.decoder,
        "quantiser": owner.quantiser,
        "encoder": owner.encoder,
        "condition": owner.condition,
    }
    return {name: module for name, module in parts.items() if module is not None}
