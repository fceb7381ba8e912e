"""Diffusers folders with random weights, small and at the sizes people publish.

Random weights alone make a poor test: an untrained denoiser lets the latents explode, and tensors that start as zero
hide what they multiply.  So zeros become small random numbers, the codebook gets the spread of the latents, and the
denoiser's last layer is fitted by least squares to smooth random fields that depend on the class.  Pictures then have
contrast, classes differ, and an error in the loop shows.
"""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel, VQModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

DDIM: dict[str, Any] = {"beta_schedule": "linear", "clip_sample": False, "set_alpha_to_one": True}  # of facebook/DiT-*

TINY_DIT: dict[str, Any] = {
    "num_layers": 2, "num_attention_heads": 4, "attention_head_dim": 16, "in_channels": 3, "out_channels": 6,
    "sample_size": 8, "patch_size": 2,
}  # fmt: skip
TINY_VQ: dict[str, Any] = {
    "block_out_channels": (16, 32), "layers_per_block": 1, "latent_channels": 3, "num_vq_embeddings": 64,
    "norm_num_groups": 8, "sample_size": 16, "scaling_factor": 0.5,
    "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
}  # fmt: skip
TINY_KL: dict[str, Any] = {
    "block_out_channels": (16, 32), "layers_per_block": 1, "latent_channels": 3, "norm_num_groups": 8,
    "sample_size": 16, "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
}  # fmt: skip


def dit(layers: int, heads: int, dim: int, channels: int, size: int, patch: int = 2) -> dict[str, Any]:
    """Return a published DiT's configuration: S/2 is (12, 6, 64), B/4 (12, 12, 64) with patch 4, XL/2 (28, 16, 72)."""
    return {
        "num_layers": layers, "num_attention_heads": heads, "attention_head_dim": dim, "in_channels": channels,
        "out_channels": 2 * channels, "sample_size": size, "patch_size": patch,
    }  # fmt: skip


# LDM's first stages for 256 x 256 pictures
VQ_F4: dict[str, Any] = {
    "block_out_channels": (128, 256, 512), "layers_per_block": 2, "latent_channels": 3, "num_vq_embeddings": 8192,
    "sample_size": 256, "scaling_factor": 1.0,
    "down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3,
}  # fmt: skip
VQ_F8: dict[str, Any] = {
    "block_out_channels": (128, 256, 256, 512), "layers_per_block": 2, "latent_channels": 4,
    "num_vq_embeddings": 16384, "sample_size": 256, "scaling_factor": 1.0,
    "down_block_types": (*("DownEncoderBlock2D",) * 3, "AttnDownEncoderBlock2D"),
    "up_block_types": ("AttnUpDecoderBlock2D", *("UpDecoderBlock2D",) * 3),
}  # fmt: skip

# name: transformer, autoencoder; parameters of both as counted by their authors, in millions
TRUE_SIZES: dict[str, tuple[dict[str, Any], dict[str, Any], float, float]] = {
    "DiT-S-2-vq-f8": (dit(12, 6, 64, 4, 32), VQ_F8, 39.8, 67.7),
    "DiT-B-4-vq-f8": (dit(12, 12, 64, 4, 32, patch=4), VQ_F8, 147.4, 67.7),
    "DiT-XL-2-vq-f8": (dit(28, 16, 72, 4, 32), VQ_F8, 749.8, 67.7),
    "DiT-XL-2-vq-f4": (dit(28, 16, 72, 3, 64), VQ_F4, 749.8, 55.3),
}


@torch.no_grad()
def randomise(module: nn.Module) -> None:
    """Give tensors that start as zero small random values: what they multiply must show."""
    for parameter in module.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)


@torch.no_grad()
def soften(transformer: DiTTransformer2DModel) -> None:
    """Let timestep and class, at random weights far too loud, change features mildly."""
    quiet = ("timestep_embedder.linear_2", "class_embedder", "norm1.linear.bias", "proj_out_1.bias")
    for name, parameter in transformer.named_parameters():
        if name.startswith("pos_embed.proj"):
            parameter.mul_(0.3)
        elif any(part in name for part in quiet):
            parameter.mul_(0.05)


