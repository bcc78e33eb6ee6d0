"""Catastrophic overfitting: what looks tell, and what a run does about it."""

import json
import pathlib

import keras
import numpy as np
import pytest

from cascade_keras import (
    AdversarialTrainer,
    Training,
    TrainingSettings,
    attacks,
    callbacks,
    collapse,
    data,
)
from cascade_keras.errors import InputError
from cascade_keras.export import export_run
from cascade_keras.provenance import locate
from cascade_keras.recorded import LookRecord
from cascade_keras.runs import build, looks, session


def rows(*numbers, restored=None):
    """Looks at 300 images: (clean, attacked, pgd) each, a hundred steps apart."""
    return [
        LookRecord(step=100 * (i + 1), clean=c, attacked=a, pgd=p, restored=(restored or {}).get(i))
        for i, (c, a, p) in enumerate(numbers)
    ]


def seen(found, images=300, chance=0.1):
    watched = collapse.watch(found, images, chance)
    return [(each.seen.step, each.good.step) for each in watched.collapses], watched


HEALTHY = [(60, 45, 40), (120, 90, 80), (150, 110, 95), (170, 118, 100)]
CURVES = {
    "at once": ([*HEALTHY, (180, 200, 3)], [(500, 400)]),
    "over two looks": ([*HEALTHY, (180, 125, 75), (180, 190, 20)], [(600, 500)]),
    "it stays so": ([*HEALTHY, (180, 200, 3), (190, 220, 0), (200, 230, 5)], [(500, 400)]),
    "twice": ([*HEALTHY, (1, 200, 3), (1, 120, 99), (1, 210, 0)], [(500, 400), (700, 600)]),
    "both fall": ([*HEALTHY, (100, 40, 20), (90, 30, 15)], []),
    "both fall, then one rises": ([*HEALTHY, (100, 40, 20), (150, 200, 5)], [(600, 400)]),
    "slow overfitting": ([*HEALTHY, *((200, 120, 100 - 3 * i) for i in range(10))], []),
    "at chance at the start": ([(30, 32, 36), (60, 70, 5), (80, 90, 12)], []),
    "a weak step": ([*HEALTHY, (180, 125, 50)], []),  # the attack's has not risen
    "healthy": (HEALTHY, []),
    "none": ([], []),
}  # fmt: skip

# A ResNet-8 on CIFAR-10, every image replaced by its step_fgsm image of epsilon 16, at rates that
# rise to 0.3: 500 held-out images, every 100 steps. It learns little, and nothing collapses.
RECORDED = [
    (106, 48, 27), (106, 74, 58), (77, 66, 55), (97, 68, 67), (123, 84, 69), (124, 82, 65),
    (108, 76, 73), (130, 88, 80), (123, 91, 81), (127, 88, 57), (130, 97, 93), (115, 90, 81),
    (139, 99, 89), (144, 103, 95), (154, 111, 96), (135, 91, 63), (152, 101, 81),
    (163, 103, 81),
]  # fmt: skip


def test_a_recorded_training_that_is_sound_is_not_taken_for_another():
    assert seen(rows(*RECORDED), images=500)[0] == []


@pytest.mark.parametrize("name", CURVES)
def test_a_collapse_is_seen_and_nothing_else(name):
    curve, expected = CURVES[name]
    assert seen(rows(*curve))[0] == expected


def test_each_look_tells_what_all_up_to_it_do():
    curve = rows(*CURVES["twice"][0])
    told = [seen(curve[:n])[1].collapsed for n in range(len(curve) + 1)]
    assert told == [False] * 5 + [True, False, True]
    watched = seen(curve)[1]
    assert watched.good.step == 600
    text = watched.collapses[0].describe(300, "step_fgsm")
    for words in ("between the steps 400 and 500", "1.0% withstand pgd after 33.3%",
                  "66.7% step_fgsm", "after 39.3%"):  # fmt: skip
        assert words in text


def test_noise_of_a_few_hundred_images_is_no_collapse():
    """Networks that get better and stay so, each look an independent draw; 40 looks each."""
    rng = np.random.default_rng(0)
    for images in (100, 300, 1000):
        for _ in range(100):
            grown = 1 - np.exp(-np.arange(1, 41) / 8)
            draws = [rng.binomial(images, share * grown + 0.1) for share in (0.6, 0.35, 0.25)]
            found = [
                LookRecord(step=i + 1, clean=int(c), attacked=int(a), pgd=int(p))
                for i, (c, a, p) in enumerate(zip(*draws, strict=True))
            ]
            assert not collapse.watch(found, images, 0.1).collapses


def test_weights_that_were_taken_back_are_compared_with_what_led_to_them():
    curve = [*HEALTHY, (180, 200, 3), (170, 115, 90), (180, 210, 2)]
    found, watched = seen(rows(*curve, restored={4: 400}))
    assert found == [(500, 400), (700, 600)] and watched.restores == 1 and watched.collapsed
    found, watched = seen(rows(*curve[:5], restored={4: 400}))
    assert not watched.collapsed and watched.good.step == 400
    # From before the best look: what came after it no longer counts.
    again = [*HEALTHY[:2], (150, 110, 160), (1, 200, 3), (150, 150, 90)]
    assert seen(rows(*again, restored={3: 200}))[0] == [(400, 300)]


