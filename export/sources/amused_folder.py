"""A folder written by diffusers' ``AmusedPipeline.save_pretrained`` as an ``export.Model``.

aMUSEd (Patil et al. 2024): a transformer over the codes of a VQModel, conditioned by a CLIP text encoder.
What pipeline_amused.py does around its modules is written down here once: which hidden states it takes, the sizes and
the aesthetic score that every request has, codes straight to pictures in [0, 1].
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmgen.export.base.model import Model
from mmgen.export.base.weights import read_json
from mmgen.export.networks.quantiser import CodesDecoder, CodesEncoder
from mmgen.export.sources.diffusers_parts import (
    check_autoencoder,
    class_name,
    config_of,
    import_library,
    token_model,
    token_parts,
    want,
)
from mmgen.export.sources.weight_files import DIFFUSERS, TRANSFORMERS, weights_of
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.storage.process import Masked
from mmgen.runtime.storage.schema import Condition, Defaults

# diffusers' own defaults, from the signature of AmusedPipeline.__call__
STEPS, GUIDANCE, AESTHETIC_SCORE, CROP = 12, 10.0, 6, (0, 0)
PARTS = {
    "transformer": ("diffusers", ("UVit2DModel",)),
    "vqvae": ("diffusers", ("VQModel",)),
    "text_encoder": ("transformers", ("CLIPTextModelWithProjection",)),
    "tokenizer": ("transformers", ("CLIPTokenizer", "CLIPTokenizerFast")),
    "scheduler": ("diffusers", ("AmusedScheduler",)),
}
WEIGHTS = {"transformer": DIFFUSERS, "vqvae": DIFFUSERS, "text_encoder": TRANSFORMERS}
SCHEDULES = ("cosine", "linear")


class TokenDenoiser(nn.Module):
    """(tokens int64 (R, h, w), text (R, T, D), text_embeds (R, E)) to logits (R, codes, h, w).

    Every entry is conditioned on the size of the picture, no cropping, and an aesthetic score.
    """

    micro_conditions: Tensor  # (1, 5)

    def __init__(self, transformer: nn.Module, micro_conditions: Tensor) -> None:
        super().__init__()
        self.transformer = transformer
        self.register_buffer("micro_conditions", micro_conditions)

    def forward(self, tokens: Tensor, text: Tensor, text_embeds: Tensor) -> Tensor:
        micro = self.micro_conditions.expand(tokens.shape[0], -1)
        logits: Tensor = self.transformer(
            tokens, encoder_hidden_states=text, pooled_text_emb=text_embeds, micro_conds=micro
        )
        return logits


class Text(nn.Module):
    """prompt int64 (R, T) to (last hidden states but one (R, T, D), projected end of the text (R, E))."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, prompt: Tensor) -> tuple[Tensor, Tensor]:
        out = self.encoder(prompt, output_hidden_states=True)
        return out.hidden_states[-2], out.text_embeds


class Decoder(nn.Module):
    """Codebook entries (B, D, h, w) to pictures (B, 3, H, W) in [-1, 1], not clamped; the VQModel's are in [0, 1]."""

    def __init__(self, vqvae: Any) -> None:
        super().__init__()
        self.post_quant_conv, self.decoder = vqvae.post_quant_conv, vqvae.decoder

    def forward(self, entries: Tensor) -> Tensor:
        pictures: Tensor = self.decoder(self.post_quant_conv(entries))
        return 2 * pictures - 1


class Encoder(nn.Module):
    """Pictures (B, 3, H, W) in [-1, 1] to what the codebook is compared with (B, D, h, w)."""

    def __init__(self, vqvae: Any) -> None:
        super().__init__()
        self.encoder, self.quant_conv = vqvae.encoder, vqvae.quant_conv

    def forward(self, pictures: Tensor) -> Tensor:
        z: Tensor = self.quant_conv(self.encoder(pictures / 2 + 0.5))
        return z


def load(folder: Path, variant: str | None = None) -> Model:
    """Load the model of an aMUSEd folder.

    Args:
        folder: holds ``model_index.json``, ``transformer``, ``vqvae``, ``text_encoder``, ``tokenizer``, ``scheduler``.
        variant: of the weights, as ``weights_of`` takes it.

    Raises:
        MmgenError: a component or a setting of it that isn't supported, parts that don't fit together, weights that
            are missing, damaged or incomplete.
    """
    diffusers, transformers = import_library("diffusers"), import_library("transformers")
    index = read_json(folder / "model_index.json")
    for part, (library, supported) in PARTS.items():
        class_name(index, part, supported, folder, library)
    uvit = config_of(folder / "transformer", diffusers.UVit2DModel)
    vae = config_of(folder / "vqvae", diffusers.VQModel)
    scheduler = config_of(folder / "scheduler", diffusers.AmusedScheduler, "scheduler_config.json")
    check_autoencoder(vae, folder / "vqvae")
    codes, mask_id = vae["num_vq_embeddings"], scheduler["mask_token_id"]
    _check_fit(folder, uvit, vae, scheduler)
    weights = weights_of(folder, WEIGHTS, variant)
    parts = token_parts(
        folder,
        weights,
        transformer=diffusers.UVit2DModel,
        vqvae=diffusers.VQModel,
        text_encoder=transformers.CLIPTextModelWithProjection,
    )
    vqvae, encoder, tokenizer = parts.vqvae, parts.text_encoder, parts.tokenizer

    codebook = vqvae.quantize.embedding.weight
    fields = token_model(folder, parts, weights, side=uvit["sample_size"])
    micro = torch.tensor([[*fields["media"].shape[:2], *CROP, AESTHETIC_SCORE]], dtype=torch.float32)
    return Model(
        **fields,
        process=Masked(codes=codes, mask_id=mask_id, schedule=scheduler["masking_schedule"]),
        denoiser=TokenDenoiser(parts.transformer, micro),
        conditions=(Condition("prompt", "text", null="", length=parts.length, pad_id=tokenizer.pad_token_id),),
        defaults=Defaults("amused", STEPS, guidance=GUIDANCE),
        decoder=CodesDecoder(Decoder(vqvae), codebook),
        encoder=CodesEncoder(Encoder(vqvae), codebook),
        condition=Text(encoder),
        conditioning=("text", "text_embeds"),
    )


def _check_fit(folder: Path, uvit: dict[str, Any], vae: dict[str, Any], scheduler: dict[str, Any]) -> None:
    codes, mask_id, schedule = vae["num_vq_embeddings"], scheduler["mask_token_id"], scheduler["masking_schedule"]
    wanted = f"{codes}, the entries of the vqvae's codebook"
    want(uvit, "codebook_size", uvit["codebook_size"] == codes, wanted, folder / "transformer")
    want(uvit, "upsample", uvit["upsample"] == uvit["downsample"], "the same as downsample", folder / "transformer")
    want(vae, "lookup_from_codebook", vae["lookup_from_codebook"] is True, "True", folder / "vqvae")
    if schedule not in SCHEDULES:
        raise MmgenError(f"{folder}/scheduler: masking_schedule", got=repr(schedule), wanted=" or ".join(SCHEDULES))
    if not isinstance(mask_id, int) or not codes <= mask_id < uvit["vocab_size"]:
        raise MmgenError(
            f"{folder}/scheduler: mask_token_id", got=mask_id, wanted=f"{codes} to {uvit['vocab_size'] - 1}"
        )
