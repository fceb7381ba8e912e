"""Many threads that use one generator in every way for as long as asked: all results equal, and memory flat.

    python tests/campaign/soak.py BUNDLE [--seconds 60] [--seed 0] [--threads 16]

Results are compared bit by bit with those of a quiet generator.  Memory is that of the process when nothing runs, after
a tenth of the time and at the end.
"""

import argparse
import gc
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from mmgen.runtime import Cancelled, Generator, MmgenError, load

SIZES = [{"count": 1}, {"count": 2}, {"count": 3, "guidance": 1.0}]
SEEDS, STEPS = 4, 3
GROWTH = 16 << 20  # bytes that memory may grow by, for what allocators keep


def main() -> int:
    """Run as long as asked; 1 if a result differed or memory grew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=16)
    args = parser.parse_args()
    with load(args.bundle, "ort-cpu", threads=1) as quiet:
        wanted = {(i, seed): quiet.generate(**asked(i, seed)) for i in range(len(SIZES)) for seed in range(SEEDS)}
    done: Counter[str] = Counter()
    wrong: list[str] = []
    with load(args.bundle, "ort-cpu", threads=1) as generator:
        before = 0
        for part, seconds in enumerate((0.1 * args.seconds, 0.9 * args.seconds)):
            end = time.monotonic() + seconds
            randoms = [Random(f"{args.seed} {part} {n}") for n in range(args.threads)]
            threads = [
                threading.Thread(target=work, args=(generator, wanted, random, end, done, wrong)) for random in randoms
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            gc.collect()
            before, after = (resident(), 0) if part == 0 else (before, resident())
    grown = after - before
    print(", ".join(f"{count} {kind}" for kind, count in sorted(done.items())))
    print(f"memory {before / 2**20:.1f} MiB, then {after / 2**20:.1f} MiB; {len(wrong)} wrong")
    for line in sorted(set(wrong))[:20]:
        print(f"wrong: {line}")
    return 1 if wrong or grown > GROWTH else 0


def asked(size: int, seed: int) -> dict[str, Any]:
    """A request for the tests' bundle, or another with a prompt."""
    return {"prompt": "red apple", "seed": seed, "steps": STEPS, **SIZES[size]}


def work(
    generator: Generator, wanted: dict[tuple[int, int], Any], random: Random, end: float, done: Counter[str],
    wrong: list[str],
) -> None:  # fmt: skip
    """Use the generator in one way after the other until the time is over."""
    while time.monotonic() < end:
        key = random.randrange(len(SIZES)), random.randrange(SEEDS)
        kind = random.choice(("generate", "stream", "left", "closed", "cancelled", "refused", "decoded"))
        try:
            _use(generator, kind, asked(*key), wanted[key], random)
        except Exception as error:
            wrong.append(f"{kind}: {type(error).__name__}: {error}")
        done[kind] += 1


def _use(generator: Generator, kind: str, request: dict[str, Any], wanted: Any, random: Random) -> None:
    match kind:
        case "generate":
            _compare(generator.generate(**request), wanted)
        case "stream":
            for progress in generator.stream(**request):
                if progress.last:
                    _compare(progress.result(), wanted)
        case "left" | "closed":
            stream = generator.stream(**request)
            for _ in range(random.randrange(STEPS)):
                next(stream).latents()
            if kind == "closed":
                stream.close()
        case "cancelled":
            cancel = threading.Event()
            timer = threading.Timer(random.random() * 0.02, cancel.set)
            timer.start()
            with suppress(Cancelled):
                _compare(generator.generate(**request, cancel=cancel), wanted)
            timer.join()
        case "refused":
            try:
                generator.generate(**{**request, "steps": random.choice((0, -1, "x", 10**30))})
            except MmgenError:
                return
            raise AssertionError("not refused")
        case "decoded":
            media, _ = generator.decode(wanted.latents)
            if not np.array_equal(media, wanted.media):
                raise AssertionError("media of the same latents")


def _compare(got: Any, wanted: Any) -> None:
    if not (np.array_equal(got.latents, wanted.latents) and np.array_equal(got.media, wanted.media)):
        raise AssertionError("another result")


def resident() -> int:
    """Bytes of memory that the process has."""
    with open("/proc/self/smaps_rollup", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("Anonymous:"))


if __name__ == "__main__":
    sys.exit(main())
