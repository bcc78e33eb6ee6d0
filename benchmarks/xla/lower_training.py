"""Lower trainings of bin/train to XLA programs, which a machine with JAX alone can run.

    python benchmarks/xla/lower_training.py --runs=FILE --data_dir=DATA --output=FOLDER

FILE has the flags of one ``bin/train`` a line; a line's ``--init_from`` may name the run of a line
above it. FOLDER is then all that ``run_training.py`` needs:

    PROGRAM.hlo.gz, .json, .npz    a loop over ``train_step``; what it reads; constants. One for all
                                   runs that differ in seed, schedule and first weights only
    NAME.start.npz                 the first weights of a run without ``--init_from``
    DATA.npz                       the training images, in the order of the dataset
    runs.json                      of each run: program, data, seed, schedule, keys of its epochs

The loop draws what bin/train draws without XLA: order, crops, flips, epsilons. Trainings with
cascade or ensemble sources, in float16, or with moving averages of the weights are not lowered.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gzip
import hashlib
import json
import pathlib
import shlex
import sys
from collections.abc import Iterator, Sequence
from unittest import mock

import keras
import numpy as np
import tensorflow as tf

from cascade_keras import data, draws
from cascade_keras.attacks.arguments import PIXEL_LEVELS
from cascade_keras.cli import flags
from cascade_keras.data.batching import CIFAR_PADDING, Batch
from cascade_keras.data.specs import AUGMENTS, sides_of
from cascade_keras.errors import InputError
from cascade_keras.options import TrainerOptions
from cascade_keras.runs import build
from cascade_keras.runs.settings import TrainingSettings, clean_images
from cascade_keras.runs.training_run import Training
from cascade_keras.training import AdversarialTrainer

CHUNK = 1_000  # most steps of one call of a program
MOST_BOUNDARIES = 6  # of a learning rate
NEVER = np.iinfo(np.int64).max
# What may differ between two runs of one program.
GIVEN = {"seed", "steps", "epochs", "lr_boundaries", "warmup_steps", "learning_rate", "init_from"}
MEASURED = {"log_steps", "eval_attacks", "eval_epsilon", "eval_examples"}


def read_runs(file: str, data_dir: str) -> list[Training]:
    """Return the trainings of a file with the flags of one bin/train a line.

    Raises:
        InputError: a line that is none, or a training that is not lowered.
    """
    trainings = []
    for line in pathlib.Path(file).read_text().splitlines():
        arguments = shlex.split(line, comments=True)
        if not arguments:
            continue
        values = flags.define(TrainingSettings)
        rest = flags.parse(values, ["train", *arguments])
        if rest:
            raise InputError(f"{file}: {rest[0]} is no flag of bin/train")
        training = Training(flags.read(values, TrainingSettings).replace(data_dir=data_dir))
        check(training.settings)
        trainings.append(training)
    return trainings


def check(settings: TrainingSettings) -> None:
    """Refuse what is not lowered.

    Raises:
        InputError: naming the setting.
    """
    allowed = {"cascade_source": (), "ensemble_source": (), "use_ema": False}
    for name, value in allowed.items():
        if getattr(settings, name) != value:
            raise InputError("is not lowered", name)
    if settings.precision == "mixed_float16":
        raise InputError("mixed_float16 is not lowered", "precision")
    if len(settings.lr_boundaries) >= MOST_BOUNDARIES:
        raise InputError(f"must be fewer than {MOST_BOUNDARIES}", "lr_boundaries")


class GivenRate(keras.optimizers.schedules.LearningRateSchedule):
    """A piecewise constant rate whose boundaries and values are variables."""

    def __init__(self):
        super().__init__()
        self.boundaries = tf.Variable([NEVER] * MOST_BOUNDARIES, name="lr_boundaries")
        self.values = tf.Variable([0.0] * (MOST_BOUNDARIES + 1), name="lr_values")

    def __call__(self, step):
        passed = tf.cast(step, tf.int64) > self.boundaries
        return self.values[tf.reduce_sum(tf.cast(passed, tf.int32))]

    def get_config(self):
        return {}


@dataclasses.dataclass(frozen=True)
class GivenSeed(TrainerOptions):
    """Options that were checked before; their seed is a variable."""

    def __post_init__(self):
        pass


class Lowered(AdversarialTrainer):
    """The trainer with seed and learning rate as variables, so that one program does for all."""

    def compile(self, optimizer, **kwargs):
        self.given_rate = GivenRate()
        self.given_seed = tf.Variable(0, dtype=tf.int32, name="seed", trainable=False)
        options = dataclasses.asdict(self.options)
        self.options = GivenSeed(**{**options, "seed": self.given_seed})
        config = {**optimizer.get_config(), "learning_rate": 0.0}
        given = type(optimizer).from_config(config)
        given.learning_rate = self.given_rate
        super().compile(optimizer=given, **kwargs)


def schedule(settings: TrainingSettings) -> tuple[np.ndarray, np.ndarray]:
    """Return boundaries, int64, and values, float32, of a run as ``GivenRate`` takes them."""
    rate = build.learning_rate_schedule(settings)
    boundaries, values = ([], [rate]) if isinstance(rate, float) else (rate.boundaries, rate.values)
    missing = MOST_BOUNDARIES - len(boundaries)
    return (
        np.array([*boundaries, *[NEVER] * missing], np.int64),
        np.array([*values, *values[-1:] * missing], np.float32),
    )


@contextlib.contextmanager
def draws_of_cpu() -> Iterator[None]:
    """Within: draws are traced so that XLA makes the numbers of TensorFlow's CPU kernels.

    Both have the same random bits. XLA makes a float of the upper 23 of 32, TensorFlow of the lower
    23; normal numbers are made of two of these by Box and Muller.
    """
    uniform = tf.random.stateless_uniform

    def unit(bits: tf.Tensor) -> tf.Tensor:
        return tf.bitcast((bits & 0x7FFFFF) | (127 << 23), tf.float32) - 1.0

    def drawn(shape, seed, minval=0, maxval=None, dtype=tf.float32, name=None, alg=None):
        if dtype != tf.float32:
            return uniform(shape, seed, minval, maxval, dtype, name, alg)
        found = unit(uniform(shape, seed, None, None, tf.uint32, alg=alg))
        return found if maxval is None else found * (maxval - minval) + minval

    def normal(shape, seed, mean=0.0, stddev=1.0, dtype=tf.float32, name=None, alg=None):
        del dtype, name
        count = tf.reduce_prod(shape)
        bits = uniform([count + count % 2], seed, None, None, tf.uint32, alg=alg)
        pairs = unit(tf.reshape(bits, [-1, 2]))
        radius = tf.sqrt(-2.0 * tf.math.log(tf.maximum(pairs[:, 0], 1e-7)))
        angle = np.float32(2 * np.pi) * pairs[:, 1]
        both = tf.stack([tf.sin(angle) * radius, tf.cos(angle) * radius], axis=1)
        return tf.reshape(tf.reshape(both, [-1])[:count], shape) * stddev + mean

    with (
        mock.patch.object(tf.random, "stateless_uniform", drawn),
        mock.patch.object(tf.random, "stateless_normal", normal),
    ):
        yield


def margins(settings: TrainingSettings, image_shape: Sequence[int]) -> list[int]:
    """Return by how many black pixels each side of an image is padded before a random crop."""
    padded = CIFAR_PADDING * AUGMENTS[settings.augment].crop
    return [
        padded * (crop == own)
        for crop, own in zip(sides_of(settings.crop), image_shape[:2], strict=True)
    ]


def prepared(images: np.ndarray, settings: TrainingSettings) -> np.ndarray:
    """Return images as a program takes them: padded, or their centres where nothing is random."""
    if not AUGMENTS[settings.augment].crop:
        return data.centre_crop(images, settings.crop)
    padding = [(margin, margin) for margin in margins(settings, images.shape[1:])]
    return np.pad(images, ((0, 0), *padding, (0, 0)))


def pixels_of_crops(settings, image_shape, seed, step, count: int) -> tf.Tensor:
    """Return which pixels of its image each of a batch consists of, as ``data.batches`` draws."""
    (rows, columns), (height, width) = sides_of(settings.crop), image_shape[:2]
    random = AUGMENTS[settings.augment]
    down, across = tf.range(rows)[None], tf.range(columns)[None]
    top = left = tf.zeros([count, 1], tf.int32)
    if random.crop:
        top, left = draws.crops(seed, step, count, height - rows + 1, width - columns + 1)
    if random.flip:
        across = tf.where(draws.flips(seed, step, count), across[:, ::-1], across)
    return (top + down)[:, :, None] * width + (left + across)[:, None, :]


def make_program(trainer: Lowered, settings: TrainingSettings, image_shape) -> tf.function:
    """Return the loop: (pixels, labels, order, first, count) -> the number of steps done.

    Args:
        trainer: whose variables are read and assigned.
        settings: resolved.
        image_shape: (H, W, C) of the images, see ``prepared``.
    """
    height, width, channels = image_shape
    batch_size = clean_images(settings)
    shape = [batch_size, *sides_of(settings.crop), channels]

    @tf.function(jit_compile=True, autograph=False)
    def program(pixels, labels, order, first, count):
        def body(i):
            step, chosen = first + tf.cast(i, tf.int64), order[i]
            crop = pixels_of_crops(settings, image_shape, trainer.given_seed, step, batch_size)
            images = tf.gather(pixels, chosen[:, None, None] * (height * width) + crop)
            images = tf.cast(tf.reshape(images, shape), tf.float32) / PIXEL_LEVELS
            batch = Batch(images, step, tf.zeros([0, *shape[1:]]))
            trainer.train_step((batch, tf.gather(labels, chosen)))
            return [i + 1]

        return tf.while_loop(lambda i: i < count, body, [tf.constant(0)])

    return program


def numbered(variables: Sequence[keras.Variable]) -> dict[str, keras.Variable]:
    """Return variables by place and name, as 003-kernel: layers' names differ from time to time."""
    return {f"{n:03d}-{v.path.rpartition('/')[-1]}": v for n, v in enumerate(variables)}


