"""The flags of ``bin/train``, their validators, and what follows from them together."""

from __future__ import annotations

import re

from absl import flags

from cascade_keras.cli.cascade import named_twice, recorded_dataset
from cascade_keras.cli.common import check, comma_list
from cascade_keras.data.specs import DATASETS, scaled_boundaries
from cascade_keras.errors import InputError
from cascade_keras.models import specs as models

# Flags that do not change what a run computes: they may differ when it is resumed.
OPERATIONAL = {
    "data_dir",
    "runs_dir",
    "saved_dir",
    "name",
    "cascade_bank",
    "export",
    "checkpoint_minutes",
    "checkpoint_steps",
    "tensorboard",
    "tensorboard_images",
    "tensorboard_attacks",
    "tensorboard_epsilon",
    "tensorboard_steps",
    "profile_steps",
    "flagfile",
}
STEP_ATTACKS = ("step_ll", "step_fgsm", "step_both", "step_rand")
EVALUATION_ATTACKS = (*STEP_ATTACKS, "iter_ll", "iter_fgsm", "iter_margin", "pgd")
PAIR_LOSSES = ("bidirectional", "pivot")
SOURCE_FLAGS = ("cascade_source", "ensemble_source")


def build_flags() -> flags.FlagValues:
    """Return the program's flags with their validators."""
    values = flags.FlagValues()
    _define_what(values)
    _define_adversarial(values)
    _define_sources(values)
    _define_optimization(values)
    _define_running(values)
    _define_tensorboard(values)
    return values


def _define_what(values: flags.FlagValues) -> None:
    on = {"flag_values": values}
    flags.DEFINE_enum(
        "dataset",
        None,
        list(DATASETS),
        "What to learn; default: what the first source learned, digits without sources.",
        **on,
    )
    flags.DEFINE_string("data_dir", None, "TensorFlow Datasets' directory.", **on)
    flags.DEFINE_string(
        "model",
        "resnet20",
        f"{models.known_names()}; e2 and e10x2 are the 2-D embeddings of figure 4.",
        **on,
    )
    flags.DEFINE_enum(
        "loss", "pivot", ["standard", "kurakin", *PAIR_LOSSES], "How the network is defended.", **on
    )
    flags.DEFINE_string(
        "init_from",
        None,
        "A run's directory, .keras or .weights.h5 file whose weights to start from.",
        **on,
    )
    flags.DEFINE_string(
        "embedding_at",
        "logits",
        "Where the distance is measured: logits, "
        "features, stem, stage1, stage2, stage3, or bottleneck.",
        **on,
    )
    flags.DEFINE_enum(
        "normalization",
        None,
        ["pixel", "channel", "none", "image"],
        "Input normalisation; default: pixel for CIFAR, none otherwise.",
        **on,
    )
    flags.DEFINE_integer(
        "crop",
        None,
        "Side of what the network sees; CIFAR: 24, a random crop, "
        "or 32, a random crop of the image padded to 40.",
        **on,
    )


def _define_adversarial(values: flags.FlagValues) -> None:
    on = {"flag_values": values}
    flags.DEFINE_integer("batch_size", 128, "m, clean and adversarial images.", **on)
    flags.DEFINE_integer("adversarial_batch_size", 64, "k, adversarial images among the m.", **on)
    flags.DEFINE_float(
        "max_epsilon",
        None,
        "Largest epsilon in training, 0..255; default: 16 for CIFAR, 76.5 otherwise.",
        **on,
    )
    flags.DEFINE_float("adversarial_weight", 0.3, "lambda.", **on)
    flags.DEFINE_float("distance_weight", 1e-4, "lambda_2.", **on)
    flags.DEFINE_enum("distance", "l2", ["l2", "l1"], "Distance between embeddings.", **on)
    flags.DEFINE_enum(
        "embedding_normalization",
        "none",
        ["none", "unit", "variance"],
        "Of both embeddings before the distance.",
        **on,
    )
    flags.DEFINE_enum(
        "pivot_guard",
        "fixed_scale",
        ["fixed_scale", "none"],
        "fixed_scale keeps the pivot loss from inflating all embeddings; none: as printed.",
        **on,
    )
    flags.DEFINE_float(
        "paired_weight",
        1.0,
        "Weight of the clean partners of adversarial images in the cross entropy.",
        **on,
    )
    flags.DEFINE_enum("attack", "step_ll", STEP_ATTACKS, "Makes the training images.", **on)
    flags.DEFINE_enum(
        "epsilon_sampling",
        "clipped_normal",
        ["clipped_normal", "uniform", "max", "reversed_normal"],
        "Distribution of the epsilon of a training image.",
        **on,
    )
    flags.DEFINE_bool("per_pixel_epsilon", False, "Jitter epsilon by N(0, 1) per pixel.", **on)
    flags.DEFINE_float("sparsity", 100.0, "Per cent of an image's values perturbed.", **on)
    positive = (lambda v: v > 0, "above 0")
    not_negative = (lambda v: v >= 0, "0 or above")
    check(values, "batch_size", *positive)
    check(values, "adversarial_batch_size", *positive)
    check(values, "max_epsilon", lambda v: 0 <= v <= 255, "in 0..255")
    for name in ("adversarial_weight", "distance_weight", "paired_weight"):
        check(values, name, *not_negative)
    check(values, "sparsity", lambda v: 0 < v <= 100, "above 0 and at most 100 per cent")


