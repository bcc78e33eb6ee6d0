"""All that a training can be told, with what follows from the dataset; needs no TensorFlow."""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
import re
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from cascade_keras import collapse, presets, recipes
from cascade_keras.attacks import specs as attacks
from cascade_keras.data import specs as data
from cascade_keras.data.settings import SIDES, DataSettings, parse_sides
from cascade_keras.errors import InputError, about
from cascade_keras.files import expand, named_twice
from cascade_keras.learned import dataset_of
from cascade_keras.losses import specs as losses
from cascade_keras.models import forms
from cascade_keras.models import specs as models
from cascade_keras.provenance import locate, saved_versions
from cascade_keras.ranges import UNIT
from cascade_keras.runs.run import Run
from cascade_keras.settings import (
    EPSILON,
    EPSILONS,
    FRACTION,
    LAYER,
    NOT_NEGATIVE,
    PER_CENT,
    POSITIVE,
    SEED,
    SHARE,
    SOME,
    VALUE_RANGE,
    Rule,
    Settings,
    check_apart,
    from_logits_setting,
    logits_setting,
    said_of_logits,
    setting,
    trust_setting,
    value_range_setting,
)

LR_SCHEDULES, LR_PEAK = ("steps", "triangular", "cosine"), 0.4
XLA = {"auto": "auto", "on": True, "off": False}  # as Keras's compile is told
# Settings that say something of the looks at held-out images.
UNSET_WITHOUT_VALIDATION = {
    "validation_steps": 0, "validation_epsilon": None, "keep_best": "none", "on_collapse": "warn",
}  # fmt: skip
ON_COLLAPSE = ("warn", "stop", "restore")
LOOKS = 20  # at held-out images, where nothing says how many
NAME = Rule(
    lambda v: bool(re.fullmatch(r"[\w.+-]{1,100}", v) and v.strip(".")),
    "a folder name of at most 100 letters, digits, . + - _",
)
BOUNDARIES = Rule(
    lambda v: all(step >= 1 for step in v) and list(v) == sorted(v),
    "none or increasing steps from 1 on such as 4000,6000",
)


def _default(option: str) -> str:
    return f"Default: {losses.default_in_words(option)}."