def fields(count: int, channels: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Smooth random latents (N, C, S, S) of unit variance and their classes (N,): each class has a mean colour."""
    classes = torch.randint(0, 10, (count,), generator=generator)
    colour = torch.randn(10, channels, 1, 1, generator=torch.Generator().manual_seed(0))[classes]
    coarse = torch.randn(count, channels, 4, 4, generator=generator)
    smooth = nn.functional.interpolate(coarse, (size, size), mode="bilinear")
    x = smooth + 0.7 * colour
    return x / x.std(), classes


@torch.no_grad()
def fit(transformer: DiTTransformer2DModel, scheduler: Any, count: int) -> None:
    """Least squares for the last layer: the scheduler's prediction target from features of random layers.

    Denoising step by step, the fitted network shrinks errors as a trained one does.
    """
    config, generator = transformer.config, torch.Generator().manual_seed(1)
    patch, size, channels = config.patch_size, config.sample_size, config.in_channels
    x0, classes = fields(count, channels, size, generator)
    noise = torch.randn(x0.shape, generator=generator)
    t = torch.randint(0, 1000, (count,), generator=generator)
    if not hasattr(scheduler, "alphas_cumprod"):  # along a flow
        share = t[:, None, None, None] / 1000
        x, target, weight = (1 - share) * x0 + share * noise, noise - x0, torch.ones(count)
    elif scheduler.config.prediction_type == "v_prediction":
        x, target, weight = scheduler.add_noise(x0, noise, t), scheduler.get_velocity(x0, noise, t), torch.ones(count)
    else:  # a squared error in the noise is (1 - a) / a times as large in x0
        x, target = scheduler.add_noise(x0, noise, t), noise
        weight = (1 / scheduler.alphas_cumprod[t] - 1).clamp(max=1e4)
    seen: list[Tensor] = []
    hook = transformer.proj_out_2.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    dropped = torch.rand(count, generator=generator) < 0.1  # a tenth of the labels, as in training
    labels = torch.where(dropped, config.num_embeds_ada_norm, classes)
    for batch in zip(x.split(8), t.split(8), labels.split(8), strict=True):
        transformer(*batch)
    hook.remove()
    features = torch.cat(seen).flatten(0, 1).double()  # (N tokens, D)
    grid = size // patch
    weight = weight.double().repeat_interleave(grid * grid)[:, None]
    wanted = target.reshape(count, channels, grid, patch, grid, patch).permute(0, 2, 4, 3, 5, 1)
    wanted = wanted.reshape(-1, patch * patch, channels).double()
    features = torch.cat([features, torch.ones(len(features), 1)], 1)
    gram = features.T @ (weight * features)
    gram += 1e-2 * gram.diagonal().mean() * torch.eye(len(gram))
    solution = torch.linalg.solve(gram, features.T @ (weight * wanted.flatten(1))).T.float()  # (p p C, D + 1)
    # The network's last axis is (p, p, C_out); with a learned sigma its second half of channels stays random.
    rows = torch.arange(patch * patch * transformer.out_channels).reshape(patch * patch, -1)[:, :channels].flatten()
    transformer.proj_out_2.weight[rows] = solution[:, :-1]
    transformer.proj_out_2.bias[rows] = solution[:, -1]


def build(
    folder: Path,
    transformer: dict[str, Any] = TINY_DIT,
    autoencoder: dict[str, Any] = TINY_VQ,
    scheduler: Any = None,
    count: int = 256,
    seed: int = 0,
) -> DiTPipeline:
    """Write a diffusers folder; returns the pipeline that wrote it.

    Args:
        folder: where to.
        transformer: configuration of the DiTTransformer2DModel.
        autoencoder: of the VQModel; of an AutoencoderKL where it has no codebook.
        scheduler: DDIM with DiT's settings by default.
        count: samples for ``fit``.
        seed: of all weights.
    """
    torch.manual_seed(seed)
    scheduler = scheduler or DDIMScheduler(**DDIM)
    denoiser = DiTTransformer2DModel(**transformer).eval()
    quantised = "num_vq_embeddings" in autoencoder
    vae = (VQModel if quantised else AutoencoderKL)(**autoencoder).eval()
    for module in (denoiser, vae):
        randomise(module)
    with torch.no_grad():
        if quantised:  # latents of unit variance, unscaled
            vae.quantize.embedding.weight.normal_(std=1 / vae.config.scaling_factor)
        vae.decoder.conv_out.weight.mul_(2)  # more contrast than the default initialisation gives
    soften(denoiser)
    fit(denoiser, scheduler, count)
    pipeline = DiTPipeline(denoiser, vae, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder)
    return pipeline


def edit(path: Path, **changes: Any) -> None:
    """Change fields of a JSON file; ``...`` removes one."""
    record = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in record.items() if value is not ...}))


def damage(path: Path, change: Any) -> None:
    """Change the tensors of a file."""
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
