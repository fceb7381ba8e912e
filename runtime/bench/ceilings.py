"""What a machine can do at most, measured: floating-point operations and bytes a second.

On the host numpy is asked, in a process of its own, where the number of its threads can still be chosen.  On a GPU it
is a copy inside its memory; nothing here multiplies matrices there, so its arithmetic has no ceiling.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from mmgen.runtime.backends.cuda import open_device
from mmgen.runtime.base.children import python
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.bench.machine import cores

CODE = "from mmgen.runtime.bench.ceilings import main; main()"
POOLS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
SIDES = (384, 1536)  # of the matrices: done between two turns of other programs, and enough for many cores
BYTES = 1 << 27  # to copy: more than the caches of most machines hold
SECONDS = 0.4  # for each size; the best of the repetitions counts
FEWEST = 3  # repetitions


@dataclass(frozen=True)
class Ceilings:
    """Of a device."""

    device: str
    operations: float | None  # float32 operations a second of a product of matrices; None: not measured there
    bytes: float  # read and written a second, by a copy
    threads: int | None  # asked for; None: of a GPU
    busy: float | None  # cores that the products got: fewer if other programs wanted them, or BLAS has fewer threads


def host_ceilings(threads: int | None) -> Ceilings:
    """Those of the host with so many threads; None: one a core.

    Raises:
        MmgenError: the process that measures them failed.
    """
    count = (cores() or 1) if threads is None else threads
    environment = {**os.environ, **dict.fromkeys(POOLS, str(count))}
    ran = subprocess.run(
        [*python(CODE), str(count)], env=environment, stdin=subprocess.DEVNULL, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    if ran.returncode:
        last = (ran.stderr.strip().splitlines() or [f"exit code {ran.returncode}"])[-1]
        raise MmgenError(f"the ceilings of this machine can't be measured ({last})")
    return Ceilings("host", threads=count, **json.loads(ran.stdout))


def device_ceilings() -> Ceilings:
    """Those of the first GPU.

    Raises:
        MmgenError: there is none, or its memory is full.
    """
    device = open_device()
    try:
        size = min(BYTES, device.free_bytes() // 4)
        source, target = device.memory(size), device.memory(size)

        def copy() -> None:
            for _ in range(10):  # so that the host's part doesn't show
                device.copy(target.address, source.address, size)
            device.wait()

        copied = 10 * 2 * size / _best(copy)
        return Ceilings(device.name, None, copied, None, None)
    finally:
        device.close()


def main() -> None:
    """Measure with as many threads as the argument says, and print the figures; run in a process of its own."""
    threads = int(sys.argv[1])
    clock, used = time.perf_counter(), time.process_time()
    operations = max(2 * side**3 / _best(_product(side)) for side in SIDES)
    busy = (time.process_time() - used) / (time.perf_counter() - clock)
    source, target = np.ones(BYTES, np.uint8), np.zeros(BYTES, np.uint8)
    parts = np.array_split(target, threads), np.array_split(source, threads)
    with ThreadPoolExecutor(threads) as pool:  # numpy lets go of the interpreter while it copies
        copied = 2 * BYTES / _best(lambda: list(pool.map(np.copyto, *parts)))
    sys.stdout.write(json.dumps({"operations": operations, "bytes": copied, "busy": busy}))


def _product(side: int) -> Callable[[], object]:
    draw = np.random.default_rng(0)
    left, right = (draw.random((side, side), np.float32) for _ in range(2))
    product = np.empty_like(left)
    return lambda: np.matmul(left, right, out=product)


def _best(work: Callable[[], object]) -> float:
    """Seconds of the fastest repetition; the first warms up."""
    work()
    times: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(times) < FEWEST or time.perf_counter() < end:
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)
