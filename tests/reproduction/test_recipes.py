"""The paper's networks as data: METHOD.md's tables, typed here once more."""

import re

import pytest

from cascade_keras import recipes
from cascade_keras.cli import train
from cascade_keras.data.specs import look_up
from cascade_keras.errors import InputError
from cascade_keras.recipes import INITIALISATIONS, RECIPES, find, settings_of
from cascade_keras.runs.settings import TrainingSettings

GROUPS = {
    "A": "R20M R20M_K R20M_B R20M_P",
    "B": "R20 R20_K R20_E R20_B R20_P R20_K,C R20_P,E R20_P,C",
    "C": "R20_2 R20_K2 R20_P2",
    "D": "R20_3",
    "E": "R20_4",
    "F": "R56_K R56_P",
    "G": "R56_K2",
    "H": "R110 R110_K R110_P R110_E R110_K,C R110_P,E R110_P,C",
    "I": "R110_2 R110_K2 R110_E2 R110_P2 R110_K,C2 R110_P,E2 R110_P,C2",
    "J": "R110_3",
    "K": "R110_4",
}
ENSEMBLES = {
    "R20_3": "R20_E R20_P,E",
    "R110_3": "R110_E R110_P,E",
    "R110_4": "R110_E2 R110_P,E2",
}
CASCADES = {
    "R20_P": "R20_K,C R20_P,C",
    "R110_P": "R110_K,C R110_P,C",
    "R110_P2": "R110_K,C2 R110_P,C2",
}
LOSSES = {"": "standard", "K": "kurakin", "B": "bidirectional", "P": "pivot", "E": "kurakin"}


def test_the_rows_are_those_of_the_paper():
    assert list(RECIPES) == " ".join(GROUPS.values()).split()
    sources = {name: source for source, names in CASCADES.items() for name in names.split()}
    ensembles = {name: (one,) for one, names in ENSEMBLES.items() for name in names.split()}
    for group, names in GROUPS.items():
        for name in names.split():
            row = RECIPES[name]
            depth, mnist, suffix = re.fullmatch(r"R(\d+)(M?)_?([KBPE]?),?[CE]?\d?", name).groups()
            assert row.group == group and row.depth == int(depth)
            assert row.dataset == ("mnist" if mnist else "cifar10")
            assert row.loss == LOSSES[suffix]
            assert row.cascade == sources.get(name) and row.ensemble == ensembles.get(name, ())
            assert row.published
    # Sections 4.1 and 5.1: a cascade network starts from its source's weights, and sources of
    # ensembles from others than the networks that are trained with them.
    for row in RECIPES.values():
        assert row.cascade is None or RECIPES[row.cascade].group == row.group
        assert all(RECIPES[name].group != row.group for name in row.ensemble)


def resolved(name, **options):
    settings = TrainingSettings(**settings_of(name, **options))
    return settings.resolved(look_up(settings.dataset))


def test_a_network_is_trained_as_published():
    found = resolved("R20_P,C")
    assert (found.dataset, found.model, found.loss) == ("cifar10", "resnet20", "pivot")
    assert (found.steps, found.lr_boundaries, found.warmup_steps) == (94_000, (48_000, 72_000), 400)
    assert (found.batch_size, found.adversarial_batch_size) == (128, 64)
    assert (found.adversarial_weight, found.distance_weight) == (0.3, 1e-4)
    assert (found.learning_rate, found.momentum, found.weight_decay) == (0.1, 0.9, 1e-4)
    assert (found.max_epsilon, found.attack, found.crop) == (16, "step_ll", 24)
    assert found.init_from == "runs/init-B-s0" and found.cascade_source == ("runs/R20_P-s0",)
    assert found.seed == 1000 and found.name == "R20_P-C-s0"
    assert resolved("R110_P,E2", seed=2).ensemble_source == ("runs/R110_4-s2",)
    assert resolved("R110_P,E2", seed=2).seed == 8002


def test_an_initialisation_is_standard_training_of_2_or_10_epochs():
    for name, steps, epochs, images in (("A", 938, 2, 60_000), ("B", 3906, 10, 50_000)):
        found = resolved(f"init-{name}")
        assert found.steps == steps and abs(steps - epochs * images / 128) <= 0.5
        assert (found.loss, found.lr_boundaries, found.init_from) == ("standard", (), None)
    assert list(INITIALISATIONS) == [f"init-{group}" for group in GROUPS]
    seeds = [settings_of(name, seed=3)["seed"] for name in INITIALISATIONS]
    assert seeds == [1000 * place + 3 for place in range(11)]


