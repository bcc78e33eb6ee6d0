"""What a user sees in TensorBoard, asked from a real server, against numbers made another way."""

import html
import io
import json
import re
import types

import keras
import numpy as np
import pytest
import requests
import tensorflow as tf
from PIL import Image
from support.processes import kill, start, start_trainings, wait_until
from tensorboard import plugin_util, program
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

from cascade_keras import data, layers
from cascade_keras.attacks.specs import ATTACKS, Attack
from cascade_keras.border import Outputs
from cascade_keras.cli.train import main
from cascade_keras.evaluation import crafter
from cascade_keras.runs import callbacks, dashboard, panels

assert layers  # knows the layer in the files of the networks
SMALL = [
    "--dataset=digits", "--model=resnet8", "--log_steps=10", "--noexport", "--eval_attacks=step_ll",
]  # fmt: skip
IMAGES = 20
LOOKED = {"clean": 0, "step_ll_20": 20, "step_ll_76.5": 76.5, "pgd_20": 20, "pgd_76.5": 76.5}
FIRST = [
    "--name=first", "--steps=40", "--embedding_at=features", "--tensorboard_steps=20",
    "--checkpoint_steps=10",
    f"--tensorboard_images={IMAGES}", "--tensorboard_attacks=step_ll,pgd",
    "--tensorboard_epsilon=76.5,20", "--eval_epsilon=20,76.5", "--profile_steps=2",
]  # fmt: skip
SECOND = [
    "--name=second", "--steps=10", "--loss=standard", "--max_epsilon=16", "--seed=3",
    "--tensorboard_attacks=pgd,step_ll", "--tensorboard_images=7",
]  # fmt: skip


