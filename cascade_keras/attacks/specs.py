"""One row an attack: what programs, reports, figures and the diagnosis know of it.

Needs no TensorFlow. An attack is added by one row and one function::

    attacks.register(AttackSpec("my_attack", ONE_STEP, my_function))

after which it can be trained with, evaluated, banked and drawn like the others.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cascade_keras.attacks.versions import TARGETS, VERSIONS, attack_of, options_of, stages_of
from cascade_keras.errors import InputError, shown
from cascade_keras.lazy import resolve

# What a row's function is, and so how it is called for several epsilons at once.
ONE_STEP = "one step"  # f(logits_fn, images, labels, epsilon): a training attack too
ITERATIVE = "iterative"  # whole-pixel steps; those of iter_fgsm and iter_ll share them: see ladder
SEARCH = "search"  # one epsilon at a time, a compiled function of tensors
NESTED = "nested"  # all epsilons at once, the smallest first: see searches.ascending
SUITE = "suite"  # several attacks in turn: what is compiled once, and called with arrays
MINIMAL = "minimal"  # the smallest epsilon of each image instead of images at given ones
KINDS = (ONE_STEP, ITERATIVE, SEARCH, NESTED, SUITE, MINIMAL)

STARTS = "none", "bernoulli", "uniform"  # where a guided attack begins, see started.guided

FORWARD = 1 / 3  # of the time of a gradient
_CW_GRADIENTS = 1_000  # an image takes about so many by descent; for the time left only


def iteration_count(epsilon: float) -> int:
    """Return N = floor(min(eps + 4, 1.25 eps)), at least 1 above 0: see ``iterations``."""
    return max(math.floor(min(epsilon + 4, 1.25 * epsilon)), int(epsilon > 0))


def ladder_gradients(epsilons: Sequence[float]) -> int:
    """Return how many gradients of each image ``ladder`` takes, in steps of one pixel value."""
    counts = {float(epsilon): iteration_count(epsilon) for epsilon in epsilons}
    trunk = int(min(max(counts), max(counts.values())))
    return trunk + sum(count - min(int(epsilon), count) for epsilon, count in counts.items())


@dataclasses.dataclass(frozen=True)
class Grid:
    """What the published search of Carlini & Wagner goes through; each dataset has its own.

    Attributes:
        constants: the values of c, ascending.
        taus: in 0..255 units, ascending.
    """

    constants: tuple[float, ...]
    taus: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class AttackSpec:
    """What is known of an attack beside its function.

    Attributes:
        name: on flags, in reports and captions.
        kind: one of ``KINDS``.
        function: the attack, or "module:name" below this package, imported on first use.
        seeded: whether it draws random numbers, so takes a seed.
        whole_pixels: its images at whole epsilons are whole pixel values, so a bank can hold them.
        options: the defaults of its options, recorded wherever its numbers are.
        rare: the defaults of options that are recorded only where they are set otherwise.
        fixed: arguments that make this attack of a function that others share.
        training: options of its own where it makes training images, of which there is one a step;
            those that it does not have here are as in ``options``.
        cost: (epsilons, options) -> about how many gradients an image takes; one each when None.
        weaker: the one-step attack that it ought to beat; where it does not, gradients are masked.
        strongest: whether it is a reference for what withstands attack (see the diagnosis).
        targeted: whether it seeks the least likely class, which says less about robustness.
        stages: of a suite, the attacks in it, by which ``searches.Broken`` counts.
        gradient_free: whether it asks a network for its outputs alone: a black box without any
            source, so that its images are the target's own.
        started: of one step, whether it begins at a random point near the image, so that each
            epsilon takes a gradient of its own, none has another side, and all values are changed.
        leaves_ball: whether its images may be further than epsilon from theirs, so that they train
            networks and measure none.
        style: its place among the looks of lines in figures; names without one follow.

    A suite's function is ``f(logits_fn, image_shape, epsilons, *, num_classes, seed, **options)``
    and returns what is called with images, labels and the index of the first image, and gives
    ``searches.Broken``.
    """

    name: str
    kind: str
    function: Callable | str
    seeded: bool = False
    whole_pixels: bool = False
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rare: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    training: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    cost: Callable[[Sequence[float], Mapping], float] | None = None
    weaker: str | None = None
    strongest: bool = False
    targeted: bool = False
    gradient_free: bool = False
    started: bool = False
    leaves_ball: bool = False
    stages: tuple[str, ...] = ()
    style: int | None = None

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"kind {self.kind!r} is none of {', '.join(KINDS)}")

    @property
    def trains(self) -> bool:
        """Whether training images can be made by it: one step."""
        return self.kind == ONE_STEP

    @property
    def guided(self) -> bool:
        """Whether it ascends the distance of the outputs too, by a weight."""
        return "guide" in self.options

    @property
    def choices(self) -> dict[str, Any]:
        """All options that can be set, with their defaults."""
        return {**self.options, **self.rare}

    def recorded(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return options without the rare ones that are as usual."""
        return {
            name: value
            for name, value in options.items()
            if name not in self.rare or value != self.rare[name]
        }

    @property
    def stage_names(self) -> tuple[str, ...]:
        """What a suite's numbers of stages stand for: 0 for none, 1 for the clean image."""
        return ("stands", "clean", *self.stages)

    def resolve(self) -> Callable:
        """Return the attack's function, importing it where the row only names it."""
        return resolve(self.function, __package__)

    def gradients(self, epsilons: Sequence[float], options: Mapping[str, Any]) -> float:
        """Return about how many gradients an image takes at all these epsilons together."""
        if self.cost is not None:
            return self.cost(epsilons, {**self.options, **options})
        return ladder_gradients(epsilons) if self.kind == ITERATIVE else 1