def _define_sources(values: flags.FlagValues) -> None:
    on = {"flag_values": values}
    flags.DEFINE_list(
        "cascade_source",
        [],
        "Trained networks; half of the adversarial images are iter_fgsm images of theirs.",
        **on,
    )
    flags.DEFINE_enum(
        "cascade_mode",
        "auto",
        ["auto", "bank", "online"],
        "bank: crafted once for all training images, kept on disk; online: within each step; "
        "auto: whatever takes fewer gradients.",
        **on,
    )
    flags.DEFINE_list(
        "cascade_bank", [], "The banks' directories; default: banks/NAME for each source.", **on
    )
    flags.DEFINE_integer(
        "bank_examples",
        None,
        "Craft banks of so many training images; default: of all, or as many as a bank that is "
        "there already has.",
        **on,
    )
    flags.DEFINE_list(
        "ensemble_source",
        [],
        "Trained networks; the one-step images of each batch come from one of them or from the "
        "network itself.",
        **on,
    )
    check(values, "bank_examples", lambda v: v > 0, "above 0")


def _define_optimization(values: flags.FlagValues) -> None:
    on = {"flag_values": values}
    flags.DEFINE_integer(
        "steps",
        None,
        "Length of the schedule; default: the published one (8000 for MNIST, 94000 for CIFAR).",
        **on,
    )
    flags.DEFINE_float("learning_rate", 0.1, "At the start.", **on)
    flags.DEFINE_string(
        "lr_boundaries",
        None,
        "Steps after which the learning rate is divided by "
        "10, or none; default: the published ones in proportion to --steps.",
        **on,
    )
    flags.DEFINE_integer(
        "warmup_steps",
        None,
        "First steps at a tenth of the learning rate; "
        "default: 400 for CIFAR but at most a tenth of --steps, 0 otherwise.",
        **on,
    )
    flags.DEFINE_float("momentum", 0.9, "Of SGD.", **on)
    flags.DEFINE_float("weight_decay", 1e-4, "d in d/2 sum(w^2), on kernels only.", **on)
    flags.DEFINE_float("clip_norm", None, "Largest global norm of the gradient.", **on)
    flags.DEFINE_bool("use_ema", False, "Finish with the weights' moving average.", **on)
    flags.DEFINE_float("ema_momentum", 0.999, "Of that average.", **on)
    flags.DEFINE_enum(
        "precision",
        "float32",
        ["float32", "mixed_bfloat16", "mixed_float16"],
        "Of the convolutions.",
        **on,
    )
    flags.DEFINE_integer("seed", 0, "Of weights, batches and epsilons.", **on)
    flags.DEFINE_bool("deterministic", False, "Only deterministic operations.", **on)
    for name in ("steps", "learning_rate", "clip_norm"):
        check(values, name, lambda v: v > 0, "above 0")
    for name in ("warmup_steps", "weight_decay"):
        check(values, name, lambda v: v >= 0, "0 or above")
    for name in ("momentum", "ema_momentum"):
        check(values, name, lambda v: 0 <= v < 1, "in [0, 1)")
    check(values, "seed", lambda v: 0 <= v < 2**31, "in 0..2147483647")
    check(
        values,
        "lr_boundaries",
        lambda v: v == "none" or re.fullmatch(r"\d+(,\d+)*", v),
        "none or steps such as 4000,6000",
    )


