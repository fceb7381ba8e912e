"""How every command speaks: one-line errors, exit codes, progress on stderr, results on stdout.

The bar is drawn here, since libraries for such bars, click's own too, end a command whose stderr can't be written.
"""

import codecs
import json
import logging
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

import click

from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.base.standard_streams import hush, open_closed_streams

INTERRUPTED = 130  # what shells report for a program ended by Ctrl-C
BAR = 24  # characters
ESCAPED = "mmgen"  # what Python calls the way of writing letters that an encoding lacks


class Command(click.Command):
    """A command that exits with 0 done, 1 it failed, 2 wrong usage, 130 interrupted.

    A failure is one line on stderr; ``--debug``, which every command has, shows the log and the traceback as well.
    Where stdout or stderr are closed, or nobody reads them any more, a command does its work all the same.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.params.append(click.Option(["--debug"], is_flag=True, help="Show the log, and the traceback of an error."))

    def invoke(self, ctx: click.Context) -> Any:
        debug = ctx.params.pop("debug", False)
        open_closed_streams()
        try:
            with warnings.catch_warnings(), _logged(debug):
                warnings.showwarning = _show_warning
                return super().invoke(ctx)
        except KeyboardInterrupt:
            tell("interrupted")
            ctx.exit(INTERRUPTED)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            if debug:
                tell(traceback.format_exc())
            raise _Failure(_line(error)) from error


class _Failure(click.ClickException):
    def show(self, file: IO[Any] | None = None) -> None:
        tell(f"Error: {self.format_message()}")


def _line(error: Exception) -> str:
    match error:
        case MmgenError():
            return str(error)
        case MemoryError():
            return "out of memory; ask for fewer samples at once"
        case OSError(strerror=str(said)):
            return f"{error.filename}: {said}" if error.filename else said
    return " ".join(f"unexpected {type(error).__name__}: {error}; --debug shows where".split())


def _show_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    if issubclass(category, UserWarning):  # the others speak to programmers
        tell(f"Warning: {message}")


class _Log(logging.Handler):
    """Log records as lines on stderr, as warnings are."""

    def emit(self, record: logging.LogRecord) -> None:
        level = record.levelname.capitalize() if record.levelno >= logging.WARNING else record.name
        tell(f"{level}: {record.getMessage()}")


@contextmanager
def _logged(debug: bool) -> Iterator[None]:
    """Show what mmgen warns of, and with ``debug`` everything that it and TensorRT log.

    What TensorRT calls an error is in the error that follows, and not said twice.
    """
    handler, log = _Log(), logging.getLogger("mmgen")
    before = log.level
    if debug:
        log.setLevel(logging.DEBUG)
    else:
        handler.addFilter(lambda record: record.name == "mmgen" and record.levelno >= logging.WARNING)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before)


class Progress:
    """Says on stderr how far long work is: a bar on a terminal, elsewhere one line a stage.

    Calling it with (stage, fraction from 0 to 1) is all there is to do; leaving the ``with`` block clears the bar.
    """

    def __init__(self) -> None:
        self._bar = sys.stderr.isatty()
        self._stage = ""
        self._shown = 0.0

    def __call__(self, stage: str, fraction: float) -> None:
        new_stage, self._stage = stage != self._stage, stage
        if not self._bar:
            if new_stage:
                tell(stage)
        elif new_stage or time.monotonic() - self._shown > 0.05:
            done = round(BAR * min(max(fraction, 0.0), 1.0))
            tell(f"\r\033[K[{'#' * done}{'.' * (BAR - done)}] {fraction:4.0%} {stage}", end="")
            self._shown = time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar and self._stage:
            tell("\r\033[K", end="")


def tell(text: str, end: str = "\n") -> None:
    """Say on stderr how things go; if it can't be written any more, nothing is lost but the words."""
    try:
        click.echo(text + end, err=True, nl=False)
    except OSError:
        hush(sys.stderr)


def show(record: dict[str, Any], as_json: bool, text: Callable[[], str]) -> None:
    """Print a result on stdout: the record as JSON for machines, or its text for people."""
    say(json.dumps(record, indent=1, allow_nan=False) if as_json else text())


def say(text: str) -> None:
    """Print on stdout.

    A letter that its encoding lacks is written as an escape, and a byte in the name of a file that was no text as that
    byte: what was made is told wherever it is told.  If nobody reads it any more, that is no error.

    Raises:
        MmgenError: it can't be written; what was made is there.
    """
    try:
        _write(text)
    except BrokenPipeError:
        hush(sys.stdout)
    except OSError as error:
        hush(sys.stdout)
        what = f"the result can't be printed ({error.strerror})"
        raise MmgenError(what, remedy="send stdout to a place that can be written") from error


def _write(text: str) -> None:
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    codecs.register_error(ESCAPED, _escaped)
    sys.stdout.flush()
    try:
        out = sys.stdout.buffer
    except AttributeError:  # a program put something without bytes in its place
        sys.stdout.write(text + "\n")
    else:
        out.write(f"{text}\n".encode(encoding, ESCAPED))
    sys.stdout.flush()


def _escaped(error: UnicodeError) -> tuple[str | bytes, int]:
    """How the one letter that can't be encoded is written."""
    assert isinstance(error, UnicodeEncodeError)
    letter = error.object[error.start]
    if "\udc80" <= letter <= "\udcff":  # what Python has for a byte
        return bytes([ord(letter) - 0xDC00]), error.start + 1
    return letter.encode("ascii", "backslashreplace").decode(), error.start + 1


json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
