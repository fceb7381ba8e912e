"""A benchmark for people, on a terminal."""

from collections.abc import Sequence
from typing import Any

from mmgen.runtime.base.text_table import table
from mmgen.runtime.bench.arrivals import Arrivals
from mmgen.runtime.bench.ceilings import Ceilings
from mmgen.runtime.bench.cold_start import Start
from mmgen.runtime.bench.figures import FEWEST, Noise, Ratio, Summary, summary
from mmgen.runtime.bench.measure import STREAMED, Measured, Series

PARTS = {
    "total": "end to end",
    "condition": "condition",
    "timestep": "timestep",
    "loop": "loop",
    "evaluation": "an evaluation",
    "jitter": "jitter of evaluations",
    "decode": "decode",
    "host": "host",
}
STARTS = {"total": "until the first media", "process": "Python and imports", "load": "load", "first": "first request"}


def text(measured: Measured) -> str:
    """All that was measured but for the samples."""
    parts = [table(facts(measured)), *(series_text(series) for series in measured.series)]
    if len(measured.series) > 1:
        parts.append(table(throughput_rows(measured.series)))
    parts.append("\n".join(map(ceiling_text, measured.ceilings)))
    if measured.starts:
        parts.append("\n".join(["cold start, in seconds", table(start_rows(measured.starts))]))
    return "\n\n".join(parts)


def facts(measured: Measured) -> list[tuple[str, str]]:
    """Describe what was measured, and on what: figures mean nothing without it."""
    context = measured.context
    before, after = (_clocks(state) for state in (context.machine, context.after))
    rows = [
        ("bundle", f"{context.bundle}, {context.precision}, bundle.json sha256 {context.sha256[:16]}"),
        ("backend", f"{context.backend}; " + ", ".join(f"{n} {v}" for n, v in context.versions.items())),
        ("machine", context.machine["board"] or context.machine["cpu"] or "unknown"),
        ("clocks before", before),
        ("clocks after", after if after != before else ""),
        ("request", _request(context.request)),
        ("host memory", f"at most {measured.peak_memory / 2**20:.0f} MiB, for all that follows but cold starts"),
        *(("included", line) for line in context.included),
        *(("not included", line) for line in context.excluded),
    ]
    return [(key, value) for key, value in rows if value]


def series_text(series: Series) -> str:
    """Figures of one batch size on one number of threads."""
    lines = [f"{title(series)}, in milliseconds", table(part_rows(series)), *remarks(series)]
    if series.roofline:
        lines += ["", table(roofline_rows(series))]
    return "\n".join(lines)


def title(series: Series) -> str:
    """Batch size, threads, and how many requests."""
    threads = f", threads {series.threads}" if series.threads else ""
    return f"batch {series.batch}{threads}: {series.parts['total'].count} requests of {series.evaluations} evaluations"


def part_rows(series: Series) -> list[tuple[str, ...]]:
    """Return a line for each part of a request, in milliseconds; on CUDA with the median GPU time of its graph."""
    heads = ("part", "p50", "p90", "p99", "min", "mean", "std", "share")
    rows: list[tuple[str, ...]] = [(*heads, "gpu") if series.gpu else heads]
    whole = series.parts["total"].mean
    for name, label in PARTS.items():
        part = series.parts[name]
        share = "" if name in ("evaluation", "jitter") else f"{part.mean / whole:.0%}"
        row = (label, *(milli(v) for v in _columns(part)), share)
        gpu = milli(series.gpu[name].p50) if name in series.gpu else ""
        rows.append((*row, gpu) if series.gpu else row)
    return rows


def remarks(series: Series) -> list[str]:
    """Return what else there is to know about the figures, a line each."""
    total, cores = series.parts["total"], series.cores
    without = " if requests came without a pause" if series.arrivals else ""
    lines = [f"{series.throughput:.3g} samples a second{without}"]
    if total.p50_interval:
        low, high = map(milli, total.p50_interval)
        lines[0] += f"; median between {low} and {high} ms with 95 %"
    if series.arrivals:
        lines = [*arrival_lines(series.arrivals), *lines]
    if total.count < 100:
        lines.append(f"p99 of {total.count} requests is close to the slowest of them")
    lines.append(noise_text(series.noise, total.count))
    if cores.others is not None:
        used = f"this process kept {cores.own:.1f} of {cores.available} cores busy, other programs {cores.others:.1f}"
        lines.append(used)
    if series.power.total is not None and series.joules is not None:
        rail, watts = series.power.total
        lines.append(f"{rail} {watts:.1f} W in the mean, {series.joules:.3g} J for a sample, idle power included")
    if series.gpu:
        lines.append(f"gpu: median between CUDA's events around a graph, in up to {STREAMED} requests beside these")
    if series.device_memory is not None:
        lines.append(f"{series.device_memory / 2**20:.0f} MiB less of the device's memory free than before loading")
    return lines


def arrival_lines(arrivals: Arrivals) -> list[str]:
    """How requests that were due at fixed times were served."""
    latency, deadline = arrivals.latency, milli(arrivals.deadline)
    spread = ", ".join(f"{name} {milli(getattr(latency, name))}" for name in ("p50", "p90", "p99", "max"))
    counted = f"{arrivals.due} due, {arrivals.done} done, {arrivals.late} late, {arrivals.queue} waiting at the end"
    lines = [
        f"{arrivals.rate:g} requests a second: {counted}; late is more than {deadline} ms after a request was due",
        f"latency from when a request was due, in ms: {spread}",
    ]
    if arrivals.queue:
        lines.append("latency is that of the requests that were done; those that still waited have more")
    return lines


