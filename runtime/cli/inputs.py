"""A bundle's inputs as options of a command: --NAME VALUE.  They are known when the bundle has been read."""

from collections.abc import Iterable, Sequence
from typing import Any

import click

from mmgen.runtime.base.choices import near
from mmgen.runtime.cli.terminal import Command
from mmgen.runtime.storage.schema import Bundle

NAMED = "mmgen.named_inputs"


class InputsCommand(Command):
    """A command that takes a bundle's inputs as options of their own: --NAME VALUE.

    They are known only when the bundle has been read, so parsing sets them aside, for ``named_inputs``.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse what the command itself has, and keep the rest in the context."""
        options = [each for each in self.get_params(ctx) if isinstance(each, click.Option)]
        known = {name: each for each in options for name in (*each.opts, *each.secondary_opts)}
        rest, named = split(known, args)
        ctx.meta[NAMED] = named
        return super().parse_args(ctx, rest)


def split(known: dict[str, click.Option], args: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Divide arguments into those of a command, and pairs of any other --NAME and its VALUE.

    Raises:
        click.NoSuchOption: an unknown name without a value.
    """
    rest: list[str] = []
    named: list[tuple[str, str]] = []
    left = list(args)
    while left:
        argument = left.pop(0)
        option, equals, value = argument.partition("=")
        if argument == "--":
            return [*rest, argument, *left], named
        if option in known:
            taken = 0 if equals or known[option].is_flag or known[option].count else known[option].nargs
            rest += [argument, *left[:taken]]
            del left[:taken]
        elif not option.startswith("--"):
            rest.append(argument)
        elif equals:
            named.append((option[2:], value))
        elif left:
            named.append((option[2:], left.pop(0)))
        else:
            raise no_such_option(option, known)
    return rest, named


def named_inputs(bundle: Bundle, given: dict[str, Any]) -> list[str]:
    """Return the inputs that were given as options of their own, as NAME=VALUE.

    Args:
        given: options that a command has, too, by name, such as ``image``: an input of such a name takes the value,
            and None is left in its place.

    Raises:
        click.NoSuchOption: an option that is no input of the bundle.
    """
    ctx = click.get_current_context()
    inputs = {condition.name for condition in bundle.conditions}
    found = []
    for name, value in ctx.meta.get(NAMED, ()):
        if name not in inputs:
            known = [opt for each in ctx.command.params for opt in each.opts] + [f"--{each}" for each in inputs]
            raise no_such_option(f"--{name}", known)
        found.append(f"{name}={value}")
    for name in inputs & set(given):
        if given[name] is not None:
            found.append(f"{name}={given[name]}")
            given[name] = None
    return found


def no_such_option(name: str, known: Iterable[str]) -> click.NoSuchOption:
    """Make the error about an option that neither the command nor the bundle has."""
    meant = near(name, known)
    ctx = click.get_current_context(silent=True)
    return click.NoSuchOption(name, possibilities=None if meant is None else [meant], ctx=ctx)