def named_variables(trainer: Lowered) -> dict[str, tf.Variable]:
    """Return all variables of a training by names that say what they are."""
    found = {}
    for owner in ("network", "optimizer"):
        for name, variable in numbered(getattr(trainer, owner).variables).items():
            found[f"{owner}/{name}"] = variable.value
    for name, tracker in trainer.trackers.items():
        found |= {f"metrics/{name}/{v.name}": v.value for v in tracker.variables}
    found["steps"], found["seed"] = trainer.steps.value, trainer.given_seed
    found["lr_boundaries"], found["lr_values"] = (
        trainer.given_rate.boundaries,
        trainer.given_rate.values,
    )
    return found


def lower(trainer: Lowered, settings: TrainingSettings, images, path: pathlib.Path) -> None:
    """Write a program: PATH.hlo.gz, PATH.json and PATH.npz.

    Args:
        trainer: compiled.
        settings: resolved.
        images: (N, H, W, C), see ``prepared``; only the shape counts.
        path: without suffix.
    """
    size, *image_shape = images.shape
    program = make_program(trainer, settings, image_shape)
    arguments = (
        tf.TensorSpec([images[..., 0].size, image_shape[-1]], tf.uint8),
        tf.TensorSpec([size], tf.int32),
        tf.TensorSpec([CHUNK, clean_images(settings)], tf.int32),
        tf.TensorSpec([], tf.int64),
        tf.TensorSpec([], tf.int32),
    )
    with draws_of_cpu():
        concrete = program.get_concrete_function(*arguments)
    serialized = program.experimental_get_compiler_ir(*arguments)(stage="hlo_serialized")
    variables = named_variables(trainer)
    names = {id(v.handle): name for name, v in variables.items()}
    inputs, constants = [], {}
    for captured in concrete.captured_inputs:
        name = names.get(id(captured))
        if name is None:  # such as the mean image
            name = f"constant/{len(constants)}"
            constants[name] = captured.numpy()
        inputs.append(name)
    record = {
        "images": size,
        "chunk": CHUNK,
        "batch": clean_images(settings),
        "inputs": inputs,
        "variables": {n: [v.shape.as_list(), v.dtype.name] for n, v in variables.items()},
        "tensorflow": tf.__version__,
    }
    with gzip.open(f"{path}.hlo.gz", "wb") as file:
        file.write(serialized)
    np.savez(f"{path}.npz", **constants)
    pathlib.Path(f"{path}.json").write_text(json.dumps(record, indent=1))


