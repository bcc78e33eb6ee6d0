"""Trainings over several devices: the same weights as over one."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from support.files import ROOT

# Few decisions by the sign of a gradient near 0, which rounding changes: of one in a million or so
# there is another adversarial image, and after 20 steps other weights by far more than rounding.
COMMON = [
    "--dataset=digits", "--model=resnet8", "--steps=20", "--batch_size=14",
    "--adversarial_batch_size=6", "--max_epsilon=3", "--learning_rate=0.02", "--log_steps=7",
    "--eval_attacks=step_ll", "--tensorboard_images=4", "--tensorboard_attacks=step_ll",
]  # fmt: skip
PROGRAM = """
import json, sys
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from cascade_keras.cli.train import main
for flags in json.loads(sys.argv[1]):
    assert not main(["train", *flags])
"""


def kinds(folder):
    """Return the flags of each kind of training, by its name."""
    source = f"--cascade_source={folder}/saved/pivot"
    return {
        "pivot": ["--checkpoint_steps=11"],
        "bank": [source, "--cascade_mode=bank", "--bank_examples=60", f"--cascade_bank={folder}/b"],
        "online": [source, "--cascade_mode=online"],
    }


def places(folder, name):
    return [f"--runs_dir={folder}/runs", f"--saved_dir={folder}/saved", f"--name={name}"]


def train(*trainings, **environment):
    """Run trainings one after the other in a process of two logical devices."""
    import json

    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, json.dumps(trainings)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def weights(folder, name):
    return keras.models.load_model(folder / "runs" / name / "model.keras").get_weights()


def apart(folder, one, other):
    """Return the largest difference between two runs' weights."""
    pairs = zip(weights(folder, one), weights(folder, other), strict=True)
    return max(np.abs(a - b).max() for a, b in pairs)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run of each kind on one device."""
    folder = tmp_path_factory.mktemp("strategy")
    train(*([*COMMON, *places(folder, name), *own] for name, own in kinds(folder).items()))
    return folder


@pytest.mark.long
def test_mirrored_replicas_give_the_weights_of_one_device(alone):
    two = [
        [*COMMON, *places(alone, f"{name}-two"), *own, "--strategy=mirrored"]
        for name, own in kinds(alone).items()
    ]
    said = train(*two)
    assert said.count("mirrored: 2 replicas (CPU:0, CPU:1)") == 3
    for name in kinds(alone):
        assert apart(alone, name, f"{name}-two") < 1e-4, name
    # From a checkpoint of two devices one goes on, and says so.
    run = alone / "runs" / "pivot-two"
    for file in ("metrics.json", "model.keras", "checkpoints/step-00000020.keras"):
        (run / file).unlink()
    said = train([*COMMON, *places(alone, "pivot-two"), *kinds(alone)["pivot"]])
    assert "going on from step 11" in said and "with 2 of such replicas and goes on with 1" in said
    assert apart(alone, "pivot", "pivot-two") < 1e-4
