"""A training as an object: what it refuses, how it goes on, and what a user brings himself."""

import dataclasses
import io
import json
import pathlib
import re
import shutil
import signal
import threading

import keras
import numpy as np
import pytest
import rich.console
import tensorflow as tf
from support import release
from support.files import flip, tree

from cascade_keras import Training, TrainingSettings, files
from cascade_keras.cli.flags import define
from cascade_keras.data import Dataset, DatasetSpec
from cascade_keras.errors import InputError
from cascade_keras.progress import progress_bar
from cascade_keras.recorded import Metrics
from cascade_keras.runs import callbacks, metrics, panels, training_run
from cascade_keras.runs.run import Run
from cascade_keras.runs.session import Session
from cascade_keras.settings import setting
from cascade_keras.sources import load_source

SMALL = {
    "dataset": "digits", "model": "lenet", "steps": 4, "batch_size": 32, "eval_examples": 20,
    "adversarial_batch_size": 16, "eval_attacks": ["step_ll"], "tensorboard": "none",
    "export": False, "name": "run",
}  # fmt: skip


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(say=lambda text: None, objects=None, **changes):
    return Training(TrainingSettings(**{**SMALL, **changes}), say=say, **(objects or {})).run()


def content(file):
    return json.loads(pathlib.Path(file).read_text())


def weights(run="runs/run"):
    return keras.models.load_model(f"{run}/model.keras", compile=False).get_weights()


def everything(place):
    """The files and what they hold, and the folders."""
    return tree(place), sorted(pathlib.Path(place).rglob("*"))


def forget(run="runs/run", after=0):
    """Leave a run as it was after a checkpoint."""
    for path in (run / "metrics.json", run / "model.keras"):
        path.unlink()
    for path in run.glob("checkpoints/*.keras"):
        if int(path.stem[5:]) > after:
            path.unlink()


