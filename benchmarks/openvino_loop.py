"""The backends of a CPU on one bundle, and a loop written by hand with OpenVINO's own API, in turns.

    python benchmarks/openvino_loop.py BUNDLE [--threads 1] [--steps 20] [--rounds 10] [--json FILE]

``loop`` runs the step graph of the same request as one would without mmgen: compiled for its shapes, one inference
request, numpy arrays in and out, the state handed on.  It must come to the same latents as ``openvino``, to the bit.
Milliseconds a row and a request, medians; ratios are of the samples of one turn.  The loop's request is its rows.
``off`` is the relative RMS of the latents that a backend comes to from those of ``openvino``.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mmgen.runtime import Generator, load
from mmgen.runtime.backends.openvino.backend import find_openvino
from mmgen.runtime.storage.schema import Bundle
from mmgen.runtime.storage.tensors import NEXT_STATE, STATE
from mmgen.runtime.verify import relative_rms

Sample = tuple[float, float, np.ndarray]  # seconds a row and a request; latents
PAUSE = 0.02  # seconds in which the threads of one backend come to rest before another's turn


def request(bundle: Bundle, steps: int) -> dict[str, Any]:
    """What is asked for."""
    values = {"text": "red apple", "class": 1}
    return {"steps": steps} | {c.name: values[c.kind] for c in bundle.conditions if c.kind in values}


def play(generator: Generator, asked: dict[str, Any]) -> Sample:
    """A request of a backend."""
    result = generator.generate(**asked)
    return statistics.median(result.timings.steps), result.timings.total, result.latents


def watch(generator: Generator, asked: dict[str, Any]) -> list[dict[str, np.ndarray]]:
    """What the step graph is given in each row of a request; of the states, only the first is one."""
    runner, seen = generator._session._runners["step"], []
    bind = runner.bind
    runner.bind = lambda block, calls: seen.append((block, calls)) or bind(block, calls)
    next(generator.stream(**asked))  # the first row reads the first state and writes the second
    ((block, calls),) = seen
    names = [spec.name for spec in generator.bundle.graphs["step"].inputs]
    return [{name: slots[name].of(block.host).copy() for name in names} for slots in calls]


def by_hand(bundle: Bundle, rows: list[dict[str, np.ndarray]], threads: int | None) -> Callable[[], Sample]:
    """The loop, ready to run."""
    openvino = find_openvino()
    core = openvino.Core()
    model = core.read_model(bundle.path(bundle.graphs["step"].file))
    model.reshape({name: array.shape for name, array in rows[0].items()})
    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "ENABLE_CPU_PINNING": False}
    if threads is not None:
        options["INFERENCE_NUM_THREADS"] = threads
    infer_request = core.compile_model(model, "CPU", options).create_infer_request()

    def run() -> Sample:
        state, seconds, begun = rows[0][STATE], [], time.perf_counter()
        for row in rows:
            clock = time.perf_counter()
            state = infer_request.infer({**row, STATE: state}, share_inputs=True)[NEXT_STATE]
            seconds.append(time.perf_counter() - clock)
        return statistics.median(seconds), time.perf_counter() - begun, state[0]

    return run


def main() -> None:
    """Measure in turns, print and write medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", type=Path, help="a list, to which this run is added")
    arguments = parser.parse_args()
    names, loads, generators = ("ort-cpu", "ort-cpu-int8", "openvino", "openvino-bf16"), {}, {}
    for name in names:
        clock = time.process_time()
        generators[name] = load(arguments.bundle, name, threads=arguments.threads, verify=False)
        loads[name] = time.process_time() - clock
    bundle = generators["openvino"].bundle
    asked = request(bundle, arguments.steps)
    with load(arguments.bundle, "openvino", threads=arguments.threads, verify=False) as watched:
        loop = by_hand(bundle, watch(watched, asked), arguments.threads)
    runs: dict[str, Callable[[], Sample]] = {"loop": loop}
    runs |= {name: lambda generator=generator: play(generator, asked) for name, generator in generators.items()}
    samples: dict[str, list[Sample]] = {name: [] for name in runs}
    for turn in range(arguments.rounds + 1):
        for name, run in runs.items():
            time.sleep(PAUSE)
            sample = run()
            if turn:  # the first lays out memory
                samples[name].append(sample)
    if not np.array_equal(samples["loop"][0][2], samples["openvino"][0][2]):
        raise SystemExit("the loop by hand comes to other latents")
    record: dict[str, Any] = {"bundle": bundle.name, "policy": bundle.precision.policy, **asked}
    record |= {"threads": arguments.threads, "rounds": arguments.rounds, "openvino": find_openvino().__version__}
    for name, of_name in samples.items():
        row, whole = (statistics.median(s[i] for s in of_name) for i in range(2))
        ratio = statistics.median(s[0] / o[0] for s, o in zip(of_name, samples["openvino"], strict=True))
        record[name] = {"row": round(1e3 * row, 3), "request": round(1e3 * whole, 2), "ratio": round(ratio, 3)}
        record[name]["off"] = float(f"{relative_rms(of_name[0][2], samples['openvino'][0][2]):.2g}")
        if name in loads:
            record[name]["load, of the processor"] = round(1e3 * loads[name])
        print(f"{name:14}", *(f"{key} {value}  " for key, value in record[name].items()))
    if arguments.json:
        known = json.loads(arguments.json.read_text()) if arguments.json.exists() else []
        arguments.json.write_text(json.dumps([*known, record], indent=1) + "\n")


if __name__ == "__main__":
    main()
