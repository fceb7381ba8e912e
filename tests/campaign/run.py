"""Plays wrong bundles, by the thousand, and counts how that ends; see ``make campaign``.

    python tests/campaign/run.py BUNDLE [--seconds 60] [--seed 0] [--only graph_bytes]

Each is a copy of BUNDLE with something wrong, which a child process inspects, verifies and plays.  Right is an answer
or one error of ours in one line; wrong is everything else.  What is wrong is printed with the seed that makes it again.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from children import Outcome, attempt
from mutations import MUTATIONS, Mutation

from mmgen.runtime import Request, load
from mmgen.runtime.builds import engine_store, optimised
from mmgen.runtime.cli import describe
from mmgen.runtime.storage.bundle import outputs_of, read_bundle
from mmgen.runtime.storage.schema import EMBED, Condition
from mmgen.runtime.verify import repeat


def main() -> int:
    """Run as long as asked; 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=[mutation.__name__ for mutation in MUTATIONS])
    args = parser.parse_args()
    chosen = [m for m in MUTATIONS if args.only in (None, m.__name__)]
    counts: Counter[tuple[str, str]] = Counter()
    end, seed = time.monotonic() + args.seconds, args.seed
    with tempfile.TemporaryDirectory() as folder:
        _warm(args.bundle)
        while time.monotonic() < end:
            mutation = chosen[seed % len(chosen)]
            said, outcome = _one(args.bundle, Path(folder) / "b.mmgen", mutation, seed)
            counts[mutation.__name__, outcome.kind] += 1
            if outcome.kind == "wrong":
                print(f"wrong: --seed {seed}: {mutation.__name__}: {said}: {outcome.said}", flush=True)
            seed += 1
    for name in sorted({name for name, _ in counts}):
        print(f"{name}: " + ", ".join(f"{counts[name, kind]} {kind}" for kind in ("played", "refused", "wrong")))
    wrong = sum(count for (_, kind), count in counts.items() if kind == "wrong")
    print(f"{sum(counts.values()) - wrong} of {sum(counts.values())} right")
    return 1 if wrong else 0


def _one(bundle: Path, copy: Path, mutation: Mutation, seed: int) -> tuple[str, Outcome]:
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(bundle, copy)
    said = mutation(copy, Random(seed))
    return said, attempt(lambda: _play(copy))


def _play(folder: Path) -> str:
    """All that is done with a bundle from a stranger."""
    bundle = read_bundle(folder)
    describe.text(bundle).encode()
    json.dumps(describe.record(bundle), allow_nan=False)
    for path, build in engine_store.builds(bundle):
        engine_store.check_engines(path, build)
    optimised.scan(bundle)
    said = []
    with load(folder, "ort-cpu", threads=1) as generator:
        for name, output in outputs_of(bundle).items():
            asked = {condition.name: _value(condition) for condition in output.conditions}
            made = generator.generate(name, conditions=asked, steps=3)
            if "encode" in output.graphs:
                generator.generate(name, Request(conditions=asked, steps=3, image=made.media[:1]))
            for embedded in (c for c in output.conditions if EMBED + c.name in output.graphs):
                generator.embed(**{embedded.name: _value(embedded)})
            said.append(f"{made.media.astype(np.float64).mean():.3f}")
    for output in outputs_of(bundle).values():
        if output.golden_sha256:
            repeat(output, "ort-cpu", threads=1)
    return ", ".join(said)


def _value(condition: Condition) -> Any:
    match condition.kind:
        case "text":
            return "red apple"
        case "class":
            return 0
        case "array":
            return np.zeros(condition.shape, condition.dtype)
        case _:
            assert condition.media is not None
            return np.zeros(condition.media.shape, condition.media.dtype)


def _warm(bundle: Path) -> None:
    """Import in this process what children need, so that each has it when it begins."""
    _play(bundle)


if __name__ == "__main__":
    sys.exit(main())