# What settings refuse: what differs from the defaults, the setting that is named, a word of why.
CHOICES = {
    "dataset": "cifar10", "model": "resnetD", "loss": "pivot", "distance": "l2",
    "epsilon_sampling": "clipped_normal", "precision": "mixed_bfloat16", "embedding_at": "stage3",
    "tensorboard": "scalars",
}  # fmt: skip
NEGATIVE = {
    "max_epsilon": "0..255", "adversarial_weight": "0 or above", "distance_weight": "0 or above",
    "paired_weight": "0 or above", "tensorboard_steps": "0 or above", "seed": "2147483647",
    "profile_steps": "0 or above",
}  # fmt: skip
ZERO = {
    "adversarial_batch_size": "above 0", "sparsity": "100", "learning_rate": "above 0",
    "tensorboard_images": "above 0",
}  # fmt: skip
KURAKIN = {"loss": "kurakin", "adversarial_batch_size": 128}
CASCADE = {"cascade_source": ["a"], "dataset": "digits"}
REFUSED = [
    *(({name: "other"}, name, word) for name, word in CHOICES.items()),
    *(({name: -1}, name, word) for name, word in NEGATIVE.items()),
    *(({name: 0}, name, word) for name, word in ZERO.items()),
    ({"model": "resnet21"}, "model", "6n"),
    ({"attack": "autoattack"}, "attack", "step_ll"),
    ({"attack": "pgd", "jit_compile": "on"}, "jit_compile", "pgd leaves out"),
    ({"attack": "pgd", "sparsity": 50}, "sparsity", "pgd"),
    ({"attack": "rs_fgsm", "sparsity": 50}, "sparsity", "rs_fgsm"),
    ({"loss": "kurakin", "attack": "guided"}, "attack", "kurakin has none"),
    ({"start": "uniform"}, "start", "guided"),
    ({"guide": 2}, "guide", "guided"),
    ({"guide_alternates": False}, "guide_alternates", "guided"),
    ({"clean_embedding": "moves"}, "clean_embedding", "bidirectional"),
    ({"loss": "bidirectional", "clean_embedding": "constant"}, "clean_embedding", "loss pivot"),
    ({"loss": "kurakin", "clean_embedding": "moves"}, "clean_embedding", "no distance"),
    ({"loss": "kurakin", "distance": "nuclear"}, "distance", "kurakin"),
    ({"loss": "standard", "distance_ramp": "late"}, "distance_ramp", "no distance"),
    ({"distance": "softmax", "pivot_guard": "fixed_scale"}, "pivot_guard", "bounded"),
    (
        {
            "loss": "guided",
            "distance": "l2",
            "clean_embedding": "moves",
            "pivot_guard": "fixed_scale",
        },
        "pivot_guard",
        "constant",
    ),
    ({"eval_attacks": ["n_fgsm"]}, "eval_attacks", "training images only"),
    ({"tensorboard_attacks": ["n_fgsm"]}, "tensorboard_attacks", "training images only"),
    ({"adversarial_batch_size": 65}, "adversarial_batch_size", "half of batch_size (64)"),
    ({"loss": "bidirectional", "batch_size": 100}, "adversarial_batch_size", "(50)"),
    ({**KURAKIN, "adversarial_batch_size": 129}, "adversarial_batch_size", "(128)"),
    ({**KURAKIN, "adversarial_weight": 0}, "adversarial_weight", "no image"),
    ({"max_epsilon": 256}, "max_epsilon", "0..255"),
    ({"sparsity": 101}, "sparsity", "100"),
    ({"momentum": 1}, "momentum", "[0, 1)"),
    ({"lr_boundaries": [20, 10]}, "lr_boundaries", "increasing"),
    ({"lr_boundaries": [20], "warmup_steps": 20}, "warmup_steps", "(20)"),
    ({"lr_boundaries": [0, 10]}, "lr_boundaries", "from 1 on"),
    ({"model": "resnet60002"}, "model", "1202"),
    ({"model": "plain" + "9" * 5000}, "model", "1202"),
    ({"model": "resnet20" * 100}, "model", "unknown"),
    ({"embedding_at": "stage9"}, "embedding_at", "stage3"),
    ({"steps": 9, "warmup_steps": 10, "lr_boundaries": ()}, "warmup_steps", "9"),
    ({"saved_dir": "./runs"}, "saved_dir", "runs_dir"),
    ({"saved_dir": "runs/x", "name": "x"}, "saved_dir", "runs_dir"),
    ({"runs_dir": "saved/x", "name": "x"}, "runs_dir", "saved_dir"),
    ({"init_from": "runs/x", "name": "x"}, "init_from", "runs_dir"),
    ({**CASCADE, "cascade_bank": ["runs"]}, "runs_dir", "cascade_bank"),
    ({**CASCADE, "cascade_bank": ["saved/x/b"], "name": "x"}, "cascade_bank", "saved_dir"),
    ({"crop": 24}, "crop", "8 pixels"),
    ({"dataset": "cifar10", "crop": 28}, "crop", "24 or 32"),
    ({"name": ".."}, "name", "folder"),
    ({"eval_attacks": ["cw_linf"]}, "eval_attacks", "iter_margin"),
    ({"eval_epsilon": []}, "eval_epsilon", "0..255"),
    ({"tensorboard_attacks": []}, "tensorboard_attacks", "one"),
    ({"tensorboard_epsilon": [300]}, "tensorboard_epsilon", "0..255"),
    ({"cascade_mode": "bank"}, "cascade_mode", "cascade_source"),
    ({"cascade_bank": ["banks/x"]}, "cascade_bank", "cascade_source"),
    ({"cascade_share": 1.0}, "cascade_share", "cascade_source"),
    ({**CASCADE, "cascade_share": 0}, "cascade_share", "above 0"),
    ({**CASCADE, "cascade_share": 0.01}, "adversarial_batch_size", "100 or above, got 64"),
    ({**CASCADE, "cascade_share": 1, "sparsity": 50}, "sparsity", "cascade_share 1"),
    ({**CASCADE, "cascade_share": 1, "ensemble_source": ["a"]}, "ensemble_source", "leaves none"),
    ({**CASCADE, "cascade_source": ["a", "./a"]}, "cascade_source", "twice"),
    ({**CASCADE, "adversarial_batch_size": 1}, "adversarial_batch_size", "got 1"),
    ({**CASCADE, "max_epsilon": 0.5}, "max_epsilon", "1 or above"),
    ({**CASCADE, "cascade_mode": "online", "bank_examples": 9}, "cascade_mode", "no bank"),
    ({**CASCADE, "cascade_bank": ["b", "c"]}, "cascade_bank", "got 2"),
    (
        {"ensemble_source": ["a"], "dataset": "digits", "loss": "standard"},
        "ensemble_source",
        "pivot",
    ),
    ({"cascade_source": ["nobody"]}, "cascade_source", "does not exist"),
]


@pytest.mark.parametrize(("changes", "name", "word"), REFUSED, ids=lambda value: str(value)[:40])
def test_settings_that_make_no_sense_are_refused(changes, name, word):
    with pytest.raises(InputError) as error:
        TrainingSettings(**changes).resolved()
    assert error.value.setting == name and word in error.value.message


