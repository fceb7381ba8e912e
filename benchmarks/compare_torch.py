"""Torch as its users have it: diffusers' pipelines, and the recipes' own modules in a loop."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from compare_models import Made, Model, Peer, Request, rows
from torch import Tensor, nn

sys.path[:0] = [str(Path(__file__).parents[1] / "tests" / name) for name in ("models", "oracles")]
Play = Callable[[Request], Made]


def emoji() -> SimpleNamespace:
    """The embedded default's modules and the bytes of its tokenizer."""
    from mmgen.export.base import embedded
    from mmgen.export.sources import checkpoint

    model = checkpoint.load(embedded.folder("emoji"))
    parts = {name: getattr(model, name).eval() for name in ("denoiser", "decoder", "quantiser")}
    return SimpleNamespace(**parts, text=Text(model.condition).eval(), tokenizer=model.tokenizer)


def action_head() -> nn.Module:
    """The head in GR00T N1.5's shape."""
    from action_head import true_size

    return true_size().denoiser


class Text(nn.Module):
    """Tokens (R, T) to vectors (R, T, C)."""

    def __init__(self, text: nn.Module) -> None:
        super().__init__()
        self.text = text

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.text(tokens)[0]
        return out


class EmojiDecoder(nn.Module):
    """Latents (B, 8, 16, 16) to pictures (B, 3, 64, 64) in [-1, 1]."""

    def __init__(self, parts: SimpleNamespace) -> None:
        super().__init__()
        self.quantiser, self.decoder = parts.quantiser, parts.decoder

    def forward(self, latents: Tensor) -> Tensor:
        out: Tensor = self.decoder(self.quantiser(latents)[0].to(next(self.decoder.parameters()).dtype))
        return out


