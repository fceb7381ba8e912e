"""What compare.py found, as tables and a plot: ratios first, seconds second.

A ratio is a peer's time over that of mmgen's fastest backend in the same precision, the median over rounds in which
both ran within seconds of each other: above 1, mmgen is faster.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree.ElementTree import Element, SubElement, tostring

import numpy as np
from compare_models import PEERS, Peer, Precision

from mmgen.runtime import figures

BEGIN, END = "<!-- benchmarks/compare.py -->", "<!-- /benchmarks/compare.py -->"
FAR_PSNR, FAR_LATENTS = 35.0, 0.05  # dB and relative RMS: beyond, a peer's answer is another one, and tables say so
Record = Mapping[str, Any]
EVERYTHING: tuple[Precision, ...] = ("f32", "bf16")


def times(record: Record, peer: str, part: str = "seconds") -> list[float]:
    """Seconds of every round: of a request, of its median ``step``, or of ``decode``."""
    samples = record["peers"][peer]["samples"]
    return [statistics.median(s["steps"]) if part == "step" else s[part] for s in samples]


def fastest(record: Record, part: str = "seconds", precisions: Sequence[Precision] = EVERYTHING) -> str | None:
    """The backend of mmgen with the least median; None: none ran."""
    ours = [n for n in record["peers"] if PEERS[n].ours and PEERS[n].precision in precisions]
    return min(ours, key=lambda name: statistics.median(times(record, name, part)), default=None)


@dataclass(frozen=True)
class Ratio:
    """Of two series taken in the same rounds."""

    value: float
    interval: tuple[float, float] | None  # of 95 %; None: too few rounds

    def __str__(self) -> str:
        around = f" ({self.interval[0]:.2f}–{self.interval[1]:.2f})" if self.interval else ""
        return f"{self.value:.2f}×{around}"


def ratio(above: Sequence[float], below: Sequence[float]) -> Ratio:
    """Median of the rounds' own ratios, and the interval around it."""
    each = np.array(above, np.float64) / np.array(below, np.float64)
    return Ratio(float(np.median(each)), figures.median_interval(each))


def noise(record: Record) -> tuple[float, float]:
    """A/A: even rounds of a peer against its odd ones, as a relative difference; of the median peer and the worst."""
    floors = []
    for peer in record["peers"]:
        series = times(record, peer)
        even, odd = statistics.median(series[::2]), statistics.median(series[1::2] or series)
        floors.append(max(even, odd) / min(even, odd) - 1)
    return statistics.median(floors), max(floors)


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

    def against(model: str, peer: str, part: str = "seconds", precisions: Sequence[Precision] = EVERYTHING):
        record = records[model]
        ours = fastest(record, part, precisions)
        both = ours and peer in record["peers"]
        return ratio(times(record, peer, part), times(record, ours, part)) if both else None

    for model, request, wanted in (
        ("dit-s", "DiT-S/2 + vq-f8, a request", (("torch", 4.0), ("torch-bf16", 1.7), ("openvino-loop-bf16", 1.0))),
        ("action", "action head, a request", (("torch", 4.0), ("torch-bf16", 1.5))),
    ):
        for peer, least in wanted if model in records else ():
            yield Target(f"{request} against {peer}", least, against(model, peer))
    if "action" in records:
        whole = "mmgen-openvino-whole", "mmgen-openvino"
        found = all(name in records["action"]["peers"] for name in whole)
        got = ratio(*(times(records["action"], name) for name in whole)) if found else None
        yield Target("action head, a request against the same un-hoisted, both in OpenVINO f32", 1.5, got)
    if "dit-s" in records:
        record = records["dit-s"]
        theirs = [n for n in record["peers"] if PEERS[n].environment != "mmgen"]
        best = min(theirs, key=lambda name: statistics.median(times(record, name, "decode")), default=None)
        got = against("dit-s", best, "decode") if best else None
        yield Target(f"vq-f8, decoding against the fastest library ({best})", 1.2, got)


def report(records: Mapping[str, Record]) -> str:
    """Everything, in Markdown."""
    parts = ["# mmgen against what else there is", __doc__.partition("\n\n")[2].strip()]
    parts.append("## Targets\n\n" + "\n".join(str(target) for target in targets(records)))
    for record in records.values():
        parts.append(f"## {record['title']}\n\n{_where(record)}\n\n{_full_table(record)}")
        if record["failed"]:
            parts.append("\n".join(f"- {name} can't play it: {why}" for name, why in record["failed"].items()))
    return "\n\n".join(parts) + "\n"


