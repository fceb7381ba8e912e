"""What compare.py found, as tables and a plot: ratios first, seconds second.

A ratio is a peer's time over that of mmgen's fastest backend in the same precision, the median over rounds in which
both ran within seconds of each other: above 1, mmgen is faster.
"""

import statistics
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree.ElementTree import Element, SubElement, tostring

import numpy as np
from compare_models import PEERS, Peer, Precision

from mmgen.runtime.bench import figures

BEGIN, END = "<!-- benchmarks/compare.py -->", "<!-- /benchmarks/compare.py -->"
FAR_PSNR, FAR_LATENTS = 35.0, 0.05  # dB and relative RMS: beyond, a peer's answer is another one, and tables say so
Record = Mapping[str, Any]
EVERYTHING: tuple[Precision, ...] = ("f32", "bf16")


def times(record: Record, peer: str, part: str = "seconds") -> dict[int, float]:
    """Seconds by round: of a request, of its median ``step``, or of ``decode``."""
    samples = record["peers"][peer]["samples"]
    return {s["round"]: statistics.median(s["steps"]) if part == "step" else s[part] for s in samples}


def usual(record: Record, peer: str, part: str = "seconds") -> float:
    """The median of the rounds."""
    return statistics.median(times(record, peer, part).values())


def fastest(record: Record, part: str = "seconds", precisions: Sequence[Precision] = EVERYTHING) -> str | None:
    """The backend of mmgen with the least median; None: none ran."""
    ours = [n for n in record["peers"] if PEERS[n].ours and PEERS[n].precision in precisions]
    return min(ours, key=lambda name: usual(record, name, part), default=None)


@dataclass(frozen=True)
class Ratio:
    """Of two series taken in the same rounds."""

    value: float
    interval: tuple[float, float] | None  # of 95 %; None: too few rounds

    def __str__(self) -> str:
        around = f" ({self.interval[0]:.2f}–{self.interval[1]:.2f})" if self.interval else ""
        return f"{self.value:.2f}×{around}"


def ratio(record: Record, above: str, below: str, part: str = "seconds") -> Ratio:
    """Median of the ratios of two peers in the rounds that both were in, and the interval around it."""
    over, under = (times(record, name, part) for name in (above, below))
    each = np.array([over[number] / under[number] for number in over if number in under])
    return Ratio(float(np.median(each)), figures.median_interval(each))


def noise(record: Record) -> tuple[float, float] | None:
    """A/A: even rounds of a peer against its odd ones, as a relative difference; of the median peer and the worst.

    None: nobody has four rounds.
    """
    floors = []
    for peer in record["peers"]:
        if len(series := list(times(record, peer).values())) >= 4:
            even, odd = (statistics.median(series[start::2]) for start in (0, 1))
            floors.append(max(even, odd) / min(even, odd) - 1)
    return (statistics.median(floors), max(floors)) if floors else None


def others(record: Record) -> float | None:
    """Cores that other programs kept busy, the median request's; None: this system doesn't tell."""
    seen = [s["others"] for p in record["peers"].values() for s in p["samples"] if "others" in s]
    return statistics.median(seen) if seen else None


def agreed(found: Mapping[str, float]) -> str:
    """How near to torch in float32 a peer's answer came."""
    told = []
    if "latents" in found:
        told.append(f"{100 * found['latents']:.2g} %")
    if "tokens" in found:
        told.append(f"{100 * found['tokens']:.0f} % of tokens")
    if "psnr" in found:
        told.append("equal" if found["psnr"] >= 99.9 else f"{found['psnr']:.0f} dB")
    return ", ".join(told) or "–"


def far(found: Mapping[str, float]) -> bool:
    """Whether a peer made something else."""
    return found.get("psnr", FAR_PSNR) < FAR_PSNR or found.get("latents", 0.0) > FAR_LATENTS


@dataclass(frozen=True)
class Target:
    """What mmgen set out to reach."""

    what: str
    wanted: float
    got: Ratio | None  # None: one of both didn't run

    def __str__(self) -> str:
        if self.got is None:
            return f"- not measured: {self.what}, wanted {self.wanted:.1f}×"
        verdict = "met" if self.got.value >= self.wanted else "**not met**"
        return f"- {verdict}: {self.what}: {self.got}, wanted {self.wanted:.1f}×"


