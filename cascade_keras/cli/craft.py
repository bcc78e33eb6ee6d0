"""Craft adversarial images of a whole split by a saved network, and keep them as a bank.

    craft --source=saved/r20p                                 the bank of a cascade training
    craft --source=saved/r20p --split=test --attack=step_ll --epsilons=2,4,8,16

The source is a saved network, a run or a .keras file. A bank is a directory of images.npy, uint8
(epsilons, N, H, W, C), labels.npy and bank.json. Crafting can be stopped at any moment; the same
command goes on after the last complete shard. Epsilons are in 0..255 units.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from absl import flags

from cascade_keras import provenance
from cascade_keras.cli.cascade import default_bank
from cascade_keras.cli.common import check, comma_list, run_program
from cascade_keras.data.specs import DATASETS
from cascade_keras.errors import InputError
from cascade_keras.progress import show_progress
from cascade_keras.startup import import_tensorflow

ATTACKS = ("iter_fgsm", "iter_ll", "step_ll", "step_fgsm", "step_both", "step_rand")


def build_flags() -> flags.FlagValues:
    """Return the program's flags with their validators."""
    values = flags.FlagValues()
    on = {"flag_values": values}
    flags.DEFINE_string("source", None, "The network to attack.", required=True, **on)
    flags.DEFINE_enum(
        "dataset", None, list(DATASETS), "Whose images; default: what the source learned.", **on
    )
    flags.DEFINE_string("data_dir", None, "TensorFlow Datasets' directory.", **on)
    flags.DEFINE_enum("split", "train", ["train", "test"], "Of the dataset.", **on)
    flags.DEFINE_enum("attack", "iter_fgsm", ATTACKS, "How the images are made.", **on)
    flags.DEFINE_string(
        "epsilons",
        None,
        "Whole pixel values: 1..16, or 2,4,8; default: 1 to the dataset's --max_epsilon.",
        **on,
    )
    flags.DEFINE_integer("examples", None, "First images of the split; default: all.", **on)
    flags.DEFINE_string(
        "output",
        None,
        "Directory; default: banks/SOURCE, and banks/SOURCE-SPLIT-ATTACK for others than "
        "iter_fgsm images of the training split.",
        **on,
    )
    flags.DEFINE_integer("batch_size", 256, "Images a shard.", **on)
    flags.DEFINE_integer("seed", 0, "Of step_rand.", **on)
    for name in ("examples", "batch_size"):
        check(values, name, lambda v: v > 0, "above 0")
    check(values, "seed", lambda v: 0 <= v < 2**31, "in 0..2147483647")
    check(
        values,
        "epsilons",
        lambda v: re.fullmatch(r"\d+\.\.\d+|\d+(,\d+)*", v),
        "a range such as 1..16 or whole numbers such as 2,4,8",
    )
    return values


def parse_epsilons(text: str) -> list[int]:
    """Return the epsilons that 1..16 or 2,4,8 means.

    Raises:
        InputError: an empty range.
    """
    if ".." not in text:
        return [int(epsilon) for epsilon in comma_list(text)]
    first, last = map(int, text.split(".."))
    if first > last:
        raise InputError(f"--epsilons: the range {text} is empty; write the smaller number first")
    return list(range(first, last + 1))


def craft(values: flags.FlagValues) -> None:
    """Run the program with parsed flags."""
    chosen = {name: values[name].value for name in values if name != "flagfile"}
    epsilons = chosen["epsilons"] and parse_epsilons(chosen["epsilons"])
    try:
        location = provenance.locate(chosen["source"])
    except InputError as error:
        raise InputError(f"--source: {error}") from error
    name = chosen["dataset"] or location.provenance.get("dataset", {}).get("name")
    if name not in DATASETS:
        raise InputError(
            f"--dataset: {location.path} does not record what it learned; "
            f"name one of {', '.join(DATASETS)}"
        )
    import_tensorflow()
    from cascade_keras import bank, cascade, data
    from cascade_keras.sources import load_source

    preset = DATASETS[name]
    try:
        source = load_source(chosen["source"])
        crop = source.input_shape[0] or preset.crop
        fitting = crop if crop in preset.crops else preset.crop
        source.check((fitting, fitting, preset.image_shape[-1]), preset.num_classes)
    except InputError as error:
        raise InputError(f"--source: {error}") from error

    dataset = data.load(name, chosen["data_dir"])
    images, labels = getattr(dataset, chosen["split"])
    examples = chosen["examples"] or len(images)
    if examples > len(images):
        raise InputError(
            f"--examples: the {chosen['split']} split of {name} has {len(images)} images, "
            f"got {examples}"
        )
    wanted = bank.identity(
        source_hash=source.weights_hash,
        dataset_hash=dataset.fingerprint,
        split=chosen["split"],
        crop=crop,
        attack=chosen["attack"],
        epsilons=epsilons or cascade.bank_epsilons(preset.max_epsilon),
        examples=examples,
        seed=chosen["seed"],
    )
    output = chosen["output"] or default_bank(source.name, chosen["split"], chosen["attack"])
    crafted = bank.Bank(output)
    with show_progress(f"crafting {crafted.path}", examples) as progress:
        try:
            crafted.craft(
                wanted,
                source.logits,
                data.centre_crop(images[:examples], crop),
                labels[:examples],
                source_name=source.name,
                dataset_name=name,
                shard_size=chosen["batch_size"],
                progress=progress,
            )
        except InputError as error:
            raise InputError(f"--output: {error}") from error
    print(
        f"{crafted.path}: {chosen['attack']} images of {examples} {name} {chosen['split']} images "
        f"by {source.name}, epsilon {bank.as_range(wanted['epsilons'])}, "
        f"{crafted.images.nbytes / 1e6:,.1f} MB"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``bin/craft`` and ``cascade-craft``."""
    return run_program("craft", __doc__, build_flags(), craft, argv)