def test_the_best_of_equal_looks_is_the_latest():
    found = rows((5, 1, 7), (9, 1, 8), (9, 1, 8), (9, 1, 6))
    assert collapse.best(found, "pgd").step == 300 and collapse.best(found, "clean").step == 400


# What a run does.

SMALL = {
    "dataset": "digits", "model": "lenet", "steps": 6, "batch_size": 32, "eval_examples": 20,
    "adversarial_batch_size": 16, "eval_attacks": ["step_ll"], "tensorboard": "none",
    "name": "run", "validation_images": 300, "validation_steps": 1, "checkpoint_steps": 2,
    "lr_boundaries": [], "loss": "kurakin", "export": False,
}  # fmt: skip
STEADY = (200, 110, 95)
SCRIPT = [(150, 90, 80), STEADY, (200, 110, 94), (210, 250, 2), *[(210, 112, 93)] * 2]


@pytest.fixture
def scripted(tmp_path, monkeypatch):
    """Runs whose looks find what is written here, whatever their networks do."""
    monkeypatch.chdir(tmp_path)
    script = list(SCRIPT)

    class Scripted(looks.HeldOut):
        def __call__(self, step):
            clean, attacked, pgd = script[step - 1]
            return LookRecord(step=step, clean=clean, attacked=attacked, pgd=pgd)

    monkeypatch.setattr(session, "HeldOut", Scripted)
    return script


def train(said=None, **changes):
    said = [] if said is None else said
    return Training(TrainingSettings(**{**SMALL, **changes}), say=said.append).run()


def content(name):
    return json.loads(pathlib.Path("runs/run", name).read_text())


def weights():
    return keras.models.load_model("runs/run/model.keras", compile=False).get_weights()


