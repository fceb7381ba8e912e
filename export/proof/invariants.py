"""What the graphs of a hoisted step pass to each other in the golden run, and what it should be.

The reference is the step graph as it was traced, with the moved tensors as outputs, one evaluation at a time.  So the
comparison shows that hoisting lost nothing, and that all evaluations at once give the same as single ones.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from mmgen.export.base.answer import answers
from mmgen.export.hoisting.assemble import CONDITION, TIMESTEP
from mmgen.export.hoisting.hoist import Pack
from mmgen.export.proof.torch_run import Arrays, Sample, TorchRun
from mmgen.runtime.storage import tensors as names
from mmgen.runtime.storage.schema import ROLES


def follow(run: TorchRun, traced: Path, folder: Path, packs: Sequence[Pack]) -> TorchRun:
    """Return the golden run as the hoisted graphs see it.

    Args:
        run: of the graphs as they were traced.
        traced: ``step.onnx`` as it was traced.
        folder: the graphs that ``hoist`` wrote, in float32.
        packs: what they pass to each other.
    """
    samples, feeds = dict(run.samples), dict(run.feeds)
    evaluations = max(sample.row for sample in samples["step"]) + 1
    loop, further = feeds["step"][:evaluations], [sample for sample in samples["step"] if sample.conditions is not None]
    graphs = _Graphs(folder, [feed[names.TIMESTEP] for feed in loop if names.TIMESTEP in feed], packs, _size(loop[0]))
    usual = graphs.hand(run.conditions)
    handed = [(usual, _truth(traced, packs, loop))]
    handed += [(graphs.hand(s.conditions or {}), _truth(traced, packs, [s.inputs])) for s in further]
    if graphs.condition is not None:
        said = [sample.outputs for sample in samples.get("condition", [])] or [Arrays() for _ in handed]
        samples["condition"] = [
            Sample(made.conditions, {n: truth[n] if n in truth else torch[n] for n in made.made}, place)
            for (made, truth), torch, place in zip(handed, said, ("", *(s.place for s in further)), strict=True)
        ]
        feeds["condition"] = [made.conditions for made, _ in handed]
    if graphs.timestep is not None:
        truth, i = handed[0][1], evaluations // 2
        inputs = usual.timestep_inputs
        alone = inputs | {names.TIMESTEP: inputs[names.TIMESTEP][i : i + 1]}
        samples["timestep"] = [
            Sample(inputs, {n: truth[n] for n in usual.timed}, "all rows at once"),
            Sample(alone, {n: truth[n][i : i + 1] for n in usual.timed}, f"row {i + 1} alone"),
        ]
        feeds["timestep"] = [made.timestep_inputs for made, _ in handed]

    by_conditions = {id(sample.conditions): made for sample, (made, _) in zip(further, handed[1:], strict=True)}
    samples["step"] = [
        dataclasses.replace(s, inputs=graphs.step_inputs(by_conditions.get(id(s.conditions), usual), s.inputs, s.row))
        for s in samples["step"]
    ]
    feeds["step"] = [graphs.step_inputs(usual, feed, row) for row, feed in enumerate(loop)]
    feeds["step"] += [sample.inputs for sample in samples["step"] if sample.conditions is not None]
    order = [*(role for role in samples if role not in ROLES), *ROLES]
    return dataclasses.replace(
        run,
        samples={role: samples[role] for role in order if role in samples},
        feeds={role: feeds[role] for role in order if role in feeds},
    )


@dataclass(frozen=True)
class _Handed:
    """The outputs of the graphs before the loop for some conditions."""

    conditions: Arrays  # (R, ...)
    made: Arrays  # (R, ...) outputs of the condition graph
    timestep_inputs: Arrays
    timed: Arrays  # (N, ...) outputs of the timestep graph


class _Graphs:
    """The hoisted graphs, the timesteps (1,) of each evaluation of the golden run, and its G and B."""

    def __init__(
        self, folder: Path, timesteps: Sequence[np.ndarray], packs: Sequence[Pack], size: tuple[int, int]
    ) -> None:
        paths = {role: folder / f"{role}.onnx" for role in ("condition", "timestep", "step")}
        self.condition = answers("condition", paths["condition"]) if paths["condition"].exists() else None
        self.timestep = answers("timestep", paths["timestep"]) if paths["timestep"].exists() else None
        self._paths, self._timesteps, self._size = paths, timesteps, size
        self._shared = {pack.name for pack in packs if pack.space == TIMESTEP}  # by the whole branch batch

    def hand(self, conditions: Arrays) -> _Handed:
        """Run the graphs before the loop."""
        made = self.condition(conditions) if self.condition is not None else {}
        if self.timestep is None:
            return _Handed(conditions, made, {}, {})
        given = conditions | made | {names.TIMESTEP: np.concatenate(self._timesteps)}
        inputs = _taken(self._paths["timestep"], given)
        return _Handed(conditions, made, inputs, self.timestep(inputs))

    def step_inputs(self, handed: _Handed, given: Arrays, row: int) -> Arrays:
        """Return the step's inputs in a row of the table, from those of the step as it was traced."""
        guides, batch = _size(given)
        of_row = {name: array[row] for name, array in handed.timed.items() if name not in self._shared}
        branched = handed.conditions | handed.made | of_row
        grouped = {
            name: array.reshape(*self._size, *array.shape[1:])[-guides:, :batch]
            for name, array in branched.items()
            if name not in given
        }
        shared = {name: handed.timed[name][row : row + 1] for name in self._shared}
        return _taken(self._paths["step"], given | grouped | shared)


def _size(given: Arrays) -> tuple[int, int]:
    """Return G and B of a step's inputs."""
    batch = len(given[names.TOKENS]) if names.TOKENS in given else given[names.STATE].shape[1]
    return len(given[names.GUIDANCE]), batch


def _truth(traced: Path, packs: Sequence[Pack], feeds: Sequence[Arrays]) -> Arrays:
    """Compute every pack from the tensors of the traced step graph in each evaluation of the golden run."""
    answer = answers("step", traced, list(dict.fromkeys(piece.name or "" for pack in packs for piece in pack.pieces)))
    evaluated = [answer(feed) for feed in feeds]
    found = {}
    for pack in packs:
        if pack.space == CONDITION:
            found[pack.name] = _packed(pack, evaluated[0])
        else:
            found[pack.name] = np.stack([_packed(pack, tensors) for tensors in evaluated])
    return found


def _packed(pack: Pack, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    """Pack the tensors of one evaluation."""
    pieces = [tensors[piece.name or ""] for piece in pack.pieces]
    if not pack.alone:
        flat = [piece.reshape(len(piece), -1) for piece in pieces]
        padding = np.zeros((len(flat[0]), sum(pack.sizes) - sum(p.shape[1] for p in flat)), flat[0].dtype)
        pieces = [np.concatenate([*flat, padding], 1)]
    return pieces[0][0] if pack.space == TIMESTEP else pieces[0]


def _taken(path: Path, feed: Arrays) -> Arrays:
    """Select the inputs that a graph takes."""
    return {value.name or "": feed[value.name or ""] for value in ir.load(path).graph.inputs}
