"""Diagrams as SVG elements, drawn by plain functions.  Colours and sizes of text are the style sheet's, by class.

A plotting library would be tens of megabytes more on every robot, for five diagrams of a page.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from xml.etree.ElementTree import Element, SubElement

WIDTH, HEIGHT = 640, 280
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 12, 44  # around the axes; with room for labels
TICKS = 5  # about so many on an axis
Scale = Callable[[float], float]  # from data to the drawing
Points = Sequence[tuple[float, float]]


def histogram(series: Mapping[str, Sequence[float]], unit: str) -> Element:
    """How often values occur: a bar for each bin and series, those of one bin over each other."""
    values = [v for one in series.values() for v in one]
    bins = min(math.ceil(2 * math.sqrt(len(values))), 40)
    low, high = _range(values)
    width = (high - low) / bins
    counts = {name: [0] * bins for name in series}
    for name, one in series.items():
        for value in one:
            counts[name][min(int((value - low) / width), bins - 1)] += 1
    most = max(max(one) for one in counts.values())
    svg = _canvas(f"Histogram of {' and '.join(series)}")
    x, y = _axes(svg, (low, high), (0, most), unit, "requests")
    for index, (name, one) in enumerate(counts.items()):
        for i, count in enumerate(one):
            if count:
                left, top = x(low + i * width), y(count)
                bar = _rectangle(svg, left, top, x(low + (i + 1) * width) - left, y(0) - top, f"fill{index} half")
                _title(bar, f"{name}: {count} of {low + i * width:.4g} to {low + (i + 1) * width:.4g} {unit}")
    _legend(svg, [(name, i) for i, name in enumerate(series)])
    return svg


def distribution(series: Mapping[str, Sequence[float]], unit: str) -> Element:
    """Share of each series that is at most so large: its empirical distribution function, as steps."""
    values = [v for one in series.values() for v in one]
    svg = _canvas(f"Distribution of {' and '.join(series)}")
    x, y = _axes(svg, _range(values), (0, 1), unit, "share of requests")
    for index, one in enumerate(series.values()):
        ordered = sorted(one)
        corners: list[tuple[float, float]] = []
        for i, value in enumerate(ordered):
            corners += [(value, i / len(ordered)), (value, (i + 1) / len(ordered))]
        _line(svg, [(x(a), y(b)) for a, b in corners], f"line{index}")
    _legend(svg, [(name, i) for i, name in enumerate(series)], HEIGHT - BOTTOM - 24)
    return svg


def timeline(spans: Sequence[tuple[str, int, float, float]], unit: str, legend: Sequence[tuple[str, int]]) -> Element:
    """Draw what ran when, on one line.

    Args:
        spans: (name, colour, start, length) each.
        unit: of start and length.
        legend: (name, colour) each.
    """
    height, top = 130, 34  # the legend has a line of its own
    svg = _canvas("Timeline of a request", height)
    x, _ = _axes(svg, (0, max(start + length for _, _, start, length in spans)), None, unit, "", height=height)
    for name, colour, start, length in spans:
        width = max(x(start + length) - x(start), 0.5)
        bar = _rectangle(svg, x(start), top, width, height - top - BOTTOM, f"fill{colour} edge")
        _title(bar, f"{name}: {length:.4g} {unit}")
    _legend(svg, legend)
    return svg


def bars(values: Sequence[tuple[str, float]], unit: str) -> Element:
    """Draw a bar for each (name, value), from zero."""
    svg = _canvas(unit)
    _, y = _axes(svg, None, (0, 1.1 * max(value for _, value in values)), "", unit)
    room = (WIDTH - LEFT - RIGHT) / len(values)
    for i, (name, value) in enumerate(values):
        left = LEFT + (i + 0.2) * room
        _title(_rectangle(svg, left, y(value), 0.6 * room, y(0) - y(value), "fill0"), f"{name}: {value:.4g} {unit}")
        _text(svg, left + 0.3 * room, HEIGHT - BOTTOM + 16, name, "middle")
        _text(svg, left + 0.3 * room, y(value) - 4, f"{value:.3g}", "middle")
    return svg


def roofline(points: Sequence[tuple[str, float, float]], bandwidth: float, top: float | None) -> Element:
    """Operations a second over operations a byte, both logarithmic, below what the machine can do.

    Args:
        points: (name, operations a byte, billions of operations a second) each.
        bandwidth: billions of bytes a second.
        top: billions of operations a second; None: not known.
    """
    intensities = [i for _, i, _ in points] + ([top / bandwidth] if top else [])
    low, high = min(intensities) / 4, max(intensities) * 4
    rates = [r for _, _, r in points] + [min(bandwidth * i, top or math.inf) for i in (low, high)]
    svg = _canvas("Roofline")
    x, y = _axes(svg, (low, high), (min(rates) / 2, max(rates) * 2), "FLOP for each byte", "GFLOP/s", logarithmic=True)
    bend = min(top / bandwidth, high) if top else high
    roof = [(low, bandwidth * low), (bend, bandwidth * bend)] + ([(high, top)] if top else [])
    _line(svg, [(x(a), y(b)) for a, b in roof], "roof")
    for index, (name, intensity, rate) in enumerate(points):
        dot = SubElement(svg, "circle", {"cx": f"{x(intensity):.1f}", "cy": f"{y(rate):.1f}", "r": "5",
                                         "class": f"fill{index}"})  # fmt: skip
        _title(dot, f"{name}: {intensity:.3g} FLOP for each byte, {rate:.3g} GFLOP/s")
        _text(svg, x(intensity) + 8, y(rate) + 4, name)
    return svg


def ticks(low: float, high: float) -> list[float]:
    """Round numbers from low to high: multiples of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def powers(low: float, high: float) -> list[float]:
    """Powers of ten from low to high; with 2 and 5 times them where there are few."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 2, 5)):
        found = [m * 10.0**e for e in exponents for m in factors if low <= m * 10.0**e <= high]
        if len(found) >= 3:
            break
    return found


def _range(values: Sequence[float]) -> tuple[float, float]:
    """From the least to the greatest, with some room where all are equal."""
    low, high = min(values), max(values)
    room = 0.02 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room


def _canvas(label: str, height: int = HEIGHT) -> Element:
    return Element("svg", {"viewBox": f"0 0 {WIDTH} {height}", "role": "img", "aria-label": label})


def _axes(
    svg: Element,
    xs: tuple[float, float] | None,
    ys: tuple[float, float] | None,
    x_label: str,
    y_label: str,
    *,
    logarithmic: bool = False,
    height: int = HEIGHT,
) -> tuple[Scale, Scale]:
    """Draw axes with grid and labels; None: without.  Returns where data is on the drawing."""
    bottom, marks = height - BOTTOM, powers if logarithmic else ticks
    x = _scale(xs or (0, 1), (LEFT, WIDTH - RIGHT), logarithmic)
    y = _scale(ys or (0, 1), (bottom, TOP), logarithmic)
    for value in marks(*xs) if xs else ():
        _line(svg, [(x(value), TOP), (x(value), bottom)], "grid")
        _text(svg, x(value), bottom + 16, f"{value:.4g}", "middle")
    for value in marks(*ys) if ys else ():
        _line(svg, [(LEFT, y(value)), (WIDTH - RIGHT, y(value))], "grid")
        _text(svg, LEFT - 6, y(value) + 4, f"{value:.4g}", "end")
    _line(svg, [(LEFT, TOP), (LEFT, bottom), (WIDTH - RIGHT, bottom)], "axis")
    _text(svg, (LEFT + WIDTH - RIGHT) / 2, height - 8, x_label, "middle")
    if y_label:
        turned = _text(svg, 0, 0, y_label, "middle")
        turned.set("transform", f"translate(14 {(TOP + bottom) / 2:.1f}) rotate(-90)")
    return x, y


def _scale(data: tuple[float, float], drawing: tuple[float, float], logarithmic: bool) -> Scale:
    if logarithmic:
        linear = _scale((math.log10(data[0]), math.log10(data[1])), drawing, False)
        return lambda value: linear(math.log10(value))
    (low, high), (start, stop) = data, drawing
    return lambda value: start + (value - low) / ((high - low) or 1) * (stop - start)


def _legend(svg: Element, names: Sequence[tuple[str, int]], top: float = TOP) -> None:
    """(Name, colour) each, on a line that ends at the right."""
    end: float = WIDTH - RIGHT
    for name, colour in reversed(names):
        end -= 7 * len(name) + 24
        _rectangle(svg, end, top + 4, 10, 10, f"fill{colour}")
        _text(svg, end + 14, top + 13, name)


def _line(svg: Element, points: Points, kind: str) -> None:
    """Draw a line through points; of several on one spot, one."""
    kept = [points[0], *(b for a, b in pairwise(points) if a != b)]
    SubElement(svg, "polyline", {"points": " ".join(f"{a:.1f},{b:.1f}" for a, b in kept), "class": f"line {kind}"})


def _rectangle(svg: Element, x: float, y: float, width: float, height: float, kind: str) -> Element:
    size = {"x": x, "y": y, "width": width, "height": height}
    return SubElement(svg, "rect", {**{name: f"{value:.1f}" for name, value in size.items()}, "class": kind})


def _text(svg: Element, x: float, y: float, text: str, anchor: str = "start") -> Element:
    label = SubElement(svg, "text", {"x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor})
    label.text = text
    return label


def _title(element: Element, text: str) -> None:
    """Add what a browser shows where the pointer rests."""
    SubElement(element, "title").text = text
