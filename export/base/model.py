"""What the exporter takes: trained modules and the facts about them that no module states."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from torch import nn

from mmgen.runtime.storage.process import Process
from mmgen.runtime.storage.schema import Condition, Defaults, Media

Example = Mapping[str, str | int | np.ndarray]  # values by condition name


@dataclass(frozen=True)
class Model:
    """A trained generator, ready to leave torch.

    All modules take and return float32 tensors and are called in evaluation mode.  L is the latent shape, B the
    number of samples, R = G B the branch batch: every sample once per guidance branch.
    """

    name: str  # the bundle's default name
    process: Process
    latent_shape: tuple[int, ...]  # L
    denoiser: nn.Module  # (x (R, *L), timestep (R,), *conditioning (R, ...)) -> (R, *L); extra outputs already dropped
    conditions: tuple[Condition, ...]
    media: Media
    defaults: Defaults
    decoder: nn.Module  # latents (B, *L), quantised if there is a quantiser -> media; pictures (B, 3, H, W) in [-1, 1]
    guided_channels: int | None = None  # guidance acts on the first n of L[0] alone, as DiT's does; None: on all
    guidance_rescale: bool = True  # whether requests can ask for it, where there is guidance; under 1 % of a DiT's step
    quantiser: nn.Module | None = None  # latents (B, *L) -> (decoder's input, codes int64 (B, ...)); stays float32
    encoder: nn.Module | None = None  # media as the decoder makes it -> latents (B, *L), or codes int64 where masked
    condition: nn.Module | None = None  # (one tensor (R, ...) per condition) -> tuple of conditioning tensors (R, ...)
    conditioning: tuple[str, ...] = ()  # names of what ``condition`` returns
    tokenizer: bytes | None = None  # Hugging Face ``tokenizers`` JSON, where a condition is text
    examples: tuple[Example, ...] = ()  # typical requests, to validate with; made up where there are none
    licence: str = "unknown"
    source: str = ""  # where the weights came from
    source_sha256: str = ""  # over the weight files
    versions: Mapping[str, str] = field(default_factory=dict)  # of the libraries that made the modules


def modules(model: Model) -> dict[str, nn.Module]:
    """Return the parts that a model has, by field name."""
    parts: Mapping[str, nn.Module | None] = {
        "denoiser": model.denoiser,
        "decoder": model.decoder,
        "quantiser": model.quantiser,
        "encoder": model.encoder,
        "condition": model.condition,
    }
    return {name: module for name, module in parts.items() if module is not None}