# The rows by their names; ``register`` adds one.
ATTACKS: dict[str, AttackSpec] = {}


def register(spec: AttackSpec) -> AttackSpec:
    """Add an attack's row.

    Raises:
        ValueError: its name is taken, or it names a weaker attack that is not there.
    """
    if spec.name in ATTACKS or spec.name == "clean":
        raise ValueError(f"there is an attack {spec.name!r} already")
    if spec.weaker is not None and spec.weaker not in ATTACKS:
        raise ValueError(f"weaker attack {spec.weaker!r} of {spec.name!r} is not registered")
    ATTACKS[spec.name] = spec
    return spec


@dataclasses.dataclass(frozen=True)
class Chosen:
    """An attack as a user chooses it: which, and the options that are set, but no epsilons.

    ``attacks.PGD(steps=100)`` returns one. Options that are not set are the defaults of the use:
    ``AttackSpec.options`` where a network is measured, ``AttackSpec.training`` where it is trained.

    Attributes:
        name: "clean" or that of a row.
        options: those that are set.

    Raises:
        InputError: there is no such attack, it has no such option, or not of this value.
    """

    name: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.name != "clean" and self.name not in ATTACKS:
            raise InputError(f"{shown(self.name)} is none of clean, {', '.join(ATTACKS)}", "attack")
        check_options(self.name, self.options)
        if self.options:
            row = ATTACKS[self.name]
            known = row.choices
            options = {name: _plain(value, known[name]) for name, value in self.options.items()}
            object.__setattr__(self, "options", row.recorded(options))

    @classmethod
    def of(cls, attack: str | Chosen) -> Chosen:
        """Return an attack that may be given by its name alone."""
        if isinstance(attack, cls):
            return attack
        if not isinstance(attack, str):
            raise InputError(
                f"must be a name or what attacks.PGD(...) returns, got {shown(attack)}", "attack"
            )
        return cls(attack)

    def in_training(self) -> dict[str, Any]:
        """Return all options where it makes training images."""
        spec = ATTACKS[self.name]
        return {**spec.options, **spec.training, **self.options}

    def as_json(self) -> str | dict:
        """Return it as configurations keep it: a name alone, or a dict of name and options."""
        return {"name": self.name, "options": dict(self.options)} if self.options else self.name

    @classmethod
    def of_json(cls, kept: str | Mapping) -> Chosen:
        """Return what ``as_json`` made."""
        if isinstance(kept, Mapping):
            return cls(kept.get("name", ""), kept.get("options", {}))
        return cls.of(kept)

    def __hash__(self) -> int:
        return hash((self.name, tuple(sorted(self.options.items()))))

    def __str__(self) -> str:
        shown_options = in_words(self.options)
        return f"{self.name} ({shown_options})" if shown_options else self.name


def check_options(attack: str, options: Mapping[str, Any]) -> None:
    """Refuse options that an attack does not have, or not of this value.

    Raises:
        InputError: the first of them.
    """
    known = {} if attack == "clean" else ATTACKS[attack].choices
    for option, value in options.items():
        if option not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise InputError(f"{attack} has no option {shown(option)}; {has}", "attack")
        wrong = _wrong(attack, option, value)
        if wrong:
            raise InputError(f"{attack}'s {option} must be {wrong}", "attack")


_WORDS = {
    "version": VERSIONS,
    "objective": ("margin", "cross_entropy", "dlr"),  # margins.OBJECTIVES
    "search": ("descent", "grid"),
    "start": STARTS,
    "distance": ("softmax", "l2", "l1"),  # of each pair alone, as an image's is what is measured
}