def noise_text(noise: Noise | None, count: int) -> str:
    """How small a difference means nothing, in plain words."""
    if noise is None:
        return f"noise floor unknown: {count} requests are too few, at least {2 * FEWEST} are needed"
    found = f"every other request against the rest {_ratio(noise.halves)}, later against earlier {_ratio(noise.drift)}"
    floor = f"{noise.floor:.1%}" if noise.floor < 1 else f"a factor of {1 + noise.floor:.1f}"
    if noise.noisy:
        advice = "; stop other programs and fix the clocks (mmgen doctor), or make more requests"
        return f"TOO NOISY: a difference below {floor} means nothing here ({found}){advice}"
    return f"noise floor: a difference below {floor} means nothing here ({found})"


def roofline_rows(series: Series) -> list[tuple[str, ...]]:
    """Return a line for each graph: its work at the median time, against the ceiling that it would meet first."""
    rows: list[tuple[str, ...]] = [
        ("graph", "ms", "GFLOP", "MB", "FLOP/byte", "GFLOP/s", "GB/s", "of the ceiling"),
    ]
    for p in series.roofline:
        work = (f"{p.operations / 1e9:.3g}", f"{p.bytes / 1e6:.3g}", f"{p.intensity:.3g}")
        rates = (f"{p.operations_rate / 1e9:.3g}", f"{p.bytes_rate / 1e9:.3g}", f"{p.share:.1%} of {p.bound}")
        rows.append((p.graph, milli(p.seconds), *work, *rates))
    return rows


def ceiling_text(ceilings: Ceilings) -> str:
    """Say what the machine can do at most, and how that was measured."""
    copied = f"{ceilings.bytes / 1e9:.1f} GB/s by a copy"
    if ceilings.operations is None:
        return f"ceilings of {ceilings.device}: {copied}; its arithmetic was not measured"
    product = f"{ceilings.operations / 1e9:.1f} GFLOP/s by a float32 product of matrices"
    used = f"{ceilings.threads} threads that got {ceilings.busy:.1f} cores"
    return f"ceilings of the {ceilings.device}: {product}, {copied}, with {used}"


def start_rows(starts: Sequence[Start]) -> list[tuple[str, ...]]:
    """Of cold starts, in seconds."""
    rows: list[tuple[str, ...]] = [("part", "median", "min", "max")]
    for name, label in STARTS.items():
        part = summary([getattr(start, name) for start in starts])
        rows.append((label, f"{part.p50:.3f}", f"{part.min:.3f}", f"{part.max:.3f}"))
    most = max(start.peak_memory for start in starts) / 2**20
    return [*rows, ("peak host memory", f"{most:.0f} MiB", "", "")]


def throughput_rows(series: Sequence[Series]) -> list[tuple[str, ...]]:
    """Batch sizes and numbers of threads beside each other."""
    rows: list[tuple[str, ...]] = [("threads", "batch", "p50 in ms", "samples a second", "against the first")]
    for one in series:
        gain = one.throughput / series[0].throughput
        cells = (str(one.threads or "all"), str(one.batch), milli(one.parts["total"].p50), f"{one.throughput:.3g}")
        rows.append((*cells, f"x {gain:.2f}"))
    return rows


def milli(seconds: float) -> str:
    """Milliseconds with three significant digits, and no power of ten."""
    value = 1000 * seconds
    decimals = next((d for d, least in enumerate((100, 10, 1)) if abs(value) >= least), 3)
    return f"{value:.{decimals}f}"


def _columns(part: Summary) -> tuple[float, ...]:
    return part.p50, part.p90, part.p99, part.min, part.mean, part.deviation


def _ratio(ratio: Ratio) -> str:
    return f"{_change(ratio.ratio)} [{_change(ratio.low)}, {_change(ratio.high)}]"


def _change(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f} %"


def _request(request: dict[str, Any]) -> str:
    told = [f"solver {request['solver']}", f"{request['steps']} steps", f"guidance {request['guidance']:g}"]
    if interval := request.get("guidance_interval"):
        told.append("from {} to {} of noise to data".format(*interval))
    told += [f"{name} {request[name]}" for name in ("sigmas", "seed") if name in request]
    return ", ".join(told)


def _clocks(state: dict[str, Any]) -> str:
    mode, smi = state["power_mode"], state["nvidia_smi"] or {}
    told = [f"power mode {mode['name']}"] if mode else []
    for name in ("cpu", "gpu"):
        if clock := state[f"{name}_clock"]:
            now, least, most = (clock[key] / 1e6 for key in ("now", "least", "most"))
            told.append(f"{name} {now:.0f} MHz" + (" (fixed)" if least == most else f" of {least:.0f} to {most:.0f}"))
    if state["gpu_celsius"] is not None:
        told.append(f"gpu {state['gpu_celsius']:.0f} °C")
    told += [f"{name} {value}" for name, value in smi.items() if name != "driver_version"]
    return ", ".join(told)