def test_what_is_not_given_follows_from_the_dataset():
    mnist = TrainingSettings(dataset="mnist", steps=800).resolved()
    assert (mnist.max_epsilon, mnist.crop, mnist.normalization) == (76.5, 28, "none")
    assert mnist.lr_boundaries == (400, 600) and mnist.warmup_steps == 0
    assert mnist.eval_epsilon == mnist.tensorboard_epsilon == (76.5,)
    assert mnist.name == "mnist-resnet20-pivot-s0"
    cifar = TrainingSettings(dataset="cifar10", lr_boundaries=[], crop=32).resolved()
    assert (cifar.steps, cifar.warmup_steps, cifar.lr_boundaries) == (94_000, 400, ())
    assert cifar.resolved() == cifar


def test_results_say_which_attack_made_them():
    said = []
    done = train(said.append, steps=1, eval_attacks=["pgd", "step_ll"], eval_epsilon=[4, 0.3])
    assert [(r["attack"], r["epsilon"]) for r in done.results] == [
        ("clean", 0), ("pgd", 4), ("pgd", 0.3), ("step_ll", 4), ("step_ll", 0.3)
    ]  # fmt: skip
    recorded = content("runs/run/metrics.json")["results"]
    assert recorded == list(done.results)
    assert recorded[1]["options"]["restarts"] == 5 and recorded[1]["examples"] == 20
    assert "options" not in recorded[0] and recorded[0]["examples"] == 360
    # An epsilon that was meant as a share of the range is noted.
    assert any("0..255" in text and "76.5" in text for text in said)
    assert not TrainingSettings(eval_epsilon=[2], dataset="digits").resolved().notes()


def changed(change):
    """A training that does something to its trainer."""

    class Changed(Training):
        def build_trainer(self, *arguments):
            trainer = super().build_trainer(*arguments)
            change(trainer)
            return trainer

    return Changed


def test_a_signal_stops_it_and_only_the_main_thread_can_be_asked(here):
    def interrupt(trainer):
        step = trainer.train_step

        def interrupting(batch):
            tf.py_function(lambda: signal.raise_signal(signal.SIGINT), [], [])
            return step(batch)

        trainer.train_step = interrupting

    stopped = changed(interrupt)(TrainingSettings(**SMALL)).run()
    assert stopped.stopped_by == signal.SIGINT and stopped.step < 4 and not stopped.results
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    found = []
    thread = threading.Thread(target=lambda: found.append(train()))
    thread.start(), thread.join()
    assert found[0].finished and found[0].step == 4


def classifier(width=16):
    """A user's Keras classifier: one output, no embedding."""
    inputs = keras.Input((8, 8, 1))
    hidden = keras.layers.Dense(width, activation="relu")(keras.layers.Flatten()(inputs))
    return keras.Model(inputs, keras.layers.Dense(10)(hidden))


def own_data(shift=0):
    rng = np.random.default_rng(shift)
    spec = DatasetSpec("mine", lambda spec, data_dir: None, (8, 8, 1), 10)
    parts = [
        (rng.integers(0, 256, (count, 8, 8, 1), np.uint8), np.arange(count, dtype=np.int32) % 10)
        for count in (64, 32)
    ]
    return Dataset("mine", spec, *parts)


def test_an_own_network_and_own_data_are_trained_and_no_others_go_on(here):
    objects = {"network": classifier(), "dataset": own_data()}
    before = objects["network"].get_weights()
    settings = {"dataset": None, "name": None, "checkpoint_steps": 2}
    done = train(objects=objects, **settings)
    assert done.path.name == "mine-functional-pivot-s0"
    assert any((a != b).any() for a, b in zip(before, objects["network"].get_weights()))
    config = content(done.path / "config.json")
    assert config["flags"]["dataset"] == config["dataset"]["name"] == "mine"
    assert config["flags"]["model"].startswith("own-")
    assert config["flags"]["max_epsilon"] == 16

    forget(done.path, after=2)
    for other, named in (
        ({"network": classifier(17)}, "model"),
        ({"network": None}, "model"),
        ({"dataset": own_data(1)}, "data_dir"),
    ):
        with pytest.raises(InputError) as error:
            train(objects={**objects, **other}, **{**settings, "name": done.path.name})
        assert error.value.setting == named
    # Another object of the same architecture is the same network: its weights are in the run.
    assert train(objects={**objects, "network": classifier()}, **settings).finished