@dataclasses.dataclass(frozen=True)
class TrainingSettings(DataSettings):
    """What a training is told; each field is a flag of ``bin/train`` too.

    None stands for what the dataset's row says, see ``resolved``. Fields that are operational do
    not change what is computed, so they may differ when a run goes on. A subclass adds a setting,
    and with it a flag, by one field.
    """

    # What to learn, by which network.
    model: str = setting(
        "resnet20",
        lambda: (
            f"The network: {models.known_names()}; those of _e2 and _e10x2 have the 2-D "
            "embeddings of figure 4. Or app:NAME of keras.applications such as app:MobileNetV2, a "
            ".keras or .h5 file, whose weights the training starts from, or module:function, which "
            "is given (input_shape, num_classes) and returns a Keras model."
        ),
    )
    model_weights: str | None = setting(
        None,
        "A local .weights.h5 or .h5 file of the weights of an app:NAME without its top; default: "
        "new ones.",
        path=True,
    )
    value_range: tuple[float, ...] | None = value_range_setting()
    from_logits: str = from_logits_setting()
    logits: str | None = logits_setting()
    embedding: str | None = setting(
        None,
        "The layer or output where the distance is measured, by its name, of any network.",
        LAYER,
    )
    loss: str = setting("pivot", "How the network is defended.", choices=lambda: losses.LOSSES)
    init_from: str | None = setting(
        None,
        "A run's directory, a saved network, zoo:NAME, or a .keras, .h5 or .weights.h5 file whose "
        "weights to start from.",
        path=True,
    )
    embedding_at: str = setting(
        "logits",
        "Where the distance is measured in a network of ours: logits, features, stem, stage1, "
        "stage2, stage3, or bottleneck; in an application: logits or features.",
    )
    normalization: str | None = setting(
        None,
        "Input normalisation; default: pixel for CIFAR, none otherwise.",
        choices=lambda: models.NORMALIZATIONS,
    )
    # One number, or a pair where the sides differ.
    crop: tuple[int, ...] | None = setting(
        None,
        "Side of what the network sees, or height,width; CIFAR: 24, a random crop, or 32, a random "
        "crop of the image padded to 40. Default: the published one, else the whole image.",
        SIDES,
        parse=parse_sides,
        repeats=True,
    )
    augment: str | None = setting(
        None,
        "What is done with training images: crop cuts at a random place, sides that are kept "
        "whole padded by 4 black pixels; flip turns one in two left to right. Default: crop_flip "
        "for CIFAR, none otherwise.",
        choices=lambda: data.AUGMENTS,
    )

    # Adversarial images.
    batch_size: int = setting(128, "m, clean and adversarial images.", POSITIVE)
    adversarial_batch_size: int = setting(64, "k, adversarial images among the m.", POSITIVE)
    max_epsilon: float | None = setting(
        None,
        "Largest epsilon in training, 0..255; default: 16 for CIFAR, 76.5 otherwise.",
        EPSILON,
    )
    adversarial_weight: float | None = setting(
        None, lambda: f"lambda. {_default('adversarial_weight')}", NOT_NEGATIVE
    )
    distance_weight: float | None = setting(
        None, lambda: f"lambda_2. {_default('distance_weight')}", NOT_NEGATIVE
    )
    distance_ramp: str = setting(
        "constant",
        "Of lambda_2 over the training: constant; linear, from 0; late, twice in the last fifth.",
        choices=losses.RAMPS,
    )
    distance: str | None = setting(
        None,
        lambda: (
            "Distance between embeddings; softmax: of their probabilities; nuclear: the nuclear "
            f"norm of a batch's differences. {_default('distance')}"
        ),
        choices=losses.DISTANCES,
        auto=True,
    )
    clean_embedding: str | None = setting(
        None,
        "Whether the distance moves the embedding of the clean image; default: constant for pivot "
        "and guided.",
        choices=(losses.CONSTANT, losses.MOVES),
        auto=True,
    )
    embedding_normalization: str = setting(
        "none",
        "Of both embeddings before the distance.",
        choices=("none", "unit", "variance"),
    )
    pivot_guard: str | None = setting(
        None,
        lambda: (
            "fixed_scale keeps the pivot loss from inflating all embeddings; none: as printed. "
            f"{_default('pivot_guard')} With the distance softmax none."
        ),
        choices=(losses.GUARDED, losses.UNGUARDED),
    )
    paired_weight: float = setting(
        1.0,
        "Weight of the clean partners of adversarial images in the cross entropy.",
        NOT_NEGATIVE,
    )
    attack: str | None = setting(
        None,
        lambda: f"Makes the training images. {_default('attack')}",
        choices=attacks.training_attacks,
    )
    start: str | None = setting(
        None,
        "Where the attack guided begins: at the image, half of epsilon up or down at each value, "
        "or uniform in the ball; default: bernoulli.",
        choices=attacks.STARTS,
        auto=True,
    )
    guide: float = setting(
        1.0, "a: the attack guided ascends the distance too, times a lambda_2.", NOT_NEGATIVE
    )
    guide_alternates: bool = setting(True, "a is 0 on every other step.")
    epsilon_sampling: str | None = setting(
        None,
        lambda: f"Distribution of the epsilon of a training image. {_default('epsilon_sampling')}",
        choices=("clipped_normal", "uniform", "max", "reversed_normal"),
    )
    per_pixel_epsilon: bool = setting(False, "Jitter epsilon by N(0, 1) per pixel.")
    sparsity: float = setting(100.0, "Per cent of an image's values perturbed.", PER_CENT)
    label_smoothing: float = setting(
        0.0, "s: labels are (1 - s) labels + s / classes; banks are of the labels.", FRACTION
    )

    # Networks whose images are trained with.
    cascade_source: tuple[str, ...] = setting(
        (),
        "Trained networks; a share of the adversarial images are iter_fgsm images of theirs.",
        path=True,
    )
    cascade_share: float = setting(
        0.5,
        "That share of the adversarial images; 1: all, so that the network itself is not attacked.",
        SHARE,
    )
    cascade_mode: str = setting(
        "auto",
        "bank: crafted once for all training images, kept on disk; online: within each step; "
        "auto: whatever takes fewer gradients.",
        choices=("auto", "bank", "online"),
    )
    cascade_bank: tuple[str, ...] = setting(
        (),
        "The banks' directories; default: banks/NAME for each source.",
        path=True,
        operational=True,
    )
    bank_examples: int | None = setting(
        None,
        "Craft banks of so many training images; default: of all, or as many as a bank that is "
        "there already has.",
        POSITIVE,
    )
    ensemble_source: tuple[str, ...] = setting(
        (),
        "Trained networks; the one-step images of each batch come from one of them or from the "
        "network itself.",
        path=True,
    )
    source_value_range: tuple[float, ...] | None = setting(
        None,
        "Pixel values that all sources take which record none, such as 0,255; default: 0,1.",
        VALUE_RANGE,
    )
    trust_source: bool = trust_setting()

    # Optimization.
    steps: int | None = setting(
        None,
        "Length of the schedule; default: the published one (8000 for MNIST, 94000 for CIFAR), "
        "else as many as epochs take.",
        POSITIVE,
    )
    epochs: float | None = setting(
        None,
        "Length of the schedule as times that the training images are gone through; default: 30 "
        "for other data than the paper's.",
        POSITIVE,
    )
    learning_rate: float = setting(0.1, "At the start.", POSITIVE)
    lr_schedule: str = setting(
        "steps",
        "steps: divided by 10 after each of lr_boundaries; triangular: from 0 up to learning_rate "
        "and back to 0, linearly; cosine: linearly up, along a cosine down to 0.",
        choices=LR_SCHEDULES,
    )
    lr_peak: float = setting(
        LR_PEAK, "Share of the steps after which triangular and cosine are highest.", FRACTION
    )
    lr_boundaries: tuple[int, ...] | None = setting(
        None,
        "Steps after which the learning rate is divided by 10, or none; default: the published "
        "ones in proportion to steps, of lr_schedule steps.",
        BOUNDARIES,
        repeats=True,  # as the published ones in a schedule of a few steps
    )
    warmup_steps: int | None = setting(
        None,
        "First steps at a tenth of the learning rate, of lr_schedule steps; default: 400 for CIFAR "
        "but at most a tenth of steps, 0 otherwise.",
        NOT_NEGATIVE,
    )
    momentum: float = setting(0.9, "Of SGD.", FRACTION)
    nesterov: bool = setting(False, "Nesterov's momentum.")
    weight_decay: float = setting(1e-4, "d in d/2 sum(w^2), on kernels only.", NOT_NEGATIVE)
    clip_norm: float | None = setting(None, "Largest global norm of the gradient.", POSITIVE)
    use_ema: bool = setting(False, "Finish with the weights' moving average.")
    ema_momentum: float = setting(0.999, "Of that average.", FRACTION)
    precision: str = setting(
        "float32", "Of the convolutions.", choices=("float32", "mixed_bfloat16", "mixed_float16")
    )
    jit_compile: str = setting(
        "auto",
        "Whether XLA compiles the step, which then draws other random numbers; auto: on one GPU, "
        "unless it crafts cascade images.",
        choices=tuple(XLA),
    )
    strategy: str = setting(
        "none",
        "Over which devices: none, one; mirrored, all GPUs of this machine; auto, mirrored where "
        "there are several; multiworker, the processes of TF_CONFIG or of a Slurm step. batch_size "
        "is that of all together, and the weights are the same within rounding.",
        choices=("none", "mirrored", "multiworker", "auto"),
        operational=True,
    )
    worker_timeout: float = setting(
        600.0,
        "Seconds that multiworker waits for a worker that is gone, and for a step.",
        POSITIVE,
        operational=True,
    )
    seed: int = setting(0, "Of weights, batches and epsilons.", SEED)
    deterministic: bool = setting(False, "Only deterministic operations.")

    # The run.
    validation_images: int = setting(
        0,
        "Hold so many of the training images back, of each class its share: they are not trained "
        "on, and show how the training does; 0: none.",
        NOT_NEGATIVE,
    )
    validation_steps: int = setting(
        0,
        "Steps between two looks at them: clean, under the training attack, under pgd (10 steps); "
        "0: about 20 looks.",
        NOT_NEGATIVE,
    )
    validation_epsilon: float | None = setting(
        None, "Of pgd in those looks; default: max_epsilon.", EPSILON
    )
    keep_best: str = setting(
        "none",
        "Finish with the network of the look at which most held-out images withstood pgd, or were "
        "correct as they are (clean); none: with the last network.",
        choices=("none", "pgd", "clean"),
    )
    on_collapse: str = setting(
        "warn",
        "When fewer and fewer held-out images withstand pgd and more the training attack: warn; "
        "stop, and finish with the last good network; restore, go on with that one's weights, at "
        f"most {collapse.MOST_RESTORES} times, then stop.",
        choices=ON_COLLAPSE,
    )
    name: str | None = setting(
        None, "Of the run; default: DATASET-MODEL-LOSS-sSEED.", NAME, operational=True
    )
    runs_dir: str = setting("runs", "Where runs are kept.", path=True, operational=True)
    saved_dir: str = setting(
        "saved", "Where finished networks are saved.", path=True, operational=True
    )
    export: bool = setting(True, "Save the finished network as saved/NAME.", operational=True)
    checkpoint_minutes: float = setting(
        3.0, "At most this long between checkpoints.", POSITIVE, operational=True
    )
    checkpoint_steps: int = setting(
        0, "Also at multiples of this step; 0: no.", NOT_NEGATIVE, operational=True
    )
    log_steps: int = setting(50, "Steps between two reports.", POSITIVE)
    eval_attacks: tuple[str, ...] = setting(
        ("step_ll", "step_fgsm", "iter_ll", "iter_fgsm"),
        "Attacks on the finished network.",
        choices=attacks.image_attacks,
        why=attacks.why_not_measured,
    )
    eval_epsilon: tuple[float, ...] | None = setting(
        None, "Of those, one or several; default: max_epsilon.", EPSILONS
    )
    eval_examples: int = setting(
        1000, "Test images under iterative attacks; one-step attacks get all.", POSITIVE
    )

    # TensorBoard.
    tensorboard: str = setting(
        "all",
        "What is kept in runs/NAME/tensorboard; scalars: losses, accuracies and the like of the "
        "training alone.",
        choices=("all", "scalars", "none"),
        operational=True,
    )
    tensorboard_images: int = setting(
        64,
        "The first so many test images are attacked and shown in TensorBoard; nothing is trained "
        "or chosen by them.",
        POSITIVE,
        operational=True,
    )
    tensorboard_attacks: tuple[str, ...] = setting(
        ("step_ll", "iter_fgsm", "pgd"),
        "Attacks on those images.",
        SOME,
        choices=attacks.image_attacks,
        why=attacks.why_not_measured,
        operational=True,
    )
    tensorboard_epsilon: tuple[float, ...] | None = setting(
        None, "Of those, one or several; default: max_epsilon.", EPSILONS, operational=True
    )
    tensorboard_steps: int = setting(
        0,
        "Steps between two looks at those images; 0: as often as takes 1.5 % of the training's "
        "time. The finished network is always looked at, after a short training under the attacks "
        "only that it is evaluated with anyway.",
        NOT_NEGATIVE,
        operational=True,
    )
    profile_steps: int = setting(
        0,
        "Profile so many steps for TensorBoard's profile plugin; 0: none.",
        NOT_NEGATIVE,
        operational=True,
    )

    def __post_init__(self) -> None:
        if self.crop is not None and not isinstance(self.crop, list | tuple):
            object.__setattr__(self, "crop", (self.crop,))
        super().__post_init__()
        if self.crop is not None:
            pair = self.crop if len(self.crop) == 2 else self.crop * 2
            object.__setattr__(self, "crop", data.crop_of(pair))

    @classmethod
    def from_recipe(
        cls,
        recipe: str,
        *,
        seed: int = 0,
        runs_dir: str = "runs",
        dataset: str | None = None,
        **others: Any,
    ) -> typing.Self:
        """Return the settings of a network of the paper, see ``recipes.RECIPES``.

            TrainingSettings.from_recipe("R20_P,C", seed=1, data_dir="data")

        Args:
            recipe: its name, or that of what a group starts from, such as "init-B".
            seed: which repetition of the paper; those of other groups differ all the same.
            runs_dir: where the run is to be, and where those are that it needs.
            dataset: in place of the paper's.
            others: fields that override the recipe's.

        Raises:
            InputError: there is no such recipe, or a network that it needs has not been trained;
                the message has the commands that do it.
        """
        values = recipes.settings_of(recipe, seed=seed, runs_dir=runs_dir, dataset=dataset)
        settings = cls(**{**values, **others})
        if not Run(pathlib.Path(settings.runs_dir) / settings.name).started:
            _check_trained(recipes.find(recipe), settings, seed)
        return settings

    def resolved(
        self, dataset: data.DatasetSpec | None = None, *, own_network: str | None = None
    ) -> typing.Self:
        """Return the settings with the dataset's defaults filled in, checked together.

        Args:
            dataset: the row of a dataset that the caller has; None for the one that ``dataset``
                names or the sources have learned.
            own_network: the name of a network that takes the place of what ``model`` names.

        Raises:
            InputError: settings that do not go together.
        """
        if dataset is None:
            sources = {name: getattr(self, name) for name in ("cascade_source", "ensemble_source")}
            dataset = row(self, sources)
        form = None
        if own_network is None:  # before it is part of a name
            form = forms.check(
                self.model,
                embedding_at=self.embedding_at,
                weights=self.model_weights,
                imports=self.import_,
            )
        ours = form is not None and form.kind == forms.NAMED
        steps = _steps(self, dataset)
        by_steps = self.lr_schedule == "steps"
        boundaries = data.scaled_boundaries(dataset, steps) if by_steps else ()
        epsilon = dataset.max_epsilon if self.max_epsilon is None else self.max_epsilon
        defaults = {
            "dataset": dataset.name if data.DATASETS.get(dataset.name) is dataset else None,
            "max_epsilon": epsilon,
            "steps": steps,
            "normalization": dataset.normalization if ours or form is None else "none",
            "crop": dataset.crop,
            "augment": dataset.augment,
            "warmup_steps": min(dataset.warmup_steps, steps // 10) if by_steps else 0,
            "eval_epsilon": (epsilon,),
            "tensorboard_epsilon": (epsilon,),
            "lr_boundaries": boundaries,
            "validation_epsilon": epsilon if self.validation_images else None,
            **losses.settled(self.loss, vars(self)),
            "name": self._default_name(dataset.name, own_network or form.label),
        }
        filled = {name: value for name, value in defaults.items() if getattr(self, name) is None}
        settings = self.replace(**filled)
        if settings.validation_images and not settings.validation_steps:
            settings = settings.replace(validation_steps=-(-steps // LOOKS))
        if settings.value_range == UNIT:  # which is what nothing said means
            settings = settings.replace(value_range=None)
        if settings.source_value_range == UNIT:
            settings = settings.replace(source_value_range=None)
        _check_network(settings, form)
        _check_sources(settings)
        _check_batch(settings)
        _check_schedule(settings)
        _check_validation(settings, dataset)
        _check_crop(settings, dataset)
        _check_places(settings)
        return settings

    def told(self) -> dict[str, Any]:
        """Return what ``border.adapt`` is told of the network that is trained."""
        return {
            "value_range": self.value_range or UNIT,
            "from_logits": said_of_logits(self.from_logits),
            "logits": self.logits,
            "embedding": self.embedding,
        }

    def told_of_sources(self) -> dict[str, Any]:
        """Return what ``load_source`` is told of every source that records nothing."""
        known = self.source_value_range
        return {} if known is None else {"value_range": known}

    def _default_name(self, dataset: str, network: str) -> str:
        kinds = [kind for kind in ("cascade", "ensemble") if getattr(self, f"{kind}_source")]
        return "-".join([dataset, network, self.loss, *kinds, f"s{self.seed}"])

    def defaults(
        self, names: Sequence[str], dataset: data.DatasetSpec, *, own_network: str | None = None
    ) -> dict[str, Any]:
        """Return what some settings would be, after resolution, had they not been given.

        Args:
            names: of the settings.
            dataset, own_network: as for ``resolved``.

        Raises:
            InputError: their defaults do not go with the other settings.
        """
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        unset = self.replace(**{name: defaults[name] for name in names})
        decisive = unset.resolved(dataset, own_network=own_network).decisive()
        return {name: decisive[name] for name in names}

    def notes(self) -> list[str]:
        """Return what can be computed and is likely not what was meant."""
        noted = []
        if self.precision != "float32" and self.model.lower().endswith((".keras", ".h5")):
            noted.append(
                f"precision is of new layers; those of {self.model} keep the one they were saved "
                "with"
            )
        for name in ("max_epsilon", "eval_epsilon", "tensorboard_epsilon"):
            value = getattr(self, name)
            values = value if isinstance(value, tuple) else (value,)
            small = next((e for e in values if e is not None and 0 < e < 1), None)
            if small is not None and (name == "max_epsilon" or small != self.max_epsilon):
                noted.append(
                    f"{name} {small:g} is less than one pixel value: epsilon is in 0..255 units; "
                    f"{small:g} of the whole range would be {255 * small:g}"
                )
        return noted


@dataclasses.dataclass(frozen=True)
class RecipeSettings(Settings):
    """What ``bin/train`` takes beside ``TrainingSettings``."""

    recipe: str | None = setting(
        None,
        "A network of the paper such as R20_P,C, or what a group of them starts from such as "
        "init-B; other flags override what it says, and --seed is which repetition of it.",
    )


def _check_trained(recipe: recipes.Recipe, settings: TrainingSettings, seed: int) -> None:
    """Refuse a recipe whose networks are not there, as far as the settings still name them."""
    named = {settings.init_from, *settings.cascade_source, *settings.ensemble_source}
    missing, commands = [], []
    for name in recipe.needs:
        place = pathlib.Path(settings.runs_dir) / recipes.folder(name, seed)
        if str(place) in named and not Run(place).finished:
            missing.append(str(place))
            commands.append(_command(name, settings, seed))
    if missing:
        raise InputError(
            f"{recipe.name} needs {' and '.join(missing)}, which {_are(missing)} not finished; "
            f"run {' and '.join(commands)}",
            "recipe",
        )


def _command(name: str, settings: TrainingSettings, seed: int) -> str:
    """Return how a network is trained that a recipe needs."""
    usual = {field.name: field.default for field in dataclasses.fields(TrainingSettings)}
    own = recipes.find(name).dataset
    flags = {
        "seed": (seed, usual["seed"]),
        "runs_dir": (settings.runs_dir, usual["runs_dir"]),
        "dataset": (settings.dataset, own),
        "data_dir": (settings.data_dir, usual["data_dir"]),
    }
    given = [f"--{flag}={value}" for flag, (value, default) in flags.items() if value != default]
    return f"`{' '.join(['bin/train', f'--recipe={name}', *given])}`"


def _are(things: Sequence) -> str:
    return "are" if len(things) > 1 else "is"


def initialisation(path: str) -> pathlib.Path:
    """Return the file, or the SavedModel's folder, whose weights ``init_from`` names.

    Raises:
        InputError: it is not there, or no such file.
    """
    file = expand(path)
    if presets.folder_at(file) or (presets.is_named(path) and not os.path.lexists(file)):
        with about("init_from"):
            return locate(path).path
    if file.is_dir():
        if (file / "config.json").exists() or not _is_saved_network(file):
            file = file / "model.keras"
        else:
            return locate(file).path
    if not file.is_file():
        raise InputError(
            f"{file} does not exist; name a finished run's directory, a saved network, zoo:NAME, a "
            ".keras, .h5 or .weights.h5 file",
            "init_from",
        )
    if not file.name.endswith((".keras", ".h5")):
        raise InputError(f"{file} is neither a .keras nor a .h5 file", "init_from")
    return file


def _is_saved_network(folder: pathlib.Path) -> bool:
    return (folder / "saved_model.pb").exists() or bool(saved_versions(folder))


def row(settings: TrainingSettings, sources: Mapping[str, Sequence]) -> data.DatasetSpec:
    """Return the row of a dataset: that named, what the first source learned, or digits.

    Args:
        settings: what they say of the images.
        sources: for each setting that names networks its networks.

    Raises:
        InputError: there is no such dataset, or a network is not there.
    """
    return dataset_of(settings, sources, default="digits", trust=settings.trust_source)


def clean_images(settings: TrainingSettings) -> int:
    """Return how many images of the dataset a step takes.

    Adversarial images join their clean ones for some losses, and replace them for others.
    """
    joined = settings.adversarial_batch_size if losses.LOSSES[settings.loss].pairs else 0
    return settings.batch_size - joined


def cascade_images(settings: TrainingSettings) -> int:
    """Return how many cascade images a step takes where there are sources."""
    return losses.cascade_count(settings.adversarial_batch_size, settings.cascade_share)


def _steps(settings: TrainingSettings, dataset: data.DatasetSpec) -> int:
    """Return the length of the schedule: as set, as many as the epochs take, or the published."""
    epochs = settings.epochs or dataset.epochs
    if settings.epochs is None and (settings.steps or epochs is None):
        return settings.steps or dataset.steps
    if dataset.examples is None:
        raise InputError(
            f"{dataset.name} does not say how many images it has; give steps", "epochs"
        )
    _check_batch(settings)
    _check_validation(settings, dataset)
    trained = dataset.examples - settings.validation_images
    steps = max(1, round(epochs * trained / clean_images(settings)))
    if settings.steps not in (None, steps):
        raise InputError(
            f"{epochs:g} are {steps} steps, steps says {settings.steps}; give one of them", "epochs"
        )
    return steps


def _check_network(settings: TrainingSettings, form: forms.Form | None) -> None:
    """Refuse what a network of this form, or one in memory (None), has no use for."""
    kind = form and form.kind
    theirs = kind in (forms.FILE, forms.FUNCTION, None)
    if settings.embedding is not None and settings.embedding_at != "logits":
        raise InputError("has no meaning beside embedding; leave one out", "embedding_at")
    if kind is None:
        for name, unset in (("embedding_at", "logits"), ("model_weights", None)):
            if getattr(settings, name) != unset:
                raise InputError("has no meaning for a network in memory", name)
    elif kind != forms.NAMED and settings.normalization != "none":
        raise InputError(
            f"is of networks of ours; {form.text} takes images as it does, see value_range",
            "normalization",
        )
    if not theirs:
        for name, what in (
            ("value_range", "takes images in [0, 1], and does the rest inside"),
            ("logits", "has one output of logits"),
        ):
            if getattr(settings, name) is not None:
                raise InputError(f"is of own networks; {form.text} {what}", name)


def _check_sources(settings: TrainingSettings) -> None:
    for name in ("cascade_source", "ensemble_source"):
        paths = getattr(settings, name)
        twice = named_twice(paths)
        if twice:
            raise InputError(f"{twice} is named twice; name each source once", name)
        if paths and not losses.LOSSES[settings.loss].attacks:
            attacking = [row.name for row in losses.LOSSES.values() if row.attacks]
            raise InputError(
                f"{settings.loss} training has no adversarial images; choose the loss "
                f"{', '.join(attacking[:-1])} or {attacking[-1]}",
                name,
            )
    iterates = attacks.ATTACKS[settings.attack].kind != attacks.ONE_STEP
    if settings.jit_compile == "on" and iterates and losses.LOSSES[settings.loss].attacks:
        raise InputError(
            f"XLA needs shapes that are known in advance, and {settings.attack} leaves out images "
            "that are done; leave it off",
            "jit_compile",
        )
    sources, banks = settings.cascade_source, settings.cascade_bank
    if not sources:
        for name, unset in (
            ("cascade_mode", "auto"),
            ("cascade_share", 0.5),
            ("cascade_bank", ()),
            ("bank_examples", None),
        ):
            if getattr(settings, name) != unset:
                raise InputError("has a meaning only with cascade_source", name)
        return
    share = settings.cascade_share
    if not cascade_images(settings):
        raise InputError(
            f"a share of {share:g} of the adversarial images are cascade images, so it must be "
            f"{math.ceil(1 / share)} or above, got {settings.adversarial_batch_size}",
            "adversarial_batch_size",
        )
    if share == 1:
        for name, unset in (
            ("ensemble_source", ()),
            ("per_pixel_epsilon", False),
            ("sparsity", 100),
        ):
            if getattr(settings, name) != unset:
                raise InputError(
                    "is of the network's own adversarial images, and cascade_share 1 leaves none",
                    name,
                )
    if settings.max_epsilon < 1:
        raise InputError(
            "the epsilons of cascade images are whole pixel values, so it must be 1 or above, got "
            f"{settings.max_epsilon:g}",
            "max_epsilon",
        )
    if banks and len(banks) != len(sources):
        raise InputError(
            f"name one bank for each source ({len(sources)}), got {len(banks)}", "cascade_bank"
        )
    if settings.cascade_mode == "online" and settings.jit_compile == "on":
        raise InputError(
            "XLA needs shapes that are known in advance, and crafting online leaves out images "
            "that are done; leave it off, or use cascade_mode bank",
            "jit_compile",
        )
    if settings.cascade_mode == "online" and (banks or settings.bank_examples):
        raise InputError(
            "online crafting uses no bank; leave out cascade_bank and bank_examples", "cascade_mode"
        )


def _check_batch(settings: TrainingSettings) -> None:
    m, k, loss = settings.batch_size, settings.adversarial_batch_size, losses.LOSSES[settings.loss]
    if loss.pairs and 2 * k > m:
        raise InputError(
            f"{loss.name} pairs each adversarial image with its clean one, so it can be at most "
            f"half of batch_size ({m // 2}), got {k}",
            "adversarial_batch_size",
        )
    if loss.images == losses.REPLACED and k > m:
        raise InputError(f"can be at most batch_size ({m}), got {k}", "adversarial_batch_size")
    if loss.images == losses.REPLACED and k == m and settings.adversarial_weight == 0:
        raise InputError(
            "0 leaves no image with a weight; raise it or lower adversarial_batch_size",
            "adversarial_weight",
        )


def _check_schedule(settings: TrainingSettings) -> None:
    boundaries, schedule = settings.lr_boundaries, settings.lr_schedule
    if schedule != "steps":
        for name, value in (("lr_boundaries", boundaries), ("warmup_steps", settings.warmup_steps)):
            if value:
                raise InputError(
                    f"is of lr_schedule steps; {schedule} is given by learning_rate and lr_peak",
                    name,
                )
    elif settings.lr_peak != LR_PEAK:
        raise InputError("has a meaning only with lr_schedule triangular or cosine", "lr_peak")
    if settings.nesterov and not settings.momentum:
        raise InputError("needs a momentum above 0", "nesterov")
    if settings.warmup_steps > settings.steps:
        raise InputError(
            f"must end with the {settings.steps} steps, got {settings.warmup_steps}", "warmup_steps"
        )
    if boundaries and settings.warmup_steps and settings.warmup_steps >= boundaries[0]:
        raise InputError(
            f"must end before the first of lr_boundaries ({boundaries[0]}), got "
            f"{settings.warmup_steps}",
            "warmup_steps",
        )


def check_held_out(settings: TrainingSettings, name: str, examples: int) -> None:
    """Refuse to hold so many images back that those that are left make no batch.

    Args:
        settings: of which ``validation_images`` is looked at.
        name: of the dataset.
        examples: its training images.
    """
    count, batch = settings.validation_images, clean_images(settings)
    if count and count > examples - batch:
        raise InputError(
            f"{name} has {examples} training images, of which a batch takes {batch}; hold fewer "
            f"back than {count}",
            "validation_images",
        )


def _check_validation(settings: TrainingSettings, dataset: data.DatasetSpec) -> None:
    if dataset.examples is not None:
        check_held_out(settings, dataset.name, dataset.examples)
    if settings.on_collapse != "warn" and not losses.LOSSES[settings.loss].attacks:
        raise InputError(
            f"{settings.loss} training has no training attack that could be withstood alone",
            "on_collapse",
        )
    if settings.validation_images:
        return
    for name, unset in UNSET_WITHOUT_VALIDATION.items():
        if getattr(settings, name) != unset:
            raise InputError("has a meaning only with validation_images, which are looked at", name)


def _check_places(settings: TrainingSettings) -> None:
    """Refuse places that would be written into each other, which else shows after the training."""
    run = str(expand(settings.runs_dir) / settings.name)
    saved = str(expand(settings.saved_dir) / settings.name)
    if settings.export:
        check_apart("saved_dir", saved, runs_dir=run)
        check_apart("runs_dir", run, saved_dir=saved)
    for bank in settings.cascade_bank:
        check_apart("cascade_bank", bank, runs_dir=run, saved_dir=saved)
        for name in ("runs_dir", "saved_dir"):
            check_apart(name, getattr(settings, name), cascade_bank=bank)
    check_apart("init_from", settings.init_from, runs_dir=run)


def _check_crop(settings: TrainingSettings, dataset: data.DatasetSpec) -> None:
    crop: Any = settings.crop  # by now as a crop is written
    if dataset.may_see(crop):
        return
    shown = data.sides_of(crop)
    if dataset.origin is not None:
        height, width, _ = dataset.image_shape
        raise InputError(f"must fit into images of {height},{width}, got {shown}", "crop")
    sides = " or ".join(map(str, dataset.crops))
    raise InputError(f"{dataset.name} networks see {sides} pixels, got {settings.crop}", "crop")