SCALES = {  # name, scale: steps, boundaries, warm-up
    ("R20M_P", 0.05): (400, (200, 300), 0),
    ("R20_K", 0.25): (23_500, (12_000, 18_000), 100),
    ("R110_P", 0.001): (94, (48, 72), 0),
    ("init-A", 0.1): (94, (), 0),
    ("init-B", 1.0): (3906, (), 390),
    ("init-B", 0.25): (977, (), 100),  # of 3906.25
    ("R20", 1e-9): (1, (1, 1), 0),
}


@pytest.mark.parametrize(("name", "scale"), SCALES)
def test_a_scale_shortens_all_of_the_schedule(name, scale):
    found = resolved(name, scale=scale)
    assert (found.steps, found.lr_boundaries, found.warmup_steps) == SCALES[name, scale]


def test_networks_on_digits_have_8_layers():
    found = resolved("R110_P", dataset="digits")
    assert (found.dataset, found.model, found.steps) == ("digits", "resnet8", 1000)
    assert resolved("init-A", dataset="digits").steps == 22  # 2 epochs of 1,437 images
    assert resolved("R110_P", dataset="digits", depth=20).model == "resnet20"


def test_20_layers_stand_for_more():
    assert find("R110_P,C", 20) is RECIPES["R20_P,C"] and find("R56_K2", 20) is RECIPES["R20_K2"]
    assert find("R110_3", 20) is RECIPES["R20_3"] and find("init-I", 20).name == "init-C"
    other = find("R110_P,C2", 20)
    assert (other.name, other.depth, other.group) == ("R20_P,C2", 20, "C")
    assert other.cascade == "R20_P2" and find("R110_E2", 20).ensemble == ("R20_4",)
    assert find("R110_P", 56) is RECIPES["R110_P"] and find("R20_P", 20) is RECIPES["R20_P"]


def test_an_unknown_network_is_refused_with_those_that_are_near():
    with pytest.raises(InputError, match=r"did you mean R20_P.*There are R20M, .*R110_4"):
        find("R20_PC")
    with pytest.raises(InputError, match="must be one of R20M, R20M_K"):
        find("zzz")


def make_run(folder):
    folder.mkdir(parents=True)
    (folder / "metrics.json").touch()


def test_what_a_recipe_needs_is_named_with_the_commands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        TrainingSettings.from_recipe("R20_P,C", seed=1, runs_dir="all", data_dir="data")
    assert caught.value.setting == "recipe"
    flags = "--seed=1 --runs_dir=all --data_dir=data"
    assert caught.value.message == (
        "R20_P,C needs all/init-B-s1 and all/R20_P-s1, which are not finished; run "
        f"`bin/train --recipe=init-B {flags}` and `bin/train --recipe=R20_P {flags}`"
    )
    make_run(tmp_path / "all/init-B-s1")
    with pytest.raises(InputError, match=r"needs all/R20_P-s1, which is not finished; run `bin"):
        TrainingSettings.from_recipe("R20_P,C", seed=1, runs_dir="all")
    make_run(tmp_path / "all/R20_P-s1")
    assert TrainingSettings.from_recipe("R20_P,C", seed=1, runs_dir="all").loss == "pivot"
    # What takes the place of a recipe's own is left to those who give it; so is a run that goes on.
    other = TrainingSettings.from_recipe(
        "R20_P,C", init_from="runs/mine", cascade_source=["saved/mine"], distance_weight=1e-3
    )
    assert other.init_from == "runs/mine" and other.cascade_source == ("saved/mine",)
    assert other.distance_weight == 1e-3 and other.steps is None
    make_run(tmp_path / "runs/R20_E-s0")
    assert TrainingSettings.from_recipe("R20_E").ensemble_source == ("runs/R20_3-s0",)


def test_the_program_takes_a_recipe_and_flags_that_override_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    taken = []
    monkeypatch.setattr(train, "Training", lambda settings: taken.append(settings) or exit(0))
    with pytest.raises(SystemExit):
        train.main(["train", "--recipe=init-B", "--seed=2", "--steps=5", "--dataset=digits"])
    assert taken == [
        TrainingSettings(
            dataset="digits", model="resnet8", loss="standard", seed=1002, steps=5,
            lr_boundaries=(), name="init-B-s2",
        )
    ]  # fmt: skip
    assert train.main(["train", "--recipe=R20_P", "--dataset=digits"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "train: --recipe: R20_P needs runs/init-B-s0, which is not finished; run "
        "`bin/train --recipe=init-B --dataset=digits`"
    )
    assert not list(tmp_path.iterdir())


def test_folders_have_no_commas():
    assert recipes.folder("R20_P,C", 1) == "R20_P-C-s1"