# Of options that are numbers with limits of their own: what holds of a finite number, in words.
_LIMITS = {
    "momentum": (lambda value: value >= 0, "0 or above"),
    "guide": (lambda value: value >= 0, "0 or above"),
    "diversity": (lambda value: 0 <= value <= 1, "a probability, 0 to 1"),
    "translation": (lambda value: value % 2 == 1 and value > 0, "odd: a kernel has a middle"),
}


def _wrong(attack: str, option: str, value: Any) -> str | None:
    """Return what an option's value ought to be, None where it is."""
    default = ATTACKS[attack].choices[option]
    if option in _WORDS:
        fine = value in _WORDS[option]
        return None if fine else f"one of {', '.join(_WORDS[option])}, got {shown(value)}"
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if default is None:  # a step size
        if value is None or (number and 0 < value < math.inf):
            return None
        return f"a number above 0 in 0..255 units, or None, got {shown(value)}"
    if isinstance(default, bool):
        return None if isinstance(value, bool) else f"True or False, got {shown(value)}"
    if option in _LIMITS:
        holds, words = _LIMITS[option]
        fine = number and math.isfinite(value) and holds(value)
        return None if fine else f"{words}, got {shown(value)}"
    if isinstance(default, int):
        least = 0 if (attack, option) == ("autoattack", "queries") else 1
        if number and math.isfinite(value) and value == int(value) and value >= least:
            return None
        return f"a whole number of at least {least}, got {shown(value)}"
    return None


def _plain(value: Any, default: Any) -> Any:
    """Return an option's value as JSON holds it: a number of Python's, a count a whole one."""
    if isinstance(value, numbers.Real) and not isinstance(default, bool):
        number: Any = value
        return (
            int(number) if isinstance(default, int) else getattr(number, "tolist", lambda: number)()
        )
    return value


def _chooser(function: str, attack: str) -> Callable[..., Chosen]:
    """Return a function of an attack's options, by keyword, for ``attacks.PGD(steps=7)``."""

    def choose(**options) -> Chosen:
        return Chosen(attack, options)

    row = ATTACKS[attack]
    choose.__name__ = choose.__qualname__ = function
    choose.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # as inspect reads it
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)
            for name, default in row.choices.items()
        ],
        return_annotation=Chosen,
    )
    choose.__doc__ = (
        f"Choose the attack {attack!r} with options, for evaluate, craft, AdversarialTrainer and "
        "callbacks.\n\nOptions that are not given are those of the signature"
        + (
            f"; in training they are {in_words({**row.options, **row.training})}."
            if row.training
            else "."
        )
    )
    return choose


@dataclasses.dataclass(frozen=True)
class Attack:
    """An attack as it is run and recorded, with everything that its numbers follow from.

    Attributes:
        name: "clean" or that of a row.
        epsilons: in 0..255 units.
        options: of the attack; those that are not given are the row's defaults.
    """

    name: str
    epsilons: tuple[float, ...]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        row = None if self.name == "clean" else look_up(self.name)
        known = {} if row is None else row.options
        unknown = sorted(set(self.options) - set({} if row is None else row.choices))
        if unknown:
            raise ValueError(f"attack {self.name!r} has no option {unknown[0]!r}")
        given = self.options if row is None else row.recorded(self.options)
        object.__setattr__(self, "epsilons", tuple(map(float, self.epsilons)))
        if not all(map(math.isfinite, self.epsilons)):
            raise ValueError(f"epsilons must be finite, in 0..255 units, got {self.epsilons}")
        object.__setattr__(self, "options", {**known, **given})

    @classmethod
    def at(cls, chosen: str | Chosen, epsilons: Sequence[float]) -> Attack:
        """Return an attack that a user named, or chose with options, at these epsilons."""
        chosen = Chosen.of(chosen)
        return cls(chosen.name, tuple(epsilons), chosen.options)

    @classmethod
    def clean(cls) -> Attack:
        """Return the absence of an attack, which has epsilon 0."""
        return cls("clean", (0.0,))

    @property
    def gradients(self) -> float:
        """How many gradients an image takes, about."""
        if self.name == "clean":
            return 0
        return ATTACKS[self.name].gradients(self.epsilons, self.options)

    def record(self) -> dict:
        """Return it as reports keep it."""
        return {"name": self.name, "epsilons": list(self.epsilons), "options": dict(self.options)}

    def __str__(self) -> str:
        """Return the name and the options that are set: ``pgd (steps 40, restarts 5, ...)``."""
        shown = in_words(self.options)
        return f"{self.name} ({shown})" if shown else self.name


