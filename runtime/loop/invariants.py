"""What a loop doesn't repeat: the condition and timestep graphs' inputs and results, in a request's block.

They stay there, so the next request uses them if its conditions and timesteps are the same.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from mmgen.runtime.backends.memory import Layout, Slot, slots_for
from mmgen.runtime.backends.protocol import Block, Call, Runner
from mmgen.runtime.storage import tensors as names
from mmgen.runtime.storage.schema import Bundle, Role, TensorSpec, shape_of

Runners = Mapping[Role, Runner]


class Invariants:
    """For a request with B samples, G branches and N evaluations: ``axes`` has these and R = G B, the branch batch.

    What the host writes before ``layout`` reaches this part goes to the device each time; the conditions, which are the
    last that the host writes, only when they have changed.
    """

    def __init__(self, bundle: Bundle, layout: Layout, axes: Mapping[str, int]) -> None:
        self._axes = axes
        timestep = bundle.graphs.get("timestep")
        self._chunks = chunks(axes["N"], bundle.axes["N"].max) if timestep else []
        self._times = [layout.slot((stop - start,)) for start, stop in self._chunks]
        self._unconditional_bytes = layout.bytes
        self._inputs = {
            name: layout.slot((axes["R"], *shape), dtype) for name, (shape, dtype) in condition_inputs(bundle).items()
        }
        self.host_bytes = layout.bytes
        self._made = dict(self._inputs)
        if "condition" in bundle.graphs:
            self._made |= slots_for(layout, bundle.graphs["condition"].outputs, axes)
        self._timed = slots_for(layout, timestep.outputs, axes) if timestep else {}
        self._timed_by_condition = timestep is not None and len(timestep.inputs) > 1
        self._conditions: list[Call] = []
        self._timesteps: list[Call] = []
        self._due = {"condition", "timestep"}  # graphs whose results aren't in the block, or are another request's

    def of_row(self, i: int, step: Mapping[str, TensorSpec]) -> dict[str, Slot]:
        """Return the slots that the step graph with these inputs reads of it in evaluation ``i``."""
        given = self._made | {name: slot[i] for name, slot in self._timed.items()}
        shapes = {name: shape_of(step[name], self._axes) for name in given if name in step}
        return {name: given[name].reshape(*shape) for name, shape in shapes.items()}

    def bind(self, block: Block, runners: Runners) -> None:
        """Bind both graphs, where the bundle has them."""
        if "condition" in runners:
            self._conditions = runners["condition"].bind(block, [self._made])
        for times, (start, stop) in zip(self._times, self._chunks, strict=True):  # bound alone: the last is shorter
            parts = {name: slot.part(start, stop) for name, slot in self._timed.items()}
            self._timesteps += runners["timestep"].bind(block, [{**self._made, **parts, names.TIMESTEP: times}])

    def write(self, block: Block, timesteps: NDArray[np.float32], inputs: Mapping[str, NDArray[np.generic]]) -> None:
        """Write the timesteps (N,) and the conditions (R, ...), and upload what the host wrote and what changed."""
        host = block.host
        for times, (first, stop) in zip(self._times, self._chunks, strict=True):
            if not np.array_equal(times.of(host), timesteps[first:stop]):
                self._due.add("timestep")
                times.of(host)[:] = timesteps[first:stop]
        same = (np.array_equal(slot.of(host), inputs[name]) for name, slot in self._inputs.items())
        if "condition" in self._due or not all(same):
            self._due.add("condition")
            for name, slot in self._inputs.items():
                slot.of(host)[:] = inputs[name]
        block.upload(None if "condition" in self._due else self._unconditional_bytes)

    def forget(self, *graphs: str) -> None:
        """Have these graphs, condition and timestep, run in the next request, even if nothing changed."""
        self._due.update(graphs)

    def make_conditions(self) -> None:
        """Compute what depends on the condition alone, unless it is in the block already."""
        if "condition" in self._due:
            if self._timed_by_condition:
                self._due.add("timestep")
            for call in self._conditions:
                call()
            self._due.remove("condition")

    def make_timesteps(self) -> bool:
        """Compute what depends on the timestep for all evaluations, unless it is there; returns whether it had to."""
        if not self._timesteps or "timestep" not in self._due:
            return False
        for call in self._timesteps:
            call()
        self._due.remove("timestep")
        return True

    def close(self) -> None:
        """Release the graphs."""
        self._conditions, self._timesteps = [], []


def condition_inputs(bundle: Bundle) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return each condition's shape without the branch batch, and dtype, by tensor, as ``branches`` makes it."""
    shapes: dict[str, tuple[tuple[int, ...], str]] = {}
    for condition in bundle.conditions:
        match condition.kind:
            case "text":
                shapes[condition.tensor] = ((condition.length or 0,), "int64")
            case "class":
                shapes[condition.tensor] = ((), "int64")
            case _:
                shapes[condition.tensor] = (condition.shape, condition.dtype)
    return shapes


def chunks(count: int, largest: int) -> list[tuple[int, int]]:
    """Divide the table's rows into pieces that the timestep graph can run: start and stop of each."""
    return [(start, min(start + largest, count)) for start in range(0, count, largest)]
