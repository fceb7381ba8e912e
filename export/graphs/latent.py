"""The graphs of a bundle as torch modules: a ``Model``'s parts with the arithmetic around them that must not be split.

Tensor names and shapes are those of ``mmgen.runtime.storage.tensors``; ``naming`` keeps the user's names distinct.
B samples, G guidance branches, R = G B the branch batch (branch by branch), L the latent shape, K state slots.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from mmgen.export.base.model import Model
from mmgen.export.graphs.media import dtype_of, from_module, to_module
from mmgen.runtime.storage import tensors as names
from mmgen.runtime.storage.process import Masked
from mmgen.runtime.storage.schema import EMBED, INPUT, Condition, Media, Role
from mmgen.runtime.storage.tensors import K

SHORTEST = 1e-6  # length of a vector that is embedded; a shorter one stays shorter than 1
SMALLEST_VARIANCE = 1e-12  # an output that is the same everywhere has no spread to rescale
EXAMPLE_B, EXAMPLE_G = 3, 2  # sizes to trace with: neither 0 nor 1, which torch specialises on, and not equal


@dataclass(frozen=True)
class Source:
    """A module with what the tracer must know: example inputs by name, which axes may vary, names of the outputs."""

    role: Role
    module: nn.Module
    inputs: Mapping[str, Tensor]
    axes: Mapping[str, tuple[str, ...]]  # by input: names of its leading axes; "" for one that is fixed
    outputs: tuple[str, ...]


class ConditionGraph(nn.Module):
    """A request's conditions (R, ...) to the conditioning tensors (R, ...)."""

    def __init__(self, condition: nn.Module) -> None:
        super().__init__()
        self.condition = condition

    def forward(self, *conditions: Tensor) -> tuple[Tensor, ...]:
        out = self.condition(*conditions)
        return (out,) if isinstance(out, Tensor) else tuple(out)


class StepGraph(nn.Module):
    """One evaluation of the denoiser with a row of the solver's table around it; ``solvers/table.py`` defines it.

    The update is a product and a sum, not a MatMul: a MatMul of float32 may run in TF32.
    """

    def __init__(self, denoiser: nn.Module, guided_channels: int | None = None, *, rescale: bool = False) -> None:
        super().__init__()
        self.denoiser, self.guided_channels, self.rescale = denoiser, guided_channels, rescale

    def forward(
        self,
        state: Tensor,  # (K, B, *L)
        transition: Tensor,  # (K, K + 3)
        prediction: Tensor,  # (2,)
        x0_limit: Tensor,  # (1,)
        input_scale: Tensor,  # (1,)
        timestep: Tensor,  # (1,)
        guidance: Tensor,  # (G,)
        noise: Tensor,  # (B, *L)
        known: Tensor,  # (2, B, *L)
        keep: Tensor,  # (B, *L)
        next_level: Tensor,  # (2,)
        *more: Tensor,  # guidance_rescale (1,), if the graph has it; then the conditioning tensors (G, B, ...)
    ) -> tuple[Tensor, Tensor]:
        guidance_rescale, conditioning = (more[0], more[1:]) if self.rescale else (None, more)
        x = state[0]  # (B, *L)
        branches, batch, ones = guidance.shape[0], x.shape[0], (1,) * x.ndim
        batched = (input_scale * x).expand(branches, *x.shape).flatten(0, 1)  # (R, *L)
        out = self.denoiser(batched, timestep.expand(branches * batch), *(c.flatten(0, 1) for c in conditioning))
        out = self.guide(out.reshape(branches, batch, *x.shape[1:]), guidance, guidance_rescale)  # (B, *L)
        x0 = prediction[0] * x + prediction[1] * out
        x0 = torch.minimum(torch.maximum(x0, -x0_limit), x0_limit)  # a limit of infinity leaves it alone
        columns = torch.cat([state, x0[None], out[None], noise[None]])  # (K + 3, B, *L)
        next_state = (transition.reshape(K, K + 3, *ones) * columns).sum(1)
        kept = keep > 0  # in all slots: what the others hold there is never used
        noised = next_level[0] * known[0] + next_level[1] * known[1]  # (B, *L)
        return torch.where(kept, noised, next_state), torch.where(kept, known[0], x0)

    def guide(self, out: Tensor, guidance: Tensor, rescale: Tensor | None) -> Tensor:
        """Combine the outputs (G, B, *L) of all branches into one (B, *L).

        Channels that aren't guided are those of the first branch, the request's own condition.  Guidance widens the
        spread of a sample's values; ``rescale`` is the share of that to undo (Lin et al. 2023, eq. 15 and 16).
        """
        conditional, ones = out[0], (1,) * (out.ndim - 1)
        guided = (guidance.reshape(-1, *ones) * out).sum(0)
        if self.guided_channels not in (None, conditional.shape[1]):
            guided = torch.cat([guided[:, : self.guided_channels], conditional[:, self.guided_channels :]], 1)
        if rescale is None:
            return guided
        ratio = variance(conditional) / variance(guided).clamp(min=SMALLEST_VARIANCE)
        return guided * (1 + rescale * (ratio.sqrt() - 1)).reshape(-1, *ones[1:])