def short_steps(options: Mapping[str, Any], epsilons: Sequence[float]) -> list[str]:
    """Return what there is to say of steps that look as if meant in units of [0, 1].

    A sentence or none.

    Args:
        options: of an attack, all that count.
        epsilons: in 0..255 units.
    """
    size, steps, most = options.get("step_size"), options.get("steps"), max(epsilons, default=0)
    if size is None or steps is None or size >= 1 or steps * size >= most:
        return []
    return [
        f"{steps} steps of {size:g} do not reach epsilon {most:g}: step_size is in 0..255 units, "
        f"so {size:g} of the whole range is {255 * size:g}."
    ]


def in_words(options: Mapping[str, Any]) -> str:
    """Return options that are set as captions have them, such as ``steps 40, restarts 5``.

    What plays no part is left out: AutoAttack's version rand has no square.
    """
    unused = ("queries",) if options.get("version") == "rand" else ()
    return ", ".join(
        f"{name} {value}"
        for name, value in options.items()
        if value is not None and name not in unused
    )


def names(*kinds: str) -> tuple[str, ...]:
    """Return the names of the attacks of these kinds, of all when none is given."""
    return tuple(name for name, spec in ATTACKS.items() if not kinds or spec.kind in kinds)


def image_attacks() -> tuple[str, ...]:
    """Return the attacks that give images at given epsilons, none further, in compiled functions.

    They are those that measure a network; ``graph_attacks`` are all of such functions.
    """
    return tuple(name for name in graph_attacks() if not ATTACKS[name].leaves_ball)


def graph_attacks() -> tuple[str, ...]:
    """Return the attacks that are compiled functions of images and epsilons."""
    return names(ONE_STEP, ITERATIVE, SEARCH, NESTED)


def why_not_measured(name: str) -> str | None:
    """Return in words why no network is measured by an attack; None where one is."""
    if name not in ATTACKS or not ATTACKS[name].leaves_ball:
        return None
    return (
        f"{name} makes training images only: they may be further than epsilon from theirs, so what "
        "is right of them says nothing of that epsilon"
    )


def training_attacks() -> tuple[str, ...]:
    """Return the attacks that make training images, each at an epsilon of its own."""
    return names(ONE_STEP, ITERATIVE, SEARCH)


def look_up(name: str, among: Sequence[str] | None = None) -> AttackSpec:
    """Return an attack's row.

    Raises:
        ValueError: there is none of this name, or it is not among those that are possible.
    """
    among = tuple(ATTACKS) if among is None else among
    if name not in among:
        why = why_not_measured(name)
        if why is not None:
            raise ValueError(why)
        raise ValueError(f"attack {name!r} is none of {', '.join(among)}")
    return ATTACKS[name]


def _each_cost(epsilons: Sequence[float], options: Mapping) -> float:
    return len(epsilons)


def _guided_cost(epsilons: Sequence[float], options: Mapping) -> float:
    return len(epsilons) * (1 + FORWARD * bool(options["guide"]))


def _pgd_cost(epsilons: Sequence[float], options: Mapping) -> float:
    starts = options["restarts"] if options.get("random_start", True) else 1
    return len(epsilons) * options["steps"] * starts


def _momentum_cost(epsilons: Sequence[float], options: Mapping) -> float:
    return len(epsilons) * options["steps"] * options["scales"]


def _square_cost(epsilons: Sequence[float], options: Mapping) -> float:
    return FORWARD * len(epsilons) * options["queries"]


def _fab_cost(epsilons: Sequence[float], options: Mapping) -> float:
    return (1 + FORWARD) * options["iterations"] * options["targets"]


def _apgd_cost(epsilons: Sequence[float], options: Mapping) -> float:
    runs = options.get("restarts", 1) * options.get("targets", 1)
    return len(epsilons) * options["iterations"] * runs * options["average"]


def _autoattack_cost(epsilons: Sequence[float], options: Mapping) -> float:
    # Of as many classes as there are targets, and one.
    version, classes, queries = options["version"], TARGETS + 1, options["queries"]
    given = version, classes, options["iterations"], queries
    return sum(
        stage_gradients(stage, epsilons, options_of(stage, *given))
        for stage in stages_of(version, classes, queries)
    )


def stage_gradients(stage: str, epsilons: Sequence[float], options: Mapping) -> float:
    """Return about how many gradients an image takes in a stage of AutoAttack."""
    return ATTACKS[attack_of(stage)].gradients(epsilons, options)


