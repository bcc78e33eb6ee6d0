"""Pictures: what is drawn is read from the figures' objects, not from pixels."""

import subprocess
import sys

import matplotlib
import matplotlib.text
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cbook import is_math_text
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread
from support.plots import drawn, source

from cascade_keras import attacks, figures
from cascade_keras.attacks.specs import ATTACKS, ONE_STEP, AttackSpec
from cascade_keras.figures.layout import text_width, wrap
from cascade_keras.figures.style import PALETTE

RNG = np.random.default_rng(0)
LONG = "resnet110_pivot_cascade_e2_batch128_seed3"
WORDY = 3 * "many words, " + LONG
UNKNOWN = "日\udcff\x07"  # letters that the font lacks
NAMES = ["lenet", LONG, "a$b_$", "_hidden", "\\$x^2$", "W" * 40, UNKNOWN, ""]
NAMES += [f"resnet20_e{index}" for index in range(5)]
VALUES = RNG.uniform(0, 100, (13, 7))
IMAGES = RNG.uniform(size=(2, 6, 8, 3))
CURVES = RNG.uniform(size=(26, 5))
PAIRED = CURVES[:20].reshape(5, 2, 2, 5)[:2]
PAIRS = [(0, other) for other in range(1, 14)]
SURFACE = RNG.gamma(1, 1, size=(2, 2, 5, 5))


def heat_map(values, rows, columns, **labels):
    labels = {"row_label": "source", "column_label": "target"} | labels
    return figures.heat_map(values, rows, columns, **labels)


def noises(mean, deviation, networks, pairs):
    arrays = {"mean": mean, "deviation": deviation, "pairs": np.array(pairs)}
    return drawn("noise_correlation", networks, range(1, 6), arrays)


def gradients(mean, networks, epsilons=range(5)):
    return drawn("gradient_correlation", networks, epsilons, {"mean": mean, "deviation": 0 * mean})


def logits(true, false, largest, networks):
    names = ("true_mean", "true_deviation", "false_mean", "false_deviation", "largest_mean")
    arrays = dict(zip(names, (*true, *false, largest), strict=True))
    return drawn("logits", networks, range(-2, 3), arrays, ["step_ll", "step_fgsm"])


def accuracies(accuracy, networks, epsilons, names):
    return drawn("accuracy_curve", networks, epsilons, {"accuracy": accuracy}, names)


# Four runs of three lambdas, and the means.
SWEEP = {
    "distance_weight": np.array([1e-4, 1e-3, 1e-3, 1e-2]),
    "clean": np.array([99, 97, 98, 95.0]),
    "accuracy": np.array([[[10, 20, 30, 40], [1, 2, 3, 4]], [[50, 60, 70, 80], [5, 6, 7, 8.0]]]),
    "level": np.array([1e-4, 1e-3, 1e-2]),
    "level_clean": np.array([99, 97.5, 95]),
    "level_accuracy": np.array([[[10, 25, 40], [1, 2.5, 4]], [[50, 65, 80], [5, 6.5, 8.0]]]),
}


def sweep(**changes):
    return drawn("distance_sweep", "a", (2, 16), SWEEP | changes, ["step_ll", "iter_fgsm"])


def sweep_of(levels):
    """Of one run for each lambda."""
    few = {name: array[..., : len(levels)] for name, array in SWEEP.items()}
    return sweep(**few | {"distance_weight": np.array(levels), "level": np.array(levels)})


# Twelve classes, three images each, of which the first is traced.
MAP = {
    "points": RNG.normal(size=(2, 36, 2)),
    "traces": RNG.normal(size=(2, 12, 4, 2)),
    "centres": RNG.normal(size=(2, 12, 2)),
    "explained": np.array([[np.nan, np.nan], [0.3, 0.2]]),
}


def embeddings(**changes):
    labels = np.repeat(np.arange(12), 3)
    return drawn("embedding_map", ["mnist$", LONG], range(4), MAP | changes, labels=labels)