def variance(x: Tensor) -> Tensor:
    """Return the variance of each sample's values: (B, *L) to (B,)."""
    values = x.flatten(1)
    return (values - values.mean(1, keepdim=True)).square().mean(1)


class DecodeGraph(nn.Module):
    """Latents (B, *L) to media: nearest code, decoder, and the media as files hold them."""

    def __init__(self, decoder: nn.Module, quantiser: nn.Module | None, media: Media) -> None:
        super().__init__()
        self.decoder, self.quantiser, self.media = decoder, quantiser, media

    def forward(self, latents: Tensor) -> tuple[Tensor, ...]:
        codes: tuple[Tensor, ...] = ()
        if self.quantiser is not None:
            latents, found = self.quantiser(latents)
            codes = (found,)
        return from_module(self.decoder(latents), self.media), *codes


class EncodeGraph(nn.Module):
    """Media as decode makes it to latents (B, *L) or, where the process is masked, codes (B, *L) int64."""

    def __init__(self, encoder: nn.Module, media: Media) -> None:
        super().__init__()
        self.encoder, self.media = encoder, media

    def forward(self, media: Tensor) -> Tensor:
        out: Tensor = self.encoder(to_module(media, self.media))
        return out


class EmbedGraph(nn.Module):
    """What an input was encoded to (B, ...) to vectors (B, D) of length 1."""

    def __init__(self, embed: nn.Module) -> None:
        super().__init__()
        self.embed = embed

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = self.embed(features)
        return out / out.square().sum(1, keepdim=True).sqrt().clamp_min(SHORTEST)


def condition_source(model: Model) -> Source | None:
    """Build the condition graph; None where the denoiser takes the conditions themselves."""
    if model.condition is None:
        return None
    inputs = {c.tensor: example(model, c, EXAMPLE_B * EXAMPLE_G) for c in model.conditions}
    axes = dict.fromkeys(inputs, ("R",))
    return Source("condition", ConditionGraph(model.condition), inputs, axes, model.conditioning)


def step_source(model: Model, conditioning: Sequence[tuple[str, Tensor]]) -> Source:
    """Build the step graph.

    Args:
        conditioning: name and example (R, ...) of each conditioning tensor, R = EXAMPLE_G EXAMPLE_B.
    """
    size = (EXAMPLE_B, *model.latent_shape)
    fixed = {
        names.STATE: torch.zeros(K, *size),
        names.TRANSITION: torch.zeros(K, K + 3),
        names.PREDICTION: torch.zeros(2),
        names.X0_LIMIT: torch.ones(1),
        names.INPUT_SCALE: torch.ones(1),
        names.TIMESTEP: torch.ones(1),
        names.GUIDANCE: torch.ones(EXAMPLE_G),
        names.NOISE: torch.zeros(size),
        names.KNOWN: torch.zeros(2, *size),
        names.KEEP: torch.zeros(size),
        names.NEXT_LEVEL: torch.zeros(2),
    }
    rescale = model.guidance_rescale and bool(model.conditions)
    if rescale:
        fixed[names.RESCALE] = torch.zeros(1)
    varying = {name: value.unflatten(0, (EXAMPLE_G, EXAMPLE_B)) for name, value in conditioning}
    axes: dict[str, tuple[str, ...]] = dict.fromkeys(varying, ("G", "B")) | {names.GUIDANCE: ("G",)}
    axes |= dict.fromkeys((names.STATE, names.KNOWN), ("", "B")) | dict.fromkeys((names.NOISE, names.KEEP), ("B",))
    module = StepGraph(model.denoiser, model.guided_channels, rescale=rescale)
    return Source("step", module, fixed | varying, axes, (names.NEXT_STATE, names.X0))