def _define_running(values: flags.FlagValues) -> None:
    on = {"flag_values": values}
    flags.DEFINE_string("name", None, "Of the run; default: DATASET-MODEL-LOSS-sSEED.", **on)
    flags.DEFINE_string("runs_dir", "runs", "Where runs are kept.", **on)
    flags.DEFINE_string("saved_dir", "saved", "Where finished networks are saved.", **on)
    flags.DEFINE_bool("export", True, "Save the finished network as saved/NAME.", **on)
    flags.DEFINE_float("checkpoint_minutes", 3.0, "At most this long between checkpoints.", **on)
    flags.DEFINE_integer("checkpoint_steps", 0, "Also at multiples of this step; 0: no.", **on)
    flags.DEFINE_integer("log_steps", 50, "Steps between two reports.", **on)
    flags.DEFINE_list(
        "eval_attacks",
        ["step_ll", "step_fgsm", "iter_ll", "iter_fgsm"],
        "Attacks on the finished network: " + ", ".join(EVALUATION_ATTACKS),
        **on,
    )
    flags.DEFINE_list(
        "eval_epsilon", None, "Of those, one or several; default: --max_epsilon.", **on
    )
    flags.DEFINE_integer(
        "eval_examples",
        1000,
        "Test images under iterative attacks; one-step attacks get all.",
        **on,
    )
    check(
        values,
        "name",
        lambda v: re.fullmatch(r"[\w.+-]+", v) and v.strip("."),
        "a folder name of letters, digits, . + - _",
    )
    check(values, "checkpoint_minutes", lambda v: v > 0, "above 0")
    check(values, "checkpoint_steps", lambda v: v >= 0, "0 or above")
    check(values, "log_steps", lambda v: v > 0, "above 0")
    check(
        values,
        "eval_attacks",
        lambda v: set(v) <= set(EVALUATION_ATTACKS),
        f"among {', '.join(EVALUATION_ATTACKS)}",
    )
    check(values, "eval_epsilon", are_epsilons, "numbers in 0..255 such as 2,4,8")
    check(values, "eval_examples", lambda v: v > 0, "above 0")


def _define_tensorboard(values: flags.FlagValues) -> None:
    on = {"flag_values": values}
    flags.DEFINE_enum(
        "tensorboard",
        "all",
        ["all", "scalars", "none"],
        "What is kept in runs/NAME/tensorboard; scalars: losses, accuracies and the like of the "
        "training alone.",
        **on,
    )
    flags.DEFINE_integer(
        "tensorboard_images",
        64,
        "The first so many test images are attacked and shown in TensorBoard; nothing is trained "
        "or chosen by them.",
        **on,
    )
    flags.DEFINE_list(
        "tensorboard_attacks",
        ["step_ll", "iter_fgsm", "pgd"],
        "Attacks on those images: " + ", ".join(EVALUATION_ATTACKS),
        **on,
    )
    flags.DEFINE_list(
        "tensorboard_epsilon",
        None,
        "Of those, one or several; default: --max_epsilon.",
        **on,
    )
    flags.DEFINE_integer(
        "tensorboard_steps",
        0,
        "Steps between two looks at those images; 0: as often as takes 1.5 % of the training's "
        "time. The finished network is always looked at, after a short training under the attacks "
        "only that it is evaluated with anyway.",
        **on,
    )
    flags.DEFINE_integer(
        "profile_steps", 0, "Profile so many steps for TensorBoard's profile plugin; 0: none.", **on
    )
    check(values, "tensorboard_images", lambda v: v > 0, "above 0")
    check(
        values,
        "tensorboard_attacks",
        lambda v: v and set(v) <= set(EVALUATION_ATTACKS),
        f"among {', '.join(EVALUATION_ATTACKS)}",
    )
    check(values, "tensorboard_epsilon", are_epsilons, "numbers in 0..255 such as 2,4,8")
    check(values, "tensorboard_steps", lambda v: v >= 0, "0 or above")
    check(values, "profile_steps", lambda v: v >= 0, "0 or above")


def are_epsilons(texts: list[str]) -> bool:
    """Return whether each text is a number in 0..255."""
    try:
        return bool(texts) and all(0 <= float(text) <= 255 for text in texts)
    except ValueError:
        return False


