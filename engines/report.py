"""A build described for people: what the compiler counted, not what the exporter intended."""

import textwrap
from collections.abc import Iterable
from pathlib import Path

from mmgen.engines.cache import Removed
from mmgen.runtime.base.text_table import table
from mmgen.runtime.builds.engine_build import Build, GraphReport
from mmgen.runtime.cli.describe import half_text, place_text
from mmgen.runtime.files.folders import size_text
from mmgen.runtime.storage.schema import Bundle

WIDTH = 110  # characters


def text(bundle: Bundle, folder: Path, build: Build, reused: bool) -> str:
    """Format a line for each graph and one for all of them, the islands with their reasons, where the engines are.

    Args:
        bundle: what was built; it has the islands' reasons.
        folder: of the build.
        build: its sidecar.
        reused: it existed already.
    """
    rows = [("graph", "layers", "half", "float32", "half of weights", "engine MiB", "seconds", "peak MiB")]
    rows += [_row(role, [engine.report], engine.bytes) for role, engine in build.engines.items()]
    reports = [engine.report for engine in build.engines.values()]
    rows.append(_row("all", reports, sum(engine.bytes for engine in build.engines.values())))
    state = f"reused, built {build.created}" if reused else "built"
    parts = [table(rows), _islands(bundle, build), f"{folder}: {state} for {place_text(build.identity.place)}"]
    return "\n\n".join(part for part in parts if part)


def removed_text(removed: Iterable[Removed]) -> str:
    """Format a line for each thing that was removed, and the space that it freed."""
    found = list(removed)
    if not found:
        return "nothing to remove"
    lines = [f"removed {item.path} ({size_text(item.bytes)}): {item.reason}" for item in found]
    return "\n".join([*lines, f"{size_text(sum(item.bytes for item in found))} freed"])


def _row(name: str, reports: list[GraphReport], size: int) -> tuple[str, str, str, str, str, str, str, str]:
    return (
        name,
        str(sum(report.layers for report in reports)),
        str(sum(report.half_layers for report in reports)),
        str(sum(report.float_layers for report in reports)),
        half_text(reports),
        f"{size / 2**20:.2f}",
        f"{sum(report.seconds for report in reports):.1f}",
        f"{max(report.peak_bytes for report in reports) / 2**20:.0f}",
    )


def _islands(bundle: Bundle, build: Build) -> str:
    """List the tensors that the compiler was given in float32, the islands, with the exporter's reasons."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for island in bundle.precision.islands:
        engine = build.engines.get(island.graph)
        if engine and island.tensor in engine.report.islands:
            reasons.setdefault((island.graph, island.reason), []).append(island.tensor)
    if not reasons:
        return ""
    lines = [
        textwrap.fill(
            f"{role}: {reason}: {', '.join(tensors)}",
            WIDTH,
            initial_indent="  ",
            subsequent_indent="    ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        for (role, reason), tensors in reasons.items()
    ]
    return "\n".join(["float32 islands:", *lines])
