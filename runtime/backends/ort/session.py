"""The part that backends of ONNX Runtime share: a session's tensors against the manifest, and its errors as ours."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.storage.graph_file import check_tensors
from mmgen.runtime.storage.schema import Graph, Role

TYPES = {"float": "float32", "double": "float64"}  # the others have numpy's names
QUOTED = 200  # characters of a library's message; more is of use only to its makers


def check_session(session: Any, role: Role, graph: Graph) -> None:
    """Check that a session's inputs and outputs are those of the manifest.

    Raises:
        MmgenError: they aren't.
    """
    found = {}
    for value in (*session.get_inputs(), *session.get_outputs()):
        kind = value.type.removeprefix("tensor(").removesuffix(")")
        found[value.name] = (TYPES.get(kind, kind), tuple(value.shape))
    check_tensors(f"graph {role}", graph, found)


@contextmanager
def explained(what: str, remedy: str) -> Iterator[None]:
    """Turn an error of ONNX Runtime into ours; what runs in each evaluation uses ``failed`` alone."""
    try:
        yield
    except MmgenError:
        raise
    except Exception as error:  # they share no base class of their own
        raise failed(what, error, remedy) from error


def failed(what: str, error: Exception, remedy: str) -> MmgenError:
    """Make our error, of one line, for one of ONNX Runtime's."""
    said = " ".join(str(error).split())
    return MmgenError(f"{what} ({said[:QUOTED]}{'...' if len(said) > QUOTED else ''})", remedy=remedy)