def test_an_own_network_has_to_fit():
    for network, word in ((classifier(), "classes"), (keras.Sequential(), "images")):
        objects = {"network": network, "dataset": own_data()}
        object.__setattr__(objects["dataset"].preset, "num_classes", 11)
        with pytest.raises(InputError, match=word):
            train(objects=objects, dataset=None)
    with pytest.raises(InputError, match="mine"):
        train(objects={"dataset": own_data()}, dataset="digits")


def test_sources_may_be_given_as_objects(here):
    source = load_source(release.unpack(here) / "saved" / "finished")
    objects = {"cascade_sources": [source], "ensemble_sources": [classifier()]}
    flags = {"steps": 2, "dataset": None, "cascade_mode": "online", "checkpoint_steps": 1}
    assert train(objects=objects, **flags).finished
    config = content("runs/run/config.json")
    assert config["dataset"]["name"] == "digits"
    assert config["flags"]["cascade_source"] == [str(source.path)]
    assert config["ensemble"]["sources"][0]["path"] == objects["ensemble_sources"][0].name
    forget(here / "runs/run", after=1)
    assert train(objects=objects, **flags).finished
    forget(here / "runs/run", after=1)
    objects["ensemble_sources"][0].layers[-1].bias.assign([1.0] * 10)
    with pytest.raises(InputError) as error:
        train(objects=objects, **flags)
    assert error.value.setting == "ensemble_source"


# A user's own flag, metric and panel.


@dataclasses.dataclass(frozen=True)
class MoreSettings(TrainingSettings):
    label_noise: float = setting(0.0, "Share of labels that are wrong.")


def test_a_run_goes_on_and_a_flag_is_one_field_that_locks_no_older_run_out(here):
    said = []
    done = train(said.append, checkpoint_steps=2)
    assert done.finished and done.step == 4 and not done.was_finished
    (line,) = [text for text in said if text.startswith("training on CPU ")]
    assert "float32, without XLA" in line
    assert [result["attack"] for result in done.results] == ["clean", "step_ll"]
    first, again = weights(), train()
    assert again.was_finished and again.results == done.results

    forget(here / "runs/run", after=2)
    said.clear()
    assert "--label_noise" in define(MoreSettings).get_help()
    with pytest.raises(InputError) as error:
        Training(MoreSettings(**SMALL, label_noise=0.1)).run()
    assert error.value.setting == "label_noise"
    assert Training(MoreSettings(**SMALL), say=said.append).run().finished
    assert any("step 2 of 4" in text for text in said)
    for expected, got in zip(first, weights(), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-6)

    (here / "runs/run/metrics.json").unlink()
    config = content("runs/run/config.json")
    config["flags"]["label_noise"] = 0.0
    (here / "runs/run/config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="label_noise"):
        train()


def test_a_metric_of_a_trainer_reaches_tensorboard_by_itself(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    writer = tf.summary.create_file_writer(str(tmp_path))
    report = callbacks.Report(writer, 0, 1, 8, 1)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.5))
    model.steps_done = 1
    report.set_model(model)
    report.on_train_begin()
    report.on_train_batch_begin(0)
    report.on_train_batch_end(0, {"loss": 2.0, "curvature": 3.0})
    report.on_train_end()
    tags = EventAccumulator(str(tmp_path)).Reload().Tags()["tensors"]
    assert {"training/curvature", "loss/total", "optimizer/learning_rate"} <= set(tags)
    assert not any("adversarial" in tag for tag in tags)
    text = metrics.progress_text({"loss": 2.0, "clean_accuracy": 0.5, "curvature": 3.0})
    assert "loss 2" in text and "50.0%" in text