def surface(loss, margin, networks, epsilons=range(5), indices=(1, 2)):
    options = {"indices": np.array(indices), "labels": np.full(len(indices), 9)}
    return drawn("loss_surface", networks, epsilons, {"loss": loss, "margin": margin}, **options)


LAID_OUT = {
    "13 x 7": lambda: heat_map(VALUES, NAMES, NAMES[:7]),
    "7 x 13": lambda: heat_map(VALUES.T, NAMES[:7], NAMES),
    "short names": lambda: heat_map(VALUES[:2, :3], ["e2", "e4"], ["clean", "step_ll", "e_16"]),
    "1 x 1": lambda: heat_map([[5]], ["FGSM"], ["lenet"]),
    "long labels": lambda: heat_map(
        [[5]], [LONG], [LONG], **dict.fromkeys(("row_label", "column_label", "value_label"), WORDY)
    ),
    "40 x 2": lambda: heat_map(np.full((40, 2), np.nan), [LONG] * 40, ["a", "b"]),
    "curves": lambda: figures.distribution({n: [1, 2] for n in NAMES}, thresholds=range(30)),
    "2 classes": lambda: figures.confusion([[10_000, 0], [0, 123_456]], ["no", "yes"]),
    "20 classes": lambda: figures.confusion(np.eye(20), [LONG + "x" * n for n in range(20)]),
    "30 classes": lambda: figures.confusion(np.eye(30), list(map(str, range(30)))),
    "100 classes": lambda: figures.confusion(np.eye(100), [LONG] * 100),
    "images": lambda: figures.examples(IMAGES, IMAGES, [(LONG, "W" * 30)] * 2, epsilon=0.125),
    "bands": lambda: figures.examples(
        np.zeros((7, 9, 4, 1)), np.zeros((7, 9, 4, 1)), [("W" * 30, "$a$")] * 7, epsilon=8
    ),
    "noises": lambda: noises(CURVES[:13], CURVES[13:], [LONG, *NAMES], PAIRS),
    "gradients": lambda: gradients(np.ones((5, 4, 5)), NAMES[:5]),
    "one gradient": lambda: gradients(np.ones((1, 4, 1)), [LONG], [8]),
    "logits": lambda: logits(PAIRED, PAIRED, 100 * PAIRED[0], NAMES[:2]),
    "accuracies": lambda: accuracies(
        50 * np.ones((7, len(ATTACKS), 3)), NAMES[:7], [0, 1, 255], list(ATTACKS)
    ),
    "small epsilons": lambda: accuracies(50 * np.ones((1, 1, 2)), ["a"], [0, 1.5], ["pgd"]),
    "lambdas": sweep,
    "one lambda": lambda: sweep_of([0.0]),
    "map": lambda: embeddings(
        points=1.2 * MAP["points"], centres=np.tile(np.arange(-2, 2.8, 0.4)[:, None], (2, 1, 2))
    ),
    "surface": lambda: surface(
        SURFACE, SURFACE - 1, ["lenet", LONG], indices=[12345, 123]
    ),
}  # fmt: skip


def shown(labels):
    return [label.get_text().replace("\n", "").replace(r"\$", "$") for label in labels]


def cell_texts(figure):
    return {text.get_position(): text.get_text() for text in figure.axes[0].texts}


# Files.