def train_here(runs, *flags):
    return main(["train", *SMALL, f"--runs_dir={runs}", *flags])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three finished runs, of which nothing but what was written is used below.

    The first was killed and went on with other pictures, which is no reason to refuse it; "plain"
    is the same one without any.
    """
    runs = tmp_path_factory.mktemp("tensorboard") / "runs"
    common = [*SMALL, "--deterministic", f"--runs_dir={runs}"]
    process = start("train", *common, *FIRST, "--tensorboard_attacks=pgd", "--profile_steps=0")
    wait_until(process, lambda: list(runs.glob("first/checkpoints/step-*10.keras")))
    kill(process)
    plain = ["--name=plain", "--tensorboard=none", "--profile_steps=0"]
    process = start_trainings(*([*common, *more] for more in (FIRST, SECOND, [*FIRST, *plain])))
    output, errors = process.communicate()
    assert process.returncode == 0 and "going on from step" in output, errors
    return runs


class Server:
    """A real TensorBoard, in a thread, that answers when it has read everything."""

    def __init__(self, directory):
        board = program.TensorBoard()
        at_once = {"load_fast": "false", "reload_task": "blocking", "reload_interval": 0}
        board.configure(logdir=str(directory), host="127.0.0.1", port=0, **at_once)
        self.address = board.launch()

    def ask(self, path, **parameters):
        answer = requests.get(f"{self.address}data/{path}", params=parameters, timeout=60)
        answer.raise_for_status()
        return answer

    def get(self, path, **parameters):
        return self.ask(path, **parameters).json()

    def post(self, path, **body):
        answer = requests.post(f"{self.address}data/{path}", json=body, timeout=60)
        answer.raise_for_status()
        return answer.json()

    def scalars(self, run, tag):
        """{step: value}; a step that was written twice is an error."""
        events = self.get("plugin/scalars/scalars", run=run, tag=tag)
        assert len({step for _, step, _ in events}) == len(events), (run, tag, events)
        return {step: value for _, step, value in events}


@pytest.fixture(scope="module")
def server(runs):
    return Server(runs)


@pytest.fixture(scope="module")
def views(runs):
    """{name: (images, outputs)} of the finished network, made from its file alone."""
    network = keras.models.load_model(runs / "first" / "model.keras")
    images, labels = data.test_images(data.load("digits"), 8)
    found = {}
    for name, epsilon in LOOKED.items():
        attack = name.split("_76")[0].split("_20")[0]
        options = ATTACKS[attack].options if epsilon else {}
        craft = crafter(
            lambda x: network(x, training=False)["logits"], (8, 8, 1), attack, [epsilon], **options
        )
        # Those of the final evaluation are taken from there, where a batch has 250 images.
        batch = slice(250 if name.startswith("step_ll") else IMAGES)
        versions = craft(images[batch], labels[batch], 0)[0][:IMAGES]
        outputs = network(versions, training=False)
        found[name] = versions, {kind: value.numpy() for kind, value in outputs.items()}
    return labels[:IMAGES], found


def test_every_run_has_its_scalars(server):
    tags = {run: set(found) for run, found in server.get("plugin/scalars/tags").items()}
    training = {
        "loss/total", "loss/clean", "loss/decay", "loss/distance", "accuracy/clean",
        "network/max_logit", "optimizer/gradient_norm", "optimizer/learning_rate",
        "speed/images_per_second", "robustness/clean",
    }  # fmt: skip
    first = {"loss/adversarial", "accuracy/adversarial", "embedding_distance/training"}
    first |= {f"robustness/{name}" for name in LOOKED}
    first |= {f"embedding_distance/{name}" for name in LOOKED if name != "clean"}
    assert tags == {
        "first/tensorboard": training | first,
        "first/tensorboard/final": {"final/clean", "final/step_ll_20", "final/step_ll_76.5"},
        "second/tensorboard": training | {"robustness/step_ll_16", "embedding_distance/step_ll_16"},
        "second/tensorboard/final": {"final/clean", "final/step_ll_16"},
    }
    rates = server.scalars("first/tensorboard", "optimizer/learning_rate")
    assert rates == pytest.approx({10: 0.1, 20: 0.01, 30: 0.001, 40: 0.001})
    for tag in ("optimizer/gradient_norm", "embedding_distance/training", "accuracy/adversarial"):
        values = server.scalars("first/tensorboard", tag)
        assert list(values) == [10, 20, 30, 40]
        assert all(np.isfinite(value) and value > 0 for value in values.values())
    assert 50 < server.scalars("first/tensorboard", "accuracy/clean")[40] <= 100


def test_robustness_and_distances_are_those_of_the_finished_network(server, views):
    labels, found = views
    clean = found["clean"][1]["embedding"]
    for name, (_, outputs) in found.items():
        values = server.scalars("first/tensorboard", f"robustness/{name}")
        assert len(values) > 1 and max(values) == 40
        assert values[40] == pytest.approx(100 * (outputs["logits"].argmax(1) == labels).mean())
        if name != "clean":
            values = server.scalars("first/tensorboard", f"embedding_distance/{name}")
            distance = np.linalg.norm(outputs["embedding"] - clean, axis=1).mean()
            assert values[40] == pytest.approx(distance, rel=1e-3)


def test_panels_show_clean_and_adversarial_images_and_what_they_are_seen_as(server, views):
    tags = server.get("plugin/images/tags")["first/tensorboard"]
    assert set(tags) == {"images/step_ll_76.5", "images/pgd_76.5"}
    labels, found = views
    for attack in ("step_ll", "pgd"):
        name = f"{attack}_76.5"
        options = {"run": "first/tensorboard", "tag": f"images/{name}", "sample": 0}
        shown = server.get("plugin/images/images", **options)
        assert shown[-1]["step"] == 40
        png = server.ask(f"plugin/images/individualImage?{shown[-1]['query']}").content
        (clean, before), (images, after) = found["clean"], found[name]
        seen = (outputs["logits"].argmax(1) for outputs in (before, after))
        parts = [part[: panels.IMAGES] for part in (clean, images, labels, *seen)]
        expected = panels.panel(*parts, attack=str(Attack(attack, (76.5,))), epsilon=76.5)
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), expected)


def test_histograms_of_weights_embeddings_and_logits(server, runs):
    run = "first/tensorboard"
    tags = set(server.get("plugin/histograms/tags")[run])
    kinds = ("clean", "step_ll_76.5", "pgd_76.5")
    assert {f"{of}/{kind}" for of in ("logits", "embeddings") for kind in kinds} < tags
    network = keras.models.load_model(runs / "first" / "model.keras")
    kernels = [w.numpy() for w in network.trainable_weights if w.path.endswith("kernel")]
    weights = sorted(tag for tag in tags if tag.startswith("weights/"))
    assert len(weights) == len(kernels) and "weights/dense_01" in weights
    for tag, kernel in zip(weights, kernels):
        _, step, buckets = server.get("plugin/histograms/histograms", run=run, tag=tag)[-1]
        assert step == 40
        assert sum(count for *_, count in buckets) == kernel.size
        assert buckets[0][0] == pytest.approx(kernel.min(), rel=1e-5)


def test_runs_compare_in_the_hparams_table(server, runs):
    experiment = server.post("plugin/hparams/experiment", experimentName="")
    hparams = {info["name"]: info for info in experiment["hparamInfos"]}
    assert hparams["loss"]["differs"] and not hparams["model"].get("differs")
    assert not any(name.startswith("eval_") or "tensorboard" in name for name in hparams)
    metrics = {info["name"]["tag"] for info in experiment["metricInfos"]}
    assert metrics == {"final/clean", "final/step_ll_20", "final/step_ll_16", "final/step_ll_76.5"}

    asked = {"experimentName": "", "colParams": [], "startIndex": 0, "sliceSize": 10}
    found = server.post(
        "plugin/hparams/session_groups", allowedStatuses=["STATUS_SUCCESS"], **asked
    )
    rows = {group["name"]: group for group in found["sessionGroups"]}
    assert set(rows) == {"first", "second"}
    for name, row in rows.items():
        flags = json.loads((runs / name / "config.json").read_text())["flags"]
        for flag in ("loss", "max_epsilon"):
            assert row["hparams"][flag] == flags[flag]
        results = json.loads((runs / name / "metrics.json").read_text())["results"]
        shown = {value["name"]["tag"]: value["value"] for value in row["metricValues"]}
        assert shown == pytest.approx({
            f"final/{panels.result_name(r['attack'], r['epsilon'])}": r["accuracy"]
            for r in results
        })  # fmt: skip


def test_the_projector_has_the_networks_embeddings_of_the_same_images(server, views):
    run, name = "first/tensorboard", "embeddings"
    assert set(server.get("plugin/projector/runs")) == {run, "second/tensorboard"}
    (info,) = server.get("plugin/projector/info", run=run)["embeddings"]
    labels, found = views
    points = np.concatenate([outputs["embedding"] for _, outputs in found.values()])
    assert info["tensorName"] == name and info["tensorShape"] == list(points.shape) == [100, 64]
    content = server.ask("plugin/projector/tensor", run=run, name=name, num_rows=100).content
    shown = np.frombuffer(content, "float32").reshape(points.shape)
    np.testing.assert_allclose(shown, points, rtol=1e-3, atol=1e-4)

    header, *rows = server.ask("plugin/projector/metadata", run=run, name=name).text.splitlines()
    assert header.split("\t") == ["class", "attack", "epsilon", "predicted", "correct", "image"]
    columns = list(zip(*(row.split("\t") for row in rows)))
    assert list(map(int, columns[0])) == list(labels) * len(LOOKED)
    attacks = ["clean", "step_ll", "step_ll", "pgd", "pgd"]
    assert columns[1] == tuple(np.repeat(attacks, IMAGES))
    assert columns[2] == tuple(np.repeat(["0", "20", "76.5", "20", "76.5"], IMAGES))
    predicted = np.concatenate([outputs["logits"].argmax(1) for _, outputs in found.values()])
    assert list(map(int, columns[3])) == list(predicted)
    assert (np.array(columns[4]) == "yes").tolist() == (predicted == list(labels) * 5).tolist()

    png = server.ask("plugin/projector/sprite_image", run=run, name=name).content
    sprite = np.asarray(Image.open(io.BytesIO(png)))
    side = info["sprite"]["singleImageDim"]
    assert side == [8, 8] and sprite.shape == (80, 80, 3)
    for place, image in enumerate(np.concatenate([images for images, _ in found.values()])):
        row, column = divmod(place, 10)
        tile = sprite[8 * row : 8 * row + 8, 8 * column : 8 * column + 8, :1]
        np.testing.assert_array_equal(tile, np.round(image * 255).astype("uint8"))


def test_the_graph_the_flags_and_a_profile_on_demand_are_there(server, runs):
    assert server.get("plugin/graphs/info")["first/tensorboard"]["run_graph"]
    graph = server.ask("plugin/graphs/graph", run="first/tensorboard", conceptual="false").text
    assert len(re.findall(r'op: "Conv2D"', graph)) == 7
    *_, text = server.get("plugin/text/text", run="first/tensorboard", tag="about")
    for words in ("first 20 test images", "embedding_at", "restarts 5"):
        assert words in text["text"]
    assert len(list((runs / "first/tensorboard/plugins/profile").glob("*/*.xplane.pb"))) == 1
    assert not (runs / "second/tensorboard/plugins").exists()


def test_texts_are_shown_as_they_are():
    text = "a|b <b>c</b> & `d` *e* __f__ _g_ [h](i) \\| ~~j~~ step_ll"
    table = f"| flag | value |\n|---|---|\n| init_from | {dashboard._escaped(text)} |\n"
    rows = re.findall("<td>(.*?)</td>", plugin_util.markdown_to_safe_html(table))
    assert list(map(html.unescape, rows)) == ["init_from", text] and "<b>" not in rows[1]


def test_a_killed_run_with_pictures_ends_with_the_weights_of_one_without(runs):
    assert not (runs / "plain/tensorboard").exists()
    networks = [keras.models.load_model(runs / n / "model.keras") for n in ("first", "plain")]
    for a, b in zip(*(network.get_weights() for network in networks), strict=True):
        np.testing.assert_array_equal(a, b)
    results = [(runs / name / "metrics.json").read_text() for name in ("first", "plain")]
    assert results[0] == results[1]


def test_steps_that_a_resumed_run_repeats_are_void(tmp_path):
    """As TensorBoard's own reader of event files has it: each step of a tag once."""
    flags = [
        "--name=run", "--steps=6", "--checkpoint_steps=2", "--log_steps=1", "--model=lenet",
        "--tensorboard_steps=1", "--tensorboard_images=4", "--tensorboard_attacks=step_ll",
    ]  # fmt: skip
    for _ in range(2):
        assert main(["train", *SMALL, f"--runs_dir={tmp_path}", *flags]) == 0
        events = EventAccumulator(str(tmp_path / "run/tensorboard"), purge_orphaned_data=True)
        steps = {
            tag: [event.step for event in events.Tensors(tag)]
            for tag in events.Reload().Tags()["tensors"]
        }
        assert steps["loss/total"] == [1, 2, 3, 4, 5, 6]
        assert steps["robustness/step_ll_76.5"][:3] == [1, 2, 3]
        for tag, written in steps.items():
            assert written == sorted(set(written)) or tag == "__run_graph__", tag
        # As after a kill -9 of which the events of steps after the newest checkpoint are left.
        for gone in ("metrics.json", *(f"checkpoints/step-{step:08d}.keras" for step in (4, 6))):
            (tmp_path / "run" / gone).unlink()


