"""Lower trainings of bin/train to XLA programs, which a machine with JAX alone can run.

    python benchmarks/xla/lower_training.py --runs=FILE --data_dir=DATA --output=FOLDER

FILE has the flags of one ``bin/train`` a line; a line's ``--init_from`` may name the run of a line
above it, ``--cascade_source`` and ``--ensemble_source`` must. FOLDER is then all that
``run_training.py`` needs:

    PROGRAM.hlo.gz, .json, .npz    a loop over ``train_step``; what it reads; constants. One for all
                                   runs that differ in seed, schedule and weights only: their first
                                   ones and those of their sources
    CRAFTER.hlo.gz, .json, .npz    the images of a bank, a shard at a time, of any source's weights
    NAME.start.npz                 the first weights of a run without ``--init_from``
    NAME.given.npz                 of a run the learning rate of each step, the training images that
                                   are held out, and the mean image that its network subtracts
    NAME.cascade.npz               source and epsilon of each cascade image of all steps of a run
    DATA.npz                       the training images, in the order of the dataset
    runs.json                      of each run: program, data, seed, steps, keys of its epochs

The loop draws what bin/train draws without XLA: order, crops, flips, epsilons, attackers. Cascade
images come from banks, ``--cascade_mode=bank``, which are crafted where the run is trained.
What returns of a run with ``--use_ema`` has the weights and their averages: ``restore.py`` finishes
the run with these as bin/train does. It does not look at held-out images on its way, so nothing
can be chosen by them. Trainings in float16 are not lowered.
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
from collections.abc import Iterator, Mapping, Sequence
from unittest import mock

import keras
import numpy as np
import tensorflow as tf

from cascade_keras import bank, cascade, data, draws
from cascade_keras.attacks.arguments import PIXEL_LEVELS
from cascade_keras.attacks.searches import in_whole_batches
from cascade_keras.cli import flags
from cascade_keras.data.batching import CIFAR_PADDING, Batch
from cascade_keras.data.specs import AUGMENTS, sides_of
from cascade_keras.errors import InputError
from cascade_keras.keras_private import all_layers
from cascade_keras.options import TrainerOptions
from cascade_keras.runs import build
from cascade_keras.runs.settings import TrainingSettings, cascade_images, clean_images
from cascade_keras.runs.supply import ATTACK
from cascade_keras.runs.training_run import Training
from cascade_keras.sources import load_source
from cascade_keras.training import AdversarialTrainer

CHUNK = 1_000  # most steps of one call of a program
# What may differ between two runs of one program.
GIVEN = {
    *("seed", "steps", "epochs", "init_from", "validation_images"),
    *("learning_rate", "lr_schedule", "lr_peak", "lr_boundaries", "warmup_steps"),
}
MEASURED = {
    *("log_steps", "eval_attacks", "eval_epsilon", "eval_examples"),
    *("validation_steps", "validation_epsilon"),
}
# Flags that make another network, of a run that is a source.
OF_NETWORKS = (
    *("dataset", "model", "model_weights", "embedding_at", "normalization", "crop", "precision"),
    *("value_range", "from_logits", "logits", "embedding"),
)


def read_runs(file: str, data_dir: str, make: type[Training] = Training) -> list[Training]:
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
        training = make(flags.read(values, TrainingSettings).replace(data_dir=data_dir))
        check(training.settings, [each.settings.name for each in trainings])
        trainings.append(training)
    return trainings


def check(settings: TrainingSettings, above: Sequence[str] = ()) -> None:
    """Refuse what is not lowered.

    Args:
        settings: resolved.
        above: the names of the runs that may be its sources.

    Raises:
        InputError: naming the setting.
    """
    allowed = {"source_value_range": None, "keep_best": "none", "on_collapse": "warn"}
    for name, value in allowed.items():
        if getattr(settings, name, value) != value:
            raise InputError("is not lowered", name)
    if settings.cascade_source and settings.cascade_mode != "bank":
        raise InputError("only bank is lowered", "cascade_mode")
    for setting in ("cascade_source", "ensemble_source"):
        for name in names_of(getattr(settings, setting)):
            if name not in above:
                raise InputError(f"{name} is no run of a line above", setting)
    if settings.precision == "mixed_float16":
        raise InputError("mixed_float16 is not lowered", "precision")


def names_of(paths: Sequence[str]) -> list[str]:
    """Return the names of runs."""
    return [pathlib.Path(path).name for path in paths]


class GivenRate(keras.optimizers.schedules.LearningRateSchedule):
    """A rate that is a variable, assigned before each step."""

    def __init__(self):
        super().__init__()
        self.value = tf.Variable(0.0, name="learning_rate", trainable=False)

    def __call__(self, step):
        return self.value

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


def rates(settings: TrainingSettings) -> np.ndarray:
    """Return the learning rate of each step of a run, float32 (steps,), whatever its schedule."""
    rate = build.learning_rate_schedule(settings)
    if isinstance(rate, float):
        return np.full(settings.steps, rate, np.float32)
    each = tf.data.Dataset.range(settings.steps).map(lambda step: tf.cast(rate(step), tf.float32))
    return np.concatenate(list(each.batch(CHUNK).as_numpy_iterator()))


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


def pixels_of_crops(
    settings, image_shape, seed, step, count: int, partners: range = range(0)
) -> tf.Tensor:
    """Return which pixels of its image each of a batch consists of, as ``data.batches`` draws.

    Images at the places ``partners`` are centres, as their partners are made of these.
    """
    (rows, columns), (height, width) = sides_of(settings.crop), image_shape[:2]
    random = AUGMENTS[settings.augment]
    down, across = tf.range(rows)[None], tf.range(columns)[None]
    top = left = tf.zeros([count, 1], tf.int32)
    centred = tf.constant([[place in partners] for place in range(count)])
    if random.crop:
        top, left = draws.crops(seed, step, count, height - rows + 1, width - columns + 1)
        top = tf.where(centred, (height - rows) // 2, top)
        left = tf.where(centred, (width - columns) // 2, left)
    if random.flip:
        flip = draws.flips(seed, step, count) & ~centred
        across = tf.where(flip, across[:, ::-1], across)
    return (top + down)[:, :, None] * width + (left + across)[:, None, :]


def places_of_partners(settings: TrainingSettings) -> range:
    """Return the places in a batch of the images that have partners in banks."""
    attacked = settings.adversarial_batch_size
    return range(attacked - cascade_images(settings) * bool(settings.cascade_source), attacked)


def from_banks(banks: Sequence[tf.Tensor], source, place, shape: Sequence[int]) -> tf.Tensor:
    """Return images of banks, float32 (n, H, W, C) in [0, 1].

    Args:
        banks: uint8 (images, H W C) each.
        source, place: of each image, int32 (n,): in which bank it is, and the place there.
        shape: (H, W, C).
    """
    found = tf.gather(banks[0], place)
    for number, other in enumerate(banks[1:], 1):
        found = tf.where((source == number)[:, None], tf.gather(other, place), found)
    return tf.cast(tf.reshape(found, [-1, *shape]), tf.float32) / PIXEL_LEVELS


def make_program(trainer: Lowered, settings: TrainingSettings, image_shape) -> tf.function:
    """Return the loop: (pixels, labels, order, first, count, rates) -> the number of steps done.

    With cascade sources it takes more: source, place, then the images of each bank, see
    ``from_banks``; of each step those of the images at ``places_of_partners``.

    Args:
        trainer: whose variables are read and assigned.
        settings: resolved.
        image_shape: (H, W, C) of the images, see ``prepared``.
    """
    height, width, channels = image_shape
    batch_size, partners = clean_images(settings), places_of_partners(settings)
    shape = [batch_size, *sides_of(settings.crop), channels]

    @tf.function(jit_compile=True, autograph=False)
    def program(pixels, labels, order, first, count, rates, *given):
        def body(i):
            step, chosen = first + tf.cast(i, tf.int64), order[i]
            seed = trainer.given_seed
            crop = pixels_of_crops(settings, image_shape, seed, step, batch_size, partners)
            images = tf.gather(pixels, chosen[:, None, None] * (height * width) + crop)
            images = tf.cast(tf.reshape(images, shape), tf.float32) / PIXEL_LEVELS
            crafted = tf.zeros([0, *shape[1:]])
            if partners:
                source, place, *banks = given
                crafted = from_banks(banks, source[i], place[i], shape[1:])
            trainer.given_rate.value.assign(rates[i])
            trainer.train_step((Batch(images, step, crafted), tf.gather(labels, chosen)))
            return [i + 1]

        return tf.while_loop(lambda i: i < count, body, [tf.constant(0)])

    return program


def make_crafter(network: keras.Model, max_epsilon: float) -> tf.function:
    """Return a shard of a bank: (images, labels) -> uint8 (epsilons, n, H, W, C), as ``bank``'s."""
    epsilons = cascade.bank_epsilons(max_epsilon)
    make = bank.crafter(load_source(network).logits, ATTACK, epsilons)

    @tf.function(jit_compile=True, autograph=False)
    def program(images, labels):
        return make(images, labels, tf.constant(0))

    return program