def test_a_panel_is_one_function(monkeypatch):
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

    def squares(views, step):
        return {view.name: np.full((4, 5, 3), step, np.uint8) for view in views}

    monkeypatch.setattr(panels, "PANELS", dict(panels.PANELS))
    panels.register("squares", squares)
    panels.register("one", lambda views, step: np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(ValueError, match="squares"):
        panels.register("squares", squares)
    train(tensorboard="all", tensorboard_attacks=["step_ll"], tensorboard_images=2)
    events = EventAccumulator("runs/run/tensorboard").Reload()
    shown = {"images/step_ll_76.5", "squares/clean", "squares/step_ll_76.5", "one"}
    assert shown <= set(events.PluginTagToContent("images"))  # others may have registered more


# The clock.


def test_steps_whose_gradient_overflows_count(here):
    """In half precision the first steps are left out by the optimizer, not by the clock."""

    overflowing = changed(lambda trainer: trainer.optimizer.dynamic_scale.assign(2.0**22))
    kept = {**SMALL, "precision": "mixed_float16", "steps": 12, "checkpoint_steps": 3,
            "deterministic": True, "lr_boundaries": [6]}  # fmt: skip
    overflowing(TrainingSettings(**kept)).run()
    names = sorted(path.name for path in (here / "runs/run/checkpoints").glob("*.keras"))
    assert names == ["step-00000006.keras", "step-00000009.keras", "step-00000012.keras"]
    trainer = keras.models.load_model(here / "runs/run/checkpoints" / names[0])
    assert int(trainer.steps) == 6 and int(trainer.optimizer.inner_optimizer.iterations) < 6
    expected = weights()
    forget(here / "runs/run", after=6)
    overflowing(TrainingSettings(**kept)).run()
    for one, other in zip(expected, weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert keras.config.dtype_policy().name == "float32"


# A directory that cannot be, or that a killed process has left.


def file(name, content=""):
    def make(run):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(content)

    return make


def folder(name):
    return lambda run: (run / name).mkdir(parents=True)


def link(name):
    def make(run):
        (run / name).parent.mkdir(parents=True)
        (run / name).symlink_to(run.parent.parent / "elsewhere")
        (run.parent.parent / "elsewhere").write_text("somebody's")

    return make


IN_THE_WAY = {
    "../../runs": (file(".."), "runs is not a directory"),
    "run": (file("."), "run is not a directory"),
    "checkpoints": (file("checkpoints"), "checkpoints is not a directory"),
    "lock": (folder("checkpoints/.lock"), ".lock is not a file"),
    "a link as lock": (link("checkpoints/.lock"), ".lock is not a file"),
    "checkpoint": (folder("checkpoints/step-00000002.keras"), "00000002.keras is not a file"),
    "tensorboard": (file("tensorboard"), "tensorboard is not a directory"),
    "final": (file("tensorboard/final"), "final is not a directory"),
    "projector": (link("tensorboard/projector"), "projector is not a directory"),
    "config": (folder("config.json"), "config.json is not a file"),
    "model": (folder("model.keras"), "model.keras is not a file"),
    "metrics": (folder("metrics.json"), "metrics.json is not a file"),
    "others": (file("thesis.tex"), "is not a run"),
    "others' checkpoints": (file("checkpoints/model.ckpt"), "is not a run"),
    "damage": (file("config.json", "{"), "config.json: input data was truncated"),
    "a report": (file("config.json", '{"format": 1, "seed": 0}'), "`flags`"),
}


@pytest.mark.parametrize("what", IN_THE_WAY)
def test_a_place_that_cannot_be_is_refused_before_anything_is_done(what, here, monkeypatch):
    make, message = IN_THE_WAY[what]
    make(here / "runs" / "run") if what[0] != "." else (here / "runs").write_text("a file")
    monkeypatch.setattr(training_run, "import_tensorflow", lambda: pytest.fail("too late"))
    before = everything(here)
    with pytest.raises(InputError, match=re.escape(message)):
        train()
    assert everything(here) == before


CONFIG = "config.json"
LEFT = {
    "nothing": [],
    "directories": ["checkpoints/"],
    "lock": ["checkpoints/.lock"],
    "a half configuration": ["checkpoints/.lock", ".partial-config.json"],
    "another's": ["checkpoints/.lock", ".partial-77-01234567-config.json"],
    "no events": [CONFIG, "tensorboard/"],
    "events": [CONFIG, "tensorboard/events.out.tfevents.1.x", "tensorboard/final/"],
    "pictures": [
        CONFIG, "checkpoints/.lock", "tensorboard/projector/.partial-77-01234567-sprite.png",
        "tensorboard/final/events.out.tfevents.1.x", "tensorboard/projector/embeddings.tsv",
        "tensorboard/projector_config.pbtxt", "tensorboard/plugins/profile/1/x.xplane.pb",
    ],
    "a half checkpoint": [CONFIG, "checkpoints/.partial-77-01234567-step-00000002.keras"],
    "a whole one, half renamed": [CONFIG, "checkpoints/.partial-step-00000002.keras"],
}  # fmt: skip


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """The directory of an undisturbed run with other flags and data than any before it."""
    place = tmp_path_factory.mktemp("clean")
    done = train(runs_dir=str(place), seed=1, tensorboard="scalars", checkpoint_steps=2)
    return done.path


@pytest.mark.parametrize("what", LEFT)
def test_what_a_killed_start_leaves_is_gone_on_from(what, here, clean, monkeypatch):
    """With the wrong flags, which end it before its first step, and with the right ones."""
    run = here / "runs" / "run"
    for name in LEFT[what]:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        if name == CONFIG:
            config = content(clean / CONFIG)
            config["flags"] |= {"steps": 99, "seed": 7}
            text = json.dumps(config | {"seed": 7})
            (run / name).write_text(text.replace(config["dataset"]["fingerprint"], "0" * 64))
        elif name.endswith("/"):
            (run / name).mkdir(parents=True)
        else:
            (run / name).write_bytes(b"half")
    (here / "half.keras").write_bytes(b"half")  # which shows when it is loaded
    before = tree(here)
    with pytest.raises(InputError, match="does not hold the weights"):
        train(init_from="half.keras", seed=1)
    names = {path: text for path, text in before.items() if ".partial" not in path.name}
    # What is no more than a lock goes with the rest.
    assert tree(here) == names and run.exists() == (CONFIG in LEFT[what] or what == "directories")
    if what != "pictures":
        return
    assert train(seed=1, tensorboard="scalars", checkpoint_steps=2).finished
    for one, other in zip(weights(clean), weights(run), strict=True):
        np.testing.assert_array_equal(one, other)
    # One session for TensorBoard, as if there had been no other.
    found, expected = (
        sorted(re.sub(r"tfevents.*", "", str(p.relative_to(where))) for p in where.rglob("*"))
        for where in (run, clean)
    )
    assert found == expected
    for name in (CONFIG, "metrics.json"):
        assert (run / name).read_text() == (clean / name).read_text()


def test_one_that_fails_early_leaves_a_free_name(here):
    with pytest.raises(InputError) as error:
        train(learning_rate=1e6, steps=50, tensorboard="scalars")
    assert "no checkpoint yet" in str(error.value) and "kept" not in str(error.value)
    assert (here / "runs/run/config.json").exists()
    with pytest.raises(ZeroDivisionError):
        changed(lambda trainer: 1 / 0)(TrainingSettings(**SMALL, seed=3)).run()
    assert tree(here) and train(steps=2).finished


def test_a_step_without_memory_is_one_line():
    def starve(trainer):
        def train_step(batch):
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")

        trainer.train_step = train_step

    with pytest.raises(InputError) as error:
        changed(starve)(TrainingSettings(**SMALL)).run()
    assert error.value.setting == "batch_size" and not pathlib.Path("runs").exists()


def test_only_one_process_has_a_directory_and_takes_away_its_own(here, monkeypatch):
    first, second = Run("a/runs/run"), Run("a/runs/run")
    first.hold()
    with pytest.raises(InputError, match="in use by another process"):
        second.hold()
    first.close()
    assert not pathlib.Path("a").exists()
    # The first takes its directories away between the second's making them and its lock.
    hold = files.hold

    def late(directory, *args):
        monkeypatch.setattr(files, "hold", hold)
        shutil.rmtree("a")
        return hold(directory, *args)

    monkeypatch.setattr(files, "hold", late)
    second.hold()
    assert pathlib.Path("a/runs/run/checkpoints/.lock").exists()
    with pytest.raises(InputError, match="in use by another process"):
        first.hold()
    pathlib.Path("a/runs/other").mkdir()
    second.close()
    assert everything("a") == ({}, [pathlib.Path("a/runs"), pathlib.Path("a/runs/other")])


def test_a_directory_that_is_removed_under_way_ends_it(here):
    def remove(*_):
        shutil.rmtree(here / "runs", ignore_errors=True)

    def remove_in_step(trainer):
        step = trainer.train_step
        trainer.train_step = lambda batch: [tf.py_function(remove, [], []), step(batch)][1]

    for change_of in (remove, remove_in_step):
        with pytest.raises(InputError, match="run was removed while"):
            changed(change_of)(TrainingSettings(**SMALL)).run()
        assert not (here / "runs").exists()


def test_an_interruption_after_the_last_step_is_gone_on_from(here, clean, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    settings = {"seed": 1, "tensorboard": "scalars", "checkpoint_steps": 2, "export": True}
    for place, name in ((Session, "evaluate"), (training_run, "export_saved_model"),
                        (Metrics, "as_json")):  # fmt: skip
        with monkeypatch.context() as patch:
            patch.setattr(place, name, interrupted)
            with pytest.raises(KeyboardInterrupt):
                train(**settings)
        assert not (here / "runs/run/metrics.json").exists()
    assert train(**settings).saved == pathlib.Path("saved/run/1")
    for name in (CONFIG, "metrics.json", "checkpoints/step-00000002.keras"):
        assert (here / "runs/run" / name).exists()
    assert content("runs/run/metrics.json") == content(clean / "metrics.json")
    for one, other in zip(weights(clean), weights(), strict=True):
        np.testing.assert_array_equal(one, other)


# Damaged files.


def change(**fields):
    def spoil(record):
        for path, value in fields.items():
            *parents, last = path.split("__")
            part = record
            for name in parents:
                part = part[int(name[1:]) if name[1:].isdigit() else name]
            if value is ...:
                del part[last]
            else:
                part[last] = value

    return spoil


BANK = "cascade: bank_examples"
CONFIGS = [
    ({"flags": ...}, "`flags`"), ({"flags": []}, "flags: expected"),
    ({"flags__seed": {"a": 1}}, "flags"), ({"seed": -1}, "seed: "), ({"seed": 4}, "seed is 4"),
    ({"seed": "0"}, "seed: expected `int`"), ({"dataset": None}, "dataset: "),
    ({"dataset__name": "mnist"}, "dataset is 'mnist', flags.dataset 'digits'"),
    ({"dataset__fingerprint": "5d1f"}, "dataset.fingerprint: "),
    ({"versions": ...}, "`versions`"), ({"versions__numpy": 2}, "versions"),
    ({"format": 0}, "format: "), ({"format": 2**70}, "format"), ({"pruned": True}, "`pruned`"),
    ({"cascade": ...}, "cascade has 0 sources"), ({"cascade__mode": "both"}, "cascade.mode: "),
    ({"cascade__mode": "online"}, BANK), ({"cascade__bank_examples": ...}, BANK),
    ({"cascade__bank_examples": [64, 64]}, BANK),
    ({"cascade__bank_examples": [0]}, "cascade.bank_examples[0]: "),
    ({"cascade__sources": []}, "cascade.sources: "),
    ({"cascade__sources___0__weights_hash": 7}, "weights_hash: "),
    ({"cascade__sources___0__path": ""}, "path: "),
    ({"ensemble": {"sources": [{"name": "a", "path": "a", "weights_hash": "f" * 64}]}},
     "ensemble has 1 sources"),
]  # fmt: skip
RESULT = "results___1__"
METRICS = [
    ({"steps": ...}, "`steps`"), ({"steps": 0}, "steps: "), ({"steps": 7}, "steps is 7"),
    ({"seed": 1}, "seed is 1"), ({"results": {}}, "results: "), ({"extra": 1}, "`extra`"),
    ({f"{RESULT}accuracy": 38.9}, "accuracy is 38.9, not 140 of 360"),
    ({f"{RESULT}accuracy": 101.0}, "accuracy: "), ({f"{RESULT}examples": 0}, "examples: "),
    ({f"{RESULT}correct": 361}, "correct is 361 of 360"), ({f"{RESULT}correct": -1}, "correct: "),
    ({f"{RESULT}epsilon": 256}, "epsilon: "), ({f"{RESULT}attack": ""}, "attack: "),
    ({f"{RESULT}attack": "clean"}, "epsilon 0, not 6"),
    ({f"{RESULT}attack": "clean", f"{RESULT}epsilon": 0}, "clean at epsilon 0 twice"),
]  # fmt: skip
SPOILT = [(CONFIG, *row) for row in CONFIGS] + [("metrics.json", *row) for row in METRICS]


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    return release.unpack(tmp_path_factory.mktemp("old")) / "runs"


@pytest.mark.parametrize(("name", "fields", "words"), SPOILT, ids=lambda value: str(value)[:40])
def test_records_that_cannot_be_true_are_refused(name, fields, words, old, here):
    run = Run(here / "run")
    shutil.copytree(old / ("half" if name == CONFIG else "finished"), run.path)
    read = run.read_config if name == CONFIG else run.read_metrics
    read()
    record = content(run.path / name)
    change(**fields)(record)
    (run.path / name).write_text(json.dumps(record))
    with pytest.raises(InputError) as error:
        read()
    assert name in error.value.message and words in error.value.message
    assert len(error.value.message.splitlines()) == 1


def renamed(step):
    return lambda path: path.rename(path.with_name(f"step-{step:08d}.keras"))


def foreign(path):
    classifier().save(path)


CHECKPOINTS = {
    "empty": (lambda path: path.write_bytes(b""), 2, "4.keras cannot be used"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-100]), 2, "4.keras cannot be used"),
    "flipped": (flip, 2, "the checksum of"),
    "foreign": (foreign, 2, "4.keras cannot be used"),
    "of an earlier step": (renamed(6), 2, "6.keras cannot be used .it is of step 4"),
    "copied": (lambda path: shutil.copy(path, path.with_name("step-00000003.keras")), 4, None),
    "no step": (renamed(0), 2, "no checkpoint's name"),
    "no number": (lambda path: path.rename(path.with_name("step-abc.keras")), 2, "no checkpoint's"),
    "short": (lambda path: path.rename(path.with_name("step-4.keras")), 2, "no checkpoint's name"),
}


@pytest.fixture(scope="module")
def trainer(clean):
    return keras.models.load_model(clean / "checkpoints" / "step-00000004.keras")


@pytest.mark.parametrize("damage", CHECKPOINTS)
def test_a_checkpoint_that_is_not_what_it_says_is_passed_over(damage, clean, here, trainer, capfd):
    spoil, step, warning = CHECKPOINTS[damage]
    run = Run(here / "run")
    shutil.copytree(clean, run.path)
    spoil(run.path / "checkpoints" / "step-00000004.keras")
    assert run.restore(trainer) == int(trainer.steps) == step
    said = capfd.readouterr().err.splitlines()
    assert len(said) == bool(warning)
    assert not said or re.search(f"^warning: .*{warning}", said[0])
    assert int(trainer.optimizer.iterations) == step
    # What is newer than this one does not count among those that are kept.
    for later in (7, 8, 9):
        (run.checkpoints / f"step-{later:08d}.keras").touch()
    run.save_checkpoint(trainer, step)
    assert run.restore(trainer) == step


def test_a_checkpoint_beyond_the_schedule_is_refused(clean, here):
    shutil.copytree(clean, here / "runs" / "run")
    forget(here / "runs" / "run", after=4)
    last = here / "runs" / "run" / "checkpoints" / "step-00000004.keras"
    shutil.copy(last, last.with_name("step-99999999.keras"))
    with pytest.raises(InputError, match=r"step-99999999.keras is of a step beyond the run's 4"):
        train(seed=1)


def test_a_finished_run_without_its_network_is_said_to_be_so(clean, here):
    run = here / "runs" / "run"
    shutil.copytree(clean, run)
    assert train(seed=1).was_finished
    flip(run / "model.keras")
    with pytest.raises(InputError, match=r"model.keras is damaged \(the checksum .*remove metrics"):
        train(seed=1)
    (run / "model.keras").unlink()
    with pytest.raises(InputError, match=r"model.keras does not exist; restore it, or remove met"):
        train(seed=1)
    (run / "metrics.json").unlink()
    assert train(seed=1).finished and (run / "model.keras").exists()


def test_a_path_is_no_markup():
    bar = progress_bar()
    bar.add_task("crafting r[/b]", total=1)
    shown = rich.console.Console(file=io.StringIO(), width=200)
    shown.print(bar.get_renderable())
    assert "r[/b]" in shown.file.getvalue()


# What version 0.1.0 left.


def old_settings(run):
    flags = content(f"runs/{run}/config.json")["flags"]
    bank = {"cascade_bank": ["banks/legacy"]} if flags["cascade_source"] else {}
    return MoreSettings(**{**flags, "name": run, "tensorboard": "none", "export": False, **bank})


def test_runs_of_an_older_version_are_known_and_end_with_their_weights(here):
    release.unpack(here)
    result = Training(old_settings("finished")).run()
    assert result.was_finished and result.results[0]["attack"] == "clean"
    said = []
    kept = here / "runs/half/checkpoints/step-00000003.keras"
    kept.rename(kept.with_stem("step-00000005"))
    with pytest.raises(InputError, match="none of the 1 checkpoints"):
        Training(old_settings("half"), say=said.append).run()
    kept.with_stem("step-00000005").rename(kept)
    assert Training(old_settings("half"), say=said.append).run().finished
    assert any("step 3 of 6" in text for text in said)
    network = keras.models.load_model("runs/half/model.keras", compile=False)
    expected = content("expected.json")["weights"]
    assert len(expected) == len(network.weights)
    for weight, (_, total, norm) in zip(network.weights, expected, strict=True):
        value = weight.numpy().astype("float64")
        assert value.sum() == pytest.approx(total, rel=1e-4, abs=1e-4)
        assert np.linalg.norm(value) == pytest.approx(norm, rel=1e-4)