def resolve(values: flags.FlagValues) -> dict:
    """Return every flag's value with the dataset's defaults filled in, checked together.

    Raises:
        InputError: flags that do not go together.
    """
    chosen = {name: values[name].value for name in values if name != "flagfile"}
    if chosen["dataset"] is None:
        networks = [(flag, path) for flag in SOURCE_FLAGS for path in chosen[flag]]
        chosen["dataset"] = recorded_dataset(networks) or "digits"
    preset = DATASETS[chosen["dataset"]]
    for name in ("max_epsilon", "steps", "normalization", "crop"):
        if chosen[name] is None:
            chosen[name] = getattr(preset, name)
    if chosen["warmup_steps"] is None:
        chosen["warmup_steps"] = min(preset.warmup_steps, chosen["steps"] // 10)
    for name in ("eval_epsilon", "tensorboard_epsilon"):
        chosen[name] = list(map(float, chosen[name] or [chosen["max_epsilon"]]))
    if chosen["name"] is None:
        kinds = [flag.removesuffix("_source") for flag in SOURCE_FLAGS if chosen[flag]]
        parts = [chosen["dataset"], chosen["model"], chosen["loss"], *kinds, f"s{chosen['seed']}"]
        chosen["name"] = "-".join(parts)
    if chosen["lr_boundaries"] is None:
        chosen["lr_boundaries"] = list(scaled_boundaries(preset, chosen["steps"]))
    elif chosen["lr_boundaries"] == "none":
        chosen["lr_boundaries"] = []
    else:
        chosen["lr_boundaries"] = [int(step) for step in comma_list(chosen["lr_boundaries"])]
        if chosen["lr_boundaries"] != sorted(set(chosen["lr_boundaries"])):
            raise InputError(f"--lr_boundaries: must increase, got {chosen['lr_boundaries']}")
    _check_together(chosen, preset)
    return chosen


def _check_sources(chosen: dict) -> None:
    for flag in SOURCE_FLAGS:
        twice = named_twice(chosen[flag])
        if twice:
            raise InputError(f"--{flag}: {twice} is named twice; name each source once")
        if chosen[flag] and chosen["loss"] == "standard":
            raise InputError(
                f"--{flag}: standard training has no adversarial images; choose "
                "--loss=kurakin, bidirectional or pivot"
            )
    if not chosen["cascade_source"]:
        for flag, unset in (
            ("cascade_mode", "auto"),
            ("cascade_bank", []),
            ("bank_examples", None),
        ):
            if chosen[flag] != unset:
                raise InputError(f"--{flag}: has a meaning only with --cascade_source")
        return
    if chosen["adversarial_batch_size"] < 2:
        raise InputError(
            "--adversarial_batch_size: half of the adversarial images are cascade images, so it "
            f"must be 2 or above, got {chosen['adversarial_batch_size']}"
        )
    if chosen["max_epsilon"] < 1:
        raise InputError(
            "--max_epsilon: the epsilons of cascade images are whole pixel values, so it must be "
            f"1 or above, got {chosen['max_epsilon']:g}"
        )
    banks, sources = chosen["cascade_bank"], chosen["cascade_source"]
    if banks and len(banks) != len(sources):
        raise InputError(
            f"--cascade_bank: name one bank for each source ({len(sources)}), got {len(banks)}"
        )
    if chosen["cascade_mode"] == "online" and (banks or chosen["bank_examples"]):
        raise InputError("--cascade_mode: online crafting uses no bank; leave out the bank's flags")


def _check_together(chosen: dict, preset) -> None:
    _check_sources(chosen)
    m, k, loss = chosen["batch_size"], chosen["adversarial_batch_size"], chosen["loss"]
    if loss in PAIR_LOSSES and 2 * k > m:
        raise InputError(
            f"--adversarial_batch_size: {loss} pairs each adversarial image with its clean one, so "
            f"it can be at most half of --batch_size ({m // 2}), got {k}"
        )
    if loss == "kurakin" and k == m and chosen["adversarial_weight"] == 0:
        raise InputError(
            "--adversarial_weight: 0 leaves no image with a weight; raise it or lower k"
        )
    if loss == "kurakin" and k > m:
        raise InputError(f"--adversarial_batch_size: at most --batch_size ({m}), got {k}")
    if chosen["crop"] not in preset.crops:
        sizes = " or ".join(map(str, preset.crops))
        raise InputError(
            f"--crop: {chosen['dataset']} networks see {sizes} pixels, got {chosen['crop']}"
        )
    first = min(chosen["lr_boundaries"], default=None)
    if first is not None and chosen["warmup_steps"] and chosen["warmup_steps"] >= first:
        raise InputError(
            f"--warmup_steps: must end before the first of --lr_boundaries ({first}), "
            f"got {chosen['warmup_steps']}"
        )
    models.look_up(chosen["model"], chosen["embedding_at"])