def program_name(training: Training) -> str:
    """Return a name that runs share whose steps differ in nothing but what is given."""
    rest = {k: v for k, v in training.flags.items() if k not in GIVEN | MEASURED}
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()[:6]
    settings = training.settings
    return f"{training.preset.name}-{settings.loss}-{settings.precision}-{digest}"


def data_name(training: Training) -> str:
    """Return the name of the file of a run's images."""
    settings = training.settings
    return "-".join([training.preset.name, settings.augment, *map(str, sides_of(settings.crop))])


def record_of(training: Training, size: int) -> dict:
    """Return what ``run_training.py`` is told of a run with ``size`` training images."""
    settings = training.settings
    boundaries, values = schedule(settings)
    epochs = -(-settings.steps * clean_images(settings) // size)
    return {
        "name": settings.name,
        "program": program_name(training),
        "data": data_name(training),
        "init_from": settings.init_from and pathlib.Path(settings.init_from).name,
        "steps": settings.steps,
        "given": {
            "seed": settings.seed,
            "lr_boundaries": boundaries.tolist(),
            "lr_values": values.tolist(),
        },
        "epoch_keys": [draws.order_key(settings.seed, n).numpy().tolist() for n in range(epochs)],
    }


def write(trainings: Sequence[Training], output: pathlib.Path) -> None:
    """Write all that ``run_training.py`` needs into a folder."""
    output.mkdir(parents=True, exist_ok=True)
    datasets, packed, runs, done = {}, {}, [], set()
    for training in trainings:
        settings, name = training.settings, data_name(training)
        if name not in packed:
            dataset = datasets[name] = data.load(training.preset, settings.data_dir)
            packed[name] = prepared(np.asarray(dataset.train[0]), settings)
            np.savez_compressed(
                output / f"{name}.npz", images=packed[name], labels=dataset.train[1]
            )
        program = program_name(training)
        keras.utils.set_random_seed(settings.seed)
        with build.precision(settings.precision):
            network = build.build_network(settings, datasets[name])
            if not settings.init_from:
                start = {f"network/{k}": v.numpy() for k, v in numbered(network.variables).items()}
                np.savez(output / f"{settings.name}.start.npz", **start)
            if program not in done:
                trainer = build.build_trainer(settings, network, make=Lowered)
                lower(trainer, settings, packed[name], output / program)
                done.add(program)
        runs.append(record_of(training, len(packed[name])))
        print(f"{settings.name}: {settings.steps:,} steps of {program}", flush=True)
    (output / "runs.json").write_text(json.dumps(runs))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", required=True, help="file with the flags of one run a line")
    parser.add_argument("--data_dir", required=True, help="as of bin/train")
    parser.add_argument("--output", required=True, type=pathlib.Path, help="folder")
    options = parser.parse_args()
    try:
        write(read_runs(options.runs, options.data_dir), options.output)
    except InputError as error:
        sys.exit(f"lower_training: {error.setting or ''} {error.message}")


if __name__ == "__main__":
    main()
