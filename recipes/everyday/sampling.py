"""Make codes with the network in torch, to measure it while it trains: masks are filled in over a few steps."""

from math import cos, pi

import torch
from torch import Tensor

from mmgen.export.networks.any_to_any import AnyToAny


@torch.no_grad()
def make(
    model: AnyToAny,
    output: str,
    text: Tensor | None,
    media: dict[str, Tensor],
    steps: int,
    temperature: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """Codes (B, rows, columns) of what is given.

    After step s of S a share cos(pi s / 2 S) of the places stays masked, those with the least log p + temperature
    (1 - s / S) Gumbel noise (Chang et al. 2022, sec. 3.2); codes are the likeliest where the temperature is 0, else
    drawn.  A place that is filled in stays as it is.
    """
    random = torch.Generator().manual_seed(seed)
    given = {} if text is None else {"text": text}
    with torch.autocast("cpu", torch.bfloat16):
        given |= {name: model.sense(name, medium) for name, medium in media.items()}
        prefix = model.given(given)
    rows = len(prefix[0])
    config = model.config.outputs[output]
    tokens = torch.full((rows, *config.shape), config.codes)
    count = tokens[0].numel()
    for step in range(1, steps + 1):
        with torch.autocast("cpu", torch.bfloat16):
            logits = model.made(output, tokens, *prefix)
        log_p = logits.float().flatten(2).log_softmax(1)  # (B, C, N)
        noise = -torch.empty_like(log_p).exponential_(generator=random).log() if temperature else 0.0
        codes = (log_p + noise).argmax(1)  # (B, N)
        sure = log_p.gather(1, codes[:, None])[:, 0]
        if temperature:
            gumbel = -torch.empty_like(sure).exponential_(generator=random).log()
            sure = sure + temperature * (1 - step / steps) * gumbel
        flat = tokens.flatten(1)
        masked = flat == config.codes
        sure = sure.masked_fill(~masked, torch.inf)
        keep = max(count - int(count * cos(pi * step / 2 / steps)), 1) if step < steps else count
        rank = sure.argsort(1, descending=True).argsort(1)
        tokens = torch.where(masked & (rank < keep), codes, flat).view_as(tokens)
    return tokens


@torch.no_grad()
def embed(model: AnyToAny, name: str, batch: Tensor, size: int = 128) -> Tensor:
    """Unit vectors of tokens or of media, (B, D)."""
    vectors = []
    for part in batch.split(size):
        with torch.autocast("cpu", torch.bfloat16):
            given = part if name == "text" else model.sense(name, part)
            vectors.append(model.embed({name: given}).float())
    return torch.cat(vectors)
