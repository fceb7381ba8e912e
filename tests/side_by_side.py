"""Runs all tests in two processes, every other file in each, as ``pytest`` runs them in one; arguments go to both.

Not a plugin: two processes that know nothing of each other need none, and a test finds the same in its process.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

PROCESSES = 2


def main() -> int:
    """Show what the first process says as it says it, then what the others said; the worst exit code of all."""
    files = sorted(str(path) for path in Path(__file__).parent.glob("test_*.py"))
    command = [sys.executable, "-m", "pytest", *sys.argv[1:]]
    with tempfile.TemporaryDirectory() as folder:
        said = [Path(folder) / str(i) for i in range(1, PROCESSES)]
        others = [
            subprocess.Popen([*command, *files[i::PROCESSES]], stdout=path.open("wb"), stderr=subprocess.STDOUT)
            for i, path in enumerate(said, 1)
        ]
        codes = [subprocess.run([*command, *files[0::PROCESSES]], check=False).returncode]
        codes += [process.wait() for process in others]
        for path in said:
            sys.stdout.write(path.read_text(encoding="utf-8", errors="replace"))
    return max(map(abs, codes))


if __name__ == "__main__":
    sys.exit(main())
