"""What the graphs of a hoisted step hand on to each other in the golden run, and what it should be.

The truth is the step graph as it was traced, asked for the very tensors that were moved, one row of the table at a
time.  So the comparison shows that nothing got lost on the way, and that many rows at once give what single ones do.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from mmgen.export.answer import answers
from mmgen.export.assemble import CONDITION, TIMESTEP
from mmgen.export.hoist import Pack
from mmgen.export.torch_run import Arrays, Sample, TorchRun
from mmgen.runtime import bundle as names
from mmgen.runtime.bundle import Role


def follow(run: TorchRun, traced: Path, folder: Path, packs: Sequence[Pack]) -> TorchRun:
    """The golden run as the hoisted graphs meet it.

    Args:
        run: of the graphs as they were traced.
        traced: ``step.onnx`` as it was traced.
        folder: the graphs that ``hoist`` wrote, in float32.
        packs: what they hand on.
    """
    samples, feeds = dict(run.samples), dict(run.feeds)
    graphs = {role: folder / f"{role}.onnx" for role in ("condition", "timestep", "step")}
    truth = _truth(traced, packs, feeds["step"])

    made = dict(run.conditions)
    if graphs["condition"].exists():
        handed = answers("condition", graphs["condition"])(made)
        said = samples["condition"][0].outputs if "condition" in samples else {}
        outputs = {n: truth[n] if n in truth else said[n] for n in handed}
        samples["condition"], feeds["condition"] = [Sample(run.conditions, outputs)], [run.conditions]
        made |= handed
    timed: Arrays = {}
    if graphs["timestep"].exists():
        timesteps = np.concatenate([feed[names.TIMESTEP] for feed in feeds["step"]])
        inputs = _taken(graphs["timestep"], made | {names.TIMESTEP: timesteps})
        timed = answers("timestep", graphs["timestep"])(inputs)
        i = len(feeds["step"]) // 2
        alone = inputs | {names.TIMESTEP: inputs[names.TIMESTEP][i : i + 1]}
        samples["timestep"] = [
            Sample(inputs, {n: truth[n] for n in timed}, "all rows at once"),
            Sample(alone, {n: truth[n][i : i + 1] for n in timed}, f"row {i + 1} alone"),
        ]
        feeds["timestep"] = [inputs]

    def hand_on(given: Arrays, row: int) -> Arrays:
        guides, batch = _size(given)
        size = _size(feeds["step"][0])
        in_rows = made | {name: array[row] for name, array in timed.items() if name not in single}
        grouped = {n: a.reshape(*size, *a.shape[1:])[-guides:, :batch] for n, a in in_rows.items() if n not in given}
        shared = {name: timed[name][row : row + 1] for name in single}
        return _taken(graphs["step"], given | grouped | shared)

    single = {pack.name for pack in packs if pack.space == TIMESTEP}
    samples["step"] = [dataclasses.replace(s, inputs=hand_on(s.inputs, s.row)) for s in samples["step"]]
    feeds["step"] = [hand_on(feed, row) for row, feed in enumerate(feeds["step"])]
    order: tuple[Role, ...] = ("condition", "timestep", "step", "decode", "encode")
    return dataclasses.replace(
        run,
        samples={role: samples[role] for role in order if role in samples},
        feeds={role: feeds[role] for role in order if role in feeds},
    )


def _size(given: Arrays) -> tuple[int, int]:
    """G and B of a step's inputs."""
    batch = len(given[names.TOKENS]) if names.TOKENS in given else given[names.STATE].shape[1]
    return len(given[names.GUIDANCE]), batch


def _truth(traced: Path, packs: Sequence[Pack], feeds: Sequence[Arrays]) -> Arrays:
    """Every pack, from the tensors of the step graph in each row of the golden run."""
    answer = answers("step", traced, list(dict.fromkeys(piece.name or "" for pack in packs for piece in pack.pieces)))
    rows = [answer(feed) for feed in feeds]
    found = {}
    for pack in packs:
        if pack.space == CONDITION:
            found[pack.name] = _packed(pack, rows[0])
        else:
            found[pack.name] = np.stack([_packed(pack, row) for row in rows])
    return found


def _packed(pack: Pack, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    """One row of the table."""
    pieces = [tensors[piece.name or ""] for piece in pack.pieces]
    if not pack.alone:
        flat = [piece.reshape(len(piece), -1) for piece in pieces]
        padding = np.zeros((len(flat[0]), sum(pack.sizes) - sum(p.shape[1] for p in flat)), flat[0].dtype)
        pieces = [np.concatenate([*flat, padding], 1)]
    return pieces[0][0] if pack.space == TIMESTEP else pieces[0]


def _taken(path: Path, feed: Arrays) -> Arrays:
    """What a graph takes of more."""
    return {value.name or "": feed[value.name or ""] for value in ir.load(path).graph.inputs}
