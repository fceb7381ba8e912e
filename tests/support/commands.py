"""The ``mmgen`` command, run by a test in its own process."""

from click.testing import CliRunner, Result

from mmgen.runtime.cli.main import main


def mmgen(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def done(*arguments: str) -> Result:
    result = mmgen(*arguments)
    assert result.exit_code == 0, result.output
    return result
