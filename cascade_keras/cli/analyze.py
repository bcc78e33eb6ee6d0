"""Draw the figures of the paper, and two more, for networks of your own.

    analyze --figure=noise_correlation --model=saved/a,saved/b --output=figures
    analyze --figure=embedding_map --model=runs/standard_e2,runs/pivot_e2 --dataset=mnist
    analyze --figure=distance_sweep --model=runs/l1e-4,runs/l1e-3,runs/l1e-2
    analyze --figure=logits --model=saved/a --epsilons=-20..20

    noise_correlation     how alike the adversarial noises of two networks are (figures 1, 6)
    embedding_map         embeddings in the plane, and where attacks move them (figure 4)
    distance_sweep        accuracy against lambda_2, of several finished runs (figure 5)
    logits                true and false logits against epsilon (figure 7)
    gradient_correlation  how fast input gradients become others (figure 8)
    cw_distribution       the smallest epsilons that fool (figure 9)
    accuracy_curve        accuracy against epsilon up to 255, where masked gradients show
    loss_surface          the loss in the plane of the gradient and a random direction

embedding_map projects embeddings of more than 2 dimensions by their principal components; a network
that was trained by bin/train --model=resnet20_e2 --embedding_at=bottleneck, as the paper's, has 2.

A network is a saved network, a run or a .keras file. OUTPUT/NAME.png and .pdf are the picture, .txt
its caption, .npz the arrays: the same command draws them again without computing them. Epsilons are
in 0..255 units.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import re
from collections.abc import Callable, Sequence

from absl import flags

from cascade_keras.cli.cascade import named_twice, recorded_dataset
from cascade_keras.cli.common import check, comma_list, run_program
from cascade_keras.data.specs import DATASETS, DatasetSpec
from cascade_keras.errors import InputError
from cascade_keras.files import check_writable
from cascade_keras.progress import show_progress
from cascade_keras.provenance import locate
from cascade_keras.startup import import_tensorflow

STEP_ATTACKS = ("step_ll", "step_fgsm", "step_rand", "step_both")
ATTACKS = (*STEP_ATTACKS, "iter_fgsm", "iter_ll", "iter_margin", "pgd")
LARGEST_EPSILON = 255.0
SUFFIXES = (".npz", ".txt", ".png", ".pdf")
# Losses that have a distance, and so a lambda_2 that matters.
DISTANCE_LOSSES = ("pivot", "bidirectional")


def _ladder(preset: DatasetSpec) -> tuple[float, ...]:
    """Return about 16 whole epsilons up to the dataset's largest."""
    step = 1 if preset.max_epsilon <= 20 else 4
    return tuple(range(step, int(preset.max_epsilon) + 1, step))


def _both_sides(preset: DatasetSpec) -> tuple[float, ...]:
    upwards = _ladder(preset)
    return (*(-epsilon for epsilon in reversed(upwards)), 0, *upwards)


def _trace(preset: DatasetSpec) -> tuple[float, ...]:
    """Return the paper's 0, 8, ..., 76 of MNIST, 0, 2, ..., 16 of CIFAR."""
    largest = int(preset.max_epsilon)
    return (*range(0, largest, 2 if largest <= 20 else 8), largest)


def _small_and_large(preset: DatasetSpec) -> tuple[float, ...]:
    return (4 if preset.max_epsilon <= 20 else 32, preset.max_epsilon)


def _all_sizes(preset: DatasetSpec) -> tuple[float, ...]:
    """Return 0 to 255, close to each other where networks begin to fail."""
    return (0, 1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 255)


def _thresholds(preset: DatasetSpec) -> tuple[float, ...]:
    """Return the epsilons above which the paper counts images."""
    return (2, 4) if preset.max_epsilon <= 20 else (preset.max_epsilon,)


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a figure takes.

    Attributes:
        epsilons: default of a dataset.
        lowest: the smallest epsilon that makes sense; ``above_zero`` excludes 0 itself.
        num_images: default.
        attacks: default; ``choice`` is what may be named instead, ``single`` only one of them.
        networks: the fewest.
        options: flags that it takes beside those of every figure.
    """

    epsilons: Callable[[DatasetSpec], tuple[float, ...]]
    lowest: float = 0.0
    above_zero: bool = False
    num_images: int = 128
    attacks: tuple[str, ...] = ()
    choice: tuple[str, ...] = ATTACKS
    single: bool = False
    networks: int = 1
    options: tuple[str, ...] = ()


_PGD = ("pgd_steps", "pgd_restarts")
FIGURES = {
    "noise_correlation": Kind(
        _ladder, above_zero=True, attacks=("iter_fgsm",), single=True, networks=2, options=_PGD
    ),
    "embedding_map": Kind(
        _trace, num_images=1000, attacks=("iter_fgsm",), single=True, options=_PGD
    ),
    "distance_sweep": Kind(
        _small_and_large,
        attacks=("step_ll", "step_fgsm", "iter_fgsm"),
        networks=2,
        options=_PGD,
    ),
    "logits": Kind(
        _both_sides, -LARGEST_EPSILON, attacks=STEP_ATTACKS[:3], choice=STEP_ATTACKS
    ),
    "gradient_correlation": Kind(lambda preset: (0, *_ladder(preset)), -LARGEST_EPSILON),
    "cw_distribution": Kind(
        _thresholds, num_images=100, options=("cw_search", "cw_iterations")
    ),
    "accuracy_curve": Kind(
        _all_sizes, attacks=("step_fgsm", "step_rand", "iter_fgsm", "pgd"), options=_PGD
    ),
    "loss_surface": Kind(_both_sides, -LARGEST_EPSILON, num_images=3, options=("image_index",)),
}  # fmt: skip
# Flags that only some figures take.
_PARTICULAR = ("attack", "image_index", "pgd_steps", "pgd_restarts", "cw_search", "cw_iterations")


def build_flags() -> flags.FlagValues:
    """Return the program's flags with their validators."""
    values = flags.FlagValues()
    _define_what(values)
    _define_how(values)
    return values


