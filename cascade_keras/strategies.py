"""Over which devices a training goes: the strategy of ``tf.distribute`` that a name stands for.

Of several workers the first, the chief, alone writes, reports and evaluates. The others have from
it what a run was started with, the weights, and when to stop, so that nothing depends on whether
they see the same files at the same time.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from cascade_keras import cluster
from cascade_keras.cluster import Cluster, WorkerLost
from cascade_keras.errors import InputError, first_line, one_line
from cascade_keras.keras_private import configure_coordination, end_other_workers

# What TensorFlow says where another process is gone.
LOST = (
    tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
)  # fmt: skip


def strategy_of(
    name: str,
    *,
    found: Cluster | None = None,
    timeout: float = 600,
    say: Callable[[str], None] = print,
) -> tf.distribute.Strategy:
    """Return a strategy; that in whose scope the caller is where ``name`` is "none".

    Args:
        name: "none"; "mirrored", all GPUs of this machine, or all CPUs that TensorFlow was told of;
            "auto", mirrored where there is more than one GPU; "multiworker", all devices of all
            workers, which has to be the first that TensorFlow does in a process.
        found: the workers, see ``cluster.of_environment``, for "multiworker".
        timeout: seconds to wait for another worker.
        say: told for whom one waits.

    Raises:
        InputError: there is a strategy already, or a worker does not answer.
    """
    if name != "none" and tf.distribute.has_strategy():
        raise InputError("there is a strategy's scope already; leave it", "strategy")
    if name == "multiworker":
        return _connected(found or cluster.of_environment(), timeout, say)
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    several = len(devices) > 1 and devices[0].device_type == "GPU"
    if name == "mirrored" or (name == "auto" and several):
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    return tf.distribute.get_strategy()


def _connected(
    found: Cluster, timeout: float, say: Callable[[str], None]
) -> tf.distribute.Strategy:
    cluster.meet(found, max(1.0, timeout - waited_before()), say)
    try:
        configure_coordination(tf.distribute.cluster_resolver.TFConfigClusterResolver(), timeout)
        return tf.distribute.MultiWorkerMirroredStrategy()
    except RuntimeError as error:
        raise InputError(
            "TensorFlow was used in this process before; make the strategy first "
            f"({first_line(error)})",
            "strategy",
        ) from error
    except tf.errors.OpError as error:
        raise WorkerLost(f"the workers did not come together ({first_line(error)})") from error


def here() -> Workers:
    """Return the processes of the strategy in whose scope the caller is."""
    return Workers(tf.distribute.get_strategy())


def described(strategy: tf.distribute.Strategy) -> str:
    """Return what a run goes over, in words."""
    count = strategy.num_replicas_in_sync
    devices = [tf.DeviceSpec.from_string(each) for each in strategy.extended.worker_devices]
    names = ", ".join(f"{each.device_type}:{each.device_index}" for each in devices)
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        names = f"{Workers(strategy).count} workers, {names} of each"
    return f"{count} replicas ({names}), which share each batch" if count > 1 else f"one {names}"


class Workers:
    """The processes that train together; one alone where the strategy is of one process.

    Whatever is exchanged here all of them exchange, in the same order.

    Args:
        strategy: over which they train.

    Attributes:
        count: how many there are.
        index: which this one is; 0 is the chief.
    """

    def __init__(self, strategy: tf.distribute.Strategy):
        self.count, self.index = 1, 0
        self._strategy = strategy
        if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
            resolver = strategy.cluster_resolver
            spec = resolver.cluster_spec()
            sizes = {kind: spec.num_tasks(kind) for kind in spec.jobs}
            self.count = max(1, cluster.counts(sizes)[1])
            self.index = cluster.place_of(sizes, resolver.task_type, resolver.task_id or 0)
        self._summed = tf.function(
            self._sum, input_signature=[tf.TensorSpec([None], tf.float64)], autograph=False
        )

    @property
    def is_chief(self) -> bool:
        """Whether this process writes, reports and evaluates."""
        return self.index == 0

    def _sum(self, values: tf.Tensor) -> tf.Tensor:
        def of_replica(values):
            context = tf.distribute.get_replica_context()
            here = len(self._strategy.extended.worker_devices)
            first = context.replica_id_in_sync_group % here == 0
            own = tf.where(first, values, tf.zeros_like(values))
            return context.all_reduce(tf.distribute.ReduceOp.SUM, own)

        summed = self._strategy.run(of_replica, args=(values,))
        return self._strategy.experimental_local_results(summed)[0]

    def total(self, values: np.ndarray) -> np.ndarray:
        """Return the sum over all workers of float64 values (n,); all wait for each other."""
        return values if self.count == 1 else self._summed(tf.constant(values)).numpy()

    def from_chief(self, value: Any) -> Any:
        """Return what the chief passes, anything that JSON holds; others pass what they like."""
        if self.count == 1:
            return value
        data = np.frombuffer(json.dumps(value if self.is_chief else None).encode(), np.uint8)
        own = data.astype(np.float64) if self.is_chief else np.zeros(0)
        size = int(self.total(np.array([len(own)], np.float64))[0])
        text = self.total(own if self.is_chief else np.zeros(size))
        return json.loads(text.astype(np.uint8).tobytes())

    def share_variables(self, variables: list) -> None:
        """Give the variables of all workers the chief's values."""
        if self.count == 1:
            return
        values = [variable.numpy() for variable in variables]
        own = np.concatenate([np.ravel(value).astype(np.float64) for value in values])
        whole = self.total(own if self.is_chief else np.zeros_like(own))
        ends = np.cumsum([value.size for value in values])[:-1]
        for variable, value, part in zip(variables, values, np.split(whole, ends), strict=True):
            variable.assign(part.reshape(value.shape).astype(value.dtype))

    def agreed(self, number: signal.Signals | None) -> signal.Signals | None:
        """Return the signal that any worker was sent."""
        if self.count == 1:
            return number
        own = np.zeros(self.count)
        own[self.index] = number or 0
        largest = int(self.total(own).max())
        return signal.Signals(largest) if largest else None


