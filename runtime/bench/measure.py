"""How long requests take on this machine, and how far to trust it: ``mmgen bench``.

Every request is a call of ``Generator.generate`` as users make it; its parts are those of its ``Timings``.
"""

import importlib.metadata
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import repeat
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mmgen.runtime.backends.registry import ON_GPU
from mmgen.runtime.backends.tensorrt.library import find_library, version
from mmgen.runtime.base import distribution
from mmgen.runtime.base.numbers import real, whole
from mmgen.runtime.bench import machine
from mmgen.runtime.bench.arrivals import Arrivals, arrivals, no_deadline, schedule
from mmgen.runtime.bench.ceilings import Ceilings, device_ceilings, host_ceilings
from mmgen.runtime.bench.cold_start import Start, cold_start
from mmgen.runtime.bench.energy import Power, metered
from mmgen.runtime.bench.figures import Noise, Summary, noise, summary
from mmgen.runtime.bench.roofline import Point, roofline
from mmgen.runtime.bench.usage import Cores, free_device_memory, peak_memory, watched
from mmgen.runtime.bench.watch import Watch, watched_generator
from mmgen.runtime.files.json_records import plain
from mmgen.runtime.generator import Generator
from mmgen.runtime.loop.results import Result
from mmgen.runtime.request.branches import MOST
from mmgen.runtime.request.request import Request, said_of
from mmgen.runtime.storage.bundle import output_of, read_bundle
from mmgen.runtime.storage.hashes import sha256
from mmgen.runtime.storage.schema import MANIFEST, Bundle

New = Literal["all", "condition", "nothing"]
Phase = Literal["warm-up", "measured", "by evaluation"]
FORGET: dict[New, tuple[Literal["condition", "timestep"], ...]] = {
    "all": ("condition", "timestep"),
    "condition": ("condition",),
    "nothing": (),
}
STREAMED = 10  # requests beside the measured ones, on a GPU: what its events say, and evaluations of a recorded loop
PACKAGES = {  # that a backend may come from, by its name; TensorRT says its version itself
    "ort-cpu": ("onnxruntime", "onnxruntime-gpu"),
    "ort-cpu-int8": ("onnxruntime", "onnxruntime-gpu"),
    "ort-cuda": ("onnxruntime-gpu", "onnxruntime"),
    "openvino": ("openvino",),
    "openvino-bf16": ("openvino",),
}
INCLUDED = (
    "from the call of generate to the media in host memory: checking the request, tokenizing, drawing noise, copies to "
    "and from the device, waiting for it",
    "what Python's garbage collector does meanwhile",
)
EXCLUDED = (
    "loading the bundle and the first requests (see cold start and --warmup)",
    "encoding and writing pictures",
    "requests that queue for the same generator",
)
QUEUED = "requests that queue for the same generator, but in the latency"
NEWS: dict[New, str] = {
    "all": "all graphs in every request, as with a new condition and a new schedule",
    "condition": "the graph condition in every request; what the timestep graph makes is there from the last one",
    "nothing": "neither condition nor timestep graph: what they make is there from the last request",
}


@dataclass(frozen=True)
class Options:
    """What is measured."""

    # A batch takes its conditions, lists by name, in turn, and its negative conditions likewise.
    request: Request = field(default_factory=Request)
    batch: tuple[int, ...] = (1,)  # samples at once
    threads: tuple[int | None, ...] = (None,)  # of a CPU backend; None: one a core
    backend: str = "auto"
    runs: int = 100  # requests of each batch size on each number of threads
    warmup: int = 3  # requests before them
    seconds: float = 20.0  # for the requests of each; fewer are made then, but at least one
    new: New = "all"  # what in a request is not as in the one before
    starts: int = 3  # of fresh processes
    rate: float | None = None  # requests a second, at fixed times; None: one after the other
    deadline: float | None = None  # seconds from when a request is due; None: a period of the rate
    nvtx: bool = False  # ranges for a profiler


