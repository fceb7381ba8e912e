"""A folder written by diffusers' ``VQDiffusionPipeline.save_pretrained`` as an ``export.Model``.

VQ-Diffusion (Gu et al. 2022): a transformer over the codes of a VQModel, conditioned on the timestep and on the output
of a CLIP text encoder.  What pipeline_vq_diffusion.py does around its modules is written down here once: normalised
hidden states, a learned embedding in place of no prompt, guidance over log p.  ``masked.vq_diffusion`` says what its
scheduler becomes.  Its ``truncation_rate`` is an option of a call that draws from the most likely codes by
their summed probability; here ``top_k`` draws from a number of them.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmgen.export.base.model import Model
from mmgen.export.base.weights import read_json
from mmgen.export.networks.quantiser import CodesDecoder, CodesEncoder
from mmgen.export.sources.diffusers_folder import Decoder, Encoder
from mmgen.export.sources.diffusers_parts import (
    AS_FLOAT,
    check_autoencoder,
    class_name,
    config_of,
    from_pretrained,
    import_library,
    token_model,
    token_parts,
    want,
)
from mmgen.export.sources.weight_files import DIFFUSERS, TRANSFORMERS, Weights, weights_of
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.storage.process import Masked
from mmgen.runtime.storage.schema import Condition, Defaults

# diffusers' own defaults, from the signature of VQDiffusionPipeline.__call__
STEPS, GUIDANCE = 100, 5.0
REPLACED = 1e-4  # largest chance that training replaced a code by a random one, which the solver leaves out
NULL = "learned_classifier_free_sampling_embeddings"
PARTS = {
    "transformer": ("diffusers", ("Transformer2DModel",)),
    "vqvae": ("diffusers", ("VQModel",)),
    "text_encoder": ("transformers", ("CLIPTextModel",)),
    "tokenizer": ("transformers", ("CLIPTokenizer", "CLIPTokenizerFast")),
    "scheduler": ("diffusers", ("VQDiffusionScheduler",)),
}
WEIGHTS = {"transformer": DIFFUSERS, "vqvae": DIFFUSERS, "text_encoder": TRANSFORMERS}


class TimedNorm(nn.Module):
    """Features (R, N, D) and timestep int64 (R,) to features (R, N, D), normalised, scaled and shifted by timestep.

    There are few timesteps, so each layer's scales and shifts are a table.
    """

    table: Tensor  # (T, 2 D)

    def __init__(self, norm: Any) -> None:
        super().__init__()
        with torch.no_grad():
            self.register_buffer("table", norm.linear(norm.silu(norm.emb.weight)))
        self.eps = norm.norm.eps

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        scale, shift = F.embedding(timestep, self.table)[:, None].chunk(2, -1)  # (R, 1, D)
        return F.layer_norm(x, x.shape[-1:], eps=self.eps) * (1 + scale) + shift


class TokenDenoiser(nn.Module):
    """(tokens int64 (R, h, w), timestep (R,), text (R, T, D)) to logits (R, codes, h, w)."""

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        self.embedding, self.blocks = transformer.latent_image_embedding, transformer.transformer_blocks
        self.norm, self.out = transformer.norm_out, transformer.out
        for block in self.blocks:
            block.norm1, block.norm2 = TimedNorm(block.norm1), TimedNorm(block.norm2)

    def forward(self, tokens: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        x, time = self.embedding(tokens.flatten(1)), timestep.long()  # (R, N, D)
        for block in self.blocks:
            x = block(x, encoder_hidden_states=text, timestep=time)
        return self.out(self.norm(x)).transpose(1, 2).unflatten(2, tokens.shape[1:])


class Text(nn.Module):
    """prompt int64 (R, T + 1) to hidden states of unit length (R, T, D); "" to what was learned in its place.

    The last token isn't read: the pipeline cuts a prompt that is too long without putting an end to it.
    """

    empty: Tensor  # (T,)
    null: Tensor  # (T, D)

    def __init__(self, encoder: nn.Module, empty: Tensor, null: Tensor) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("empty", empty)
        self.register_buffer("null", null)

    def forward(self, prompt: Tensor) -> tuple[Tensor]:
        prompt = prompt[:, :-1]
        hidden = self.encoder(prompt).last_hidden_state
        hidden = hidden / hidden.square().sum(-1, keepdim=True).sqrt()
        given = (prompt != self.empty).float().sum(1) > 0  # (R,)
        return (torch.where(given[:, None, None], hidden, self.null),)


def load(folder: Path, variant: str | None = None) -> Model:
    """Load the model of a VQ-Diffusion folder.

    Args:
        folder: holds ``model_index.json``, ``transformer``, ``vqvae``, ``text_encoder``, ``tokenizer``, ``scheduler``
            and ``learned_classifier_free_sampling_embeddings``.
        variant: of the weights, as ``weights_of`` takes it.

    Raises:
        MmgenError: a component or a setting of it that isn't supported, parts that don't fit together, weights that
            are missing, damaged or incomplete.
    """
    diffusers, transformers = import_library("diffusers"), import_library("transformers")
    index = read_json(folder / "model_index.json")
    for part, (library, supported) in PARTS.items():
        class_name(index, part, supported, folder, library)
    config = config_of(folder / "transformer", diffusers.Transformer2DModel)
    vae = config_of(folder / "vqvae", diffusers.VQModel)
    scheduler = config_of(folder / "scheduler", diffusers.VQDiffusionScheduler, "scheduler_config.json")
    check_autoencoder(vae, folder / "vqvae")
    _check_fit(folder, config, vae, scheduler)
    learned = {NULL: DIFFUSERS} if read_json(folder / NULL / "config.json").get("learnable") else {}
    weights = weights_of(folder, WEIGHTS | learned, variant)
    parts = token_parts(
        folder,
        weights,
        transformer=diffusers.Transformer2DModel,
        vqvae=diffusers.VQModel,
        text_encoder=transformers.CLIPTextModel,
    )
    vqvae, encoder, tokenizer, length = parts.vqvae, parts.text_encoder, parts.tokenizer, parts.length
    empty = tokenizer("", padding="max_length", max_length=length, return_tensors="pt").input_ids[0]
    null = _null(weights.get(NULL), encoder, empty)

    codes = vae["num_vq_embeddings"]
    channels = vae["vq_embed_dim"] or vae["latent_channels"]
    codebook = vqvae.quantize.embedding.weight
    return Model(
        **token_model(folder, parts, weights, side=config["sample_size"]),
        process=Masked(
            codes=codes,
            mask_id=codes,
            train_timesteps=scheduler["num_train_timesteps"],
            hidden=(scheduler["gamma_cum_start"], scheduler["gamma_cum_end"]),
        ),
        denoiser=TokenDenoiser(parts.transformer),
        conditions=(Condition("prompt", "text", null="", length=length + 1, pad_id=tokenizer.pad_token_id),),
        defaults=Defaults("vq-diffusion", min(STEPS, scheduler["num_train_timesteps"]), guidance=GUIDANCE),
        decoder=CodesDecoder(Decoder(vqvae), codebook),
        encoder=CodesEncoder(Encoder(vqvae, channels, 1.0), codebook),
        condition=Text(encoder, empty, null),
        conditioning=("text",),
    )


def _null(weights: Weights | None, encoder: Any, empty: Tensor) -> Tensor:
    """Return the tensor (T, D) for no prompt: the learned one or, without one, the hidden states of the text ""."""
    if weights is None:
        with torch.no_grad():
            hidden: Tensor = encoder(empty[None]).last_hidden_state[0]
        return hidden / hidden.norm(dim=-1, keepdim=True)
    from diffusers.pipelines.deprecated.vq_diffusion.pipeline_vq_diffusion import (
        LearnedClassifierFreeSamplingEmbeddings,
    )

    learned: Tensor = from_pretrained(LearnedClassifierFreeSamplingEmbeddings, weights, **AS_FLOAT).embeddings
    got, wanted = tuple(learned.shape), (len(empty), encoder.config.hidden_size)
    if got != wanted:
        raise MmgenError(f"{weights.folder}: embeddings", got=got, wanted=f"{wanted}, as the text_encoder's")
    return learned.detach()


def _check_fit(folder: Path, config: dict[str, Any], vae: dict[str, Any], scheduler: dict[str, Any]) -> None:
    codes, timesteps, part = vae["num_vq_embeddings"], scheduler["num_train_timesteps"], folder / "transformer"
    wanted = f"{codes + 1}, the entries of the vqvae's codebook and the mask"
    want(config, "num_vector_embeds", config["num_vector_embeds"] == codes + 1, wanted, part)
    fits = isinstance(config["num_embeds_ada_norm"], int) and config["num_embeds_ada_norm"] >= timesteps > 1
    want(config, "num_embeds_ada_norm", fits, f"at least {timesteps}, the scheduler's timesteps", part)
    norms = ("ada_norm", "layer_norm")  # the second, together with num_embeds_ada_norm, is how older folders say it
    want(config, "norm_type", config["norm_type"] in norms, "'ada_norm'", part)
    want(config, "cross_attention_dim", config["cross_attention_dim"] is not None, "the text_encoder's width", part)
    for field in ("only_cross_attention", "double_self_attention"):
        want(config, field, config[field] is False, "False", part)
    path = f"{folder}/scheduler/scheduler_config.json"
    if scheduler["num_vec_classes"] != codes + 1:
        raise MmgenError(f"{path}: num_vec_classes", got=scheduler["num_vec_classes"], wanted=codes + 1)
    first, last = (scheduler[f"gamma_cum_{end}"] for end in ("start", "end"))
    if not 0 <= first < last < 1:
        raise MmgenError(f"{path}: gamma_cum_start and gamma_cum_end", got=(first, last), wanted="0 to 1, increasing")
    for end in ("start", "end"):
        replaced = 1 - scheduler[f"alpha_cum_{end}"] - scheduler[f"gamma_cum_{end}"]
        if abs(replaced) > REPLACED:
            raise MmgenError(
                f"{path}: chance that a code was replaced, 1 - alpha_cum_{end} - gamma_cum_{end}",
                got=f"{replaced:.3g}",
                wanted=f"at most {REPLACED:g}",
                remedy="for other models write a module:function",
            )