@pytest.mark.parametrize(
    ("cost", "options", "steps", "expected"),
    [
        (100, {"every": 30}, 100, [30, 60, 90]),
        (100, {"every": 50}, 100, [50]),  # the last step's is of the finished network
        (3, {"expected_steps": 3.0, "window": 10}, 700, [210, 410, 610]),
        (30, {"expected_steps": 3.0, "window": 10}, 4500, [210, 2210, 4210]),
        (3, {"expected_steps": 300.0, "window": 10}, 5000, []),
    ],
)
def test_looks_are_as_rare_as_they_are_dear(cost, options, steps, expected, monkeypatch):
    """A step takes a second, a look what it costs."""
    now, taken = [0.0], []
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: now[0])

    def look(step):
        taken.append(step)
        now[0] += cost

    looks = callbacks.Looks(look, steps, **options)
    trainer = types.SimpleNamespace(stop_training=False)
    looks.set_model(trainer)
    looks.on_train_begin()
    for trainer.steps_done in range(1, steps + 1):
        now[0] += 1
        looks.on_train_batch_end(trainer.steps_done - 1)
    assert taken == expected
    if "every" not in options and expected:
        assert cost * (len(expected) - 1) <= callbacks.Looks.SHARE * steps


def test_how_long_a_look_is_expected_to_take():
    # A step of 128 images against 64 images under 1 + 80 + 3 * 2 gradients, at half a pass each.
    attacks = [Attack(name, (76.5,)) for name in ("step_ll", "iter_fgsm")]
    attacks.append(Attack("pgd", (76.5,), {"steps": 3, "restarts": 2}))
    expected = dashboard.expected_steps(64, attacks, 128)
    assert expected == pytest.approx(0.5 * (1 + 80 + 3 * 2) * 64 / 128)


def test_numbers_that_are_not_finite_do_not_spoil_a_histogram(tmp_path):
    images = np.zeros((2, 8, 8, 1), np.float32)

    def broken(x):
        logits = x[:, 0, 0] * np.nan
        return Outputs(logits, tf.zeros([tf.shape(x)[0], 2]), logits)

    network = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    trainer = types.SimpleNamespace(
        network=network, border=broken, inference_logits=lambda x: broken(x).logits
    )
    writer = tf.summary.create_file_writer(str(tmp_path))
    asked = [Attack("step_rand", (0, 8))]
    board = dashboard.Dashboard(writer, tmp_path, trainer, images, [0, 0], asked)
    views = board.look(1)
    board.close()
    assert [view.name for view in views] == ["clean", "step_rand_0", "step_rand_8"]
    assert not any((view.predicted == view.labels).any() for view in views)