def _where(record: Record) -> str:
    typical, worst = noise(record)
    machine, busy = record["machine"], others(record)
    decode = record.get("decode_operations")
    return (
        f"{record['steps']} steps, guidance {record['guidance']:g}; {record['rounds']} rounds "
        f"on {record['date'][:10]}, source {record['commit']}, "
        f"{machine['cpu']}, {record['threads']} threads. "
        f"Noise floor, even rounds against odd ones: {100 * typical:.1f} % for the median peer, "
        f"{100 * worst:.1f} % for the worst"
        + (f"; other programs kept {busy:.2f} cores busy" if busy is not None else "")
        + (f". mmgen's decoder counts {decode / 1e9:.0f} GFLOP" if decode else "")
        + "."
    )


def _full_table(record: Record) -> str:
    head = ("", "", "request", "", "step, ms", "decode, ms", "first, s", "load, s", "peak, GB", "from torch")
    lines = [head, ("---",) * len(head)]
    for precision in EVERYTHING:
        ours = fastest(record, precisions=(precision,))
        for name in _ordered(record, precision):
            found = record["peers"][name]
            step, decode = (1000 * statistics.median(times(record, name, part)) for part in ("step", "decode"))
            ahead = str(ratio(times(record, name), times(record, ours))) if ours and name != ours else "–"
            lines.append((
                f"`{name}`", precision, ahead, f"{statistics.median(times(record, name)):.3g} s", f"{step:.3g}",
                f"{decode:.3g}", f"{found['first']:.3g}", f"{found['load']:.3g}", f"{found['peak'] / 1e9:.2f}",
                agreed(found["agreement"]) + (" **far**" if far(found["agreement"]) else ""),
            ))  # fmt: skip
    return _markdown(lines)


def _ordered(record: Record, precision: Precision) -> list[str]:
    """Peers of a precision, the fastest first."""
    names = [name for name in record["peers"] if PEERS[name].precision == precision]
    return sorted(names, key=lambda name: statistics.median(times(record, name)))


def summary_table(records: Mapping[str, Record]) -> str:
    """For the README: how much faster mmgen is than each peer of the same precision, and the seconds of a request."""
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
    ahead = f"**{ratio(times(record, peer.name), times(record, ours)).value:.2f}×** " if ours else ""
    return ahead + _seconds(record, peer.name)


def _seconds(record: Record, name: str) -> str:
    found = record["peers"][name]["agreement"]
    told = f"{statistics.median(times(record, name)):.3g} s"
    told += f", {name.removeprefix('mmgen-')}" if PEERS[name].ours else ""
    return told + (f", far: {agreed(found)}" if far(found) else "")


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" if line[0] != "---" else f"|{'|'.join(line)}|" for line in lines)


def marked(text: str, table: str) -> str | None:
    """A text with a table in the place of what is between its two marks; None: it has none."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    return f"{before}{begin}\n{table}\n{end}{after}" if begin and end else None


STYLE = """
svg { background: #fff; } text { font: 12px system-ui, sans-serif; fill: #1d2430; } .title { font-weight: 600; }
.f32 { fill: #2f6fb5; } .bf16 { fill: #d9822b; } .ours { stroke: #1d2430; stroke-width: 1.5; } .one { stroke: #8b8f97; }
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
        names = sorted(record["peers"], key=lambda name: statistics.median(times(record, name)))
        ratios = {name: ratio(times(record, name), times(record, ours)).value for name in names}
        scale = (WIDTH - LEFT - RIGHT) / max(ratios.values())
        for name in names:
            y += LINE
            _text(svg, LEFT - 8, y, name, anchor="end")
            kind = PEERS[name].precision + (" ours" if PEERS[name].ours else "")
            size = {"x": LEFT, "y": y - 11, "width": f"{scale * ratios[name]:.1f}", "height": LINE - 5}
            SubElement(svg, "rect", {**{key: str(value) for key, value in size.items()}, "class": kind})
            label = f"{ratios[name]:.2f}, {statistics.median(times(record, name)):.3g} s"
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