def targets(records: Mapping[str, Record]) -> Iterator[Target]:
    """Each with what was reached."""

    def against(
        model: str, what: str, peer: str, wanted: float, part: str = "seconds", ours: str | None = None
    ) -> Target:
        record = records[model]
        ours = ours or fastest(record, part)
        both = {ours, peer} <= record["peers"].keys()
        got = ratio(record, peer, ours, part) if both and ours else None
        return Target(f"{what} of {ours or 'mmgen'} against {peer}", wanted, got)

    if "dit-s" in records:
        for peer, wanted in (("torch", 4.0), ("torch-bf16", 1.7), ("openvino-loop-bf16", 1.0)):
            yield against("dit-s", "DiT-S/2 + vq-f8, a request", peer, wanted)
        record = records["dit-s"]
        libraries = [name for name in record["peers"] if PEERS[name].environment != "mmgen"]
        best = min(libraries, key=lambda name: usual(record, name, "decode"), default="any library")
        yield against("dit-s", "vq-f8, decoding", best, 1.2, "decode")
    if "action" in records:
        for peer, wanted in (("torch", 4.0), ("torch-bf16", 1.5)):
            yield against("action", "action head, a request", peer, wanted)
        whole = "mmgen-openvino-whole"  # exported with --no-hoist
        yield against("action", "action head, a request", whole, 1.5, ours="mmgen-openvino")


def report(records: Mapping[str, Record]) -> str:
    """Everything, in Markdown."""
    parts = ["# mmgen against what else there is", __doc__.partition("\n\n")[2].strip()]
    if wanted := list(targets(records)):
        parts.append("\n".join(["## What was to be reached\n", *map(str, wanted)]))
    for record in records.values():
        parts.append(f"## {record['title']}\n\n{_where(record)}\n\n{_full_table(record)}")
        if record["failed"]:
            parts.append("\n".join(f"- {name} can't play it: {why}" for name, why in record["failed"].items()))
    return "\n\n".join(parts) + "\n"


def _where(record: Record) -> str:
    """What was measured, where, and how far to trust it."""
    floor, busy, decode = noise(record), others(record), record.get("decode_operations")
    told = [
        f"{record['steps']} steps, guidance {record['guidance']:g}; {record['rounds']} rounds on {record['date'][:10]}",
        f"source {record['commit']}, {record['machine']['cpu']}, {record['threads']} threads",
        f"noise floor, even rounds against odd ones: {100 * floor[0]:.1f} % for the median peer, "
        f"{100 * floor[1]:.1f} % for the worst" if floor else "too few rounds for a noise floor",
    ]  # fmt: skip
    if busy is not None:
        told.append(f"other programs kept {busy:.2f} cores busy")
    if decode:
        told.append(f"the decoder of mmgen counts {decode / 1e9:.0f} GFLOP")
    return "; ".join(told) + "."


def _full_table(record: Record) -> str:
    head = ("", "", "request", "", "step, ms", "decode, ms", "first, s", "load, s", "peak, GB", "from torch")
    lines = [head, ("---",) * len(head)]
    for precision in EVERYTHING:
        ours = fastest(record, precisions=(precision,))
        for name in _ordered(record, precision):
            found = record["peers"][name]
            step, decode = (1000 * usual(record, name, part) for part in ("step", "decode"))
            ahead = str(ratio(record, name, ours)) if ours and name != ours else "–"
            lines.append((
                f"`{name}`", precision, ahead, f"{_three(usual(record, name))} s", _three(step),
                _three(decode), _three(found["first"]), _three(found["load"]), f"{found['peak'] / 1e9:.2f}",
                agreed(found["agreement"]) + (" **far**" if far(found["agreement"]) else ""),
            ))  # fmt: skip
    return _markdown(lines)


def _ordered(record: Record, precision: Precision) -> list[str]:
    """Peers of a precision, the fastest first."""
    names = [name for name in record["peers"] if PEERS[name].precision == precision]
    return sorted(names, key=lambda name: usual(record, name))


def summary(records: Mapping[str, Record], plot: str) -> str:
    """For docs/benchmarks.md: a table, where and when its seconds are from, and the plot."""
    cpus, days, commits, threads = (
        ", ".join(sorted({told(record) for record in records.values()}))
        for told in (
            lambda r: r["machine"]["cpu"], lambda r: r["date"][:10], lambda r: r["commit"], lambda r: str(r["threads"]),
        )
    )  # fmt: skip
    floors = [100 * floor[0] for record in records.values() if (floor := noise(record))]
    where = f"{cpus}, {threads} threads, {days}, source {commits}"
    if floors:
        where += f"; noise floor {min(floors):.1f} to {max(floors):.1f} %"
    where += (
        ". All samples and versions are in `benchmarks/results/compare.json`; decoders, memory, first requests and "
        "what was to be reached in `benchmarks/results/compare.md`."
    )
    return f"{summary_table(records)}\n\n{textwrap.fill(where, 120)}\n\n![Time of a request by program]({plot})"


