"""SavedModels of strangers: what one would do, read before it is run, and a limit to its time.

A SavedModel is a program: loading one runs its initialisers, calling it whatever its graph holds,
which can be to write files or to call Python. ``check_harmless`` refuses one that does more than
a network needs to classify images, by a list of what is allowed, not of what is known to be bad.
``within`` gives up on one that does not answer. Neither is a sandbox: see SECURITY.md.
"""

from __future__ import annotations

import graphlib
import math
import pathlib
import re
import threading
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from typing import NamedTuple, TypeVar

from google.protobuf.message import DecodeError
from tensorflow.core.framework import attr_value_pb2, graph_pb2, node_def_pb2, variable_pb2
from tensorflow.core.protobuf import fingerprint_pb2, meta_graph_pb2, saved_model_pb2
from tensorflow.python.eager import cancellation

# What TensorFlow itself decides by: the operations that are registered.
from tensorflow.python.framework import op_def_registry

from cascade_keras.errors import InputError

_LARGEST = 2**31 - 1  # bytes of a protocol buffer
_SHOWN = 3  # operations in a message
_MOST_NODES = 10_000_000  # when TensorFlow has put functions in the place of their calls

# Operations with a state, or with an effect, that networks need.
_NEEDED = """
VarHandleOp VarIsInitializedOp ReadVariableOp AssignVariableOp AssignAddVariableOp
AssignSubVariableOp VariableShape DisableCopyOnRead DestroyResourceOp Variable VariableV2
TemporaryVariable ResourceGather ResourceGatherNd ResourceScatterAdd ResourceScatterDiv
ResourceScatterMax ResourceScatterMin ResourceScatterMul ResourceScatterSub
ResourceScatterUpdate ResourceScatterNdAdd ResourceScatterNdSub ResourceScatterNdMax
ResourceScatterNdMin ResourceScatterNdUpdate ResourceStridedSliceAssign

StatefulPartitionedCall If While Case DeviceIndex Assert CheckNumerics CheckNumericsV2
GuaranteeConst Empty IsTensorFloat32Enabled CudnnRNN CudnnRNNV2 CudnnRNNV3

RandomUniform RandomUniformInt RandomStandardNormal TruncatedNormal
ParameterizedTruncatedNormal RandomGamma RandomPoisson RandomPoissonV2 RandomShuffle
RandomCrop Multinomial SampleDistortedBoundingBox SampleDistortedBoundingBoxV2
NonDeterministicInts RngSkip RngReadAndSkip StatelessRandomGetAlg StatefulUniform
StatefulUniformInt StatefulUniformFullInt StatefulStandardNormal StatefulStandardNormalV2
StatefulTruncatedNormal StatefulRandomBinomial

HashTable HashTableV2 AnonymousHashTable InitializeTableV2 MutableHashTable
MutableHashTableV2 MutableHashTableOfTensors MutableHashTableOfTensorsV2
MutableDenseHashTable MutableDenseHashTableV2 AnonymousMutableHashTable
AnonymousMutableHashTableOfTensors AnonymousMutableDenseHashTable LookupTableFindV2
LookupTableInsertV2 LookupTableRemoveV2 LookupTableSizeV2 LookupTableExportV2
LookupTableImportV2

TensorArray TensorArrayV2 TensorArrayV3 TensorArrayGrad TensorArrayGradV2 TensorArrayGradV3
TensorArrayGradWithShape TensorArrayCloseV3 TensorArrayConcatV3 TensorArrayGatherV3
TensorArrayReadV3 TensorArrayScatterV3 TensorArraySizeV3 TensorArraySplitV3
TensorArrayWriteV3 Stack StackV2 StackCloseV2 StackPopV2 StackPushV2
"""
_ALLOWED = frozenset(_NEEDED.split())
# What restores the variables when a SavedModel is loaded, and nothing else.
_RESTORES = _ALLOWED | {"Restore", "RestoreSlice", "RestoreV2"}
# Operations that TensorFlow holds to be without effect, and that reach out of the graph.
_REACHING_OUT = re.compile(
    r"Dataset|Iterator|Reader|Queue|Barrier|PyFunc|Proto|ReadFile|MatchingFiles|TextFile|Restore"
    r"|Save|ImmutableConst|Debug(Identity|NanCount|Numeric)|^Copy(Host)?$|Send|Recv|Remote|Rpc"
    r"|Abort|CustomCall|XlaLaunch|TPUPartitionedCall|^IO>"
)
# Those that cannot act where they are not run: what they work on comes of operations with a state.
_PIPELINE = re.compile(r"(?!Snapshot)\w*Dataset(V\d+)?|\w*Queue\w*|Reader\w*")
# Of a graph of TensorFlow 1: collections of what is run when it is loaded.
_RUN_AT_LOAD = ("saved_model_main_op", "legacy_init_op", "table_initializer")

_PATIENCE = 10  # seconds for operations to end that were cancelled