class DitDecoder(nn.Module):
    """Latents (B, 4, 32, 32) to pictures (B, 3, 256, 256) in [-1, 1]."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor) -> Tensor:
        out: Tensor = self.vae.decode(latents).sample
        return out


def open_torch(model: Model, peer: Peer, folder: Path, threads: int) -> Play:
    """A peer of torch, its weights loaded."""
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    dtype = torch.bfloat16 if peer.precision == "bf16" else torch.float32
    compiled: Any = torch.compile if peer.name.startswith("torch-compile") else lambda thing: thing
    match model.kind:
        case "class":
            return _dit(model, folder, dtype, compiled)
        case "tokens":
            return _amused(model, folder, dtype, compiled)
        case "text":
            return _emoji(model, dtype, compiled)
        case "action":
            return _action(model, dtype, compiled)


def _dit(model: Model, folder: Path, dtype: torch.dtype, compiled: Any) -> Play:
    from diffusers import DiTPipeline
    from diffusers.pipelines.dit import pipeline_dit

    pipeline = DiTPipeline.from_pretrained(folder / "diffusers", torch_dtype=dtype)
    clock, decoded = _watched(pipeline, pipeline.vae, compiled)

    def play(request: Request) -> Made:
        clock.start()
        noise = torch.from_numpy(request.noise).to(dtype)
        with patch.object(pipeline_dit, "randn_tensor", lambda *_, **__: noise):  # the same noise for every peer
            made = pipeline(
                [request.conditions["class_id"]], guidance_scale=model.guidance, num_inference_steps=model.steps
            )
        latents = decoded[-1].float().numpy()
        return Made(np.asarray(made.images[0])[None], latents, clock.steps(), clock.decode)

    return play


def _amused(model: Model, folder: Path, dtype: torch.dtype, compiled: Any) -> Play:
    from amused_pipeline import run_pipeline
    from diffusers import AmusedPipeline

    from mmgen.runtime.request.tokens import uniforms

    pipeline = AmusedPipeline.from_pretrained(folder / "diffusers", torch_dtype=dtype)
    clock, _ = _watched(pipeline, pipeline.vqvae, compiled)

    def play(request: Request) -> Made:
        clock.start()
        shape = 1, *model.latents
        drawn = [u.reshape(2, 1, -1) for u in uniforms(request.number, shape, model.steps).values()]
        tokens, media = run_pipeline(pipeline, [request.conditions["prompt"]], drawn, model.steps, model.guidance)
        return Made(media, tokens[-1], clock.steps(), clock.decode)

    return play


def _watched(pipeline: Any, vae: Any, compiled: Any) -> tuple["Clock", list[Tensor]]:
    """Prepare a pipeline of diffusers; returns its clock, and where the last thing that it decoded is put."""
    pipeline.set_progress_bar_config(disable=True)
    vae.to(memory_format=torch.channels_last)
    pipeline.transformer = compiled(pipeline.transformer)
    clock, decode, decoded = Clock(pipeline.transformer), compiled(vae.decode), []

    def watched(latents: Tensor, *others: Any, **named: Any) -> Any:
        decoded[:] = [latents]
        with clock:
            return decode(latents, *others, **named)

    vae.decode = watched
    return clock, decoded


def _emoji(model: Model, dtype: torch.dtype, compiled: Any) -> Play:
    from tokenizers import Tokenizer

    parts = emoji()
    tokenizer = Tokenizer.from_str(parts.tokenizer.decode())
    tokenizer.enable_truncation(24)
    tokenizer.enable_padding(length=24)
    narrow(parts.denoiser.time, dtype)
    text, denoiser = parts.text.to(dtype), compiled(parts.denoiser.to(dtype))
    parts.decoder = parts.decoder.to(dtype, memory_format=torch.channels_last)
    decoder, steps = compiled(EmojiDecoder(parts)), rows(model)

    def play(request: Request) -> Made:
        tokens = [encoded.ids for encoded in tokenizer.encode_batch([request.conditions["prompt"], ""])]
        context, x = text(torch.tensor(tokens)), torch.from_numpy(request.noise)
        seconds = []
        for row in steps:
            begun = time.perf_counter()
            t = torch.full((2,), row.told)
            asked, empty = denoiser(x.repeat(2, 1, 1, 1).to(dtype), t, context).float().chunk(2)
            x = row.a * x + row.b * (empty + model.guidance * (asked - empty))
            seconds.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        media = (decoder(x).float().clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
        return Made(media.numpy(), x.numpy(), seconds, time.perf_counter() - begun)

    return play


def _action(model: Model, dtype: torch.dtype, compiled: Any) -> Play:
    head, steps = action_head().to(dtype), rows(model)
    for module in (head.time, head.action_time):
        narrow(module, dtype)
    head = compiled(head)

    def play(request: Request) -> Made:
        context, joints = (torch.from_numpy(request.conditions[n][None]).to(dtype) for n in ("context", "joints"))
        x, seconds = torch.from_numpy(request.noise), []
        for row in steps:
            begun = time.perf_counter()
            x = row.a * x + row.b * head(x.to(dtype), torch.full((1,), row.told), context, joints).float()
            seconds.append(time.perf_counter() - begun)
        return Made(x.numpy(), x.numpy(), seconds, 0.0)

    return play


def narrow(module: nn.Module, dtype: torch.dtype) -> None:
    """Give a module its own type of what is computed from the timestep, which is float32 for every type of weights."""
    module.register_forward_pre_hook(lambda _, given: (given[0].to(dtype),))


class Clock:
    """Seconds of the steps, and of the decoder in a ``with`` block, inside a pipeline that tells neither."""

    def __init__(self, denoiser: nn.Module) -> None:
        self._begun: list[float] = []
        self._end = self.decode = 0.0
        denoiser.register_forward_pre_hook(lambda *_: self._begun.append(time.perf_counter()))

    def start(self) -> None:
        """A new request."""
        self._begun.clear()

    def __enter__(self) -> None:
        self._end = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.decode = time.perf_counter() - self._end

    def steps(self) -> list[float]:
        """From each call of the denoiser to the next one, or to the decoder."""
        return [float(s) for s in np.diff([*self._begun, self._end])]