def _define_what(values: flags.FlagValues) -> None:
    on = {"flag_values": values}
    flags.DEFINE_enum("figure", None, list(FIGURES), "What to draw.", required=True, **on)
    flags.DEFINE_list("model", None, "The networks, in the order they are drawn.", required=True,
                      **on)  # fmt: skip
    flags.DEFINE_enum(
        "dataset",
        None,
        list(DATASETS),
        "Whose images; default: what the first model learned.",
        **on,
    )
    flags.DEFINE_string("data_dir", None, "TensorFlow Datasets' directory.", **on)
    flags.DEFINE_enum("split", "test", ["test", "train"], "Of the dataset.", **on)
    flags.DEFINE_string("output", "figures", "Directory of NAME.png, .pdf, .txt and .npz.", **on)
    flags.DEFINE_integer(
        "num_images",
        None,
        "Default: 128; 1000 for embedding_map, 100 for cw_distribution, 3 for loss_surface.",
        **on,
    )
    flags.DEFINE_list(
        "image_index", None, "loss_surface: which images of the split, instead of some.", **on
    )
    flags.DEFINE_integer("seed", 0, "Of the choice of images, step_rand and pgd.", **on)
    check(values, "model", bool, "at least one network")
    check(values, "num_images", lambda v: v > 0, "above 0")
    check(
        values,
        "image_index",
        lambda v: v and all(text.isdecimal() for text in v) and len(set(map(int, v))) == len(v),
        "whole numbers from 0, each once",
    )
    check(values, "seed", lambda v: 0 <= v < 2**31, "in 0..2147483647")


def _define_how(values: flags.FlagValues) -> None:
    on = {"flag_values": values}
    flags.DEFINE_string(
        "epsilons",
        None,
        "Such as 0..16, -16..16 or 0,0.5,1..4; default: some up to the dataset's --max_epsilon, or "
        "255 for accuracy_curve. loss_surface: along both axes; cw_distribution: what is marked.",
        **on,
    )
    flags.DEFINE_list(
        "attack",
        None,
        "Default: iter_fgsm; step_ll, step_fgsm, step_rand for logits; step_ll, step_fgsm, "
        "iter_fgsm for distance_sweep; step_fgsm, step_rand, iter_fgsm, pgd for accuracy_curve.",
        **on,
    )
    flags.DEFINE_integer("pgd_steps", 20, "Of each start of pgd.", **on)
    flags.DEFINE_integer("pgd_restarts", 1, "Random starts; the worst counts.", **on)
    flags.DEFINE_enum(
        "cw_search",
        "descent",
        ["descent", "grid"],
        "descent: down from the best so far; grid: the published one, hours.",
        **on,
    )
    flags.DEFINE_integer("cw_iterations", 2000, "At most, for each constant and tau.", **on)
    check(
        values,
        "attack",
        lambda v: v and set(v) <= set(ATTACKS) and len(set(v)) == len(v),
        f"among {', '.join(ATTACKS)}, each once",
    )
    check(
        values,
        "epsilons",
        lambda v: parse_epsilons(v) is not None,
        "a range such as 0..16 or numbers in -255..255 such as 2,4,8",
    )
    for name in ("pgd_steps", "pgd_restarts", "cw_iterations"):
        check(values, name, lambda v: v > 0, "above 0")


def parse_epsilons(text: str) -> list[float] | None:
    """Return the epsilons that 1..16 or -2,0.5,4..8 means, ascending; None where it means none."""
    found: set[float] = set()
    for part in comma_list(text):
        ends = re.fullmatch(r"(-?\d+)\.\.(-?\d+)", part)
        if ends:
            first, last = map(int, ends.groups())
            if not -LARGEST_EPSILON <= first <= last <= LARGEST_EPSILON:
                return None
            found |= set(map(float, range(first, last + 1)))
            continue
        try:
            epsilon = float(part)
        except ValueError:
            return None
        if not (math.isfinite(epsilon) and abs(epsilon) <= LARGEST_EPSILON):
            return None
        found.add(epsilon + 0.0)  # -0.0 is 0
    return sorted(found) or None