def same(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


def by_hand(steps, taken_back=()):
    """Weights after steps of the run's own batches; (step, of) takes those of another back."""
    settings = TrainingSettings(**SMALL).resolved()
    dataset = data.load("digits")
    held_out = build.held_out(settings, dataset)
    keras.utils.set_random_seed(settings.seed)
    trainer = build.build_trainer(settings, build.build_network(settings, dataset))
    kept, found = {}, []
    batches = data.batches(*dataset.train, 32, seed=0, stop=steps, held_out=held_out, crop=8)
    for batch in batches:
        trainer.train_on_batch(*batch)
        step = int(trainer.steps)
        kept[step] = [v.numpy() for v in [*trainer.network.weights, *trainer.optimizer.variables]]
        for then, of in taken_back:
            if then == step:
                for v, value in zip(
                    [*trainer.network.weights, *trainer.optimizer.variables], kept[of], strict=True
                ):
                    v.assign(value)
        found.append(trainer.network.get_weights())
    return found


def killed(after):
    """Leave a run as one that was killed some steps after a checkpoint."""
    for name in ("metrics.json", "model.keras"):
        pathlib.Path("runs/run", name).unlink(missing_ok=True)
    for path in pathlib.Path("runs/run/checkpoints").glob("step-*.keras"):
        if int(path.stem[5:]) > after:
            path.unlink()


@pytest.mark.parametrize("policy", ["warn", "stop", "restore", "best", "clean"])
def test_what_follows_from_a_collapse(policy, scripted):
    changes = {
        "best": {"keep_best": "pgd"},
        "clean": {"keep_best": "clean", "on_collapse": "stop"},
    }.get(policy, {"on_collapse": policy})
    said = []
    result = train(said, **changes)
    metrics = content("metrics.json")
    (warning,) = [line for line in said if line.startswith("warning")]
    assert "between the steps 3 and 4" in warning and result.finished
    oracle = by_hand(6, [(4, 3)] if policy == "restore" else [])
    assert metrics["collapses"] == [
        {"step": 4, "last_good": 3, "then": "stop" if policy == "clean" else
         {"best": "warn"}.get(policy, policy)}
    ]  # fmt: skip
    files = {path.name for path in pathlib.Path("runs/run/checkpoints").glob("look-*")}
    step, by, correct, kept = {
        "warn": (6, None, None, {3}),
        "stop": (3, "collapse", 94, {3}),
        "restore": (6, None, None, {3}),
        "best": (2, "pgd", 95, {2, 3}),
        "clean": (4, "clean", 210, {3, 4}),
    }[policy]
    same(weights(), oracle[step - 1])
    assert files == {f"look-{number:08d}.keras" for number in kept}
    assert result.step == (4 if policy in ("stop", "clean") else 6)
    assert metrics.get("stopped_at") == (4 if policy in ("stop", "clean") else None)
    chosen = metrics.get("chosen")
    assert (chosen and (chosen["step"], chosen["by"], chosen["correct"])) == (
        None if by is None else (step, by, correct)
    )
    if chosen:
        assert chosen["accuracy"] == pytest.approx(correct / 3)
    assert train(**changes).told == metrics == dict(result.told)

    # Killed after a checkpoint, before or behind the collapse, it ends the same.
    rows_before = content("validation.json")
    for after in {"stop": [4], "clean": [4], "restore": [4, 2]}.get(policy, [2]):
        killed(after)
        again = train(**changes)
        assert content("metrics.json") == metrics and again.step == result.step
        assert content("validation.json") == rows_before
        same(weights(), oracle[step - 1])


def test_a_training_is_taken_back_a_few_times_only(scripted):
    good, bad = (200, 110, 95), (210, 250, 2)
    scripted[:] = [good, *[bad] * 5]
    said = []
    result = train(said, on_collapse="restore")
    metrics = content("metrics.json")
    thens = [each["then"] for each in metrics["collapses"]]
    assert thens == ["restore"] * collapse.MOST_RESTORES + ["stop"]
    assert metrics["stopped_at"] == result.step == 5 and metrics["chosen"]["step"] == 1
    assert {each["last_good"] for each in metrics["collapses"]} == {1}
    same(weights(), by_hand(1)[0])


def test_the_chosen_network_says_so_wherever_it_goes(scripted):
    result = train(keep_best="pgd", export=True)
    expected = {"step": 2, "by": "pgd", "correct": 95, "examples": 300, "accuracy": 95 / 3}
    for path in (result.saved, result.path):
        found = locate(path).provenance["chosen"]
        assert {**found, "accuracy": pytest.approx(95 / 3)} == expected
    assert export_run("runs/run", "saved/run").written is False


def test_the_file_of_the_chosen_network_is_needed(scripted):
    train(keep_best="pgd")
    killed(6)
    pathlib.Path("runs/run/checkpoints/look-00000002.keras").unlink()
    with pytest.raises(InputError, match=r"look-00000002.keras cannot be used"):
        train(keep_best="pgd")


REFUSED = [
    ({"validation_images": 0, "validation_steps": 0, "keep_best": "pgd"}, "keep_best"),
    ({"validation_images": 0, "validation_steps": 0, "on_collapse": "stop"}, "on_collapse"),
    ({"loss": "standard", "on_collapse": "stop"}, "on_collapse"),
]


@pytest.mark.parametrize(("changes", "name"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_contradicts_is_refused(changes, name):
    with pytest.raises(InputError) as error:
        TrainingSettings(**{**SMALL, **changes}).resolved()
    assert error.value.setting == name


# The same in any fit.


def watched_fit(digits, monkeypatch=None, script=(), epochs=3, **options):
    images, labels = digits[0][:200], digits[1][:200]
    inputs = keras.Input((8, 8, 1))
    network = keras.Model(inputs, keras.layers.Dense(10)(keras.layers.Flatten()(inputs)))
    trainer = AdversarialTrainer(network, "kurakin", attack="step_fgsm", max_epsilon=20)
    trainer.compile(keras.optimizers.SGD(0.1), jit_compile=False)
    watch = callbacks.CollapseWatch(epsilon=30, **options)
    if script:
        counts = iter(script)
        monkeypatch.setattr(watch, "_counted", lambda: (np.array(next(counts)), 300))
    kept = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: seen_weights.append(network.get_weights())
    )
    seen_weights = []
    history = trainer.fit(
        images[:100], labels[:100], epochs=epochs, verbose=0, callbacks=[kept, watch],
        validation_data=(images[100:], labels[100:]),
    )  # fmt: skip
    return watch, history.history, network, seen_weights


def test_the_callback_counts_what_it_says(digits):
    watch, history, network, _ = watched_fit(digits, epochs=1)
    images, labels = digits[0][100:200], digits[1][100:200]
    found = {
        "clean": images, "attacked": attacks.step_fgsm(network, images, labels, 20),
        "pgd": attacks.pgd(network, images, labels, 30, steps=10, restarts=1, seed=[0, 0]),
    }  # fmt: skip
    for name, shown in found.items():
        assert getattr(watch.looks[0], name) == np.sum(np.argmax(network(shown), -1) == labels)
    assert history["val_pgd_accuracy"] == [watch.looks[0].pgd / 100]


def test_the_callback_warns_or_stops(digits, monkeypatch):
    script = [(200, 110, 95), (210, 250, 2), (210, 250, 2)]
    with pytest.warns(UserWarning, match="between the epochs 1 and 2"):
        watch, history, *_ = watched_fit(digits, monkeypatch, script)
    assert len(watch.collapses) == 1 and len(history["loss"]) == 3
    with pytest.warns(UserWarning, match="between the epochs 1 and 2"):
        _, history, network, begun = watched_fit(digits, monkeypatch, script, on_collapse="stop")
    assert len(history["loss"]) == 2
    same(network.get_weights(), begun[1])
    with pytest.raises(InputError, match="training attack"):
        callbacks.CollapseWatch().set_model(AdversarialTrainer(network, "standard"))
    with pytest.raises(InputError, match="warn or stop"):
        callbacks.CollapseWatch(on_collapse="restore")