Node = node_def_pb2.NodeDef
T = TypeVar("T")


class _Part(NamedTuple):
    """A function, or nodes of the main graph.

    Attributes:
        operations: each, with how many nodes there are of it.
        calls: whatever may name a function, with how often it does.
    """

    operations: Counter[str]
    calls: Counter[str]


def check_harmless(folder: pathlib.Path) -> None:
    """Refuse a SavedModel that would do more than compute; nothing of it is run.

    Raises:
        InputError: naming the operations and where they are, or saying that its graph is damaged.
    """
    found: dict[str, str | None] = {}  # an operation, and a function that has it
    for meta in _parse(folder / "saved_model.pb").meta_graphs:
        library = _library(meta)
        if _size(library) > _MOST_NODES:
            raise InputError(
                f"{folder} would fill the memory: functions in its graph call each other again and "
                "again; it is not run"
            )
        for operation, function in _refused(meta, library):
            if op_def_registry.get(operation) is None:
                raise InputError(
                    f"{folder} needs the operation {_plain(operation)}, which this TensorFlow does "
                    "not have; save the network without it"
                )
            found.setdefault(operation, function)
    if not found:
        return
    listed = [
        f"{_plain(op)} in " + ("its graph" if name is None else f"function {_plain(name)}")
        for op, name in sorted(found.items())
    ]
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    raise InputError(
        f"{folder} does more than compute: {', '.join(listed[:_SHOWN])}{more}; it is not run. "
        "If you trust who made it, pass trust_source (programs: --trust_source)"
    )


def check_whole(folder: pathlib.Path) -> None:
    """Refuse what TensorFlow would wait for, or end with a traceback: pipes, a damaged fingerprint.

    Raises:
        InputError: naming it.
    """
    for file in folder.rglob("*"):
        if not (file.is_file() or file.is_dir()):
            raise InputError(f"{folder} cannot be loaded: {file} is not a file; copy it again")
    file = folder / "fingerprint.pb"
    try:
        fingerprint_pb2.FingerprintDef.FromString(file.read_bytes())
    except FileNotFoundError:
        return  # as of earlier versions of TensorFlow
    except (DecodeError, OSError) as error:
        raise InputError(
            f"{folder} cannot be loaded: {file.name} is damaged; copy it, or save it, again"
        ) from error


def _parse(file: pathlib.Path) -> saved_model_pb2.SavedModel:
    try:
        if file.stat().st_size > _LARGEST:
            raise InputError(f"{file.parent} cannot be loaded: {file.name} is larger than 2 GB")
        saved = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    except DecodeError as error:
        raise InputError(f"{file.parent} cannot be loaded: {file.name} is damaged") from error
    except OSError as error:
        raise InputError(
            f"{file.parent} cannot be loaded: {file.name} cannot be read ({error.strerror})"
        ) from error
    if not saved.meta_graphs:
        raise InputError(f"{file.parent} cannot be loaded: {file.name} holds no graph")
    if not all(_is_unambiguous(meta.graph_def) for meta in saved.meta_graphs):
        raise InputError(f"{file.parent} cannot be loaded: a name in its graph has two meanings")
    return saved


def _is_unambiguous(graph: graph_pb2.GraphDef) -> bool:
    """Whether each name has one meaning: which of two would be run is TensorFlow's to choose."""
    nodes = [node.name for node in graph.node]
    functions = [function.signature.name for function in graph.library.function]
    return (
        len(set(nodes)) == len(nodes)
        and len(set(functions)) == len(functions)
        and not any(map(op_def_registry.get, functions))
    )


def _refused(
    meta: meta_graph_pb2.MetaGraphDef, library: Mapping[str, _Part]
) -> Iterator[tuple[str, str | None]]:
    """Yield the operations that must not be there, each with its function, None for no one's."""
    main = {node.name: node for node in meta.graph_def.node}
    run = _part(_needed(main, _fetched(meta)))
    restore = _part(_needed(main, [meta.saver_def.restore_op_name]))
    called = _closure({*run.calls, *_roots(meta, main, library)}, library)
    for part, functions, allowed in (
        (run, called, _ALLOWED),
        (restore, _closure(restore.calls, library), _RESTORES),
        # To infer shapes, TensorFlow evaluates parts of what it only reads.
        (_part(main.values()), set(library), None),
    ):
        parts = {None: part, **{name: library[name] for name in sorted(functions)}}
        for name, each in parts.items():
            for operation in sorted(each.operations.keys() - library.keys()):
                if not _may_be_there(operation, allowed):
                    yield operation, name


def _may_be_there(operation: str, allowed: Container[str] | None) -> bool:
    """Whether an operation is harmless; where None is allowed, it is read and not run."""
    definition = op_def_registry.get(operation)
    if definition is None:
        return False
    if definition.is_stateful:
        return allowed is None or operation in allowed
    unused = allowed is None and _PIPELINE.fullmatch(operation)
    return bool(unused) or not _REACHING_OUT.search(operation)


