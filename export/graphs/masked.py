"""The graphs of a masked process as torch modules: a step that unmasks tokens, media from codes, codes from media.

``runtime/solvers/masked_reference.py`` defines the step.  B samples, G guidance branches, R = G B the branch batch
(branch by branch), L the latent shape, N its product, K the candidates.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmgen.export.base.model import Model
from mmgen.export.graphs.latent import (
    EXAMPLE_B,
    EXAMPLE_G,
    Source,
    condition_source,
    conditioning_examples,
    encode_source,
    input_sources,
)
from mmgen.export.graphs.media import from_module
from mmgen.runtime.loop.masked_plan import ROWS
from mmgen.runtime.solvers.masked_reference import FAR, TINY
from mmgen.runtime.storage import tensors as names
from mmgen.runtime.storage.process import Masked
from mmgen.runtime.storage.schema import Media, Role

FIXED = (names.TOKENS, *ROWS, names.GUIDANCE, names.CHOICE, names.ORDER)  # a step's inputs; its conditioning follows


class MaskedStepGraph(nn.Module):
    """One evaluation of the denoiser with a row of a ``MaskedTable`` around it; float32 behind the logits.

    The score's rank is counted by comparing every pair: TensorRT sorts no more than 3840 numbers, and the number of
    positions to mask stays a plain input.
    """

    def __init__(self, denoiser: nn.Module, process: Masked) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.mask_id, self.codes = process.mask_id, process.codes
        self.candidates = min(process.codes, process.candidates)
        self.timed = process.train_timesteps > 0

    def forward(
        self,
        tokens: Tensor,  # (B, *L) int64
        sharpness: Tensor,  # (1,)
        top_k: Tensor,  # (1,)
        confidence: Tensor,  # (2,)
        masked: Tensor,  # (1,)
        stay: Tensor,  # (1,)
        window: Tensor,  # (1,)
        redraw: Tensor,  # (1,)
        threshold: Tensor,  # (1,)
        guidance: Tensor,  # (G,)
        choice: Tensor,  # (B, *L) in [0, 1)
        order: Tensor,  # (B, *L) in [0, 1)
        *more: Tensor,  # timestep (1,), if the denoiser is conditioned on it; then the conditioning tensors (G, B, ...)
    ) -> tuple[Tensor, Tensor]:
        logits = self.logits(tokens, guidance, more)  # (B, N, codes)
        flat, choice, order = tokens.flatten(1), choice.flatten(1), order.flatten(1)  # (B, N)
        is_masked = flat == self.mask_id

        sorted_logits, best_first = logits.topk(self.candidates, -1)  # (B, N, K)
        best, last = sorted_logits[..., :1], (top_k - 1).clamp_max(self.candidates - 1).long()
        limit = torch.where(top_k <= self.candidates, sorted_logits.index_select(-1, last), -FAR)  # (B, N, 1)
        weights = ((logits - best) * sharpness).exp() * (logits >= limit).float()
        cumulative = running_sum(weights)
        beyond = torch.logical_and(weights > 0, cumulative > choice[..., None] * cumulative[..., -1:])
        numbers = torch.arange(self.codes, dtype=torch.float32)
        first = torch.where(beyond, numbers, float(self.codes)).amin(-1).long()  # (B, N)
        drawn = torch.where(first < self.codes, first, best_first[..., 0])
        codes = torch.where(torch.logical_or(is_masked, order < redraw), drawn, flat)

        log_p = (logits.gather(-1, drawn[..., None]) - best)[..., 0] - (logits - best).exp().sum(-1).log()
        gumbel = -(-order.clamp_min(TINY).log()).clamp_min(TINY).log()
        score = confidence[0] * log_p + confidence[1] * gumbel
        positions = torch.arange(flat.shape[1], dtype=torch.float32)
        score = torch.where(positions < window, score, -FAR)
        score = torch.where(is_masked, score, FAR)

        left = is_masked.float().sum(1, keepdim=True) - 1  # (B, 1) masked, if one position is unmasked
        target = torch.minimum(masked, torch.maximum(left, (threshold > 0).float()))
        mine, others = score[:, :, None], score[:, None]
        behind = positions[:, None] <= positions  # (N, N)
        lower = torch.logical_or(others < mine, torch.logical_and(others == mine, behind))
        rank = lower.float().sum(-1)  # (B, N)
        again = torch.logical_and(torch.logical_or(rank <= target, order < stay), log_p < threshold)
        again = torch.logical_or(again, positions >= window)
        next_tokens = torch.where(torch.logical_and(is_masked, again), self.mask_id, codes)
        return next_tokens.reshape(tokens.shape), codes.reshape(tokens.shape)

    def logits(self, tokens: Tensor, guidance: Tensor, more: Sequence[Tensor]) -> Tensor:
        """Return the guided logits (B, N, codes)."""
        branches, batch = guidance.shape[0], tokens.shape[0]
        batched = tokens.expand(branches, *tokens.shape).flatten(0, 1)  # (R, *L)
        timestep = [more[0].expand(branches * batch)] if self.timed else []  # (R,)
        conditioning = [c.flatten(0, 1) for c in more[len(timestep) :]]
        logits: Tensor = self.denoiser(batched, *timestep, *conditioning).flatten(2)  # (R, codes, N)
        logits = logits.reshape(branches, batch, *logits.shape[1:])
        return (guidance[:, None, None, None] * logits).sum(0).transpose(1, 2)


class CodesDecodeGraph(nn.Module):
    """Codes (B, *L) int64 to media as files hold them."""

    def __init__(self, decoder: nn.Module, media: Media) -> None:
        super().__init__()
        self.decoder, self.media = decoder, media

    def forward(self, codes: Tensor) -> Tensor:
        return from_module(self.decoder(codes), self.media)


def running_sum(x: Tensor) -> Tensor:
    """Sum the last axis up to each entry.

    In log2 of its length additions: older TensorRTs make a loop over the axis of a CumSum, and a product with a
    triangle may run in TF32.
    """
    shift = 1
    while shift < x.shape[-1]:
        x = torch.cat([x[..., :shift], x[..., shift:] + x[..., :-shift]], -1)
        shift *= 2
    return x


def masked_step_source(model: Model, conditioning: Sequence[tuple[str, Tensor]]) -> Source:
    """Build the step graph.

    Args:
        conditioning: name and example (R, ...) of each conditioning tensor, R = EXAMPLE_G EXAMPLE_B.
    """
    assert isinstance(model.process, Masked)
    size = (EXAMPLE_B, *model.latent_shape)
    fixed = {
        names.TOKENS: torch.full(size, model.process.mask_id),
        **{name: torch.ones(shape) for name, shape in ROWS.items()},
        names.GUIDANCE: torch.ones(EXAMPLE_G),
        names.CHOICE: torch.zeros(size),
        names.ORDER: torch.zeros(size),
    }
    if model.process.train_timesteps:
        fixed[names.TIMESTEP] = torch.ones(1)
    varying = {name: value.unflatten(0, (EXAMPLE_G, EXAMPLE_B)) for name, value in conditioning}
    axes: dict[str, tuple[str, ...]] = dict.fromkeys(varying, ("G", "B"))
    axes |= dict.fromkeys((names.TOKENS, names.CHOICE, names.ORDER), ("B",)) | {names.GUIDANCE: ("G",)}
    module = MaskedStepGraph(model.denoiser, model.process)
    return Source("step", module, fixed | varying, axes, (names.NEXT_TOKENS, names.CODES))


def codes_decode_source(model: Model) -> Source | None:
    """Build the decode graph; None where the codes are the media."""
    if model.decoder is None:
        return None
    inputs = {names.CODES: torch.zeros(EXAMPLE_B, *model.latent_shape, dtype=torch.int64)}
    return Source(
        "decode", CodesDecodeGraph(model.decoder, model.media), inputs, {names.CODES: ("B",)}, (names.MEDIA,)
    )


def sources(model: Model) -> dict[Role, Source]:
    """Build every graph of a masked-token model, in the order in which a request runs them, with encode last."""
    condition = condition_source(model)
    conditioning = conditioning_examples(model, condition)
    found = (
        *input_sources(model), condition, masked_step_source(model, conditioning), codes_decode_source(model),
        encode_source(model),
    )  # fmt: skip
    return {source.role: source for source in found if source is not None}
