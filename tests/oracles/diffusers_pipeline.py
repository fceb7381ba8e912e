"""diffusers' DiTPipeline as an oracle: given noise in, latents and pictures out."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from diffusers.pipelines.dit import pipeline_dit


@dataclass(frozen=True)
class Made:
    """What the pipeline made."""

    latents: np.ndarray  # (B, C, h, w), as the denoiser leaves them
    pictures: np.ndarray  # float (B, H, W, 3) in [0, 1]


def run_pipeline(
    pipeline: Any, classes: list[int], noise: np.ndarray, steps: int, guidance: float, noises: Sequence[np.ndarray] = ()
) -> Made:
    """DiTPipeline on given noise, and given noises (B, *L) in the order in which its scheduler draws them.

    Alone it fits only schedulers that start from unit noise and don't scale: it steps from the input that it has scaled
    for the denoiser.  Here every scheduler starts from the noise it wants and steps from its sample.
    """
    scheduler, drawn = pipeline.scheduler, iter(noises)
    scale, step = getattr(scheduler, "scale_model_input", lambda sample, _: sample), scheduler.step
    latents: list[torch.Tensor] = []
    samples: list[torch.Tensor] = []
    decode = pipeline.vae.decode

    def scaled(sample: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        samples.append(sample)
        return scale(sample, t)

    def stepped(out: torch.Tensor, t: torch.Tensor, _: torch.Tensor) -> Any:
        return step(out, t, samples.pop())

    def fresh(shape: tuple[int, ...], **_: Any) -> torch.Tensor:
        one = torch.from_numpy(next(drawn))
        return one.repeat(shape[0] // len(one), 1, 1, 1)  # both branches are stepped

    def watched(z: torch.Tensor) -> Any:
        latents.append(z)
        return decode(z)

    scheduler.set_timesteps(steps)
    start = torch.from_numpy(noise) * float(getattr(scheduler, "init_noise_sigma", 1.0))
    with (
        patch.object(pipeline_dit, "randn_tensor", lambda *_, **__: start),
        patch.object(sys.modules[type(scheduler).__module__], "randn_tensor", fresh, create=True),
        patch.object(scheduler, "scale_model_input", scaled, create=True),
        patch.object(scheduler, "step", stepped),
        patch.object(pipeline.vae, "decode", watched),
    ):
        pictures = pipeline(classes, guidance_scale=guidance, num_inference_steps=steps, output_type="np").images
    return Made(latents[0].numpy() * pipeline.vae.config.scaling_factor, pictures)


def codes_of(pipeline: Any, latents: np.ndarray) -> np.ndarray:
    """VQModel's codes (B, h, w) of a denoiser's latents."""
    z = 1 / pipeline.vae.config.scaling_factor * torch.from_numpy(latents)
    with torch.no_grad():
        indices = pipeline.vae.quantize(z)[2][2]
    return indices.reshape(latents.shape[0], *latents.shape[2:]).numpy()


def figures(pipeline: Any, theirs: Made, generator: Any, result: Any) -> dict[str, float]:
    """How a run of a bundle compares with the pipeline's.

    latents: relative RMS.  decoder: PSNR in dB, the worst of the batch, of the bundle's decoder on the pipeline's
    latents.  search: share of codes that agree on the same latents.  codes: share that agree at the end of both runs.
    end to end: PSNR of what both made.
    """
    media, codes = generator.decode(theirs.latents)
    found = {
        "latents": float(np.linalg.norm(result.latents - theirs.latents) / np.linalg.norm(theirs.latents)),
        "decoder": psnr(media, theirs.pictures),
        "end to end": psnr(result.media, theirs.pictures),
    }
    if codes is not None:
        wanted = codes_of(pipeline, theirs.latents)
        found |= {"search": float((codes == wanted).mean()), "codes": float((result.codes == wanted).mean())}
    return found


def psnr(media: np.ndarray, pictures: np.ndarray) -> float:
    """Worst of a batch in dB; uint8 against float in [0, 1]."""
    error = ((media / 255.0 - pictures) ** 2).mean((1, 2, 3))
    return float(-10 * np.log10(error.max()))
