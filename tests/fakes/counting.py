"""ONNX Runtime on the CPU, counting what a generator has it do."""

from collections import Counter
from collections.abc import Mapping, Sequence

import onnxruntime

from mmgen.runtime.backends.memory import Slot
from mmgen.runtime.backends.ort.cpu import OrtCpu
from mmgen.runtime.backends.protocol import Block, Call, Runner
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.storage.schema import Bundle, Role


class Counting(OrtCpu):
    """Counts calls of each graph; those of one may be made to fail."""

    def __init__(self) -> None:
        super().__init__(onnxruntime, 1)
        self.calls = Counter[str]()
        self.fail: str | None = None

    def runner(self, bundle: Bundle, role: Role) -> Runner:
        return _Counted(super().runner(bundle, role), role, self)

    def since(self) -> dict[str, int]:
        """Count calls of the graphs before the loop since the last count."""
        found = {role: self.calls[role] for role in ("condition", "timestep") if self.calls[role]}
        self.calls.clear()
        return found


class _Counted:
    def __init__(self, runner: Runner, role: Role, counting: Counting) -> None:
        self._runner, self._role, self._counting = runner, role, counting

    def bind(self, block: Block, calls: Sequence[Mapping[str, Slot]]) -> list[Call]:
        return [self._count(call) for call in self._runner.bind(block, calls)]

    def _count(self, call: Call) -> Call:
        def counted() -> None:
            self._counting.calls[self._role] += 1
            if self._counting.fail == self._role:
                raise MmgenError("the device failed")
            call()

        return counted

    def close(self) -> None:
        self._runner.close()
