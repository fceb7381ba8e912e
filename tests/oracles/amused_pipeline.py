"""diffusers' AmusedPipeline as an oracle: uniform numbers in, tokens and pictures out."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers import scheduling_amused


class InjectedNoise:
    """What torch draws inside AmusedScheduler.step, from given uniform numbers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.choice = self.order = np.zeros(0, np.float32)
        monkeypatch.setattr(torch, "multinomial", self.multinomial)
        monkeypatch.setattr(scheduling_amused, "gumbel_noise", self.gumbel)

    def multinomial(self, probs: torch.Tensor, number: int, generator: object = None) -> torch.Tensor:
        assert number == 1
        passed = (probs.cumsum(-1) <= torch.from_numpy(self.choice).reshape(-1, 1)).sum(-1, keepdim=True)
        return passed.clamp_max(probs.shape[-1] - 1)

    def gumbel(self, t: torch.Tensor, generator: object = None) -> torch.Tensor:
        return -torch.log((-torch.log(torch.from_numpy(self.order).clamp(1e-20))).clamp(1e-20))


def run_pipeline(
    pipeline: Any, prompts: list[str], uniforms: Iterable[np.ndarray], steps: int, guidance: float
) -> tuple[list[np.ndarray], np.ndarray]:
    """Tokens (B, h, w) after every step, and the pictures uint8.

    Args:
        uniforms: of every step (2, B, positions): for the choice and for the order.
    """
    drawn, seen, step = iter(uniforms), [], pipeline.scheduler.step
    with pytest.MonkeyPatch.context() as patched:
        noise = InjectedNoise(patched)

        def with_noise(**arguments: Any) -> Any:
            noise.choice, noise.order = next(drawn)
            out = step(**arguments)
            seen.append(out.prev_sample.numpy().copy())
            return out

        patched.setattr(pipeline.scheduler, "step", with_noise)
        made = pipeline(prompts, num_inference_steps=steps, guidance_scale=guidance, output_type="np")
    return seen, (made.images * 255).round().astype(np.uint8)
