"""Validation records (receipts) 3 and 4: a bundle's loop and media against torch's, on any backend, without torch."""

import dataclasses
import math
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgen.runtime.backends.registry import check_backend
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.generator import Generator, every_evaluation, generator_of
from mmgen.runtime.loop.results import Progress
from mmgen.runtime.storage import limits
from mmgen.runtime.storage.bundle import AnyPath, output_of, read_bundle
from mmgen.runtime.storage.golden import Golden, golden_of
from mmgen.runtime.storage.process import Masked
from mmgen.runtime.storage.schema import Bundle, Receipt, Role

LEVELS = {1: "ONNX against torch", 2: "half against float", 3: "trajectory", 4: "media"}
EXACT_DB = 120.0  # PSNR of equal pictures, which would be infinite, and JSON has no infinity


def verify(
    folder: AnyPath, backend: str = "auto", *, threads: int | None = None, output: str | None = None
) -> tuple[Receipt, ...]:
    """Repeat the comparisons of levels 3 and 4 on a backend, and raise if one fails: ``repeat``, then ``require``.

    Raises:
        MmgenError: the bundle or the backend can't be opened, or a comparison fails.
    """
    threads = check_backend(backend, threads)  # before the slow part
    return require(repeat(output_of(read_bundle(folder), output), backend, threads=threads))


def repeat(bundle: Bundle, backend: str = "auto", *, threads: int | None = None) -> tuple[Receipt, ...]:
    """Measure the receipts of levels 3 and 4 on a backend, passed or not.

    Args:
        bundle: as read and compared with its hashes, or one of its outputs.
        backend, threads: as for ``load``.

    Raises:
        MmgenError: the backend can't be opened, or there is nothing to compare with.
    """
    with generator_of(bundle, backend, threads) as generator:
        if bundle.golden_sha256 is None:
            raise MmgenError(f"bundle {bundle.folder} has no {bundle.golden}", remedy="export the bundle again")
        return measure(generator, golden_of(bundle))


def measure(generator: Generator, golden: Golden) -> tuple[Receipt, ...]:
    """Measure the receipts of levels 3 and 4, passed or not."""
    policy = generator.bundle.precision.policy
    states = []
    for progress in _evaluations(generator, golden):
        states.append(progress.latents())
        if (made := states[0].shape) != golden.other.shape:
            what = f"{generator.bundle.path(generator.bundle.golden)}: what its request makes"
            raise MmgenError(what, got=made, wanted=golden.other.shape, remedy="export the bundle again")
    masked = isinstance(generator.bundle.process, Masked)
    trajectory = _tokens(generator, golden, policy, states) if masked else (_latents(golden, policy, states),)

    if "decode" not in generator.bundle.graphs:
        return *trajectory, *_codes(generator, golden, states[-1])
    media, codes = generator.decode(golden.trajectory[-1])
    alone = compare_media(4, "decode", policy, media, golden.media, codes, golden.codes)
    if not np.isfinite(states[-1]).all():  # these can't be decoded; the trajectory's receipt reports them
        return *trajectory, *alone
    media, codes = generator.decode(states[-1])
    end = [dataclasses.replace(_media(4, "loop", policy, media, golden.media), limit=None, tensor="media from noise")]
    if codes is not None and golden.codes is not None:
        end.append(Receipt(4, "loop", "share", share(codes, golden.codes), None, "codes from noise", at_least=True))
    return *trajectory, *alone, *end


def _codes(generator: Generator, golden: Golden, tokens: NDArray[np.int64]) -> tuple[Receipt, Receipt, Receipt]:
    """Compare at level 4 media that are the codes: a text up to its end, made by no more evaluations than it needs.

    Args:
        tokens: (B, *L) that all evaluations made here.
    """
    torchs, own = (generator.decode(made)[0] for made in (golden.trajectory[-1], tokens))
    made = generator.generate(None, None, **golden.request).media
    share_of = partial(Receipt, 4, "loop", "share", at_least=True)
    return (
        share_of(share(torchs, golden.media), 1.0, "codes of torch's tokens"),
        share_of(share(made, own), 1.0, "codes of the evaluations that are needed"),
        share_of(share(own, golden.media), None, "codes from masks"),
    )


def _evaluations(generator: Generator, golden: Golden) -> Iterator[Progress]:
    """Play the golden request, evaluation by evaluation, if it has as many as torch made.

    Raises:
        MmgenError: it has another number of them, or isn't a request that the bundle takes.
    """
    try:
        stream = every_evaluation(generator, **golden.request)
    except MmgenError as error:
        what = f"the request in {generator.bundle.path(generator.bundle.golden)} is none of this bundle ({error})"
        raise MmgenError(what, remedy="export the bundle again") from error
    with stream:
        for progress in stream:
            if progress.evaluations != len(golden.trajectory):
                raise MmgenError(
                    f"solver {golden.solver} with {golden.steps} steps: evaluations", got=progress.evaluations,
                    wanted=len(golden.trajectory),
                    remedy="the bundle was exported with another version of the solver; export it again",
                )  # fmt: skip
            yield progress


def _latents(golden: Golden, policy: str, states: list[NDArray[np.float32]]) -> Receipt:
    """Compare at level 3: the latents after every evaluation, relative to how much another seed's differ."""
    errors = [relative_rms(got, want) for got, want in zip(states, golden.trajectory, strict=True)]
    worst = int(np.argmax(np.where(np.isnan(errors), np.inf, errors)))
    apart = relative_rms(golden.other, golden.trajectory[-1])
    limit = max(limits.TRAJECTORY_SHARE[policy] * apart, limits.TRAJECTORY_RMS[policy])
    return Receipt(3, "loop", "relative RMS", errors[worst], limit, f"latents after row {worst + 1} of {len(states)}")


