"""A benchmark as one page that needs nothing else: no network, no script.  Elements are escaped as they are written."""

from collections.abc import Iterable, Sequence
from xml.etree.ElementTree import Element, SubElement, tostring

from mmgen.runtime.bench import plots
from mmgen.runtime.bench import text as bench_text
from mmgen.runtime.bench.measure import Measured, Sample, Series

STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --paper: #fff; --soft: #5a6473; --grid: #dde2e8;
  --c0: #2f6fb5; --c1: #d9822b; --c2: #3f9463; --c3: #a5529b; --c4: #8b8f97; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ee; --paper: #14181e; --soft: #98a3b3; --grid: #2c343f;
  --c0: #6aa8ea; --c1: #f0a653; --c2: #6cc492; --c3: #d286c8; --c4: #7c838d; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 60rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; } h3 { font-size: 1rem; color: var(--soft); }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .15rem .8rem .15rem 0; text-align: right; vertical-align: top; border-bottom: 1px solid var(--grid); }
th:first-child, td:first-child, .facts td { text-align: left; } th { color: var(--soft); font-weight: 500; }
figure { margin: 1rem 0; } figcaption { color: var(--soft); } svg { width: 100%; height: auto; display: block; }
svg text { font: 12px system-ui, sans-serif; fill: var(--ink); } .line { fill: none; stroke-width: 2; }
.grid { stroke: var(--grid); stroke-width: 1; } .axis { stroke: var(--soft); stroke-width: 1; }
.roof { stroke: var(--soft); } .half { opacity: .55; } .edge { stroke: var(--paper); stroke-width: .5; }
""" + "".join(f".fill{i} {{ fill: var(--c{i}); }} .line{i} {{ stroke: var(--c{i}); }}\n" for i in range(5))
LEGEND = (("host", 4), ("condition", 0), ("timestep", 3), ("evaluations", 1), ("decode", 0))
HALVES = ("even requests", "odd requests")


def page(measured: Measured, samples: Sequence[Sample]) -> bytes:
    """Build the page, in UTF-8.

    Args:
        measured: the benchmark.
        samples: all that were kept.
    """
    html = Element("html", {"lang": "en"})
    head, body = SubElement(html, "head"), SubElement(html, "body")
    SubElement(head, "meta", {"charset": "utf-8"})
    SubElement(head, "meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"})
    title = f"{measured.context.bundle} on {measured.context.backend}"
    _add(head, "title", f"mmgen bench: {title}")
    _add(head, "style", STYLE)
    _add(body, "h1", title)
    _table(body, bench_text.facts(measured), facts=True)
    for series in measured.series:
        of_it = [s for s in samples if (s.threads, s.batch, s.phase) == (series.threads, series.batch, "measured")]
        _series(body, series, of_it)
    if len(measured.series) > 1:
        _add(body, "h2", "Throughput")
        names = [f"batch {s.batch}" + (f", threads {s.threads}" if s.threads else "") for s in measured.series]
        rates = list(zip(names, (s.throughput for s in measured.series), strict=True))
        _figure(body, plots.bars(rates, "samples a second"), "One request after another.")
        _table(body, bench_text.throughput_rows(measured.series))
    _rooflines(body, measured)
    if measured.starts:
        _add(body, "h2", "Cold start, in seconds")
        _table(body, bench_text.start_rows(measured.starts))
    written: bytes = tostring(html, encoding="utf-8", method="html")
    return b"<!DOCTYPE html>\n" + written


def spans(sample: Sample) -> list[tuple[str, int, float, float]]:
    """(name, colour, start, length) in milliseconds, in order; what the host does between them is put at the start."""
    steps = [(f"evaluation {i}", 2 if i % 2 else 1, seconds) for i, seconds in enumerate(sample.steps, 1)]
    parts = [
        ("host", 4, sample.host), ("condition", 0, sample.condition), ("timestep", 3, sample.timestep), *steps,
        ("decode", 0, sample.decode),
    ]  # fmt: skip
    found, start = [], 0.0
    for name, colour, seconds in parts:
        found.append((name, colour, 1000 * start, 1000 * seconds))
        start += seconds
    return found


def _series(body: Element, series: Series, samples: Sequence[Sample]) -> None:
    totals = [1000 * s.total for s in samples]
    _add(body, "h2", f"{bench_text.title(series)}, in milliseconds")
    _table(body, bench_text.part_rows(series))
    _list(body, bench_text.remarks(series))
    if series.arrivals:
        _add(body, "h3", "Latency from when a request was due")
        latencies = [1000 * (s.began + s.total - s.due) for s in samples if s.due is not None]
        caption = "Share of the requests that were done at most so long after they were due."
        _figure(body, plots.distribution({"latency": latencies}, "ms"), caption)
    halves = {name: half for name, half in zip(HALVES, (totals[::2], totals[1::2]), strict=True) if half}
    _add(body, "h3", "End to end, two interleaved halves of the requests")
    caption = "The halves did the same: how they differ is this machine's noise."
    _figure(body, plots.histogram(halves, "ms"), caption)
    _figure(body, plots.distribution(halves, "ms"), "Share of the requests that took at most so long.")
    _add(body, "h3", "The median request")
    caption = "Evaluations are in two colours; all that the host did beside the graphs is drawn at the start."
    _figure(body, plots.timeline(spans(series.median), "ms", LEGEND), caption)


def _rooflines(body: Element, measured: Measured) -> None:
    if not any(series.roofline for series in measured.series):
        return
    _add(body, "h2", "Roofline")
    _list(body, map(bench_text.ceiling_text, measured.ceilings))
    by_threads = dict(zip(dict.fromkeys(s.threads for s in measured.series), measured.ceilings, strict=True))
    for series in measured.series:
        if series.roofline:
            points = [(p.graph, p.intensity, p.operations_rate / 1e9) for p in series.roofline if p.operations]
            ceilings = by_threads[series.threads]
            top = ceilings.operations and ceilings.operations / 1e9
            _add(body, "h3", bench_text.title(series))
            caption = "Fewest bytes that a run can move; above the roof are graphs whose weights stayed in a cache."
            _figure(body, plots.roofline(points, ceilings.bytes / 1e9, top), caption)
            _table(body, bench_text.roofline_rows(series))


def _add(parent: Element, tag: str, text: str) -> Element:
    element = SubElement(parent, tag)
    element.text = text
    return element


def _list(parent: Element, lines: Iterable[str]) -> None:
    items = SubElement(parent, "ul")
    for line in lines:
        _add(items, "li", line)


def _figure(parent: Element, drawing: Element, caption: str) -> None:
    figure = SubElement(parent, "figure")
    figure.append(drawing)
    _add(figure, "figcaption", caption)


def _table(parent: Element, rows: Sequence[tuple[str, ...]], *, facts: bool = False) -> None:
    """Rows below a line of headings; facts have none."""
    table = SubElement(SubElement(parent, "div", {"class": "wide"}), "table", {"class": "facts"} if facts else {})
    for number, row in enumerate(rows):
        line = SubElement(table, "tr")
        for cell in row:
            _add(line, "td" if facts or number else "th", cell)
