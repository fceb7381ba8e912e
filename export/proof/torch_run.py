"""The golden run, a small request in torch: the reference that every graph, loop and backend is compared with.

The loop here is the definition in ``runtime/solvers/table.py``, one evaluation after the other; it shares the runtime's
solvers, noise and encoding of requests, and none of its loop.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mmgen.export.base.model import Model
from mmgen.export.graphs.latent import Source
from mmgen.export.proof.examples import examples, unusual
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.request.branches import Branches
from mmgen.runtime.request.branches import branches as encode_branches
from mmgen.runtime.request.conditions import open_inputs
from mmgen.runtime.request.noise import noise as seeded_noise
from mmgen.runtime.request.prepare import fewest_steps
from mmgen.runtime.request.request import Request
from mmgen.runtime.solvers.registry import table as solver_table
from mmgen.runtime.solvers.table import Table
from mmgen.runtime.storage import tensors as names
from mmgen.runtime.storage.golden import Golden
from mmgen.runtime.storage.process import EDM, Masked
from mmgen.runtime.storage.schema import EMBED, INPUT, Bundle, Role
from mmgen.runtime.storage.tensors import K

B = 2  # samples of the golden request
STEPS = 8  # of its solver, or the model's default where that is less; more where each block of tokens takes one
# On an EDM process always: its denoiser is one for every sigma, where activations may be larger than at the start, and
# a consistency model whose default is one step is asked for others by image to image.
GUIDANCE = 2.0  # where the model has conditions and its default is no guidance
SEED, OTHER_SEED = 0, 1

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Sample:
    """One call of a graph in torch."""

    inputs: Arrays
    outputs: Arrays
    place: str = ""  # where in the trajectory
    row: int = 0  # of the solver's table
    conditions: Arrays | None = None  # (R, ...) of the request, where they are not those of the golden one


@dataclass(frozen=True)
class TorchRun:
    """The golden run, and the inputs of each graph in it."""

    golden: Golden
    conditions: Arrays  # (R, ...) encoded
    samples: dict[Role, list[Sample]]  # with torch's outputs: for the comparison of single graphs
    feeds: dict[Role, list[Arrays]]  # all inputs of the run: for the ranges of its tensors


@dataclass(frozen=True)
class GoldenRequest:
    """The golden request to a model of any process, encoded, with the outputs of its condition graph."""

    conditions: dict[str, Any]  # as ``generate`` takes them
    negative: dict[str, Any]  # likewise: the negative conditions, where none has a null
    guidance: float
    steps: int
    branches: Branches
    conditioning: Arrays  # (R, ...) as the step takes it
    samples: dict[Role, list[Sample]]  # of the condition graph, where there is one; the loop adds the others
    feeds: dict[Role, list[Arrays]]


def golden_request(model: Model, sources: Mapping[Role, Source], bundle: Bundle) -> GoldenRequest:
    """Choose the golden request, encode it and run the condition graph.

    Args:
        bundle: the manifest so far; its folder holds the tokenizer.
    """
    conditions, defaults = examples(model, B), model.defaults
    guidance = GUIDANCE if model.conditions and defaults.guidance == 1 else defaults.guidance
    negative = {} if any(c.null is not None for c in model.conditions) else examples(model, B, negative=True)
    samples = input_samples(sources)

    def encode(name: str, media: NDArray[Any]) -> NDArray[Any]:
        if INPUT + name not in sources:
            return media
        samples[INPUT + name].append(call(sources[INPUT + name], {names.MEDIA: media}))
        return samples[INPUT + name][-1].outputs[names.FEATURES]

    inputs = open_inputs(bundle, encode)
    encoded = encode_branches(inputs, conditions, guidance, None if conditions else B, negative)
    usual = STEPS if isinstance(model.process, EDM) else min(defaults.steps, STEPS)
    steps = max(usual, fewest_steps(bundle, Request()))
    feeds = {role: [sample.inputs for sample in found] for role, found in samples.items()}
    if "condition" not in sources:
        return GoldenRequest(conditions, negative, guidance, steps, encoded, encoded.inputs, samples, feeds)
    sample = call(sources["condition"], encoded.inputs)
    samples |= {"condition": [sample]}
    feeds |= {"condition": [encoded.inputs]}
    return GoldenRequest(conditions, negative, guidance, steps, encoded, sample.outputs, samples, feeds)


def input_samples(sources: Mapping[Role, Source]) -> dict[Role, list[Sample]]:
    """Run the graphs of inputs on their examples; those of media also on zeros, a black picture or silence."""
    samples: dict[Role, list[Sample]] = {}
    for role, source in sources.items():
        if role.startswith((INPUT, EMBED)):
            given = {name: tensor.numpy() for name, tensor in source.inputs.items()}
            samples[role] = [call(source, given)]
        if role.startswith(INPUT):
            zeros = call(source, {name: np.zeros_like(array) for name, array in given.items()}, "zeros")
            samples[role] += [zeros] if all(np.isfinite(x).all() for x in zeros.outputs.values()) else []
    return samples


def run_torch(model: Model, sources: Mapping[Role, Source], bundle: Bundle) -> TorchRun:
    """Run the golden request.

    Args:
        bundle: the manifest so far; its folder holds the tokenizer.
    """
    assert not isinstance(model.process, Masked)
    request = golden_request(model, sources, bundle)
    branches, conditioning, samples, feeds = request.branches, request.conditioning, request.samples, request.feeds
    defaults, steps = model.defaults, request.steps
    table = solver_table(defaults.solver, model.process, steps, sigmas=defaults.sigmas, options=defaults.solver_options)

    noise = seeded_noise(SEED, B, model.latent_shape)
    feeds["step"], trajectory = _loop(sources["step"], table, branches, conditioning, noise, SEED)
    other_noise = seeded_noise(OTHER_SEED, B, model.latent_shape)
    other = _loop(sources["step"], table, branches, conditioning, other_noise, OTHER_SEED)[1][-1]
    samples["step"] = [call(sources["step"], *sample) for sample in _step_inputs(feeds["step"])]
    add_unusual(model, sources, request, samples, feeds, call)

    samples["decode"] = [call(sources["decode"], {names.LATENTS: trajectory[-1]})]
    feeds["decode"] = [{names.LATENTS: trajectory[-1]}, {names.LATENTS: other}]
    media = samples["decode"][0].outputs[names.MEDIA]
    if "encode" in sources:
        samples["encode"] = [call(sources["encode"], {names.MEDIA: media})]
        feeds["encode"] = [{names.MEDIA: media}]
    golden = Golden(
        request.conditions, defaults.solver, steps, request.guidance, defaults.sigmas, SEED, noise, trajectory, other,
        media, samples["decode"][0].outputs.get(names.CODES), request.negative,
    )  # fmt: skip
    return TorchRun(golden, branches.inputs, samples, feeds)


def add_unusual(
    model: Model,
    sources: Mapping[Role, Source],
    request: GoldenRequest,
    samples: dict[Role, list[Sample]],
    feeds: dict[Role, list[Arrays]],
    step: Callable[[Source, Arrays, str, int], Sample],
) -> None:
    """Add unusual conditions to the inputs of the condition and step graphs, without those that torch can't compute.

    Args:
        step: calls the step graph.
    """
    row = len(feeds["step"]) // 2
    usual = feeds["step"][row]
    for place, conditions in unusual(model, request.branches.inputs):
        made = call(sources["condition"], conditions, place) if "condition" in sources else None
        conditioning = conditions if made is None else made.outputs
        grouped = {n: x.reshape(usual[n].shape) for n, x in conditioning.items() if n in usual}
        sample = step(sources["step"], usual | grouped, place, row)
        if not all(np.isfinite(x).all() for x in (*sample.outputs.values(), *conditioning.values())):
            continue
        samples["step"].append(dataclasses.replace(sample, conditions=conditions))
        feeds["step"].append(sample.inputs)
        if made is not None:
            samples["condition"].append(made)
            feeds["condition"].append(conditions)


def _loop(
    step: Source, table: Table, branches: Branches, conditioning: Arrays, noise: NDArray[np.float32], seed: int
) -> tuple[list[Arrays], NDArray[np.float32]]:
    """Run the loop; return the inputs of every evaluation, and the latents (N, B, *L) after it."""
    batch, *shape = noise.shape
    state = np.zeros((K, *noise.shape), np.float32)
    state[0] = table.initial_scale * noise
    grouped = {n: array.reshape(len(branches.weights), batch, *array.shape[1:]) for n, array in conditioning.items()}
    feeds: list[Arrays] = []
    latents: list[NDArray[np.float32]] = []
    nothing_kept = {names.KNOWN: np.zeros((2, *noise.shape), np.float32), names.KEEP: np.zeros_like(noise)}
    for i in range(len(table)):
        drawn = seeded_noise(seed, batch, tuple(shape), stream=i + 1) if table.stochastic[i] else np.zeros_like(noise)
        feeds.append(
            {
                names.STATE: state,
                names.TRANSITION: table.transition[i],
                names.PREDICTION: table.prediction[i],
                names.X0_LIMIT: table.x0_limit[i : i + 1],
                names.INPUT_SCALE: table.input_scale[i : i + 1],
                names.TIMESTEP: table.timestep[i : i + 1],
                names.GUIDANCE: branches.weights,
                **({names.RESCALE: np.zeros(1, np.float32)} if names.RESCALE in step.inputs else {}),
                names.NOISE: drawn,
                **nothing_kept,
                names.NEXT_LEVEL: table.next_level[i],
                **grouped,
            }
        )
        state = call(step, feeds[-1]).outputs[names.NEXT_STATE]
        latents.append(state[0])
        if not np.isfinite(state[0]).all():
            raise MmgenError(
                f"torch's own latents are not finite after evaluation {i + 1} of {len(table)}",
                remedy="check the model's process and its default solver",
            )
    return feeds, np.stack(latents)


def _step_inputs(feeds: list[Arrays]) -> list[tuple[Arrays, str, int]]:
    """Choose the first, middle and last evaluation, changed so that an error of the denoiser shows as it is.

    Guidance would amplify it, so each takes one branch alone; the update would shrink it, so the last slot, which few
    solvers use, gets the model's output.  One more is a single sample in a single branch, with every other value known
    and kept.
    """
    branches = len(feeds[0][names.GUIDANCE])
    chosen = []
    for turn, i in enumerate(sorted({0, len(feeds) // 2, len(feeds) - 1})):
        transition = feeds[i][names.TRANSITION].copy()
        transition[K - 1] = 0
        transition[K - 1, K + 1] = 1
        one = np.eye(branches, dtype=np.float32)[(turn + 1) % branches]
        changed = feeds[i] | {names.TRANSITION: transition, names.GUIDANCE: one}
        if names.RESCALE in changed:
            changed[names.RESCALE] = np.full(1, turn / 2, np.float32)
        chosen.append((changed, f"row {i + 1} of {len(feeds)}", i))
    inputs, place, row = chosen[len(chosen) // 2]
    fixed = {
        names.TRANSITION, names.PREDICTION, names.X0_LIMIT, names.INPUT_SCALE, names.TIMESTEP, names.RESCALE,
        names.NEXT_LEVEL,
    }  # fmt: skip
    single = {name: array for name, array in inputs.items() if name in fixed} | {
        names.STATE: inputs[names.STATE][:, :1],
        names.NOISE: inputs[names.NOISE][:1],
        names.KNOWN: inputs[names.STATE][:2, :1],
        names.KEEP: (np.indices(inputs[names.NOISE][:1].shape).sum(0) % 2).astype(np.float32),
        names.GUIDANCE: np.ones(1, np.float32),
    }
    single |= {name: array[-1:, :1] for name, array in inputs.items() if name not in single}
    return [*chosen, (single, f"{place}, one sample alone", row)]


def call(source: Source, inputs: Arrays, place: str = "", row: int = 0) -> Sample:
    """Run a graph's module on these inputs."""
    with torch.no_grad():
        made = source.module(*(torch.from_numpy(np.ascontiguousarray(inputs[name])) for name in source.inputs))
    outputs = (made,) if isinstance(made, torch.Tensor) else made
    return Sample(inputs, {name: out.numpy() for name, out in zip(source.outputs, outputs, strict=True)}, place, row)
