"""Published samplers for masked tokens, from their equations: uniform numbers in, tokens after each evaluation out.

Tokens are (B, N); a denoiser maps them to logits (B, N, codes); ``uniforms`` (evaluations, 2, B, N) are, of each, those
that choose the codes and those of the order.  All is float64.
"""

from collections.abc import Callable, Iterator

import numpy as np

Denoiser = Callable[[np.ndarray], np.ndarray]


def softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def gumbel(uniform: np.ndarray) -> np.ndarray:
    return -np.log(-np.log(uniform.astype(np.float64)))


def categorical(logits: np.ndarray, temperature: float, uniform: np.ndarray) -> np.ndarray:
    """Sample x ~ softmax(logits / temperature) by its inverse distribution; at 0 the most likely."""
    if temperature == 0:
        return logits.argmax(-1)
    below = softmax(logits / temperature).cumsum(-1) <= uniform[..., None]
    return np.minimum(below.sum(-1), logits.shape[-1] - 1)


def llada(
    denoiser: Denoiser,
    tokens: np.ndarray,
    mask: int,
    uniforms: np.ndarray,
    *,
    blocks: int,
    steps: int,
    temperature: float = 0.0,
    random: bool = False,
) -> Iterator[np.ndarray]:
    """Nie et al. 2025, algorithms 4 and 5: block by block, in each evaluation the k most confident masked positions.

    k is m / S for the m masked positions of the block in its S steps, and one more in the first m mod S of them.
    """
    tokens, length = tokens.copy(), tokens.shape[1] // blocks
    for block in range(blocks):
        end, each = (block + 1) * length, steps // blocks
        counts = (tokens[:, end - length : end] == mask).sum(1)
        for step in range(each):
            choice, order = uniforms[block * each + step]
            logits = denoiser(tokens)
            found = categorical(logits, temperature, choice)
            confidence = order if random else np.take_along_axis(softmax(logits), found[..., None], -1)[..., 0]
            for sample, count in enumerate(counts):
                open_ = [p for p in range(end) if tokens[sample, p] == mask]
                open_.sort(key=lambda p: -confidence[sample, p])
                for p in open_[: count // each + (step < count % each)]:
                    tokens[sample, p] = found[sample, p]
            yield tokens.copy()


def fast_dllm(
    denoiser: Denoiser,
    tokens: np.ndarray,
    mask: int,
    uniforms: np.ndarray,
    *,
    blocks: int,
    threshold: float,
    temperature: float = 0.0,
) -> Iterator[tuple[int, np.ndarray]]:
    """Wu et al. 2025, algorithm 1 without caches, of one sample: yields evaluations as ``llada`` in N steps counts.

    Each evaluation unmasks all positions of the block whose confidence is the threshold or more, or the best one.
    """
    tokens, length = tokens.copy(), tokens.shape[1] // blocks
    for block in range(blocks):
        inside = slice(block * length, (block + 1) * length)
        for step in range(length):
            if not (tokens[:, inside] == mask).any():
                break
            logits = denoiser(tokens)[:, inside]
            found = categorical(logits, temperature, uniforms[block * length + step, 0][:, inside])
            confidence = np.take_along_axis(softmax(logits), found[..., None], -1)[..., 0]
            confidence[tokens[:, inside] != mask] = -1
            chosen = confidence >= min(threshold, confidence.max())
            tokens[:, inside] = np.where(chosen, found, tokens[:, inside])
            yield block * length + step, tokens.copy()


def show_o(
    denoiser: Denoiser,
    tokens: np.ndarray,
    mask: int,
    uniforms: np.ndarray,
    *,
    steps: int,
    temperature: float = 1.0,
    precision: type = np.float64,
) -> Iterator[np.ndarray]:
    """Xie et al. 2024 (Show-o), and Yang et al. 2025 (MMaDA), as their code samples pictures.

    x ~ Cat(softmax); of log p + tau Gumbel the n lowest are masked again, n = max(1, min(masked - 1, floor(N cos(pi r /
    2)))), r = (i + 1) / T; and tau <- tau (1 - r) before each evaluation's noise.  The last one unmasks all.

    Args:
        precision: of the counts; their code has float32.
    """
    tokens, places = tokens.copy(), tokens.shape[1]
    for step, (choice, order) in enumerate(uniforms):
        logits, unknown = denoiser(tokens), tokens == mask
        found = np.where(unknown, categorical(logits, 1.0, choice), tokens)
        done = (step + 1) / steps
        temperature *= 1 - done
        log_p = np.log(np.take_along_axis(softmax(logits), found[..., None], -1)[..., 0])
        confidence = np.where(unknown, log_p + temperature * gumbel(order), np.inf)
        planned = np.floor(precision(places) * np.cos(precision(done) * precision(np.pi) / precision(2)))
        for sample in range(len(tokens)):
            count = int(max(1, min(unknown[sample].sum() - 1, planned))) if step + 1 < steps else 0
            again = np.argsort(confidence[sample], kind="stable")[:count]
            tokens[sample] = found[sample]
            tokens[sample, again] = mask
        yield tokens.copy()


def levels(
    denoiser: Denoiser, tokens: np.ndarray, mask: int, uniforms: np.ndarray, *, steps: list[int], temperature: float
) -> Iterator[np.ndarray]:
    """Borsos et al. 2023 (SoundStorm), section 3.3: MaskGIT's loop on each level of tokens (B, K T), coarse to fine.

    Chang et al. 2022, section 3.2: in step t of S, ceil or floor of cos(pi t / 2 S) times the level's positions stay
    masked, at least one until the last; noise of the confidence falls linearly.
    """
    tokens, length, row = tokens.copy(), tokens.shape[1] // len(steps), 0
    for level, count in enumerate(steps):
        own = slice(level * length, (level + 1) * length)
        for step in range(1, count + 1):
            choice, order = uniforms[row][:, :, own]
            logits, here = denoiser(tokens)[:, own], tokens[:, own]
            found = np.where(here == mask, categorical(logits, 1.0, choice), here)
            log_p = np.log(np.take_along_axis(softmax(logits), found[..., None], -1)[..., 0])
            noisy = log_p + temperature * (1 - step / count) * gumbel(order)
            confidence = np.where(here == mask, noisy, np.inf)
            wanted = max(1, int(np.floor(length * np.cos(np.pi / 2 * step / count)))) if step < count else 0
            for sample in range(len(tokens)):
                stays = min(wanted, (here[sample] == mask).sum() - 1)
                again = np.argsort(confidence[sample], kind="stable")[:stays]
                found[sample, again] = mask
            tokens[:, own] = found
            row += 1
            yield tokens.copy()