def numbered(variables: Sequence[keras.Variable]) -> dict[str, keras.Variable]:
    """Return variables by place and name, as 003-kernel: layers' names differ from time to time."""
    return {f"{n:03d}-{v.path.rpartition('/')[-1]}": v for n, v in enumerate(variables)}


def named_variables(trainer: Lowered) -> dict[str, tf.Variable]:
    """Return all variables of a training by names that say what they are."""
    found = {}
    found |= prefixed("network", trainer.network)
    found |= {f"optimizer/{n}": v.value for n, v in numbered(trainer.optimizer.variables).items()}
    for name, tracker in trainer.trackers.items():
        found |= {f"metrics/{name}/{v.name}": v.value for v in tracker.variables}
    found["steps"], found["seed"] = trainer.steps.value, trainer.given_seed
    found["learning_rate"] = trainer.given_rate.value
    return found


def prefixed(owner: str, network: keras.Model) -> dict[str, tf.Variable | tf.Tensor]:
    """Return what tells a network from others of its layers, by names that begin with another.

    Its variables and what its normalisation subtracts, which is none.
    """
    named = {name: v.value for name, v in numbered(network.variables).items()} | means(network)
    return {f"{owner}/{name}": value for name, value in named.items()}


def means(network: keras.Model) -> dict[str, tf.Tensor]:
    """Return what each normalisation of a network subtracts, by its place: mean-0, mean-1."""
    layers = [each for each in all_layers(network) if _normalizes(each)]
    return {f"mean-{n}": layer.mean for n, layer in enumerate(layers)}


