"""What docs/guide.md says runs as it stands there: its Python, and the flags of its commands."""

import functools
import os
import re
import shlex

import numpy as np
import pytest
from PIL import Image
from support.files import ROOT

import cascade_keras as ck
from cascade_keras.cli import flags

GUIDE = (ROOT / "docs" / "guide.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)
PYTHON = [block for kind, block in BLOCKS if kind == "python"]
COMMANDS = [line for kind, block in BLOCKS if kind == "bash" for line in block.splitlines()]
SETTINGS = {"bin/train": ck.TrainingSettings, "bin/evaluate": ck.EvaluationSettings}
# The same with fewer images and epochs, so that each block costs a second or two.
SMALLER = (
    (r"= digits\.train, digits\.test", "= [(x[:192], y[:192]) for x, y in"
     " (digits.train, digits.test)]"),
    (r"epochs=\d+", "epochs=1"),
    (r"num_images=\d+", "num_images=20"),
    (r'attacks=\["step_fgsm", "pgd"\]', 'attacks=["step_fgsm"]'),
)  # fmt: skip


def smaller(code):
    for pattern, text in SMALLER:
        code = re.sub(pattern, text, code)
    return code


@pytest.fixture(scope="module")
def guided(tmp_path_factory):
    """The directory in which the guide was followed, and the names that it left."""
    directory, names, before = tmp_path_factory.mktemp("guide"), {}, os.getcwd()
    os.chdir(directory)
    with pytest.MonkeyPatch.context() as patch:
        # The diagnosis runs attacks of its own, which have tests of their own.
        patch.setattr(ck, "evaluate", functools.partial(ck.evaluate, diagnosis_images=0))
        for number, block in enumerate(PYTHON):
            exec(compile(smaller(block), f"docs/guide.md, block {number}", "exec"), names)
    for split in ("train", "test"):
        for number, name in enumerate(("cat", "dog")):
            (directory / "photos" / split / name).mkdir(parents=True)
            for copy in range(4):
                image = np.full((40, 48, 3), 60 * number + copy, np.uint8)
                Image.fromarray(image).save(directory / "photos" / split / name / f"{copy}.png")
    x, y = names["x_train"], names["y_train"]
    np.savez("photos.npz", x_train=x, y_train=y, x_test=x[:20], y_test=y[:20])
    (directory / "my_data.py").write_text(
        "import numpy as np\n"
        "split = np.zeros((6, 28, 28, 1), np.uint8), np.arange(6) % 3\n"
        "def load(): return split, split\n"
    )
    (directory / "my_nets.py").write_text("def make(input_shape, num_classes): ...")
    yield directory, names
    os.chdir(before)


def test_its_blocks_can_be_made_small():
    """Each pattern still has something to replace."""
    assert all(re.search(pattern, "".join(PYTHON)) for pattern, _ in SMALLER)


def test_its_python_leaves_what_it_says(guided):
    directory, names = guided
    left = {"net.keras", "trainer.keras", "saved/mine/1", "reports/mine/report.json"}
    assert all((directory / name).exists() for name in left)
    assert names["logits"].shape == (8, 10)
    # The exported function of [0, 1] is the network of [0, 255].
    softmax = np.exp(names["logits"] - np.max(names["logits"], -1, keepdims=True))
    softmax /= softmax.sum(-1, keepdims=True)
    expected = names["network"].predict(names["x_test"][:8], verbose=0)
    np.testing.assert_allclose(softmax, expected, atol=1e-5)
    assert names["fooling"].shape == (8, 8, 8, 1) and names["fooling"].max() > 1


def test_its_metrics_are_those_that_are_reported(guided):
    table = GUIDE.partition("### What each metric means")[2].partition("\n###")[0]
    told = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", table, re.MULTILINE))))
    trainer = guided[1]["trainer"]
    assert told == set(trainer.get_metrics_result())


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_one(guided, command):
    program, *arguments = shlex.split(command)
    settings = SETTINGS[program]
    values = flags.define(settings)
    assert flags.parse(values, [program, *arguments]) == []
    read = flags.read(values, settings)
    if program == "bin/train":
        read.resolved()


def refusals(names):
    """For the rows of the table of what is refused: what does it, and what it says."""
    x, y, network = names["x_test"][:16], names["y_test"][:16], names["network"]
    asked = {"attacks": ["step_fgsm"], "epsilons": [8], "progress": False}
    known = {"value_range": (0, 255), **asked}
    trainer = ck.AdversarialTrainer(network, value_range=(0, 255))
    return {
        "images outside": (lambda: ck.evaluate(network, x.astype("float32"), y, **asked), "0, 255"),
        "of [0, 1] where": (
            lambda: ck.evaluate(network, x.astype("float32") / 255, y, **known), "0, 1"),
        "integers other": (
            lambda: ck.evaluate(network, x.astype("int32"), y, **known), "uint8"),
        "classes outside": (lambda: ck.evaluate(network, x, y + 90, **known), "9"),
        "multi-hot": (lambda: ck.evaluate(network, x, np.ones((16, 10)), **known), "multi"),
        "compile(loss": (lambda: trainer.compile("adam", loss_weights=[1.0]), "loss_weights"),
        "without epsilon": (
            lambda: ck.evaluate(network, x, y, attacks=["pgd"], value_range=(0, 255)), "epsilon"),
        "negative": (
            lambda: ck.AdversarialTrainer(network, max_epsilon=-1), "max_epsilon"),
    }  # fmt: skip


def test_what_it_says_is_refused_is_refused(guided):
    table = GUIDE.partition("## What is refused")[2]
    for row, (attempt, says) in refusals(guided[1]).items():
        assert row in table
        with pytest.raises((ck.InputError, TypeError), match=says):
            attempt()
