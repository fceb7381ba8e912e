"""Progress of work that has parts."""

from collections.abc import Callable, Iterator, Sequence

Report = Callable[[str, float], None]  # of the stage under way, and of the share of all work that is done


def parts(names: Sequence[str], report: Report) -> Iterator[tuple[str, Report]]:
    """Pair each part with a report for its share of the work, whose stages begin with its name unless that is empty."""
    for i, name in enumerate(names):

        def part(stage: str, done: float, before: int = i, title: str = f"{name}: " if name else "") -> None:
            report(f"{title}{stage}", (before + done) / len(names))

        yield name, part
