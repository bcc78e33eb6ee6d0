"""What a training says of the machine, and how long it will take."""

import io
import os
import types

import keras
import pytest
import rich.console
import tensorflow as tf

from cascade_keras import machine
from cascade_keras.errors import InputError
from cascade_keras.keras_private import check_version, precisions
from cascade_keras.runs import callbacks
from cascade_keras.runs.session import Session

CPUINFO = """processor\t: 0
model name\t: A processor: the fast one
flags\t\t: fpu avx512f amx_bf16

processor\t: 1
model name\t: Another
"""


@pytest.fixture
def cpuinfo(tmp_path, monkeypatch):
    file = tmp_path / "cpuinfo"
    monkeypatch.setattr(machine, "_CPUINFO", file)
    machine._cpuinfo.cache_clear()
    yield file
    machine._cpuinfo.cache_clear()


def test_the_processor_is_what_the_system_says(cpuinfo):
    cpuinfo.write_text(CPUINFO)
    assert machine.processor() == "A processor: the fast one"


def test_a_system_without_cpuinfo_is_described_too(cpuinfo):
    assert machine.processor()
    assert machine.devices().startswith("CPU ")
    assert not machine.lacks_bfloat16()  # as nobody knows


def test_threads_are_those_that_tensorflow_uses(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 3, 5}, raising=False)
    assert machine.threads() == "3 threads"
    monkeypatch.setattr(tf.config.threading, "get_intra_op_parallelism_threads", lambda: 1)
    assert machine.threads() == "1 thread"


SLOWER = ", slower than float32 on this processor"


@pytest.mark.parametrize("instructions, slower", [("amx_bf16 avx512_bf16", ""), ("sse2", SLOWER)])
def test_what_a_training_runs_on_is_one_line(cpuinfo, instructions, slower):
    cpuinfo.write_text(CPUINFO.replace("amx_bf16", instructions))
    assert machine.bfloat16() == (() if slower else tuple(instructions.split()))
    dense = keras.layers.Dense(3, dtype="mixed_bfloat16")
    session = Session.__new__(Session)
    network = keras.Sequential([keras.Input((2,)), dense])
    session.trainer = types.SimpleNamespace(
        network=network, jit_compile=True, distribute_strategy=tf.distribute.get_strategy()
    )
    assert session._runs_on == (
        f"training on CPU A processor: the fast one: {machine.threads()}, mixed_bfloat16{slower}, "
        "with XLA"
    )
    dense = keras.layers.Dense(3)
    session.trainer.network = keras.Sequential([keras.Input((2,)), dense])
    assert SLOWER not in session._runs_on


def test_layers_of_any_precision_are_found():
    layers = [keras.layers.Dense(3, dtype=name) for name in ("float32", "mixed_bfloat16")]
    assert precisions(keras.Sequential([keras.Input((2,)), layers[0]])) == ["float32"]
    assert precisions(keras.Sequential([keras.Input((2,)), *layers])) == ["mixed_bfloat16"]


@pytest.mark.parametrize("terminal", [False, True])
def test_the_time_left_is_estimated_by_the_first_steps(monkeypatch, terminal):
    """Steps of 2 s after a first one of 100 s: after 3 of them 6 s are enough to tell."""
    now = [0.0]
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: now[0])
    report = callbacks.Report(tf.summary.create_noop_writer(), 10, 1010, 128, 50)
    shown = io.StringIO()
    report.console = rich.console.Console(file=shown, force_terminal=terminal)
    report.set_model(types.SimpleNamespace(steps_done=10))
    report.on_train_begin()
    for seconds in (100, *[2] * 8):
        report.on_train_batch_begin(0)
        now[0] += seconds
        report.model.steps_done += 1
        report.on_train_batch_end(0, {})
    lines = [line for line in shown.getvalue().splitlines() if "min left" in line]
    left = (1010 - 14) * 2 / 60
    wanted = [f"step 14/1010  2 s a step, measured on 3  {left:.1f} min left"]
    assert lines == ([] if terminal else wanted)


def test_nothing_is_estimated_of_a_training_that_is_soon_over(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: now[0])
    report = callbacks.Report(tf.summary.create_noop_writer(), 0, 20, 128, 50)
    report.console = rich.console.Console(file=io.StringIO())
    report.set_model(types.SimpleNamespace(steps_done=0))
    report.on_train_begin()
    for _ in range(10):
        report.on_train_batch_begin(0)
        now[0] += 2
        report.model.steps_done += 1
        report.on_train_batch_end(0, {})
    assert not report.console.file.getvalue()


@pytest.mark.parametrize("version, fits", [
    ("3.10.0", False), ("3.14.1", False), ("2.15.0", False), ("3.15.0", True), ("3.16.0rc0", True),
    ("4.0.0", True),
])  # fmt: skip
def test_a_keras_that_computes_something_else_is_refused(version, fits):
    if fits:
        check_version(version)
        return
    with pytest.raises(InputError, match=f"this is {version}"):
        check_version(version)