def test_writes_a_png_and_the_same_pdf_twice(tmp_path):
    for name in ("a.png", "a.PDF", "b.pdf"):
        figures.save(sweep(), str(tmp_path / name))
    content = (tmp_path / "a.PDF").read_bytes()
    assert content.startswith(b"%PDF") and content.rstrip().endswith(b"%%EOF")
    assert b"/Type3" not in content and (tmp_path / "b.pdf").read_bytes() == content
    assert 100 < imread(tmp_path / "a.png").shape[0] < 2000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.PDF", "a.png", "b.pdf"]


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt])
def test_failed_write_leaves_what_was_there(failure, tmp_path, monkeypatch):
    def fail(figure, path, **options):
        path.write_bytes(b"half")
        raise failure

    monkeypatch.setattr(Figure, "savefig", fail)
    (tmp_path / "a.png").write_bytes(b"old")
    for name, expected in (("a.png", (OSError, KeyboardInterrupt)), ("a.jpg", ValueError)):
        with pytest.raises(expected):
            figures.save(Figure(), tmp_path / name)
    (left,) = tmp_path.iterdir()
    assert left.read_bytes() == b"old"


def test_pictures_of_results_need_neither_pyplot_nor_tensorflow(tmp_path):
    program = (
        "import sys; from cascade_keras import figures;"
        "assert 'matplotlib' not in sys.modules;"
        "figures.save(figures.confusion([[1]], ['a']), sys.argv[1]);"
        "assert not {'matplotlib.pyplot', 'tensorflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program, tmp_path / "a.png"], check=True)


def test_settings_of_the_user_neither_matter_nor_change(tmp_path):
    figures.save(figures.confusion(np.eye(3), NAMES[:3]), tmp_path / "plain.png")
    hostile = {"text.usetex": True, "savefig.dpi": 20, "savefig.bbox": "tight", "font.size": 3}
    with matplotlib.rc_context(hostile):
        figures.save(figures.confusion(np.eye(3), NAMES[:3]), tmp_path / "hostile.png")
        assert {name: matplotlib.rcParams[name] for name in hostile} == hostile
    assert (tmp_path / "plain.png").read_bytes() == (tmp_path / "hostile.png").read_bytes()


# Text and looks.


def _beyond_the_axes(figure):
    """Labels of ticks that matplotlib keeps but does not draw."""
    return {
        tick.label1
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for tick in axis.get_major_ticks()
        if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
    }


@pytest.mark.parametrize("draw", LAID_OUT.values(), ids=LAID_OUT)
def test_text_lies_within_the_figure_and_does_not_overlap(draw, recwarn):
    figure = draw()
    figure.draw_without_rendering()
    renderer = FigureCanvasAgg(figure).get_renderer()

    def extents(texts):
        texts = [text for text in texts if text.get_visible() and text.get_text().strip()]
        assert all(text.get_fontsize() >= 7 for text in texts)
        assert not any(is_math_text(text.get_text()) for text in texts)
        return [text.get_window_extent(renderer) for text in texts]

    for box in extents(set(figure.findobj(matplotlib.text.Text)) - _beyond_the_axes(figure)):
        assert box.x0 >= -1 and box.y0 >= -1
        assert box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1
    labels = [axes.xaxis.label for axes in figure.axes] + [axes.yaxis.label for axes in figure.axes]
    groups = [labels, figure.axes[0].texts]
    for axes in figure.axes:
        groups += [axes.get_xticklabels(), axes.get_yticklabels()]
    for group in groups:
        boxes = extents(group)
        for index, box in enumerate(boxes):
            assert not box.count_overlaps(boxes[:index])
    assert not recwarn.list


def test_lines_differ_without_colour_too():
    styles = [figures.line_style(index) for index in range(40)]
    assert len({style["color"] for style in styles}) == 8
    assert len({(style["linestyle"], style["marker"]) for style in styles[:35]}) == 35
    assert len({(s["color"], s["linestyle"], s["marker"]) for s in styles}) == 40


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("room", [0.2, 0.6, 1.7])
def test_wrapped_text_is_whole_fits_and_is_balanced(name, room):
    wrapped = wrap(name, room).replace(r"\$", "$")
    kept = name.replace(" ", "").replace(UNKNOWN, 3 * "\ufffd")
    assert wrapped.replace("\n", "").replace(" ", "") == kept
    assert all(text_width(line) <= room for line in wrapped.split("\n"))
    # Lines are balanced, words uncut.
    assert wrap("automobile -> airplane", 0.95) == "automobile ->\nairplane"
    assert wrap("resnet20_adversarial_step_ll", 1.5) == "resnet20_\nadversarial_step_ll"


def test_an_attack_has_one_look_of_its_own_everywhere(monkeypatch):
    colours = [line.get_color() for line in gradients(np.ones((1, 4, 5)), ["a"]).axes[0].lines]
    curves = accuracies(100 * PAIRED[0][:1], ["a"], range(5), ["step_rand", "step_ll"])
    assert [line.get_color() for line in curves.axes[0].lines] == [colours[2], colours[0]]
    with pytest.raises(ValueError):
        figures.attack_style("fgsm")
    # Those without a style get looks that are free, and keep them.
    for name in ("mine", "yours"):
        monkeypatch.setitem(ATTACKS, name, AttackSpec(name, ONE_STEP, attacks.step_fgsm))
    yours = figures.attack_style("yours")  # asked first, registered last
    monkeypatch.setitem(ATTACKS, "third", AttackSpec("third", ONE_STEP, attacks.step_fgsm))
    looks = [figures.attack_style(name) for name in ("clean", *ATTACKS)]
    assert all(looks.count(look) == 1 for look in looks)
    assert figures.attack_style("yours") == yours


# Results.


def test_heat_map_names_cells_and_axes_and_outlines_the_lowest_of_each_column():
    values = np.array([[100, np.nan, 0], [-0.0, np.nan, 3], [12.34, np.nan, 0]])
    figure = heat_map(values, ["a$b_$", LONG, "lenet"], ["_x", "W" * 40, "c"])
    axes, bar = figure.axes
    texts = {(0, 0): "100.0", (0, 1): "0.0", (0, 2): "12.3", (2, 0): "0.0", (2, 1): "3.0"}
    assert cell_texts(figure) == texts | {(2, 2): "0.0"}
    assert shown(axes.get_yticklabels()) == ["a$b_$", LONG, "lenet"]
    assert shown(axes.get_xticklabels()) == ["_x", "W" * 40, "c"]
    labels = axes.get_ylabel(), axes.get_xlabel(), bar.get_ylabel()
    assert labels == ("source", "target", "accuracy, %")
    assert axes.images[0].get_clim() == (0, 100)
    hatched = [patch.get_xy() for patch in axes.patches if patch.get_hatch()]
    assert hatched == [(0.5, -0.5), (0.5, 0.5), (0.5, 1.5)]
    frames = [patch.get_center() for patch in axes.patches if patch.get_gid() == "lowest"]
    assert np.round(frames).tolist() == [[0, 1], [2, 0], [2, 2]]


def test_heat_map_text_contrasts_with_its_cell():
    figure = heat_map(np.linspace(0, 100, 21)[:, None], [str(n) for n in range(21)], ["x"])

    def luminance(colour):
        rgb = np.array(to_rgb(colour))
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return linear @ (0.2126, 0.7152, 0.0722)

    for text, value in zip(figure.axes[0].texts, np.linspace(0, 1, 21)):
        cell = matplotlib.colormaps["cividis"](value)[:3]
        dark, light = sorted([luminance(cell), luminance(text.get_color())])
        assert (light + 0.05) / (dark + 0.05) > 4.5


def test_distribution_rises_by_each_images_share():
    curves = {"a$b_$": np.array([4.0, 1.0, np.inf, 1.0]), LONG: [0.0, 2.5], "none": [np.inf]}
    figure = figures.distribution(curves, thresholds=(2, 8))
    axes, legend, end = figure.axes[0], figure.legends[0], 8 * 1.05
    lines = axes.get_lines()
    assert [line.get_drawstyle() for line in lines[:3]] == ["steps-post"] * 3
    np.testing.assert_allclose(lines[0].get_xydata(), [(0, 0), (1, 50), (4, 75), (end, 75)])
    np.testing.assert_allclose(lines[1].get_xydata(), [(0, 0), (0, 50), (2.5, 100), (end, 100)])
    np.testing.assert_allclose(lines[2].get_xydata(), [(0, 0), (end, 0)])
    marked = [(line.get_xdata()[0], line.get_linestyle()) for line in lines[3:]]
    assert marked == [(2, ":"), (8, ":")]
    assert [line.get_color() for line in lines[:3]] == list(PALETTE[:3])
    assert axes.get_xlim() == (0, end)
    assert axes.get_xlabel() == "epsilon, pixel values of 0..255"
    assert shown(legend.get_texts()) == [*curves, "epsilon 2, 8"]
    assert legend.get_window_extent().x0 > axes.get_window_extent().x1  # it covers no curve


@pytest.mark.parametrize("channels", [1, 3])
def test_examples_amplify_the_noise_and_go_into_bands_of_six(channels):
    noise = np.reshape([-8, 8, 0, 4], (2, 2, 1)).astype("float32") / 255
    clean = np.linspace(0.3, 0.7, 28 * channels, dtype="float32").reshape(7, 2, 2, channels)
    adversarial, amplified = clean + noise, np.tile([[[0], [1]], [[0.5], [0.75]]], channels)
    titles = [(f"cat {n}", f"dog {n}") for n in range(7)]
    grid = np.reshape(figures.examples(clean, adversarial, titles, epsilon=8).axes, (6, 6))
    for index, texts in enumerate(titles):
        column = grid[3 * (index // 6) :, index % 6][:3]
        found = [np.reshape(axes.images[0].get_array(), amplified.shape) for axes in column]
        expected = clean[index], adversarial[index], amplified
        np.testing.assert_allclose(found, expected, atol=1e-5)
        assert [axes.images[0].get_clim() for axes in column] == [(0, 1)] * 3
        assert [axes.get_xlabel().strip() for axes in column] == [*texts, ""]
    assert [axes.get_ylabel() for axes in grid[:2, 0]] == ["clean", "adversarial"]
    top, below = grid[0, 0].get_position(), grid[3, 0].get_position()
    assert top.x0 == pytest.approx(below.x0) and top.y0 > below.y1


def test_confusion_colours_are_shares_and_texts_are_counts():
    figure = figures.confusion(np.array([[30, 10], [0, 0]]), ["cat", "dog"])
    axes = figure.axes[0]
    shares = axes.images[0].get_array()
    np.testing.assert_allclose(shares[0], [75, 25])
    assert np.isnan(np.ma.filled(shares[1], np.nan)).all()
    assert cell_texts(figure) == {(0, 0): "30", (1, 0): "10"}
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("true class", "predicted class")
    assert shown(axes.get_xticklabels()) == shown(axes.get_yticklabels()) == ["cat", "dog"]
    assert len(cell_texts(figures.confusion(np.eye(20), NAMES[:1] * 20))) == 400
    assert not cell_texts(figures.confusion(np.eye(21), NAMES[:1] * 21))


PAIR = [("a", "b")] * 2
BAD = {
    "heat map transposed": lambda: heat_map(VALUES.T, NAMES, NAMES[:7]),
    "no curves": lambda: figures.distribution({}),
    "no images": lambda: figures.distribution({"a": []}),
    "curve of two axes": lambda: figures.distribution({"a": [[1.0]]}),
    "epsilon NaN": lambda: figures.distribution({"a": [np.nan]}),
    "other shapes": lambda: figures.examples(IMAGES, IMAGES[:1], PAIR, epsilon=8),
    "two channels": lambda: figures.examples(IMAGES[..., :2], IMAGES[..., :2], PAIR, epsilon=8),
    "too few titles": lambda: figures.examples(IMAGES, IMAGES, PAIR[:1], epsilon=8),
    "uint8": lambda: figures.examples(IMAGES, IMAGES.astype(np.uint8), PAIR, epsilon=8),
    "epsilon 0": lambda: figures.examples(IMAGES, IMAGES, PAIR, epsilon=0),
    "not square": lambda: figures.confusion(np.ones((2, 3)), ["a", "b"]),
    "negative count": lambda: figures.confusion([[-1]], ["a"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_refused(case):
    with pytest.raises(ValueError):
        BAD[case]()


# The paper's figures, and some more.


def lines(axes):
    return [line.get_ydata() for line in axes.get_lines()]


def bands(axes):
    """Return lower and upper edge of each band, (bands, 2, epsilons)."""
    found = []
    for collection in axes.collections:
        x, y = collection.get_paths()[0].vertices.T
        found.append([[f(y[x == at]) for at in np.unique(x)] for f in (min, max)])
    return np.array(found)


def legend(figure):
    return shown(figure.legends[0].get_texts())


def test_noise_correlation_has_bands_and_dashes_of_its_kinds():
    networks = [source(None, name, seed=seed) for name, seed in (("a", 0), ("b", 1), ("c", 0))]
    figure = noises(CURVES[:3], CURVES[3:6], networks, [(0, 2), (0, 1), (2, 0)])
    axes = figure.axes[0]
    np.testing.assert_array_equal(axes.get_lines()[0].get_xdata(), range(1, 6))
    np.testing.assert_array_equal(lines(axes), CURVES[:3])
    edges = CURVES[:3, None] + 0.1 * np.array([[-1], [1]]) * CURVES[3:6, None]
    np.testing.assert_allclose(bands(axes), edges)
    dashes = [line.get_linestyle() for line in axes.get_lines()]
    assert dashes[0] == dashes[2] != dashes[1]
    kinds = ["same initialisation", "other initialisation"]
    assert legend(figure) == ["a, c", "a, b", "c, a", *kinds]
    assert axes.get_ylim()[0] < 0  # the zero is shown
    assert axes.get_xlabel() == "epsilon, pixel values of 0..255"


def test_panels_share_what_is_compared():
    mean = RNG.uniform(-1, 1, size=(4, 4, 5))
    figure = gradients(mean, NAMES[:4])
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert shown(axes.title for axes in panels) == NAMES[:4]
    np.testing.assert_array_equal([lines(axes) for axes in panels], mean)
    assert len({axes.get_ylim() for axes in panels}) == 1
    clean = [f"clean, {name}" for name in ("step_ll", "step_fgsm", "step_rand")]
    assert legend(figure) == [*clean, "step_ll, step_fgsm"]


def test_logits_are_rows_of_attacks_and_columns_of_networks():
    figure = logits(PAIRED, PAIRED + 5, 9 * PAIRED[0], ["a", "b"])
    assert [axes.get_title() for axes in figure.axes] == ["a", "b", "", ""]
    assert [a.get_ylabel() for a in figure.axes[::2]] == ["logit, step_ll", "logit, step_fgsm"]
    expected = np.stack([PAIRED[0], PAIRED[0] + 5, 9 * PAIRED[0]], axis=2)
    for (row, column), axes in np.ndenumerate(np.reshape(figure.axes, (2, 2))):
        np.testing.assert_array_equal(lines(axes)[:3], expected[column, row])
        mean, deviation = (part[column, row] for part in PAIRED)
        np.testing.assert_allclose(bands(axes)[0], [mean - deviation, mean + deviation])
    assert figure.axes[0].get_ylim() == figure.axes[2].get_ylim()


def test_accuracy_curves_leave_small_epsilons_room():
    accuracy = RNG.uniform(0, 100, size=(2, 2, 4))
    figure = accuracies(accuracy, ["a", "b"], [0, 4, 16, 255], ["pgd", "step_ll"])
    np.testing.assert_array_equal([lines(axes) for axes in figure.axes], accuracy)
    for axes in figure.axes:
        places = axes.transData.transform([(e, 0) for e in (0, 4, 16, 64)])[:, 0]
        np.testing.assert_allclose(np.diff(places) / (places[1] - places[0]), [1, 1, 2])
        assert axes.get_ylim() == (-2, 102) and axes.get_xlim() == (0, 255)


def test_distance_sweep_has_dots_of_runs_and_lines_of_means():
    figure = sweep()
    axes = figure.axes[0]
    assert axes.get_xscale() == "log"
    assert shown(axes.get_xticklabels())[1:-1] == ["0.0001", "0.001", "0.01"]
    means, dots = axes.get_lines()[::2], axes.get_lines()[1::2]
    for found, place, clean, accuracy in (
        (means, "level", "level_clean", "level_accuracy"),
        (dots, "distance_weight", "clean", "accuracy"),
    ):
        attacked = SWEEP[accuracy].reshape(4, -1)
        expected = np.vstack([SWEEP[clean], attacked])
        np.testing.assert_array_equal([line.get_ydata() for line in found], expected)
        np.testing.assert_array_equal([line.get_xdata() for line in found], [SWEEP[place]] * 5)
    assert not {dot.get_linestyle() for dot in dots} - {"None", ""}
    names = [f"{name}, epsilon {e}" for name in ("step_ll", "iter_fgsm") for e in (2, 16)]
    assert legend(figure) == ["clean", *names]
    assert len({(line.get_color(), str(line.get_linestyle())) for line in means}) == 5


def test_lambda_zero_has_a_place():
    axes = sweep_of([0.0, 1e-4]).axes[0]
    assert axes.get_xscale() == "symlog"
    assert np.isfinite(axes.transData.transform([(0, 1)])).all()


def test_embedding_map_draws_points_and_arrows_inside():
    traces = 10 * MAP["traces"]
    figure = embeddings(traces=traces)
    for panel, axes in enumerate(figure.axes):
        dots = [found.get_offsets() for found in axes.collections]
        np.testing.assert_array_equal(np.concatenate(dots), MAP["points"][panel])
        looks = {(tuple(c.get_facecolor()[0]), len(c.get_paths()[0])) for c in axes.collections}
        assert len(dots) == len(looks) == 12  # more classes than colours
        arrows = [text for text in axes.texts if text.get_text() == ""]
        ways = [(arrow.xyann, arrow.xy) for arrow in arrows]
        expected = np.stack([traces[panel, :, :-1], traces[panel, :, 1:]], axis=2)
        np.testing.assert_array_equal(ways, expected.reshape(36, 2, 2))
        (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
        assert ((traces[panel] >= (left, low)) & (traces[panel] <= (right, high))).all()
        assert [text.get_text() for text in axes.texts if text.get_text()] == [
            str(label) for label in range(12)
        ]
    assert figure.axes[0].get_xlabel() == "embedding 1"
    assert figure.axes[1].get_ylabel() == "component 2 (20 %)"


def test_loss_surface_has_one_scale_and_the_border():
    loss = np.full((2, 1, 3, 3), 1e-9)
    loss[1, 0, 2] = 50
    margin = np.array([[[[-1, -1, 1]] * 3], [[[-1, -1, -1]] * 3]])
    figure = surface(loss, margin, ["a", "b"], [-8, 0, 8], [3])
    first, second, bar = figure.axes
    meshes = [axes.collections[0] for axes in (first, second)]
    assert {mesh.get_clim() for mesh in meshes} == {(1e-3, 50)}
    np.testing.assert_allclose(meshes[1].get_array()[2], 50)
    border = first.collections[1].get_paths()[0].vertices
    np.testing.assert_allclose(border[:, 0], 4)
    assert len(second.collections) == 1
    assert bar.get_ylabel() == "cross entropy of the true class"
    assert first.get_ylabel() == "image 3, class 9"
