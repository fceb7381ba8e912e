"""One output of a bundle, opened on a backend: what its requests are read, prepared and played with."""

from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray

from mmgen.runtime.backends.protocol import Backend
from mmgen.runtime.loop.fit import check_for
from mmgen.runtime.loop.session import Session
from mmgen.runtime.loop.turns import Turns
from mmgen.runtime.request.conditions import open_inputs
from mmgen.runtime.request.prepare import Prepared, prepare
from mmgen.runtime.request.request import Request, read_request
from mmgen.runtime.storage.schema import INPUT, Bundle


class Opened:
    """An output with its inputs, a backend and a session on it.  Its graphs run in turns of the generator."""

    def __init__(self, bundle: Bundle, backend: Backend, turns: Turns) -> None:
        self.bundle, self._turns = bundle, turns
        self.session = Session(bundle, backend, turns)
        self.inputs = open_inputs(bundle, self._encode)
        self._fits = check_for(bundle, backend.name)

    def prepare(self, request: Request | None, given: Mapping[str, object]) -> Prepared:
        """Combine a request with the arguments of a call, and lay it out; errors as of both."""
        combined = read_request(self.bundle, self.inputs, request, given)
        return prepare(self.bundle, self.inputs, combined, self._fits)

    def _encode(self, name: str, media: NDArray[Any]) -> NDArray[Any]:
        encoded = INPUT + name in self.bundle.graphs
        return self._turns.run(lambda: self.session.features(name, media)) if encoded else media


Open = Callable[[Bundle], Backend]  # opens the backend of an output