def _normalizes(layer: keras.Layer) -> bool:
    return isinstance(layer, keras.layers.Normalization) and tf.is_tensor(layer.mean)


def lower(
    trainer: Lowered,
    settings: TrainingSettings,
    images,
    path: pathlib.Path,
    ensemble: Sequence[keras.Model] = (),
) -> None:
    """Write a program: PATH.hlo.gz, PATH.json and PATH.npz.

    Args:
        trainer: compiled.
        settings: resolved.
        images: (N, H, W, C), see ``prepared``; only the shape counts.
        path: without suffix.
        ensemble: the networks that are the trainer's ensemble sources.
    """
    size, *image_shape = images.shape
    arguments = [
        tf.TensorSpec([images[..., 0].size, image_shape[-1]], tf.uint8),
        tf.TensorSpec([size], tf.int32),
        tf.TensorSpec([CHUNK, clean_images(settings)], tf.int32),
        tf.TensorSpec([], tf.int64),
        tf.TensorSpec([], tf.int32),
        tf.TensorSpec([CHUNK], tf.float32),
    ]
    if settings.cascade_source:
        arguments += [tf.TensorSpec([CHUNK, cascade_images(settings)], tf.int32)] * 2
        stored = len(cascade.bank_epsilons(settings.max_epsilon)) * bank_examples(settings, size)
        values = int(np.prod([*sides_of(settings.crop), image_shape[-1]]))
        arguments += [tf.TensorSpec([stored, values], tf.uint8)] * len(settings.cascade_source)
    variables = named_variables(trainer)
    sources = {}
    for number, network in enumerate(ensemble):
        sources |= prefixed(f"ensemble/{number}", network)
    record = {
        "images": size,
        "chunk": CHUNK,
        "batch": clean_images(settings),
        "variables": {n: [v.shape.as_list(), v.dtype.name] for n, v in variables.items()},
    }
    program = make_program(trainer, settings, image_shape)
    with draws_of_cpu(), in_whole_batches():
        save_program(program, arguments, {**variables, **sources}, record, path)


def lower_crafter(
    network: keras.Model, settings: TrainingSettings, size: int, channels: int, path: pathlib.Path
) -> None:
    """Write the program that crafts banks: PATH.hlo.gz, PATH.json and PATH.npz.

    Args:
        network: a source, of any weights.
        settings: of the run with that source.
        size: the number of training images.
        channels: of these.
        path: without suffix.
    """
    batch = min(bank.SHARD_SIZE, bank_examples(settings, size))
    shape = [*sides_of(settings.crop), channels]
    arguments = [tf.TensorSpec([batch, *shape]), tf.TensorSpec([batch], tf.int32)]
    record = {
        "batch": batch,
        "image_shape": shape,
        "epsilons": cascade.bank_epsilons(settings.max_epsilon),
    }
    program = make_crafter(network, settings.max_epsilon)
    save_program(program, arguments, prefixed("network", network), record, path)


