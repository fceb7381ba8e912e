"""What the host adds to a row of the loop, with a denoiser that is next to nothing, on the CPU.

    python benchmarks/overhead.py [--rounds 100] [--rows 50] [--shape 4 8 8] [--json FILE]

Run it where the extra ``export`` is installed.  In turns, all on one thread, microseconds from row to row:

    generate    all that ``Generator.generate`` does between one row of the loop and the next
    bindings    a bare loop of ``session.run_with_iobinding`` over the same step graph, with bindings made before: what
                ONNX Runtime itself needs
    arrays      a bare loop of ``session.run`` on numpy arrays, the state handed on: what one writes without bindings
    SOLVER      ``scheduler.step`` of diffusers' scheduler of that solver on tensors, and ``scale_model_input`` where
                the scheduler scales; no denoiser

All loops take the time once a row.  A round's figure is the median of its rows, so that other programs' turns don't
count; what is printed are medians over the rounds.  The host's overhead is generate - bindings.  The step graph does
the solver's arithmetic too: a row of generate compares with a call of a denoiser and a step of a scheduler.
"""

import argparse
import functools
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from mmgen.export.base.model import Model
from mmgen.export.exporter import export
from mmgen.runtime import Generator
from mmgen.runtime.backends.ort.cpu import OrtCpu
from mmgen.runtime.backends.ort.importing import import_onnxruntime
from mmgen.runtime.storage.bundle import read_bundle
from mmgen.runtime.storage.process import Diffusion
from mmgen.runtime.storage.schema import Bundle, Condition, Defaults, Media, shape_of
from mmgen.runtime.storage.tensors import NEXT_STATE, STATE

onnxruntime = import_onnxruntime()

SCHEDULERS = {
    "ddim": DDIMScheduler,
    "ddpm": DDPMScheduler,
    "euler": EulerDiscreteScheduler,
    "dpmpp-2m": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
}


class Denoiser(torch.nn.Module):
    """The least that a denoiser can be."""

    def forward(self, x: torch.Tensor, timestep: torch.Tensor, label: torch.Tensor) -> torch.Tensor:  # (R, *L)
        return 0.1 * x + 1e-6 * (timestep + label)[:, None, None, None]


class Decoder(torch.nn.Module):
    """One number a sample."""

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return latents.mean((1, 2, 3))[:, None]


def make_bundle(folder: Path, shape: tuple[int, ...]) -> None:
    """Export the denoiser."""
    model = Model(
        name="nothing",
        process=Diffusion(),
        latent_shape=shape,
        denoiser=Denoiser().eval(),
        conditions=(Condition("label", "class", null=0, count=2),),
        media=Media("array", (1,), "float32"),
        defaults=Defaults("ddim", 50, guidance=1.0),
        decoder=Decoder().eval(),
    )
    export(model, folder, policy="fp32")


class Watched(OrtCpu):
    """The backend, taking the time where the loop asks it to wait for a row."""

    def __init__(self) -> None:
        super().__init__(onnxruntime, 1)
        self.clock: list[float] = []

    def wait(self) -> None:
        self.clock.append(time.perf_counter())


def generate(generator: Generator, backend: Watched, rows: int) -> float:
    """Seconds a row of ``generate``."""
    backend.clock.clear()
    generator.generate(label=1, steps=rows)
    return between(backend.clock[-rows:])


def between(clock: list[float]) -> float:
    """The median of the seconds from one time to the next."""
    return statistics.median(b - a for a, b in itertools.pairwise(clock))


class Bare:
    """The step graph in loops without anything around them."""

    def __init__(self, bundle: Bundle) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 3, 1
        path = bundle.path(bundle.graphs["step"].file)
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        axes, rng = {"B": 1, "G": 1, "R": 1, "N": 1}, np.random.default_rng(0)
        shapes = {s.name: (shape_of(s, axes), s.dtype) for s in bundle.graphs["step"].inputs}
        self.feeds = {n: (rng.standard_normal(shape) / 10).astype(dtype) for n, (shape, dtype) in shapes.items()}
        outputs = {s.name: np.empty(shape_of(s, axes), s.dtype) for s in bundle.graphs["step"].outputs}
        self.names = list(outputs)
        self.bindings = []
        for _ in range(2):
            binding = self.session.io_binding()
            for bind, arrays in ((binding.bind_input, self.feeds), (binding.bind_output, outputs)):
                for name, array in arrays.items():
                    bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
            self.bindings.append(binding)
            self.feeds[STATE], outputs[NEXT_STATE] = outputs[NEXT_STATE], self.feeds[STATE]
        self.alive = outputs  # the bindings have addresses only

    def with_bindings(self, rows: int) -> float:
        """Seconds a row."""
        run, bindings, clock = self.session.run_with_iobinding, self.bindings, []
        for row in range(rows):
            run(bindings[row % 2])
            clock.append(time.perf_counter())
        return between(clock)

    def with_arrays(self, rows: int) -> float:
        """Seconds a row."""
        feeds, names, state, clock = dict(self.feeds), self.names, self.names.index(NEXT_STATE), []
        for _ in range(rows):
            feeds[STATE] = self.session.run(names, feeds)[state]
            clock.append(time.perf_counter())
        return between(clock)


@torch.inference_mode()
def steps_of(solver: str, rows: int, shape: tuple[int, ...]) -> float:
    """Seconds a step of diffusers' scheduler."""
    scheduler = SCHEDULERS[solver]()
    scheduler.set_timesteps(rows)
    x, out, clock = torch.randn(1, *shape), torch.randn(1, *shape), []
    for t in scheduler.timesteps:
        if solver == "euler":
            scheduler.scale_model_input(x, t)
        x = scheduler.step(out, t, x, return_dict=False)[0]
        clock.append(time.perf_counter())
    return between(clock)


def main() -> None:
    """Measure in turns and print microseconds and ratios, medians over the rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--rows", type=int, default=50)
    parser.add_argument("--shape", type=int, nargs="+", default=[4, 8, 8], help="of the latents")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    shape = tuple(asked.shape)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        make_bundle(Path(scratch) / "nothing.mmgen", shape)
        backend = Watched()
        with Generator(read_bundle(Path(scratch) / "nothing.mmgen"), backend) as generator:
            bare = Bare(generator.bundle)
            measures: dict[str, Callable[[], float]] = {
                "generate": lambda: generate(generator, backend, asked.rows),
                "bindings": lambda: bare.with_bindings(asked.rows),
                "arrays": lambda: bare.with_arrays(asked.rows),
                **{name: functools.partial(steps_of, name, asked.rows, shape) for name in SCHEDULERS},
            }
            samples = [{name: measure() for name, measure in measures.items()} for _ in range(asked.rounds + 1)][1:]
    us = {name: 1e6 * statistics.median(sample[name] for sample in samples) for name in measures}
    for name in ("bindings", "arrays"):
        us[f"generate - {name}"] = 1e6 * statistics.median(s["generate"] - s[name] for s in samples)
    record: dict[str, Any] = {"microseconds": {name: round(value, 2) for name, value in us.items()}}
    record |= {"rounds": len(samples), "rows": asked.rows, "shape": asked.shape}
    for name, value in us.items():
        print(f"{name:22} {value:8.2f} us a row {value / us['generate']:8.2f} of a row of generate")
    if asked.json:
        asked.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