def decode_source(model: Model) -> Source:
    """Build the decode graph."""
    assert model.decoder is not None
    inputs = {names.LATENTS: torch.zeros(EXAMPLE_B, *model.latent_shape)}
    outputs = (names.MEDIA, names.CODES) if model.quantiser is not None else (names.MEDIA,)
    module = DecodeGraph(model.decoder, model.quantiser, model.media)
    return Source("decode", module, inputs, {names.LATENTS: ("B",)}, outputs)


def encode_source(model: Model) -> Source | None:
    """Build the encode graph; None where the model has no encoder."""
    if model.encoder is None:
        return None
    inputs = {names.MEDIA: torch.zeros(EXAMPLE_B, *model.media.shape, dtype=dtype_of(model.media))}
    made = names.CODES if isinstance(model.process, Masked) else names.LATENTS
    return Source("encode", EncodeGraph(model.encoder, model.media), inputs, {names.MEDIA: ("B",)}, (made,))


def input_sources(model: Model) -> list[Source]:
    """Build the graphs of inputs: from media to what the other graphs take, and from that to vectors."""
    found = []
    for c in model.conditions:
        if c.name in model.encoders and c.media is not None:
            given = {names.MEDIA: torch.from_numpy(np.stack(media_examples(model, c, EXAMPLE_B)))}
            module = EncodeGraph(model.encoders[c.name], c.media)
            found.append(Source(INPUT + c.name, module, given, {names.MEDIA: ("B",)}, (names.FEATURES,)))
        if c.name in model.embeds:
            features = {names.FEATURES: example(model, c, EXAMPLE_B)}
            module_ = EmbedGraph(model.embeds[c.name])
            found.append(Source(EMBED + c.name, module_, features, {names.FEATURES: ("B",)}, (names.EMBEDDING,)))
    return found


def media_examples(model: Model, condition: Condition, count: int) -> list[np.ndarray]:
    """Return media for an input: the model's examples, or made-up ones, which are neither flat nor noise."""
    media = condition.media
    assert media is not None
    given = [np.asarray(request[condition.name]) for request in model.examples if condition.name in request]
    if given:
        return [given[i % len(given)] for i in range(count)]
    waves = [np.sin(np.indices(media.shape).sum(0) * (0.1 + 0.05 * i)) for i in range(count)]
    if np.dtype(media.dtype).kind == "u":
        waves = [127.5 + 127.5 * wave for wave in waves]
    return [wave.astype(media.dtype) for wave in waves]


def example(model: Model, condition: Condition, count: int) -> Tensor:
    """Return a branch batch of a condition: text int64 (R, length), class int64 (R,), array (R, *shape).

    The values come from the model's examples where it has any, and else are zeros, which some modules can't process, as
    an attention to nothing but padding.
    """
    given = [request[condition.name] for request in model.examples if condition.name in request]
    if condition.name in model.encoders and condition.media is not None:
        media = torch.from_numpy(np.stack(media_examples(model, condition, count)))
        with torch.no_grad():
            features: Tensor = EncodeGraph(model.encoders[condition.name], condition.media)(media)
        return features
    match condition.kind:
        case "text":
            return torch.zeros(count, condition.length or 1, dtype=torch.int64)
        case "class" if given:
            return torch.tensor([int(given[i % len(given)]) for i in range(count)])
        case "class":
            return torch.zeros(count, dtype=torch.int64)
        case _ if given:
            values = [np.asarray(given[i % len(given)], condition.dtype) for i in range(count)]
            return torch.from_numpy(np.stack(values)).reshape(count, *condition.shape)
        case _:
            return torch.zeros(count, *condition.shape, dtype=getattr(torch, condition.dtype))


def conditioning_examples(model: Model, condition: Source | None) -> list[tuple[str, Tensor]]:
    """Return the name and an example (R, ...) of each conditioning tensor, R = EXAMPLE_G EXAMPLE_B."""
    if condition is None:
        return [(c.tensor, example(model, c, EXAMPLE_B * EXAMPLE_G)) for c in model.conditions]
    with torch.no_grad():
        made = condition.module(*condition.inputs.values())
    return list(zip(model.conditioning, made, strict=True))


def sources(model: Model) -> dict[Role, Source]:
    """Build every graph of a model, in the order in which a request runs them, with encode last."""
    condition = condition_source(model)
    conditioning = conditioning_examples(model, condition)
    found = (
        *input_sources(model), condition, step_source(model, conditioning), decode_source(model), encode_source(model)
    )  # fmt: skip
    return {source.role: source for source in found if source is not None}