for _row in (
    AttackSpec("step_ll", ONE_STEP, "steps:step_ll", whole_pixels=True, targeted=True, style=0),
    AttackSpec("step_fgsm", ONE_STEP, "steps:step_fgsm", whole_pixels=True, style=1),
    AttackSpec("step_both", ONE_STEP, "steps:step_both", whole_pixels=True, style=7),
    AttackSpec("step_rand", ONE_STEP, "steps:step_rand", seeded=True, whole_pixels=True, style=2),
    AttackSpec(
        "rs_fgsm", ONE_STEP, "started:rs_fgsm", seeded=True, started=True, cost=_each_cost,
    ),
    AttackSpec(
        "n_fgsm", ONE_STEP, "started:n_fgsm", seeded=True, started=True, leaves_ball=True,
        cost=_each_cost,
    ),
    AttackSpec(
        "guided", ONE_STEP, "started:guided", seeded=True, started=True, cost=_guided_cost,
        options={"start": "bernoulli", "guide": 10.0, "distance": "softmax"},
    ),
    AttackSpec(
        "iter_ll", ITERATIVE, "iterative:iter_ll", whole_pixels=True, weaker="step_ll",
        targeted=True, style=5,
    ),
    AttackSpec(
        "iter_fgsm", ITERATIVE, "iterative:iter_fgsm", whole_pixels=True, weaker="step_fgsm",
        style=3,
    ),
    # The same steps on a loss that does not saturate. Where it is much stronger than iter_fgsm, the
    # network masks its gradients.
    AttackSpec(
        "iter_margin", ITERATIVE, "iterative:iter_fgsm", whole_pixels=True, weaker="step_fgsm",
        fixed={"objective": "margin"}, style=8,
    ),
    AttackSpec(
        "pgd", SEARCH, "projected:pgd", seeded=True, weaker="step_fgsm", strongest=True, style=4,
        options={"steps": 40, "step_size": None, "restarts": 5, "objective": "margin"},
        rare={"random_start": True},
        training={"steps": 7, "restarts": 1, "objective": "cross_entropy"}, cost=_pgd_cost,
    ),
    # No ``weaker``: what makes its images carry over to other networks may cost it on its own.
    AttackSpec(
        "mi_fgsm", SEARCH, "momentum:mi_fgsm", seeded=True, style=15,
        options={
            "steps": 10, "step_size": None, "momentum": 1.0, "diversity": 0.0, "translation": 1,
            "scales": 1, "nesterov": False, "objective": "cross_entropy",
        },
        cost=_momentum_cost,
    ),
    # One search serves all epsilons; nothing is drawn in it.
    AttackSpec(
        "fab", NESTED, "boundary:several", seeded=True, strongest=True, style=12,
        options={"iterations": 100, "targets": 9}, cost=_fab_cost,
    ),
    AttackSpec(
        "autoattack", SUITE, "autoattack:AutoAttack", seeded=True, strongest=True, style=9,
        options={"version": "fast", "iterations": 100, "queries": 5000}, cost=_autoattack_cost,
        stages=("apgd", "apgd_targeted", "apgd_dlr", "fab", "square"),
    ),
    AttackSpec(
        "apgd", NESTED, "auto_pgd:nested", seeded=True, weaker="step_fgsm", strongest=True,
        options={"iterations": 100, "restarts": 1, "objective": "cross_entropy", "average": 1},
        cost=_apgd_cost, style=13,
    ),
    AttackSpec(
        "apgd_targeted", NESTED, "auto_pgd:nested_targeted", seeded=True, weaker="step_fgsm",
        strongest=True, options={"iterations": 100, "targets": 9, "average": 1}, cost=_apgd_cost,
        style=14,
    ),
    AttackSpec(
        "square", NESTED, "squares:nested", seeded=True, strongest=True, style=11,
        options={"queries": 5000}, cost=_square_cost, gradient_free=True,
    ),
    AttackSpec(
        "cw_linf", MINIMAL, "carlini_wagner:CarliniWagner", style=10,
        options={"search": "descent", "images": 100, "iterations": 2000},
        cost=lambda epsilons, options: _CW_GRADIENTS,
    ),
):  # fmt: skip
    register(_row)
CLEAN_STYLE = 6

MIFGSM = _chooser("MIFGSM", "mi_fgsm")
PGD = _chooser("PGD", "pgd")
APGD = _chooser("APGD", "apgd")
APGDTargeted = _chooser("APGDTargeted", "apgd_targeted")
AutoAttack = _chooser("AutoAttack", "autoattack")
Square = _chooser("Square", "square")
CWLinf = _chooser("CWLinf", "cw_linf")
FAB = _chooser("FAB", "fab")
Guided = _chooser("Guided", "guided")
