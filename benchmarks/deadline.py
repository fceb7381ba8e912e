"""Deadlines under load: how many of many requests have their media in time while other programs use the machine.

    python benchmarks/deadline.py BUNDLE [--requests 500] [--deadline LOW HIGH] [--busy 1] [--json FILE]

Each request asks for more steps than there is time for, within a deadline between LOW and HIGH seconds; --busy
processes compute all the while.  Time runs from the call to the result, as its caller sees it.  Printed are the share
that was in time, the share that was over by no more than one of its own evaluations, how late the others were, and how
many steps were delivered, which the result says.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from mmgen.runtime import load
from mmgen.runtime.loop.results import Result

BUSY = "import numpy\na = numpy.ones((256, 256), 'f')\nwhile True: a @ a"
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def main() -> None:
    """Ask, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--deadline", type=float, nargs=2, default=(0.02, 0.1), metavar=("LOW", "HIGH"))
    parser.add_argument("--steps", type=int, default=100, help="asked for")
    parser.add_argument("--busy", type=int, default=1, help="processes that compute at the same time")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    rng = np.random.default_rng(0)
    others = [subprocess.Popen([sys.executable, "-c", BUSY], env=ONE_THREAD) for _ in range(asked.busy)]
    try:
        with load(asked.bundle, "ort-cpu", threads=1) as generator:
            generator.generate(steps=asked.steps, deadline=1.0)  # lays out memory and measures, as a program would
            made: list[tuple[float, float, Result]] = []
            for seed in range(asked.requests):
                deadline = float(rng.uniform(*asked.deadline))
                begun = time.perf_counter()
                result = generator.generate(steps=asked.steps, deadline=deadline, seed=seed)
                made.append((deadline, time.perf_counter() - begun, result))
    finally:
        for other in others:
            other.kill()
            other.wait()
    record = figures(made)
    print("\n".join(f"{name}: {value:.4g}" for name, value in record.items()))
    if asked.json:
        record |= {"asked": {**vars(asked), "bundle": asked.bundle.name, "json": None}, "cores": os.cpu_count()}
        asked.json.write_text(json.dumps(record, indent=1) + "\n")


def figures(made: list[tuple[float, float, Result]]) -> dict[str, Any]:
    """Of requests with their deadlines and the seconds they took."""
    deadlines, took = np.array([m[:2] for m in made]).T
    results = [result for *_, result in made]
    rows = np.array([np.median(r.timings.steps) for r in results])
    late, row = took - deadlines, float(np.median(np.concatenate([r.timings.steps for r in results])))
    planned, run = np.array([(r.evaluations, r.evaluations_run) for r in results]).T
    return {
        "requests": len(made),
        "an evaluation, ms": 1e3 * row,
        "slowest evaluation, ms": 1e3 * max(max(r.timings.steps) for r in results),
        "in time, %": 100 * float((late <= 0).mean()),
        "in time or one evaluation late, %": 100 * float((late <= rows).mean()),
        "the latest, ms": 1e3 * float(late.max()),
        "99th percentile of lateness, ms": 1e3 * float(np.quantile(late, 0.99)),
        "share of the time used": float(np.median(took / deadlines)),
        "evaluations planned": float(planned.mean()),
        "evaluations run": float(run.mean()),
        "ended before the last planned evaluation, %": 100 * float((run < planned).mean()),
    }


if __name__ == "__main__":
    main()