def save_program(
    program: tf.function,
    arguments: Sequence[tf.TensorSpec],
    variables: Mapping[str, tf.Variable | tf.Tensor],
    record: dict,
    path: pathlib.Path,
) -> None:
    """Write a compiled function, what it reads after its arguments, and the constants of that.

    Args:
        program: compiled by XLA.
        arguments: that it is given.
        variables: that it may read, by names.
        record: what else the .json says.
        path: without suffix.
    """
    concrete = program.get_concrete_function(*arguments)
    serialized = program.experimental_get_compiler_ir(*arguments)(stage="hlo_serialized")
    names = {id(getattr(v, "handle", v)): name for name, v in variables.items()}
    inputs, constants = [], {}
    for captured in concrete.captured_inputs:
        name = names.get(id(captured))
        if name is None:
            name = f"constant/{len(constants)}"
            constants[name] = captured.numpy()
        inputs.append(name)
    record = {**record, "inputs": inputs, "tensorflow": tf.__version__}
    with gzip.open(f"{path}.hlo.gz", "wb") as file:
        file.write(serialized)
    np.savez(f"{path}.npz", **constants)
    pathlib.Path(f"{path}.json").write_text(json.dumps(record, indent=1))


def cascade_draws(settings: TrainingSettings) -> tuple[np.ndarray, np.ndarray]:
    """Return source and epsilon of the cascade images of each step, as ``BankPartners`` draws.

    Two uint8 (steps, c).
    """

    def draw(step):
        return cascade.draw(
            settings.seed,
            step,
            cascade_images(settings),
            len(settings.cascade_source),
            settings.max_epsilon,
            settings.epsilon_sampling,
        )

    drawn = tf.data.Dataset.range(settings.steps).map(draw).batch(CHUNK)
    source, epsilon = zip(*drawn.as_numpy_iterator(), strict=True)
    return np.concatenate(source).astype(np.uint8), np.concatenate(epsilon).astype(np.uint8)


def bank_examples(settings: TrainingSettings, size: int) -> int:
    """Return how many of ``size`` training images each bank has.

    Raises:
        InputError: more than there are.
    """
    if settings.bank_examples and settings.bank_examples > size:
        raise InputError(f"there are {size} training images", "bank_examples")
    return settings.bank_examples or size


def program_name(training: Training, sources: Mapping[str, Training]) -> str:
    """Return a name that runs share whose steps differ in nothing but what is given.

    Args:
        training: the run.
        sources: runs by their names, its ensemble sources among them.
    """
    rest = {k: v for k, v in training.flags.items() if k not in GIVEN | MEASURED}
    settings = training.settings
    if settings.distance_ramp != "constant":  # whose steps are in the program
        rest["steps"] = settings.steps
    rest["cascade_source"] = [None] * len(settings.cascade_source)  # a bank is like another
    rest["ensemble_source"] = [
        network_of(sources[name]) for name in names_of(settings.ensemble_source)
    ]
    return f"{training.preset.name}-{settings.loss}-{settings.precision}-{digest(rest)}"


def crafter_name(training: Training, source: Training) -> str:
    """Return a name that the crafters of all sources of one network share."""
    settings = training.settings
    rest = [network_of(source), settings.crop, settings.max_epsilon, settings.bank_examples]
    return f"{training.preset.name}-crafter-{source.settings.precision}-{digest(rest)}"


def network_of(source: Training) -> dict:
    """Return what makes another network of a source."""
    return {name: source.flags[name] for name in OF_NETWORKS}


def digest(values) -> str:
    """Return six letters that tell values from others."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:6]


def data_name(training: Training) -> str:
    """Return the name of the file of a run's images."""
    settings = training.settings
    return "-".join([training.preset.name, settings.augment, *map(str, sides_of(settings.crop))])


