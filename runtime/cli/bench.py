"""``mmgen bench``.  What measures is imported when it runs, so that other commands start without it."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.cli.inputs import InputsCommand, named_inputs
from mmgen.runtime.cli.options import (
    SAMPLING,
    backend_option,
    bundle_argument,
    condition_options,
    sampling_options,
    want_option,
)
from mmgen.runtime.cli.terminal import Progress, json_option, show
from mmgen.runtime.files.atomic import followed, whole_file

if TYPE_CHECKING:
    from mmgen.runtime.bench.measure import Sample


@click.command(cls=InputsCommand)
@bundle_argument
@want_option
@condition_options
@sampling_options
@click.option("--batch", multiple=True, type=int, default=(1,), metavar="B", show_default=True,
              help="Samples at once; may be repeated.")  # fmt: skip
@click.option("--threads", multiple=True, type=int, default=(None,), metavar="T",
              help="Threads of a CPU backend, one a core unless given; may be repeated.")  # fmt: skip
@backend_option
@click.option("--runs", type=int, default=100, show_default=True, help="Requests of each batch size and threads.")
@click.option("--warmup", type=int, default=3, show_default=True, help="Requests before them, which don't count.")
@click.option("--seconds", type=float, default=20.0, show_default=True,
              help="Time for the requests of each batch size and threads; there are fewer then.")  # fmt: skip
@click.option("--new", type=click.Choice(["all", "condition", "nothing"]), default="all", show_default=True,
              help="What is not as in the request before, and so isn't there already.")  # fmt: skip
@click.option("--starts", type=int, default=3, show_default=True, help="Fresh processes, for the cold start.")
@click.option("--rate", type=float, metavar="HZ",
              help="So many requests a second are due, at fixed times, whether or not the one before is done; latency "
              "counts from when a request was due.  Without it, each is made when the one before is done.")  # fmt: skip
@click.option("--deadline", type=float, metavar="SECONDS",
              help="With --rate: what a request may take, from when it was due; one period unless given.  Later ones "
              "are counted, and made all the same.")  # fmt: skip
@click.option("--nvtx", is_flag=True, help="Mark each request and each graph for NVIDIA's profilers; needs the extra "
              "profiling.")  # fmt: skip
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE.json",
              help="Write all figures, as --json prints them.")  # fmt: skip
@click.option("--samples", "samples_file", type=click.Path(path_type=Path), metavar="FILE.jsonl",
              help="Write every request's times, one a line; also after Ctrl-C.")  # fmt: skip
@click.option("--report", type=click.Path(path_type=Path), metavar="DIR", help="Write DIR/index.html, with diagrams.")
@json_option
def bench(
    folder: Path,
    output_name: str | None,
    prompts: tuple[str, ...],
    class_ids: tuple[int, ...],
    others: tuple[str, ...],
    output: Path | None,
    samples_file: Path | None,
    report: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure how long requests take here, part by part, and how small a difference means nothing.

    Requests are made one after the other, or at --rate, until --runs or --seconds is reached.  Each is a call of
    generate as programs make it; what is included and what isn't is said with the figures.
    """
    from mmgen.runtime.bench.measure import Options, measure
    from mmgen.runtime.bench.report import page
    from mmgen.runtime.bench.text import text
    from mmgen.runtime.cli.arguments import conditions
    from mmgen.runtime.files.json_records import to_json
    from mmgen.runtime.request.example import example_conditions, example_negative
    from mmgen.runtime.request.request import Request
    from mmgen.runtime.storage.bundle import output_of, read_bundle

    bundle = output_of(read_bundle(folder, verify=False), output_name)  # it is verified before anything is measured
    others = (*others, *named_inputs(bundle, {}))
    given = example_conditions(bundle, conditions(bundle, prompts, class_ids, others))
    said = {name: options.pop(name) for name in SAMPLING}
    negative = example_negative(bundle, said["guidance"])
    asked = Options(Request(output=output_name, conditions=given, negative=negative, **said), **options)
    with (
        _whole(output and followed(output)) as write,
        _whole(report and _made(report) / "index.html") as write_page,
        _kept(samples_file and followed(samples_file)) as samples,
        Progress() as progress,
    ):
        measured = measure(folder, asked, samples.append, progress)
        record = to_json(measured)
        write(_line(record))
        if report:
            write_page(page(measured, samples))
    show(record, as_json, lambda: text(measured))


@contextmanager
def _whole(file: Path | None) -> Iterator[Callable[[bytes], None]]:
    """Yield a function that writes a file, if there is to be one."""
    if file is None:
        yield lambda content: None
    else:
        with whole_file(file) as write:
            yield write


@contextmanager
def _kept(file: Path | None) -> Iterator[list["Sample"]]:
    """Yield a list of samples, which are written to the file in the end, also after Ctrl-C or a failure."""
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
    """Make the folder, unless it exists, and return it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MmgenError(f"{folder} can't be made ({error.strerror})", remedy="choose another place") from error
    return folder


def _line(record: dict[str, Any]) -> bytes:
    return (json.dumps(record, allow_nan=False) + "\n").encode()
