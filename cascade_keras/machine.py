"""What the machine is that work runs on; needs no TensorFlow but to name its devices."""

from __future__ import annotations

import functools
import os
import pathlib
import platform

_CPUINFO = pathlib.Path("/proc/cpuinfo")


@functools.cache
def _cpuinfo() -> dict[str, str]:
    """Return what Linux says of the first core; nothing elsewhere."""
    try:
        first = _CPUINFO.read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def processor() -> str:
    """Return the name of the processor, where the system tells."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def cores() -> int:
    """Return how many cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def devices() -> str:
    """Return in words what TensorFlow computes on here: the GPUs of the strategy, or the CPU."""
    import tensorflow as tf

    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    found = tf.config.list_logical_devices("GPU")
    name = f"CPU {processor()}"
    if found:
        first = tf.config.list_physical_devices("GPU")[0]
        details = tf.config.experimental.get_device_details(first)
        name = f"GPU {details.get('device_name', '')}".rstrip()
    return name if replicas == 1 else f"{replicas} replicas on {name}"


def threads() -> str:
    """Return in words how many threads an operation of TensorFlow's may use on the CPU."""
    import tensorflow as tf

    count = tf.config.threading.get_intra_op_parallelism_threads() or cores()
    return f"{count} thread{'s' * (count > 1)}"


def bfloat16() -> tuple[str, ...]:
    """Return by which instructions the processor computes in bfloat16; () where none are known."""
    known = (_cpuinfo().get("flags") or _cpuinfo().get("Features") or "").split()
    return tuple(name for name in ("amx_bf16", "avx512_bf16", "bf16") if name in known)


def lacks_bfloat16() -> bool:
    """Whether bfloat16 is slow here: no GPU, and a processor that is known not to compute in it.

    Such numbers become float32 and bfloat16 again in every operation.
    """
    import tensorflow as tf

    told = "flags" in _cpuinfo() or "Features" in _cpuinfo()
    return told and not bfloat16() and not tf.config.list_logical_devices("GPU")