@dataclass(frozen=True)
class Sample:
    """One request; all times in seconds."""

    threads: int | None
    batch: int
    phase: Phase
    number: int  # from 0 in its phase
    began: float  # since the first request of these threads and this batch
    due: float | None  # likewise, where requests are due at fixed times
    total: float  # end to end
    condition: float
    timestep: float
    loop: float
    steps: tuple[float, ...]  # each evaluation; empty where a GPU ran the loop as one graph
    decode: float
    host: float  # what is left of the total
    jitter: float | None  # the slowest evaluation less the median one
    gpu: Mapping[str, tuple[float, ...]]  # by part, each call of its graph by CUDA's events; empty: not asked for


@dataclass(frozen=True)
class Series:
    """What the requests of one batch size took on one number of threads.  Seconds, samples, bytes."""

    threads: int | None
    batch: int
    evaluations: int  # of the denoiser in a request
    parts: dict[str, Summary]  # total, condition, timestep, evaluation, loop, decode, host, jitter
    gpu: dict[str, Summary]  # of the parts that are one graph's, by CUDA's events; empty: not on CUDA
    arrivals: Arrivals | None  # where requests were due at fixed times
    throughput: float  # samples a second, one request after the other
    noise: Noise | None
    cores: Cores
    power: Power
    joules: float | None  # for a sample, of the whole board or GPU
    median: Sample  # the request in the middle
    device_memory: int | None = None  # taken since before the bundle was loaded, by any program
    roofline: tuple[Point, ...] = ()  # by the median times


@dataclass(frozen=True)
class Context:
    """What figures mean nothing without."""

    bundle: str
    sha256: str  # of bundle.json, which has the hashes of all other files
    precision: str
    backend: str
    branches: int  # of guidance, run at once for each sample
    versions: dict[str, str]
    request: dict[str, Any]
    included: tuple[str, ...]
    excluded: tuple[str, ...]
    machine: dict[str, Any]
    after: dict[str, Any]  # what may have changed of the machine: clocks, temperature, power mode


@dataclass(frozen=True)
class Measured:
    """A whole benchmark."""

    context: Context
    starts: tuple[Start, ...]
    series: tuple[Series, ...]
    ceilings: tuple[Ceilings, ...]  # of the machine, for each number of threads
    peak_memory: int  # bytes of host memory, of this process


def measure(
    folder: Path, options: Options, keep: Callable[[Sample], None], progress: Callable[[str, float], None]
) -> Measured:
    """Run a benchmark.

    Args:
        folder: the ``.mmgen`` folder.
        options: what to measure.
        keep: called with each sample as soon as it is there, those of the warm-up included.
        progress: called with what is being done and the share of it that is done.

    Raises:
        MmgenError: the bundle or the backend can't be had, a bad option or request, or a fresh process fails.
    """
    _check(options)
    before = machine.record()
    bundle = output_of(read_bundle(folder), options.request.output)
    guidance = options.request.guidance
    branches = 1 if (bundle.defaults.guidance if guidance is None else guidance) == 1 else 2
    series: list[Series] = []
    ceilings = []
    for threads in dict.fromkeys(options.threads):  # each once
        progress("loading", 0.0)
        free = free_device_memory() if options.backend in ("auto", *ON_GPU) else None
        with watched_generator(bundle, options.backend, threads, options.nvtx) as (generator, watch):
            backend = generator.backend
            of_these = []
            for batch in dict.fromkeys(options.batch):
                request = _batched(options.request, batch)
                one = _series(generator, watch, request, threads, batch, options, keep, progress)
                now = free_device_memory() if backend in ON_GPU else None
                of_these.append(replace(one, device_memory=free and now and max(free - now, 0)))
        progress("measuring what the machine can do", 0.0)
        ceilings.append(device_ceilings() if backend in ON_GPU else host_ceilings(threads))
        series += [replace(one, roofline=_roofline(bundle, one, options, branches, ceilings[-1])) for one in of_these]
    after = machine.state()
    first = _batched(options.request, options.batch[0])
    starts = []
    for number in range(options.starts):
        progress("cold starts", number / options.starts)
        starts.append(cold_start(folder, backend, options.threads[0], first))
    context = Context(
        bundle.name, sha256(folder / MANIFEST), bundle.precision.policy, backend, branches, _versions(backend),
        _told(bundle, options), (*INCLUDED, NEWS[options.new]), _excluded(options), before, after,
    )  # fmt: skip
    return Measured(context, tuple(starts), tuple(series), tuple(ceilings), peak_memory())