def record_of(training: Training, size: int, sources: Mapping[str, Training]) -> dict:
    """Return what ``run_training.py`` is told of a run with ``size`` training images."""
    settings = training.settings
    trained = size - settings.validation_images
    epochs = -(-settings.steps * clean_images(settings) // trained)
    cascade_sources = names_of(settings.cascade_source)
    return {
        "name": settings.name,
        "program": program_name(training, sources),
        "data": data_name(training),
        "init_from": settings.init_from and pathlib.Path(settings.init_from).name,
        "steps": settings.steps,
        "given": {"seed": settings.seed},
        "epoch_keys": [draws.order_key(settings.seed, n).numpy().tolist() for n in range(epochs)],
        "cascade": {
            "sources": cascade_sources,
            "crafters": [crafter_name(training, sources[name]) for name in cascade_sources],
            "examples": bank_examples(settings, size),
            "first_place": places_of_partners(settings).start,
        },
        "ensemble": names_of(settings.ensemble_source),
    }


class Writer:
    """Writes all that ``run_training.py`` needs into a folder.

    Args:
        trainings: whose sources are among them.
        output: the folder.
    """

    def __init__(self, trainings: Sequence[Training], output: pathlib.Path):
        self.trainings = trainings
        self.output = output
        self.named = {training.settings.name: training for training in trainings}
        self._datasets, self._packed, self._done = {}, {}, set()

    def write(self) -> None:
        """Write it."""
        self.output.mkdir(parents=True, exist_ok=True)
        runs = []
        for training in self.trainings:
            self._write_data(training)
            with build.precision(training.settings.precision):
                self._write_training(training)
            self._write_cascade(training)
            size = len(self._packed[data_name(training)])
            runs.append(record_of(training, size, self.named))
            name, program = runs[-1]["name"], runs[-1]["program"]
            print(f"{name}: {training.settings.steps:,} steps of {program}", flush=True)
        (self.output / "runs.json").write_text(json.dumps(runs))

    def _is_new(self, program: str) -> bool:
        """Whether a program is yet to be written, which it is counted as from now on."""
        is_new = program not in self._done
        self._done.add(program)
        return is_new

    def _write_data(self, training: Training) -> None:
        name = data_name(training)
        if name in self._packed:
            return
        dataset = data.load(training.preset, training.settings.data_dir)
        packed = prepared(np.asarray(dataset.train[0]), training.settings)
        self._datasets[name], self._packed[name] = dataset, packed
        np.savez_compressed(self.output / f"{name}.npz", images=packed, labels=dataset.train[1])

    def _write_training(self, training: Training) -> None:
        settings, name = training.settings, data_name(training)
        keras.utils.set_random_seed(settings.seed)
        network = build.build_network(settings, self._datasets[name])
        start = {k: v.numpy() for k, v in prefixed("network", network).items()}
        if not settings.init_from:
            np.savez(self.output / f"{settings.name}.start.npz", **start)
        held_out = build.held_out(settings, self._datasets[name])
        own = {f"network/{mean}": start[f"network/{mean}"] for mean in means(network)}
        file = self.output / f"{settings.name}.given.npz"
        np.savez_compressed(file, rates=rates(settings), held_out=held_out, **own)
        program = program_name(training, self.named)
        if not self._is_new(program):
            return
        ensemble = list(map(self._network, names_of(settings.ensemble_source)))
        sources = list(map(load_source, ensemble))
        trainer = build.build_trainer(settings, network, ensemble_sources=sources, make=Lowered)
        lower(trainer, settings, self._packed[name], self.output / program, ensemble)

    def _write_cascade(self, training: Training) -> None:
        settings = training.settings
        if not settings.cascade_source:
            return
        source, epsilon = cascade_draws(settings)
        file = self.output / f"{settings.name}.cascade.npz"
        np.savez_compressed(file, source=source, epsilon=epsilon)
        size, *_, channels = self._packed[data_name(training)].shape
        for name in names_of(settings.cascade_source):
            crafter = crafter_name(training, self.named[name])
            if self._is_new(crafter):
                network = self._network(name)
                lower_crafter(network, settings, size, channels, self.output / crafter)

    def _network(self, name: str) -> keras.Model:
        """Return a network like that of a run, of some weights."""
        source = self.named[name]
        with build.precision(source.settings.precision):
            return build.build_network(source.settings, self._datasets[data_name(source)])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", required=True, help="file with the flags of one run a line")
    parser.add_argument("--data_dir", required=True, help="as of bin/train")
    parser.add_argument("--output", required=True, type=pathlib.Path, help="folder")
    options = parser.parse_args()
    try:
        Writer(read_runs(options.runs, options.data_dir), options.output).write()
    except InputError as error:
        sys.exit(f"lower_training: {error.setting or ''} {error.message}")


if __name__ == "__main__":
    main()
