"""Over which devices a training goes: the strategy of ``tf.distribute`` that a name stands for."""

from __future__ import annotations

import tensorflow as tf

from cascade_keras.errors import InputError


def strategy_of(name: str) -> tf.distribute.Strategy:
    """Return a strategy; that in whose scope the caller is where ``name`` is "none".

    Args:
        name: "none"; "mirrored", all GPUs of this machine, or all CPUs that TensorFlow was told of;
            "auto", mirrored where there is more than one GPU.
    """
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    several = len(devices) > 1 and devices[0].device_type == "GPU"
    if name == "mirrored" or (name == "auto" and several):
        if tf.distribute.has_strategy():
            raise InputError("there is a strategy's scope already; leave it", "strategy")
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    return tf.distribute.get_strategy()


def described(strategy: tf.distribute.Strategy) -> str:
    """Return what a run goes over, in words."""
    count = strategy.num_replicas_in_sync
    devices = [tf.DeviceSpec.from_string(each) for each in strategy.extended.worker_devices]
    names = ", ".join(f"{each.device_type}:{each.device_index}" for each in devices)
    return f"{count} replicas ({names}), which share each batch" if count > 1 else f"one {names}"