def _library(meta: meta_graph_pb2.MetaGraphDef) -> dict[str, _Part]:
    functions = meta.graph_def.library.function
    return {function.signature.name: _part(function.node_def) for function in functions}


def _roots(
    meta: meta_graph_pb2.MetaGraphDef, main: Mapping[str, Node], library: Mapping[str, _Part]
) -> set[str]:
    """Return the functions that can be called though no node that is run does."""
    given = meta.graph_def.library
    gradients = {part.gradient_func for part in given.gradient}
    gradients |= {part.gradient_func for part in given.registered_gradients}
    if not meta.HasField("object_graph_def"):  # TensorFlow 1 runs its main graph only
        return gradients
    # By objects, all but those that only the saver calls, which loading does without.
    saver = meta.saver_def.save_tensor_name, meta.saver_def.restore_op_name
    unused = _closure(_part(_needed(main, saver)).calls, library)
    return gradients | set(meta.object_graph_def.concrete_functions) | (set(library) - unused)


def _fetched(meta: meta_graph_pb2.MetaGraphDef) -> Iterator[str]:
    """Yield the names of what signatures and initialisers ask of the main graph."""
    for signature in meta.signature_def.values():
        for info in signature.outputs.values():
            yield info.name
            parts = info.composite_tensor.components
            sparse = info.coo_sparse
            yield from (part.name for part in parts)
            yield from (
                sparse.values_tensor_name,
                sparse.indices_tensor_name,
                sparse.dense_shape_tensor_name,
            )
    for name in _RUN_AT_LOAD:
        yield from meta.collection_def[name].node_list.value
    for content in meta.collection_def["local_variables"].bytes_list.value:
        try:
            yield variable_pb2.VariableDef.FromString(content).initializer_name
        except DecodeError:
            continue  # TensorFlow will not read it either


def _needed(main: Mapping[str, Node], fetched: Iterable[str]) -> list[Node]:
    """Return the nodes that are run when some are asked for: "name", "name:1" or "^name"."""
    found: dict[str, Node] = {}
    waiting = list(fetched)
    while waiting:
        name = waiting.pop().removeprefix("^").partition(":")[0]
        if name in main and name not in found:
            found[name] = main[name]
            waiting += main[name].input
    return list(found.values())


def _part(nodes: Iterable[Node]) -> _Part:
    part = _Part(Counter(), Counter())
    for node in nodes:
        part.operations[node.op] += 1
        for value in node.attr.values():
            part.calls.update(_named(value))
    part.calls.update(part.operations)  # a function's name can stand for an operation
    return part


def _size(library: Mapping[str, _Part]) -> float:
    """Return of how many nodes the largest function is, with those of the functions it calls."""
    calls = {name: part.calls.keys() & library.keys() for name, part in library.items()}
    sizes: dict[str, int] = {}
    try:
        for name in graphlib.TopologicalSorter(calls).static_order():
            called = sum(library[name].calls[other] * sizes[other] for other in calls[name])
            sizes[name] = library[name].operations.total() + called
    except graphlib.CycleError:
        return math.inf
    return max(sizes.values(), default=0)


def _named(value: attr_value_pb2.AttrValue) -> Iterator[str]:
    """Yield the functions that an attribute names."""
    kind = value.WhichOneof("value")
    functions = value.list.func if kind == "list" else [value.func] if kind == "func" else ()
    for function in functions:
        yield function.name
        for inner in function.attr.values():
            yield from _named(inner)


def _closure(names: Iterable[str], library: Mapping[str, _Part]) -> set[str]:
    """Return those of the names that are functions, and the functions that these call."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in library and name not in found:
            found.add(name)
            waiting += library[name].calls
    return found


def _plain(name: str) -> str:
    """Return a name from a file as a message shows it: its letters, not its control characters."""
    short = re.fullmatch(r"__(?:inference|forward|backward)_(.+?)_\d+", name)
    return re.sub(r"[^\w.<>/-]", "?", short[1] if short else name)[:80]


def within(seconds: float, call: Callable[[], T]) -> T:
    """Return what a function returns that calls TensorFlow.

    It runs in a thread of its own, which is left alone if its operations cannot be cancelled: it
    does not keep the process from ending.

    Raises:
        TimeoutError: it takes longer.
    """
    outcome: list[tuple[T | None, BaseException | None]] = []

    def run() -> None:
        try:
            outcome.append((call(), None))
        except BaseException as error:
            outcome.append((None, error))

    manager = cancellation.CancellationManager()
    thread = threading.Thread(target=run, name="network", daemon=True)
    with cancellation.CancellationManagerContext(manager):
        thread.start()
        try:
            thread.join(seconds)
        finally:
            in_time = not thread.is_alive()
            if not in_time:  # or Ctrl-C
                manager.start_cancel()  # ends loops
        if not in_time:
            thread.join(_PATIENCE)
            raise TimeoutError
    value, error = outcome[0]
    if error is not None:
        raise error
    return value
