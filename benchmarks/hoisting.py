"""What hoisting saves: two bundles of one model, exported with and without --no-hoist, played in turns.

    python benchmarks/hoisting.py hoisted.mmgen whole.mmgen [--rounds 6] [--threads 2] [--json FILE]

Every request is new, as it is for a robot: other conditions, the same schedule.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from mmgen.runtime import load
from mmgen.runtime.storage.schema import Bundle


def request(bundle: Bundle, rng: np.random.Generator) -> dict[str, Any]:
    """A value for every condition."""
    values: dict[str, Any] = {}
    for condition in bundle.conditions:
        match condition.kind:
            case "text":
                values[condition.name] = f"number {rng.integers(1000)}"
            case "class":
                values[condition.name] = int(rng.integers(condition.count or 1))
            case "array":
                values[condition.name] = rng.standard_normal(condition.shape).astype(condition.dtype)
    return values


def main() -> None:
    """Play both, print ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("bundles", nargs=2, type=Path, metavar="BUNDLE")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    rng = np.random.default_rng(0)
    generators = [load(path, "ort-cpu", threads=asked.threads, verify=False) for path in asked.bundles]
    steps: list[list[float]] = [[], []]
    before: list[list[float]] = [[], []]  # the steps: the condition and the timesteps
    for turn in range(asked.rounds + 1):
        conditions, latents = request(generators[0].bundle, rng), [np.empty(0), np.empty(0)]
        streams = [generator.stream(**conditions, steps=asked.steps, seed=turn) for generator in generators]
        for rows in zip(*streams, strict=True):  # in turns, so that both meet the same machine
            for i, row in enumerate(rows):
                if turn:  # the first round lays out memory
                    steps[i].append(row.timings.steps[-1])
                if row.last:
                    latents[i] = row.latents()
                    before[i].append(row.timings.condition + row.timings.timestep)
        error = np.linalg.norm(latents[0] - latents[1]) / np.linalg.norm(latents[1])
        if error > 1e-4:
            raise SystemExit(f"the bundles differ by {error:.3g}: they are not of one model")
    count = len(steps[0]) // asked.rounds
    step = [float(np.min(times)) for times in steps]  # other programs only ever add
    whole = [float(np.min(times[1:])) + count * s for times, s in zip(before, step, strict=True)]
    record: dict[str, Any] = {"step": step, "request": whole}
    record |= {"step ratio": step[0] / step[1], "request ratio": whole[0] / whole[1]}
    record["median step ratio"] = float(np.median(steps[0]) / np.median(steps[1]))
    if hoisting := generators[0].bundle.hoisting:
        record["weight bytes"] = list(hoisting.weight_bytes)
    for what in ("step", "request"):
        one, other = record[what]
        print(f"{what} {1e3 * one:.1f} ms, whole {1e3 * other:.1f} ms: {one / other:.3f}")
    print(f"median of {len(steps[0])} steps: {record['median step ratio']:.3f}")
    if asked.json:
        asked.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