_TRACING = 600.0  # seconds that the first step may take longer


class Watch:
    """Ends this process where the workers' next step does not come: a peer hangs.

    One that is killed is noticed by TensorFlow; one that is stopped, or cut off, need not be, and
    what waits for it in C++ cannot be called back.

    Args:
        timeout: seconds without a step; the first may take longer by those of tracing it.
    """

    def __init__(self, timeout: float):
        self.timeout = timeout
        self._allowed = timeout + _TRACING
        self._last = time.monotonic()
        self._over = threading.Event()

    def __enter__(self) -> Watch:
        threading.Thread(target=self._run, daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        self._over.set()

    def stepped(self) -> None:
        """Note that a step is done."""
        self._last, self._allowed = time.monotonic(), self.timeout

    def _run(self) -> None:
        while not self._over.wait(min(1.0, self.timeout / 4)):
            if time.monotonic() - self._last > self._allowed:
                os.write(
                    2,
                    f"train: no step was done for {self._allowed:g} s: a worker hangs; end it and "
                    "start the same command on all, or raise --worker_timeout\n".encode(),
                )
                os._exit(2)


# An error that a worker ends by, among what TensorFlow adds to it on its way to the others.
_TOLD = re.compile(r"<ended: (.*?) :ended>", re.DOTALL)
_TELLING = 1.0  # seconds in which the others hear of it, while the chief still answers


@contextlib.contextmanager
def telling_others(found: Cluster | None) -> Iterator[None]:
    """Within: the other workers are told of an error that this one ends by, and end too.

    It would be the same again. A worker that is killed tells nobody and is waited for, as is one
    that ends by an error of TensorFlow's, which another's end may have caused.

    Args:
        found: the workers; None for those of the strategy in whose scope the caller is.
    """
    try:
        yield
    except (WorkerLost, tf.errors.OpError):
        raise
    except Exception as error:
        workers = here()
        if found or workers.count > 1:
            who = found.named(found.index) if found else f"worker {workers.index}"
            what = str(error) if isinstance(error, (InputError, OSError)) else repr(error)
            end_other_workers(f"<ended: {who} has ended: {one_line(what, 500)} :ended>")
            time.sleep(_TELLING)
        raise


def told(error: Exception) -> str | None:
    """Return by what another worker has ended, in words; None if it has told nothing."""
    match = _TOLD.search(str(error))
    return match and one_line(match[1])


_SINCE = "CASCADE_KERAS_WAITING_SINCE"  # when a worker was lost, of a process that started again


def start_again(lost: WorkerLost, timeout: float) -> None:
    """Replace this process by the same command anew, which waits for the lost worker.

    Args:
        lost: what has happened.
        timeout: seconds; not longer than that without a step.

    Raises:
        InputError: it was tried for that long.
    """
    since = time.time() if lost.stepped else float(os.environ.get(_SINCE, time.time()))
    waited = time.time() - since
    if waited > timeout:
        raise InputError(f"{lost.message}; it was waited for {waited:.0f} s", "worker_timeout")
    os.environ[_SINCE] = str(since)
    print(f"train: {lost.message}; waiting for it", file=sys.stderr, flush=True)
    sys.stdout.flush()
    time.sleep(1)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def waited_before() -> float:
    """Return for how many seconds a process that started again has waited already."""
    return max(0.0, time.time() - float(os.environ[_SINCE])) if _SINCE in os.environ else 0.0