def resolve(values: flags.FlagValues) -> dict:
    """Return every flag's value with the figure's defaults filled in, checked together.

    Raises:
        InputError: flags that do not go together, or a network that is not there.
    """
    chosen = {name: values[name].value for name in values if name != "flagfile"}
    kind = FIGURES[chosen["figure"]]
    _check_options(values, chosen["figure"], kind)
    _check_models(chosen, kind)
    dataset = recorded_dataset([("model", path) for path in chosen["model"]])
    chosen["dataset"] = chosen["dataset"] or dataset
    if chosen["dataset"] not in DATASETS:
        raise InputError(
            f"--dataset: {chosen['model'][0]} does not record what it learned; "
            f"name one of {', '.join(DATASETS)}"
        )
    _resolve_epsilons(chosen, kind)
    chosen["attack"] = chosen["attack"] or list(kind.attacks)
    if kind.single and len(chosen["attack"]) > 1:
        raise InputError(f"--attack: {chosen['figure']} shows one attack; name one")
    other = [name for name in chosen["attack"] if name not in kind.choice]
    if other:
        raise InputError(
            f"--attack: {chosen['figure']} shows one-step attacks, not {other[0]}; "
            f"name some of {', '.join(kind.choice)}"
        )
    chosen["default_images"] = kind.num_images
    _check_output(chosen)
    return chosen


def _check_options(values: flags.FlagValues, figure: str, kind: Kind) -> None:
    taken = (*kind.options, *(["attack"] if kind.attacks else []))
    for name in _PARTICULAR:
        if values[name].present and name not in taken:
            takers = [
                other
                for other, its in FIGURES.items()
                if name in its.options or (name == "attack" and its.attacks)
            ]
            raise InputError(f"--{name}: {figure} does not use it; {', '.join(takers)} does")
    if values["image_index"].present and values["num_images"].present:
        raise InputError("--image_index: names the images itself; leave out --num_images")


def _check_models(chosen: dict, kind: Kind) -> None:
    paths = chosen["model"]
    twice = named_twice(paths)
    if twice:
        raise InputError(f"--model: {twice} is named twice; name each network once")
    if len(paths) < kind.networks:
        raise InputError(
            f"--model: {chosen['figure']} compares networks; name at least {kind.networks}"
        )
    if chosen["figure"] == "distance_sweep":
        chosen["distance_weight"] = [recorded_distance_weight(path) for path in paths]


def recorded_distance_weight(path: str) -> float:
    """Return lambda_2 of a network's training.

    Raises:
        InputError: there is no such network, it is not recorded, or the loss has no distance.
    """
    try:
        recipe = locate(path).provenance.get("recipe", {})
    except InputError as error:
        raise InputError(f"--model: {error}") from error
    weight = recipe.get("distance_weight")
    if not isinstance(weight, int | float):
        raise InputError(
            f"--model: {path} does not record its lambda_2 (distance_weight); name finished runs, "
            "or networks saved from them"
        )
    if recipe.get("loss") not in DISTANCE_LOSSES:
        raise InputError(
            f"--model: {path} was trained with --loss={recipe.get('loss')}, which has no distance "
            f"for lambda_2 to weigh; name runs of --loss={' or '.join(DISTANCE_LOSSES)}"
        )
    return float(weight)


def _resolve_epsilons(chosen: dict, kind: Kind) -> None:
    given = chosen["epsilons"]
    epsilons = parse_epsilons(given) if given else kind.epsilons(DATASETS[chosen["dataset"]])
    chosen["epsilons"] = list(map(float, epsilons))
    lowest = chosen["epsilons"][0]
    if lowest < kind.lowest or (kind.above_zero and lowest <= 0):
        least = "above 0" if kind.above_zero else "0 or above"
        raise InputError(f"--epsilons: {chosen['figure']} needs them {least}, got {lowest:g}")


def _check_output(chosen: dict) -> None:
    """Refuse a place that cannot be written before hours are spent."""
    path = pathlib.Path(chosen["output"]).expanduser()
    check_writable(path, "output")
    for suffix in SUFFIXES:
        if (path / f"{chosen['figure']}{suffix}").is_dir():
            raise InputError(f"--output: {path / chosen['figure']}{suffix} is a directory")
    chosen["output"] = path


def analyze(values: flags.FlagValues) -> None:
    """Run the program with parsed flags."""
    chosen = resolve(values)
    import_tensorflow()
    from cascade_keras.cli.analysis import PLOTS

    plot = PLOTS[chosen["figure"]](chosen)
    with show_progress(f"{chosen['figure']}, images", plot.work) as progress:
        arrays, computed = plot.arrays(progress)
    path = plot.write(arrays)
    how = "computed" if computed else "drawn again from its arrays"
    print(f"{path}: {how}; also .pdf, .txt, .npz")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``bin/analyze`` and ``cascade-analyze``."""
    return run_program("analyze", __doc__, build_flags(), analyze, argv)