def _check(options: Options) -> None:
    for name in ("runs", "warmup", "starts", "batch", "threads"):
        value = getattr(options, name)
        least = 0 if name in ("warmup", "starts") else 1
        for number in value if isinstance(value, tuple) else (value,):
            if number is not None:
                most = MOST if name == "batch" else sys.maxsize
                whole(name, number, f"a whole number, at least {least}", least, most)
    real("seconds", options.seconds, "more than 0", lambda seconds: seconds > 0)
    if options.rate is None:
        no_deadline(options.deadline)
    else:
        schedule(options.rate, options.deadline, options.runs, options.seconds)


def _batched(request: Request, batch: int) -> Request:
    """Ask for ``batch`` samples: of the conditions, in turn."""
    if not request.conditions:
        return replace(request, count=batch)

    def in_turn(conditions: Mapping[str, Any]) -> dict[str, list[Any]]:
        return {name: [values[i % len(values)] for i in range(batch)] for name, values in conditions.items()}

    return replace(request, conditions=in_turn(request.conditions), negative=in_turn(request.negative or {}))


def _series(
    generator: Generator,
    watch: Watch,
    request: Request,
    threads: int | None,
    batch: int,
    options: Options,
    keep: Callable[[Sample], None],
    progress: Callable[[str, float], None],
) -> Series:
    name = f"batch {batch}" + (f", {threads} threads" if threads else "")
    clock = time.perf_counter()

    def requests(phase: Phase, dues: Iterable[float | None]) -> Iterator[Sample]:
        streamed = phase == "by evaluation"
        for number, due in enumerate(dues):
            generator.forget(*FORGET[options.new])
            with watch.request(timed=streamed):
                began = time.perf_counter()
                result = _streamed(generator, request) if streamed else generator.generate(request)
                total = time.perf_counter() - began
            sample = Sample(
                threads, batch, phase, number, began - clock, None if due is None else due - clock, total,
                **_timings(result, total), gpu=watch.taken(),
            )  # fmt: skip
            keep(sample)
            yield sample

    progress(f"warming up, {name}", 0.0)
    for _ in requests("warm-up", repeat(None, options.warmup)):
        pass
    samples: list[Sample] = []
    plan = None
    if options.rate is not None:
        plan = schedule(options.rate, options.deadline, options.runs, options.seconds)
    dues = _in_turn(options) if plan is None else plan.due()
    with watched() as cores, metered(gpu=generator.backend in ON_GPU) as power:
        for sample in requests("measured", dues):
            samples.append(sample)
            progress(f"measuring, {name}", len(samples) / options.runs)
    streamed: list[Sample] = []
    if watch.on_cuda or not samples[0].steps:
        streamed = list(requests("by evaluation", repeat(None, min(STREAMED, options.runs))))
    by_evaluation = samples if samples[0].steps else streamed
    watts = power.total
    return Series(
        threads=threads,
        batch=batch,
        evaluations=len(by_evaluation[0].steps),
        parts=_parts(samples, by_evaluation),
        gpu=_gpu_parts(streamed),
        arrivals=None if plan is None else arrivals(plan, [s.began + s.total - (s.due or 0.0) for s in samples]),
        throughput=batch * len(samples) / sum(s.total for s in samples),
        noise=noise([s.total for s in samples]),
        cores=cores,
        power=power,
        joules=watts and watts[1] * power.seconds / (batch * len(samples)),
        median=sorted(by_evaluation, key=lambda s: s.total)[len(by_evaluation) // 2],
    )


def _in_turn(options: Options) -> Iterator[None]:
    """As many requests as there is time for, one after the other; at least one."""
    end = time.perf_counter() + options.seconds
    for number in range(options.runs):
        if number and time.perf_counter() > end:
            return
        yield None


def _parts(samples: Sequence[Sample], by_evaluation: Sequence[Sample]) -> dict[str, Summary]:
    parts = {
        name: summary([getattr(s, name) for s in samples])
        for name in ("total", "condition", "timestep", "loop", "decode", "host")
    }
    return parts | {
        "evaluation": summary([seconds for s in by_evaluation for seconds in s.steps]),
        "jitter": summary([s.jitter or 0.0 for s in by_evaluation]),
    }


def _gpu_parts(streamed: Sequence[Sample]) -> dict[str, Summary]:
    """GPU time of each evaluation, and of each request in the other graphs; of those that ran."""
    found: dict[str, list[float]] = {}
    for sample in streamed:
        for part, seconds in sample.gpu.items():
            found.setdefault(part, []).extend(seconds if part == "evaluation" else [sum(seconds)])
    return {part: summary(seconds) for part, seconds in found.items()}


def _roofline(
    bundle: Bundle, series: Series, options: Options, branches: int, ceilings: Ceilings
) -> tuple[Point, ...]:
    """Each graph at the median of its part; what isn't a graph's in a part counts as its own time."""
    axes = {"B": series.batch, "G": branches, "R": branches * series.batch, "N": series.evaluations}
    parts = {"condition": "condition", "timestep": "timestep", "decode": "decode"}
    if options.request.guidance_interval is None:  # else evaluations differ in how many branches they run
        parts["step"] = "evaluation"
    seconds = {role: series.parts[part].p50 for role, part in parts.items()}
    return tuple(roofline(bundle, axes, seconds, ceilings))


def _timings(result: Result, total: float) -> dict[str, Any]:
    """Return the parts of a request, as a sample has them."""
    timings = result.timings
    parts = {name: getattr(timings, name) for name in ("condition", "timestep", "loop", "decode", "jitter")}
    return {**parts, "steps": tuple(timings.steps), "host": total - timings.total}


def _streamed(generator: Generator, request: Request) -> Result:
    """Make a request, evaluation by evaluation."""
    for progress in generator.stream(request):
        if progress.last:
            result = progress.result()
    return result


def _versions(backend: str) -> dict[str, str]:
    versions = {"mmgen": distribution.version(), "numpy": np.__version__}
    match backend:
        case "tensorrt" | "tensorrt-rtx":
            versions[backend] = version(find_library(backend))
        case _:
            for package in PACKAGES[backend]:
                try:
                    versions[package] = importlib.metadata.version(package)
                except importlib.metadata.PackageNotFoundError:
                    continue
                break
    return {**versions, "python": platform.python_version()}


def _told(bundle: Bundle, options: Options) -> dict[str, Any]:
    """Describe the request, with the bundle's defaults where it was silent, and how it was repeated."""
    defaults = {name: getattr(bundle.defaults, name) for name in ("solver", "steps", "guidance")}
    said = said_of(options.request)
    given = {name: plain(value) for name, value in said.items() if name not in ("conditions", "negative")}
    asked = {
        kind: {name: [v if isinstance(v, (str, int)) else f"array {np.shape(v)}" for v in values]
               for name, values in said.get(kind, {}).items()}
        for kind in ("conditions", "negative") if kind == "conditions" or said.get(kind)
    }  # fmt: skip
    repeated = {name: plain(getattr(options, name)) for name in ("runs", "warmup", "seconds", "new")}
    return {**defaults, **given, **asked, **repeated}


def _excluded(options: Options) -> tuple[str, ...]:
    return EXCLUDED if options.rate is None else (*EXCLUDED[:-1], QUEUED)
