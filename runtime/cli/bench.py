"""``mmgen bench``.  What measures is imported when it runs, so that other commands start without it."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.cli.terminal import Command, Progress, say
from mmgen.runtime.files.atomic import followed, whole_file

if TYPE_CHECKING:
    from mmgen.runtime.bench.measure import Sample


@click.command(cls=Command)
@click.argument("folder", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.option("--prompt", "prompts", multiple=True, metavar="TEXT",
              help="Text to generate from; may be repeated.  Without conditions: those of the bundle's own comparison "
              "with torch.")  # fmt: skip
@click.option("--class-id", "class_ids", multiple=True, type=int, metavar="N", help="Class; may be repeated.")
@click.option("--condition", "others", multiple=True, metavar="NAME=VALUE",
              help="Any condition, by name: text, a class, JSON numbers or a .npy file; may be repeated.")  # fmt: skip
@click.option("--steps", type=int, help="Denoising steps.")
@click.option("--guidance", type=float, help="How much the condition weighs; 1 is no guidance.")
@click.option("--solver", help="How the process is undone.")
@click.option("--batch", multiple=True, type=int, default=(1,), metavar="B", show_default=True,
              help="Samples at once; may be repeated.")  # fmt: skip
@click.option("--threads", multiple=True, type=int, default=(None,), metavar="T",
              help="Threads of a CPU backend, one a core unless given; may be repeated.")  # fmt: skip
@click.option("--backend", default="auto", show_default=True, metavar="NAME", help="What runs the graphs.")
@click.option("--runs", type=int, default=100, show_default=True, help="Requests of each batch size and threads.")
@click.option("--warmup", type=int, default=3, show_default=True, help="Requests before them, which don't count.")
@click.option("--seconds", type=float, default=20.0, show_default=True,
              help="Time for the requests of each batch size and threads; there are fewer then.")  # fmt: skip
@click.option("--new", type=click.Choice(["all", "condition", "nothing"]), default="all", show_default=True,
              help="What is not as in the request before, and so isn't there already.")  # fmt: skip
@click.option("--starts", type=int, default=3, show_default=True, help="Fresh processes, for the cold start.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), metavar="FILE", help="Write all figures.")
@click.option("--samples", "samples_file", type=click.Path(path_type=Path), metavar="FILE.jsonl",
              help="Write every request's times, one a line; also after Ctrl-C.")  # fmt: skip
@click.option("--report", type=click.Path(path_type=Path), metavar="DIR", help="Write DIR/index.html, with diagrams.")
def bench(
    folder: Path,
    prompts: tuple[str, ...],
    class_ids: tuple[int, ...],
    others: tuple[str, ...],
    steps: int | None,
    guidance: float | None,
    solver: str | None,
    json_file: Path | None,
    samples_file: Path | None,
    report: Path | None,
    **options: Any,
) -> None:
    """Measure how long requests take here, part by part, and how small a difference means nothing.

    Requests are made one after the other until --runs or --seconds is reached.  Each is a call of generate as programs
    make it; what is included and what isn't is said with the figures.
    """
    from mmgen.runtime.bench.measure import Options, golden_conditions, golden_negative, measure
    from mmgen.runtime.bench.report import page
    from mmgen.runtime.bench.text import text
    from mmgen.runtime.cli.arguments import conditions
    from mmgen.runtime.files.json_records import to_json
    from mmgen.runtime.storage.bundle import read_bundle

    bundle = read_bundle(folder, verify=False)  # it is verified before anything is measured
    given = golden_conditions(bundle, conditions(bundle, prompts, class_ids, others))
    request = {"steps": steps, "guidance": guidance, "solver": solver}
    asked = Options(given, request, golden_negative(bundle, guidance), **options)
    with (
        _whole(json_file and followed(json_file)) as write,
        _whole(report and _made(report) / "index.html") as write_page,
        _kept(samples_file and followed(samples_file)) as samples,
        Progress() as progress,
    ):
        measured = measure(folder, asked, samples.append, progress)
        write(_line(to_json(measured)))
        if report:
            write_page(page(measured, samples))
    say(text(measured))


@contextmanager
def _whole(file: Path | None) -> Iterator[Callable[[bytes], None]]:
    """A function that writes a file, if there is to be one."""
    if file is None:
        yield lambda content: None
    else:
        with whole_file(file) as write:
            yield write


@contextmanager
def _kept(file: Path | None) -> Iterator[list["Sample"]]:
    """Samples to add to; they are in the file in the end, and also if Ctrl-C or a failure comes first."""
    samples: list[Sample] = []
    ended: BaseException | None = None
    with _whole(file) as write:
        try:
            yield samples
        except BaseException as error:
            if not samples:
                raise
            ended = error
        write(b"".join(_line(vars(sample)) for sample in samples))
    if ended:
        raise ended


def _made(folder: Path) -> Path:
    """The folder, made unless it is there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MmgenError(f"{folder} can't be made ({error.strerror})", remedy="choose another place") from error
    return folder


def _line(record: dict[str, Any]) -> bytes:
    return (json.dumps(record, allow_nan=False) + "\n").encode()
