"""What ONNX Runtime's settings do for a bundle on the CPU: backends that differ in one of them, in turns.

    python benchmarks/ort_settings.py BUNDLE [--threads 1] [--steps 10] [--rounds 20] [--json FILE]

For each setting, as a ratio to what ``ort-cpu`` does: the time of a request and of a row by the clock on the wall, the
seconds of the processor that a request takes, of all threads together, and those that loading takes.  Other programs
lengthen the first two and hardly the others.  Medians over the rounds; each request is a new one.  ``saved`` loads
graphs that ONNX Runtime optimised and wrote before.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmgen.runtime import Generator
from mmgen.runtime.backends.ort.cpu import OrtCpu
from mmgen.runtime.backends.ort.importing import import_onnxruntime
from mmgen.runtime.backends.protocol import Runner
from mmgen.runtime.storage.bundle import read_bundle
from mmgen.runtime.storage.schema import Bundle

onnxruntime = import_onnxruntime()

Change = Callable[[Any], None]
PAUSE = 0.02  # seconds in which the threads of one backend come to rest before another's turn


def entry(name: str, value: str) -> Change:
    """A session's configuration entry, set."""
    return lambda options: options.add_session_config_entry(name, value)


def attribute(name: str, value: object) -> Change:
    """A session option, set."""
    return lambda options: setattr(options, name, value)


LEVEL = onnxruntime.GraphOptimizationLevel
SETTINGS: dict[str, Change] = {
    "as it is": lambda options: None,
    "the same again": lambda options: None,  # what chance does
    "spinning after a call": entry("session.force_spinning_stop", "0"),
    "no spinning": entry("session.intra_op.allow_spinning", "0"),
    "dynamic blocks": entry("session.dynamic_block_base", "4"),
    "no arena": attribute("enable_cpu_mem_arena", False),
    "no memory pattern": attribute("enable_mem_pattern", False),
    "denormals as zero": entry("session.set_denormal_as_zero", "1"),
    "no prepacking": entry("session.disable_prepacking", "1"),
    "approximate GELU": entry("optimization.enable_gelu_approximation", "1"),
    "no optimisation": attribute("graph_optimization_level", LEVEL.ORT_DISABLE_ALL),
    "basic optimisation": attribute("graph_optimization_level", LEVEL.ORT_ENABLE_BASIC),
    "extended optimisation": attribute("graph_optimization_level", LEVEL.ORT_ENABLE_EXTENDED),
    "saved": attribute("graph_optimization_level", LEVEL.ORT_DISABLE_ALL),
}


class Changed(OrtCpu):
    """The backend with another setting."""

    def __init__(self, threads: int | None, change: Change, saved: Path | None) -> None:
        super().__init__(onnxruntime, threads)
        change(self._options)
        self._saved = saved

    def load(self, graph: Path) -> Runner:
        return super().load(self._saved / graph.name if self._saved else graph)


def save(bundle: Bundle, folder: Path) -> None:
    """Write the graphs as ONNX Runtime optimises them, with their weights beside them."""
    for graph in bundle.graphs.values():
        path = bundle.path(graph.file)
        options = onnxruntime.SessionOptions()
        options.log_severity_level, options.optimized_model_filepath = 3, str(folder / path.name)
        entry("session.optimized_model_external_initializers_file_name", f"{path.name}.data")(options)
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def ask(bundle: Bundle, number: int) -> dict[str, Any]:
    """A request like no other."""
    values = {"text": f"number {number}", "class": number}
    return {"seed": number} | {c.name: values[c.kind] for c in bundle.conditions if c.kind in values}


def play(generator: Generator, steps: int, number: int) -> dict[str, float]:
    """Make a request; seconds."""
    time.sleep(PAUSE)
    processor = time.process_time()
    timings = generator.generate(**ask(generator.bundle, number), steps=steps).timings
    return {
        "request": timings.total,
        "row": statistics.median(timings.steps),
        "processor": time.process_time() - processor,
    }


def main() -> None:
    """Measure in turns, print and write medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path, help="a list, to which this run is added")
    asked = parser.parse_args()
    bundle = read_bundle(asked.bundle)
    generators, loads = {}, {}
    with tempfile.TemporaryDirectory() as scratch:
        save(bundle, Path(scratch))
        for name, change in SETTINGS.items():
            clock = time.process_time()
            saved = Path(scratch) if name == "saved" else None
            generators[name] = Generator(bundle, Changed(asked.threads, change, saved))
            loads[name] = time.process_time() - clock
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in generators}
    for turn in range(asked.rounds + 1):
        for name, generator in generators.items():
            sample = play(generator, asked.steps, turn)
            if turn:  # the first lays out memory
                taken[name].append(sample)
    seconds = {
        name: {key: statistics.median(s[key] for s in samples) for key in samples[0]} | {"load": loads[name]}
        for name, samples in taken.items()
    }
    first = seconds["as it is"]
    ratios = {name: {key: round(s[key] / first[key], 3) for key in first} for name, s in seconds.items()}
    for name, ratio in ratios.items():
        print(f"{name:22}", *(f"{key} {value:5.2f}  " for key, value in ratio.items()))
    milliseconds = {key: round(1e3 * value, 2) for key, value in first.items()}
    print("as it is, milliseconds:", *(f"{key} {value:.2f}  " for key, value in milliseconds.items()))
    if asked.json:
        known = json.loads(asked.json.read_text()) if asked.json.exists() else []
        about: dict[str, Any] = {"bundle": bundle.name, "policy": bundle.precision.policy, "steps": asked.steps}
        about |= {"threads": asked.threads, "rounds": asked.rounds, "onnxruntime": onnxruntime.__version__}
        about |= {"as it is": milliseconds, "ratios": ratios}
        asked.json.write_text(json.dumps([*known, about], indent=1) + "\n")


if __name__ == "__main__":
    main()
