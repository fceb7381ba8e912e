"""The golden run of a masked-token model in torch, as ``torch_run`` does it for latents."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mmgen.export.base.model import Model
from mmgen.export.graphs.latent import Source
from mmgen.export.graphs.masked import FIXED, MaskedStepGraph
from mmgen.export.proof.masked_receipts import LOGITS, undecided
from mmgen.export.proof.torch_run import (
    OTHER_SEED,
    SEED,
    Arrays,
    B,
    Sample,
    TorchRun,
    add_unusual,
    call,
    golden_request,
)
from mmgen.runtime.loop.masked_plan import ROWS
from mmgen.runtime.request.branches import Branches
from mmgen.runtime.request.start import of_tokens
from mmgen.runtime.request.tokens import uniforms
from mmgen.runtime.solvers.masked import MaskedTable, table
from mmgen.runtime.solvers.masked_reference import ended
from mmgen.runtime.storage import tensors as names
from mmgen.runtime.storage.golden import Golden
from mmgen.runtime.storage.process import Masked
from mmgen.runtime.storage.schema import Bundle, Role


def run_torch(model: Model, sources: Mapping[Role, Source], bundle: Bundle) -> TorchRun:
    """Run the golden request.

    Args:
        bundle: the manifest so far; its folder holds the tokenizer.
    """
    assert isinstance(model.process, Masked)
    request = golden_request(model, sources, bundle)
    branches, conditioning, samples, feeds = request.branches, request.conditioning, request.samples, request.feeds
    defaults, steps, positions = model.defaults, request.steps, math.prod(model.latent_shape)
    rows = table(defaults.solver, model.process, positions, steps, options=defaults.solver_options)

    shape = (B, *model.latent_shape)
    feeds["step"], trajectory = _loop(sources["step"], model.process, rows, branches, conditioning, shape, SEED)
    other = _loop(sources["step"], model.process, rows, branches, conditioning, shape, OTHER_SEED)[1][-1]
    samples["step"] = [_with_logits(sources["step"], *sample) for sample in _step_inputs(feeds["step"])]
    add_unusual(model, sources, request, samples, feeds, _with_logits)
    media = ended(trajectory[-1], model.media.end_id)
    if "decode" in sources:
        samples["decode"] = [call(sources["decode"], {names.CODES: trajectory[-1]})]
        feeds["decode"] = [{names.CODES: trajectory[-1]}, {names.CODES: other}]
        media = samples["decode"][0].outputs[names.MEDIA]
    if "encode" in sources:
        samples["encode"] = [call(sources["encode"], {names.MEDIA: media})]
        feeds["encode"] = [{names.MEDIA: media}]
    drawn = (_with_logits(sources["step"], inputs, "", row) for row, inputs in enumerate(feeds["step"][: len(rows)]))
    golden = Golden(
        request.conditions, defaults.solver, steps, request.guidance, defaults.sigmas, SEED, None, trajectory, other,
        media, negative=request.negative, undecided=np.stack([undecided(model.process, sample) for sample in drawn]),
    )  # fmt: skip
    return TorchRun(golden, branches.inputs, samples, feeds)


def _loop(
    step: Source,
    process: Masked,
    rows: MaskedTable,
    branches: Branches,
    conditioning: Arrays,
    shape: tuple[int, ...],
    seed: int,
) -> tuple[list[Arrays], NDArray[np.int64]]:
    """Run the loop; return the inputs of every evaluation, and the tokens (N, B, *L) after it."""
    tokens: NDArray[Any] = of_tokens(process, shape).state
    grouped = {n: array.reshape(len(branches.weights), B, *array.shape[1:]) for n, array in conditioning.items()}
    feeds: list[Arrays] = []
    made: list[NDArray[Any]] = []
    for row, drawn in uniforms(seed, shape, len(rows)).items():
        feeds.append(
            {
                names.TOKENS: tokens,
                **{name: getattr(rows, name)[row].reshape(size) for name, size in ROWS.items()},
                **({names.TIMESTEP: rows.timestep[row : row + 1]} if names.TIMESTEP in step.inputs else {}),
                names.GUIDANCE: branches.weights,
                names.CHOICE: np.ascontiguousarray(drawn[:, 0]),
                names.ORDER: np.ascontiguousarray(drawn[:, 1]),
                **grouped,
            }
        )
        tokens = call(step, feeds[-1]).outputs[names.NEXT_TOKENS]
        made.append(tokens)
    return feeds, np.stack(made)


def _with_logits(step: Source, inputs: Arrays, place: str, row: int) -> Sample:
    """Call the step, and add the logits that it draws from to its outputs."""
    assert isinstance(step.module, MaskedStepGraph)
    tensors = {name: torch.from_numpy(np.ascontiguousarray(inputs[name])) for name in step.inputs}
    more = [tensor for name, tensor in tensors.items() if name not in FIXED]
    with torch.no_grad():
        logits = step.module.logits(tensors[names.TOKENS], tensors[names.GUIDANCE], more)
    sample = call(step, inputs, place, row)
    return dataclasses.replace(sample, outputs=sample.outputs | {LOGITS: logits.numpy()})


def _step_inputs(feeds: list[Arrays]) -> list[tuple[Arrays, str, int]]:
    """Choose the first, middle and last evaluation, one branch each; and one sample in one branch."""
    branches = len(feeds[0][names.GUIDANCE])
    chosen = []
    for turn, i in enumerate(sorted({0, len(feeds) // 2, len(feeds) - 1})):
        one = np.eye(branches, dtype=np.float32)[(turn + 1) % branches]
        chosen.append((feeds[i] | {names.GUIDANCE: one}, f"row {i + 1} of {len(feeds)}", i))
    inputs, place, row = chosen[len(chosen) // 2]
    single = {name: array for name, array in inputs.items() if name in (*ROWS, names.TIMESTEP)}
    single |= {n: inputs[n][:1] for n in (names.TOKENS, names.CHOICE, names.ORDER)}
    single |= {names.GUIDANCE: np.ones(1, np.float32)}
    single |= {name: array[-1:, :1] for name, array in inputs.items() if name not in single}
    return [*chosen, (single, f"{place}, one sample alone", row)]
