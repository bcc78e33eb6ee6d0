"""Which processes train together: TF_CONFIG, or a Slurm step; waiting for them; no TensorFlow.

    {"cluster": {"worker": ["a:7000", "b:7000"]}, "task": {"type": "worker", "index": 0}}

is what TensorFlow's users give to each worker in TF_CONFIG, with its own index. The first is the
chief.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from cascade_keras.errors import InputError, shown

_EXAMPLE = '{"cluster": {"worker": ["a:7000", "b:7000"]}, "task": {"type": "worker", "index": 0}}'
_KINDS = ("chief", "worker")
_PATIENCE = 5.0  # seconds before it is said for whom one waits


class WorkerLost(InputError):
    """A worker is gone, so that the others cannot go on; all are to be started again.

    Attributes:
        stepped: whether this process has done a step since it was started.
    """

    stepped = False


class Cluster(NamedTuple):
    """The workers of a training, the chief first.

    Attributes:
        addresses: host:port of each.
        index: which of them this process is.
    """

    addresses: tuple[str, ...]
    index: int

    @property
    def is_chief(self) -> bool:
        """Whether this process writes and says what is to be written and said."""
        return self.index == 0

    def named(self, index: int) -> str:
        """Return a worker in words."""
        return f"worker {index} ({self.addresses[index]})"


def counts(sizes: Mapping[str, int]) -> tuple[int, int]:
    """Return how many chiefs and how many workers in all, with these, a cluster has.

    Args:
        sizes: how many tasks of each kind there are, as TensorFlow calls these; a master is one
            more chief.
    """
    chiefs = sizes.get("chief", 0) + sizes.get("master", 0)
    return chiefs, chiefs + sizes.get("worker", 0)


def place_of(sizes: Mapping[str, int], kind: str, index: int) -> int:
    """Return the number of a task among all workers, of which the chief is the first."""
    return index + (counts(sizes)[0] if kind == "worker" else 0)


def of_environment(environment: Mapping[str, str] = os.environ) -> Cluster:
    """Return the cluster that TF_CONFIG describes, or else the Slurm step of this process.

    The latter is put into TF_CONFIG, where TensorFlow looks.

    Raises:
        InputError: there is neither, or it is not one of chief and workers.
    """
    text = environment.get("TF_CONFIG", "").strip()
    if not text and "SLURM_PROCID" in environment:
        text = environment["TF_CONFIG"] = _of_slurm()
    if not text:
        raise InputError(
            f"multiworker needs TF_CONFIG on each worker, such as {_EXAMPLE}, or a Slurm step",
            "strategy",
        )
    try:
        found = json.loads(text)
        cluster, task = found["cluster"], found["task"]
        kind, index = task["type"], int(task["index"])
        addresses = {name: list(map(str, each)) for name, each in cluster.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"TF_CONFIG is {shown(text)}; it must be such as {_EXAMPLE}") from None
    for name in addresses:
        if name not in (*_KINDS, "evaluator"):
            raise InputError(
                f"TF_CONFIG has the job {name!r}; a training goes over chief and worker only"
            )
    own = addresses.get(kind, [])
    if kind not in _KINDS or not 0 <= index < len(own):
        raise InputError(
            f"TF_CONFIG's task is {kind} {index}; there are "
            + ", ".join(f"{name} 0..{len(each) - 1}" for name, each in addresses.items())
        )
    chiefs = addresses.get("chief", [])
    if len(chiefs) > 1:
        raise InputError(f"TF_CONFIG has {len(chiefs)} chiefs; give one")
    every = (*chiefs, *addresses.get("worker", []))
    for address in every:
        host, colon, port = address.rpartition(":")
        if not (host and colon and port.isdecimal() and 0 < int(port) < 65536):
            raise InputError(f"TF_CONFIG has the address {shown(address)}; write host:port")
    twice = next((each for each in every if every.count(each) > 1), None)
    if twice:
        raise InputError(f"TF_CONFIG has the address {twice} twice; each worker needs its own")
    sizes = {name: len(each) for name, each in addresses.items()}
    return Cluster(every, place_of(sizes, kind, index))


def _of_slurm() -> str:
    """Return TF_CONFIG of a Slurm step, which knows its nodes and its tasks."""
    import shutil

    import tensorflow as tf

    gpus = {} if shutil.which("nvidia-smi") else {"gpus_per_node": 0, "auto_set_gpu": False}
    try:
        resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(**gpus)
        cluster = resolver.cluster_spec().as_dict()
        kind, index = resolver.get_task_info()
    except (RuntimeError, ValueError, KeyError) as error:
        raise InputError(
            f"the Slurm step cannot be made out ({error}); start it by srun, or give TF_CONFIG",
            "strategy",
        ) from error
    return json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})


def meet(cluster: Cluster, timeout: float, say: Callable[[str], None]) -> None:
    """Wait until every other worker answers at its address, and answer at one's own.

    Args:
        cluster: all of them.
        timeout: seconds that one that does not answer is waited for.
        say: told for whom one waits.

    Raises:
        InputError: a worker has not answered in time, or the own port is in use.
    """
    port = int(cluster.addresses[cluster.index].rpartition(":")[2])
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind(("", port))
        except OSError as error:
            raise InputError(
                f"port {port} of {cluster.named(cluster.index)} cannot be used "
                f"({error.strerror}); is another process of this worker running?"
            ) from error
        server.listen(128)
        server.setblocking(False)
        _wait(cluster, server, timeout, say)


def _wait(cluster: Cluster, server: socket.socket, timeout: float, say: Callable) -> None:
    missing = [i for i in range(len(cluster.addresses)) if i != cluster.index]
    began, told = time.monotonic(), False
    while True:
        missing = [i for i in missing if not _answers(cluster.addresses[i])]
        _drain(server)
        if not missing:
            return
        waited = time.monotonic() - began
        if waited > timeout:
            raise InputError(
                f"{_names(cluster, missing)} did not answer for {timeout:g} s; start the same "
                "command there, or wait longer",
                "worker_timeout",
            )
        if waited > _PATIENCE and not told:
            told = True
            say(
                f"waiting for {_names(cluster, missing)}, at most {timeout:g} s: "
                "start the same command there"
            )
        time.sleep(0.2)


def _names(cluster: Cluster, workers: Sequence[int]) -> str:
    first = ", ".join(cluster.named(i) for i in workers[:3])
    return first if len(workers) <= 3 else f"{first} and {len(workers) - 3} more"


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
    except OSError:
        return False
    return True


def _drain(server: socket.socket) -> None:
    """Take what has come in, so that there is room for more."""
    while True:
        try:
            server.accept()[0].close()
        except BlockingIOError:
            return
        except OSError:
            continue