def summary_table(records: Mapping[str, Record]) -> str:
    """How much faster mmgen is than each peer of the same precision, and the seconds of a request."""
    lines = [("", *(record["title"] for record in records.values())), ("---",) * (1 + len(records))]
    for precision in EVERYTHING:
        best = {model: fastest(record, precisions=(precision,)) for model, record in records.items()}
        cells = [_seconds(records[model], name) if name else "–" for model, name in best.items()]
        lines.append((f"**mmgen**, {precision}", *cells))
        for peer in PEERS.values():
            if peer.precision == precision and not peer.ours and any(peer.name in r["peers"] for r in records.values()):
                lines.append((f"{peer.name}, {precision}", *(_cell(r, peer, best[m]) for m, r in records.items())))
    return _markdown(lines)


def _cell(record: Record, peer: Peer, ours: str | None) -> str:
    if peer.name not in record["peers"]:
        return "–"
    ahead = f"**{ratio(record, peer.name, ours).value:.2f}×** " if ours else ""
    return ahead + _seconds(record, peer.name)


def _seconds(record: Record, name: str) -> str:
    found = record["peers"][name]["agreement"]
    told = f"{_three(usual(record, name))} s"
    told += f", {name.removeprefix('mmgen-')}" if PEERS[name].ours else ""
    return told + (f" ({agreed(found)})" if far(found) else "")


def _three(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" if line[0] != "---" else f"|{'|'.join(line)}|" for line in lines)


def marked(text: str, table: str) -> str | None:
    """A text with a table in the place of what is between its two marks; None: it has none."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    return f"{before}{begin}\n{table}\n{end}{after}" if begin and end else None


STYLE = """
svg { background: #fff; } text { font: 12px system-ui, sans-serif; fill: #1d2430; } .title { font-weight: 600; }
.f32 { fill: #2f6fb5; } .bf16 { fill: #d9822b; } .ours { stroke: #1d2430; stroke-width: 1.5; }
"""
WIDTH, LEFT, RIGHT, LINE = 720, 170, 130, 18


def drawing(records: Mapping[str, Record]) -> bytes:
    """A panel for each model: a request's time over that of mmgen's fastest backend, a bar for each peer, as SVG."""
    svg = Element("svg", {"xmlns": "http://www.w3.org/2000/svg", "width": str(WIDTH), "role": "img"})
    svg.set("aria-label", "Time of a request over that of mmgen's fastest backend")
    SubElement(svg, "style").text = STYLE
    y = LINE
    for record in records.values():
        ours = fastest(record)
        if ours is None:
            continue
        _text(svg, 8, y, f"{record['title']}: time of a request, mmgen's fastest is 1", "title")
        names = sorted(record["peers"], key=lambda name: usual(record, name))
        ratios = {name: usual(record, name) / usual(record, ours) for name in names}
        scale = (WIDTH - LEFT - RIGHT) / max(ratios.values())
        for name in names:
            y += LINE
            _text(svg, LEFT - 8, y, name, anchor="end")
            kind = PEERS[name].precision + (" ours" if PEERS[name].ours else "")
            size = {"x": LEFT, "y": y - 11, "width": f"{scale * ratios[name]:.1f}", "height": LINE - 5}
            SubElement(svg, "rect", {**{key: str(value) for key, value in size.items()}, "class": kind})
            label = f"{ratios[name]:.2f}, {_three(usual(record, name))} s"
            _text(svg, LEFT + scale * ratios[name] + 6, y, label)
        y += 2 * LINE
    for i, precision in enumerate(EVERYTHING):
        left = LEFT + 90 * i
        square = {"x": str(left), "y": str(y - 10), "width": "11", "height": "11", "class": precision}
        SubElement(svg, "rect", square)
        _text(svg, left + 16, y, precision)
    _text(svg, LEFT + 190, y, "with an edge: mmgen")
    height = y + LINE
    svg.set("height", str(height))
    svg.set("viewBox", f"0 0 {WIDTH} {height}")
    drawn: bytes = tostring(svg, encoding="utf-8")
    return drawn + b"\n"


def _text(svg: Element, x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> None:
    where = {"x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor}
    SubElement(svg, "text", where | ({"class": kind} if kind else {})).text = text