def _tokens(
    generator: Generator, golden: Golden, policy: str, states: list[NDArray[np.int64]]
) -> tuple[Receipt, Receipt, Receipt]:
    """Compare at level 3: tokens of an evaluation that differ from torch's given the same tokens before it.

    All evaluations count together.  A token that differs changes what is drawn after it, the more the less certain a
    model is; so what that adds up to at the end of a run of its own is judged in float32 only.  That such a run is
    nothing but these evaluations, each starting where the one before it ended, is tested by giving it its own tokens:
    nothing may change.
    """
    apart = differing(golden.other, golden.trajectory[-1])
    limit = max(limits.TOKENS_SHARE[policy] * apart, limits.TOKENS_DIFFERING[policy])
    share_of = partial(Receipt, 3, "loop", "share that differs")
    end = differing(states[-1], golden.trajectory[-1])
    torchs = _share_differing(generator, golden, golden.trajectory, golden.undecided if policy == "fp16" else None)
    return (
        share_of(torchs, limit, f"tokens of {len(states)} rows, given torch's"),
        share_of(_share_differing(generator, golden, states), 0.0, f"tokens of {len(states)} rows, given their own"),
        share_of(end, limit if policy == "fp32" else None, "tokens from masks"),
    )


def _share_differing(
    generator: Generator, golden: Golden, states: Iterable[NDArray[np.int64]], free: NDArray[np.bool_] | None = None
) -> float:
    """Sum over all evaluations the share of tokens that differ from these, each starting from the one before in these.

    At positions (N, B, *L) that are free, a token may be masked where it isn't in these, or the other way round.
    """
    differ = 0.0
    mask = generator.bundle.process.mask_id if isinstance(generator.bundle.process, Masked) else None
    for index, (progress, tokens) in enumerate(zip(_evaluations(generator, golden), states, strict=True)):
        made = progress.latents()
        either = np.zeros(made.shape, bool) if free is None else free[index] & ((made == mask) != (tokens == mask))
        differ += float(np.mean((made != tokens) & ~either))
        assert progress.resume is not None
        progress.resume(tokens)
    return differ


def compare_media(
    level: int,
    graph: Role,
    policy: str,
    media: NDArray[Any],
    wanted: NDArray[Any],
    codes: NDArray[np.int64] | None,
    wanted_codes: NDArray[np.int64] | None,
) -> list[Receipt]:
    """Compare media of the same latents, and their codes.

    One code that differs changes a whole picture through the norms of a decoder, so media are compared where all codes
    of a sample agree; where they agree for no sample, all are compared.
    """
    receipts = []
    same = np.ones(len(wanted), bool)
    if codes is not None and wanted_codes is not None:
        agree = share(codes, wanted_codes)
        receipts.append(Receipt(level, graph, "share", agree, limits.GRAPH_CODES, "codes", at_least=True))
        same = (codes == wanted_codes).reshape(len(wanted), -1).all(1)
    kept = same if same.any() else ~same
    return [*receipts, _media(level, graph, policy, media[kept], wanted[kept])]


def _media(level: int, graph: str, policy: str, media: NDArray[Any], wanted: NDArray[Any]) -> Receipt:
    """Compare by PSNR what has 256 levels, and by relative RMS what has other numbers."""
    if wanted.dtype == np.uint8:
        return Receipt(level, graph, "PSNR", psnr(media, wanted), limits.GRAPH_PSNR[policy], "media", at_least=True)
    return Receipt(level, graph, "relative RMS", relative_rms(media, wanted), limits.GRAPH_RMS[policy], "media")


def require(receipts: Iterable[Receipt]) -> tuple[Receipt, ...]:
    """Return the receipts if all passed.

    Raises:
        MmgenError: one failed; names its level, graph and worst tensor, what was measured and the limit.
    """
    receipts = tuple(receipts)
    for receipt in receipts:
        if not receipt.passed:
            raise MmgenError(
                f"receipt {receipt.level} ({LEVELS[receipt.level]}) failed: "
                f"{receipt.graph}, {receipt.figure} of {receipt.tensor}",
                got=f"{receipt.measured:.3g}",
                wanted=f"at {'least' if receipt.at_least else 'most'} {receipt.limit:.3g}",
            )
    return receipts


def relative_rms(got: NDArray[Any], wanted: NDArray[Any]) -> float:
    """Compute |got - wanted| / |wanted|; the plain norm against zeros.  Equal infinities, as in masks, don't count."""
    got, wanted = got.astype(np.float64), wanted.astype(np.float64)
    if (equal := np.isinf(wanted) & (got == wanted)).any():
        got, wanted = np.where(equal, 0, got), np.where(equal, 0, wanted)
    with np.errstate(invalid="ignore"):
        error, size = float(np.linalg.norm(got - wanted)), float(np.linalg.norm(wanted))
    return error / size if size > 0 else error


def psnr(got: NDArray[np.uint8], wanted: NDArray[np.uint8]) -> float:
    """Compute the peak signal-to-noise ratio in dB, the peak being 255."""
    error = float(np.mean((got.astype(np.float64) - wanted) ** 2))
    return 10 * math.log10(255**2 / error) if error > 0 else EXACT_DB


def differing(got: NDArray[Any], wanted: NDArray[Any]) -> float:
    """Return the share of the elements that differ."""
    return 1 - share(got, wanted)


def share(got: NDArray[Any], wanted: NDArray[Any]) -> float:
    """Return the share of the elements that are equal."""
    return float(np.mean(got == wanted))
