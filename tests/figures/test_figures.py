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

from cascade_keras import figures

RNG = np.random.default_rng(0)
LONG = "resnet110_pivot_cascade_e2_batch128_seed3"
NAMES = ["lenet", LONG, "a$b_$", "_hidden", "100%", "W" * 40, "two words", ""]
NAMES += [f"resnet20_e{index}" for index in range(5)]
VALUES = RNG.uniform(0, 100, (13, 7))
IMAGES = RNG.uniform(size=(2, 6, 8, 3))

CURVES = RNG.uniform(size=(20, 5))
PAIRED = CURVES.reshape(5, 2, 2, 5)[:2]
SURFACE = RNG.gamma(1, 1, size=(2, 2, 5, 5))
# Four runs of three lambdas: weights, clean, accuracy, epsilons, attacks; and the means.
SWEEP = (
    np.array([1e-4, 1e-3, 1e-3, 1e-2]),
    np.array([99, 97, 98, 95.0]),
    np.array([[[10, 20, 30, 40], [1, 2, 3, 4]], [[50, 60, 70, 80], [5, 6, 7, 8.0]]]),
    (2, 16),
    ["step_ll", "iter_fgsm"],
)
LEVELS = (
    np.array([1e-4, 1e-3, 1e-2]),
    np.array([99, 97.5, 95]),
    np.array([[[10, 25, 40], [1, 2.5, 4]], [[50, 65, 80], [5, 6.5, 8.0]]]),
)
# Twelve classes of which three are traced.
MAP = (
    RNG.normal(size=(2, 36, 2)),
    np.repeat(np.arange(12), 3),
    RNG.normal(size=(2, 3, 4, 2)),
    np.array([0, 7, 11]),
    RNG.normal(size=(2, 12, 2)),
    ["mnist$", LONG],
    [("embedding 1", "embedding 2"), ("component 1 (30 %)", "component 2 (20 %)")],
)

PICTURES = {
    "heat_map": lambda path: figures.heat_map(
        path, VALUES, NAMES, NAMES[:7], row_label="source", column_label="target"
    ),
    "distribution": lambda path: figures.distribution(
        path, {name: RNG.gamma(2, 2, 50) for name in NAMES}, thresholds=(2, 4)
    ),
    "examples": lambda path: figures.examples(
        path, IMAGES, IMAGES, [("cat -> cat", "cat -> $og"), (LONG, "")], epsilon=8
    ),
    "confusion": lambda path: figures.confusion(path, np.eye(3), NAMES[:3]),
    "noise_correlation": lambda path: figures.noise_correlation(
        path, range(5), CURVES[:3], CURVES[3:6], NAMES[:3], ["a", "b", "a"], band=0.1
    ),
    "gradient_correlation": lambda path: figures.gradient_correlation(
        path, range(5), CURVES[:8].reshape(2, 4, 5), CURVES[:8].reshape(2, 4, 5), NAMES[:2], band=1
    ),
    "logits": lambda path: figures.logits(
        path, range(-2, 3), PAIRED, PAIRED, PAIRED[0], NAMES[:2], ["step_ll", "step_fgsm"], band=1
    ),
    "accuracy_curves": lambda path: figures.accuracy_curves(
        path, range(5), 100 * PAIRED[0], NAMES[:2], ["pgd", "step_ll"]
    ),
    "distance_sweep": lambda path: figures.distance_sweep(path, *SWEEP, levels=LEVELS),
    "embedding_map": lambda path: figures.embedding_map(path, *MAP),
    "loss_surface": lambda path: figures.loss_surface(
        path, range(5), SURFACE, SURFACE - 1, NAMES[:2], ["image 1", "image 2"]
    ),
}
all_pictures = pytest.mark.parametrize("draw", PICTURES.values(), ids=PICTURES)


def heat_map(values, rows, columns, labels=("source", "target", "accuracy, %")):
    return figures._draw_heat_map(values, rows, columns, *labels)


def shown(labels):
    return [label.get_text().replace("\n", "").replace(r"\$", "$") for label in labels]


def cell_texts(figure):
    return {text.get_position(): text.get_text() for text in figure.axes[0].texts}


@all_pictures
def test_writes_a_png_and_the_same_pdf_twice(draw, tmp_path):
    draw(tmp_path / "a.png")
    height, width = imread(tmp_path / "a.png").shape[:2]
    assert 100 < width < 1500
    assert 100 < height < 2000

    draw(str(tmp_path / "a.PDF"))
    content = (tmp_path / "a.PDF").read_bytes()
    assert content.startswith(b"%PDF") and content.rstrip().endswith(b"%%EOF")
    assert 3_000 < len(content) < 200_000
    assert b"/Type3" not in content and b"CreationDate" not in content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.PDF", "a.png"]


@all_pictures
@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt])
def test_failed_write_leaves_what_was_there(draw, failure, tmp_path, monkeypatch):
    def fail(figure, path, **options):
        path.write_bytes(b"half")
        raise failure

    monkeypatch.setattr(Figure, "savefig", fail)
    (tmp_path / "a.png").write_bytes(b"old")
    with pytest.raises((OSError, KeyboardInterrupt)):
        draw(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_other_suffixes_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\.png or a \.pdf"):
        PICTURES["confusion"](tmp_path / "a.jpg")
    assert not list(tmp_path.iterdir())


def test_needs_neither_pyplot_nor_tensorflow(tmp_path):
    program = (
        "import sys; from cascade_keras import figures;"
        "figures.confusion(sys.argv[1], [[1]], ['a']);"
        "assert not {'matplotlib.pyplot', 'tensorflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program, tmp_path / "a.png"], check=True)


def test_settings_of_the_user_neither_matter_nor_change(tmp_path):
    PICTURES["confusion"](tmp_path / "plain.png")
    hostile = {"text.usetex": True, "savefig.dpi": 20, "savefig.bbox": "tight", "font.size": 3}
    with matplotlib.rc_context(hostile):
        PICTURES["confusion"](tmp_path / "hostile.png")
        assert {name: matplotlib.rcParams[name] for name in hostile} == hostile
    assert (tmp_path / "plain.png").read_bytes() == (tmp_path / "hostile.png").read_bytes()


LAID_OUT = {
    "13 x 7": lambda: heat_map(VALUES, NAMES, NAMES[:7]),
    "7 x 13": lambda: heat_map(VALUES.T, NAMES[:7], NAMES),
    "short names": lambda: heat_map(VALUES[:2, :3], ["e2", "e4"], ["clean", "step_ll", "e_16"]),
    "1 x 1": lambda: heat_map([[5]], ["FGSM"], ["lenet"]),
    "long labels": lambda: heat_map([[5]], [LONG], [LONG], [3 * "many words, " + LONG] * 3),
    "40 x 2": lambda: heat_map(np.full((40, 2), np.nan), [LONG] * 40, ["a", "b"]),
    "curves": lambda: figures._draw_distribution({name: [1, 2] for name in NAMES}, range(30)),
    "2 classes": lambda: figures._draw_confusion([[10_000, 0], [0, 123_456]], ["no", "yes"]),
    "20 classes": lambda: figures._draw_confusion(np.eye(20), [LONG + "x" * n for n in range(20)]),
    "30 classes": lambda: figures._draw_confusion(np.eye(30), list(map(str, range(30)))),
    "100 classes": lambda: figures._draw_confusion(np.eye(100), [LONG] * 100),
    "images": lambda: figures._draw_examples(IMAGES, IMAGES, [(LONG, "W" * 30)] * 2, 0.125),
    "noises": lambda: figures._draw_noise_correlation(
        range(1, 6), CURVES[:13], CURVES[:13], [f"{name}, {LONG}" for name in NAMES], NAMES, 0.1
    ),
    "gradients": lambda: figures._draw_gradient_correlation(
        range(5), np.ones((5, 4, 5)), np.zeros((5, 4, 5)), NAMES[:5], 0.5
    ),
    "one gradient": lambda: figures._draw_gradient_correlation(
        [8], np.ones((1, 4, 1)), np.zeros((1, 4, 1)), [LONG], 0.5
    ),
    "logits": lambda: figures._draw_logits(
        range(-2, 3), PAIRED, PAIRED, 100 * PAIRED[0], NAMES[:2], ["step_ll", "step_fgsm"], 1
    ),
    "accuracies": lambda: figures._draw_accuracy_curves(
        [0, 1, 255], 50 * np.ones((7, 9, 3)), NAMES[:7], figures.ATTACKS
    ),
    "small epsilons": lambda: figures._draw_accuracy_curves(
        [0, 1.5], 50 * np.ones((1, 1, 2)), ["a"], ["pgd"]
    ),
    "lambdas": lambda: figures._draw_distance_sweep(*SWEEP, LEVELS),
    "one lambda": lambda: figures._draw_distance_sweep(
        [0.0], [99.0], [[[5.0]]], [4], ["pgd"], ([0.0], [99.0], [[[5.0]]])
    ),
    "map": lambda: figures._draw_embedding_map(
        *MAP[:4], np.tile(np.arange(-2, 2.8, 0.4)[:, None], (2, 1, 2)), *MAP[5:]
    ),
    "surface": lambda: figures._draw_loss_surface(
        range(5), SURFACE, SURFACE - 1, ["lenet", LONG], ["image 12345, class 9"] * 2
    ),
    "bands": lambda: figures._draw_examples(
        np.zeros((7, 9, 4, 1)), np.zeros((7, 9, 4, 1)), [("W" * 30, "$a$")] * 7, 8
    ),
}


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
    without_colour = {(style["linestyle"], style["marker"]) for style in styles[:35]}
    assert len(without_colour) == 35
    assert len({(s["color"], s["linestyle"], s["marker"]) for s in styles}) == 40
    assert [figures.colour(index) for index in range(40)] == [style["color"] for style in styles]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("room", [0.2, 0.6, 1.7])
def test_wrapped_text_is_whole_and_fits(name, room):
    wrapped = figures._wrap(name, room).replace(r"\$", "$")
    assert wrapped.replace("\n", "").replace(" ", "") == name.replace(" ", "")
    assert all(figures._text_width(line) <= room for line in wrapped.split("\n"))


def test_wrapped_lines_are_balanced_and_words_uncut():
    assert figures._wrap("automobile -> airplane", 0.95) == "automobile ->\nairplane"
    assert figures._wrap("resnet20_adversarial_step_ll", 1.5) == "resnet20_\nadversarial_step_ll"


def test_heat_map_names_cells_and_axes():
    values = np.array([[100, np.nan], [-0.0, np.nan], [12.34, 50]])
    figure = heat_map(values, ["a$b_$", LONG, "lenet"], ["_x", "W" * 40])
    axes, bar = figure.axes
    assert cell_texts(figure) == {(0, 0): "100.0", (0, 1): "0.0", (0, 2): "12.3", (1, 2): "50.0"}
    assert shown(axes.get_yticklabels()) == ["a$b_$", LONG, "lenet"]
    assert shown(axes.get_xticklabels()) == ["_x", "W" * 40]
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("source", "target")
    assert bar.get_ylabel() == "accuracy, %"
    assert axes.images[0].get_clim() == (0, 100)
    assert axes.get_title() == ""
    hatched = [patch.get_xy() for patch in axes.patches if patch.get_hatch()]
    assert hatched == [(0.5, -0.5), (0.5, 0.5)]


def test_heat_map_text_contrasts_with_its_cell():
    figure = heat_map(np.linspace(0, 100, 21)[:, None], [str(n) for n in range(21)], ["x"])

    def luminance(colour):
        rgb = np.array(to_rgb(colour))
        return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ (
            (0.2126, 0.7152, 0.0722)
        )

    for text, value in zip(figure.axes[0].texts, np.linspace(0, 1, 21)):
        cell = matplotlib.colormaps["cividis"](value)[:3]
        dark, light = sorted([luminance(cell), luminance(text.get_color())])
        assert (light + 0.05) / (dark + 0.05) > 4.5


def test_lowest_value_of_each_column_is_outlined():
    values = [[3, np.nan, 0, np.nan], [2, 7, 1, np.nan], [4, 9, 0, np.nan]]
    axes = heat_map(values, list("abc"), list("pqrs")).axes[0]
    frames = [patch for patch in axes.patches if patch.get_gid() == "lowest"]
    cells = [tuple(int(x) for x in np.round(frame.get_center())) for frame in frames]
    assert cells == [(0, 1), (1, 1), (2, 0), (2, 2)]


def test_distribution_rises_by_each_images_share():
    curves = {"a$b_$": np.array([4.0, 1.0, np.inf, 1.0]), LONG: [0.0, 2.5], "none": [np.inf]}
    figure = figures._draw_distribution(curves, (2, 8))
    axes = figure.axes[0]
    lines = axes.get_lines()
    assert [line.get_drawstyle() for line in lines[:3]] == ["steps-post"] * 3
    end = 8 * 1.05
    np.testing.assert_allclose(lines[0].get_xydata(), [(0, 0), (1, 50), (4, 75), (end, 75)])
    np.testing.assert_allclose(lines[1].get_xydata(), [(0, 0), (0, 50), (2.5, 100), (end, 100)])
    np.testing.assert_allclose(lines[2].get_xydata(), [(0, 0), (end, 0)])
    assert [(line.get_xdata()[0], line.get_linestyle()) for line in lines[3:]] == [
        (2, ":"),
        (8, ":"),
    ]
    assert [line.get_color() for line in lines[:3]] == list(figures.PALETTE[:3])
    assert axes.get_xlim() == (0, end)
    assert axes.get_xlabel() == "epsilon, pixel values of 0..255"
    assert axes.get_ylabel().endswith(", %")
    assert shown(figure.legends[0].get_texts()) == [*curves, "epsilon 2, 8"]


def test_distribution_legend_does_not_cover_the_curves():
    figure = figures._draw_distribution({name: [1, 2] for name in NAMES}, ())
    axes, legend = figure.axes[0], figure.legends[0]
    assert legend.get_window_extent().x0 > axes.get_window_extent().x1


@pytest.mark.parametrize("channels", [1, 3])
def test_examples_amplify_the_noise_to_the_whole_range(channels):
    clean = np.full((1, 2, 2, channels), 0.5, np.float32)
    noise = np.reshape([-8, 8, 0, 4], (1, 2, 2, 1)).astype(np.float32)
    titles = [("cat -> cat", "cat -> dog")]
    figure = figures._draw_examples(clean, clean + noise / 255, titles, 8)
    images = [np.asarray(axes.images[0].get_array()) for axes in figure.axes]
    expected = np.reshape([0, 1, 0.5, 0.75], (2, 2, 1)) * np.ones(channels)
    np.testing.assert_allclose(images[2].reshape(expected.shape), expected, atol=1e-5)
    np.testing.assert_array_equal(images[0].reshape(clean[0].shape), clean[0])
    np.testing.assert_array_equal(images[1].reshape(clean[0].shape), (clean + noise / 255)[0])
    assert [axes.images[0].get_clim() for axes in figure.axes] == [(0, 1)] * 3
    assert [axes.get_xlabel() for axes in figure.axes] == [*titles[0], ""]
    assert [axes.get_ylabel() for axes in figure.axes][:2] == ["clean", "adversarial"]


def test_examples_beyond_six_go_into_another_band():
    images = np.arange(7)[:, None, None, None] / 10 * np.ones((7, 2, 2, 1))
    figure = figures._draw_examples(images, images, [(str(n), "") for n in range(7)], 4)
    named = {axes.get_xlabel(): axes for axes in figure.axes if axes.get_xlabel().strip()}
    assert [axes.images[0].get_array().max() for axes in named.values()] == pytest.approx(
        np.arange(7) / 10
    )
    top, below = named["0"].get_position(), named["6"].get_position()
    assert top.x0 == pytest.approx(below.x0) and top.y0 > below.y1


def test_confusion_colours_are_shares_and_texts_are_counts():
    figure = figures._draw_confusion(np.array([[30, 10], [0, 0]]), ["cat", "dog"])
    axes = figure.axes[0]
    shares = axes.images[0].get_array()
    np.testing.assert_allclose(shares[0], [75, 25])
    assert np.isnan(np.ma.filled(shares[1], np.nan)).all()
    assert cell_texts(figure) == {(0, 0): "30", (1, 0): "10"}
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("true class", "predicted class")
    assert shown(axes.get_xticklabels()) == shown(axes.get_yticklabels()) == ["cat", "dog"]


def test_confusion_of_many_classes_has_no_counts():
    assert len(cell_texts(figures._draw_confusion(np.eye(20), NAMES[:1] * 20))) == 400
    assert not cell_texts(figures._draw_confusion(np.eye(21), NAMES[:1] * 21))


def test_an_attack_looks_the_same_everywhere():
    styles = [figures.attack_style(name) for name in figures.ATTACKS]
    assert styles == [figures.line_style(index) for index in range(len(styles))]
    gradients = figures._draw_gradient_correlation(
        range(5), np.ones((1, 4, 5)), np.ones((1, 4, 5)), ["a"], 1
    )
    curves = figures._draw_accuracy_curves(
        range(5), 100 * PAIRED[0][:1], ["a"], ["step_rand", "step_ll"]
    )
    colours = [line.get_color() for line in gradients.axes[0].lines]
    assert [line.get_color() for line in curves.axes[0].lines] == [colours[2], colours[0]]
    with pytest.raises(ValueError):
        figures.attack_style("fgsm")


def band(axes, index):
    """Return lower and upper edge of a band."""
    (path,) = axes.collections[index].get_paths()
    x = path.vertices[:, 0]
    places = np.unique(x)
    return np.array([[f(path.vertices[x == at, 1]) for at in places] for f in (min, max)])


def test_noise_correlation_has_bands_and_dashes_of_its_kinds():
    kinds = ["same", "other", "same"]
    figure = figures._draw_noise_correlation(
        range(1, 6), CURVES[:3], CURVES[3:6], ["a, b", "a, c", "b, c"], kinds, 0.1
    )
    axes = figure.axes[0]
    for index, line in enumerate(axes.get_lines()):
        np.testing.assert_array_equal(line.get_xydata(), np.c_[range(1, 6), CURVES[index]])
        edges = CURVES[index] + 0.1 * np.array([[-1], [1]]) * CURVES[3 + index]
        np.testing.assert_allclose(band(axes, index), edges)
    dashes = [line.get_linestyle() for line in axes.get_lines()]
    assert dashes[0] == dashes[2] != dashes[1]
    assert shown(figure.legends[0].get_texts()) == ["a, b", "a, c", "b, c", "same", "other"]
    assert axes.get_ylim()[0] < 0  # the zero is shown
    assert axes.get_xlabel() == "epsilon, pixel values of 0..255"


def test_panels_share_what_is_compared():
    mean = RNG.uniform(-1, 1, size=(4, 4, 5))
    figure = figures._draw_gradient_correlation(range(5), mean, 0 * mean, NAMES[:4], 1)
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title().replace(r"\$", "$").replace("\n", "") for axes in panels] == NAMES[:4]
    for panel, axes in enumerate(panels):
        for index, line in enumerate(axes.get_lines()):
            np.testing.assert_array_equal(line.get_ydata(), mean[panel, index])
    assert len({axes.get_ylim() for axes in panels}) == 1
    assert shown(figure.legends[0].get_texts()) == [
        "clean, step_ll", "clean, step_fgsm", "clean, step_rand", "step_ll, step_fgsm"
    ]  # fmt: skip


def test_logits_are_rows_of_attacks_and_columns_of_networks():
    true, false = PAIRED, PAIRED + 5
    figure = figures._draw_logits(
        range(-2, 3), true, false, 9 * PAIRED[0], ["a", "b"], ["step_ll", "step_fgsm"], 1
    )
    assert [axes.get_title() for axes in figure.axes] == ["a", "b", "", ""]
    assert [axes.get_ylabel() for axes in figure.axes[::2]] == [
        "logit, step_ll",
        "logit, step_fgsm",
    ]
    for place, axes in enumerate(figure.axes):
        row, column = divmod(place, 2)
        lines = axes.get_lines()
        np.testing.assert_array_equal(lines[0].get_ydata(), true[0][column, row])
        np.testing.assert_array_equal(lines[1].get_ydata(), false[0][column, row])
        np.testing.assert_array_equal(lines[2].get_ydata(), 9 * PAIRED[0][column, row])
        mean, deviation = (part[column, row] for part in true)
        np.testing.assert_allclose(band(axes, 0), [mean - deviation, mean + deviation])
    assert figure.axes[0].get_ylim() == figure.axes[2].get_ylim()


def test_accuracy_curves_leave_small_epsilons_room():
    accuracy = RNG.uniform(0, 100, size=(2, 2, 4))
    figure = figures._draw_accuracy_curves(
        [0, 4, 16, 255], accuracy, ["a", "b"], ["pgd", "step_ll"]
    )
    for panel, axes in enumerate(figure.axes):
        for index, line in enumerate(axes.get_lines()):
            np.testing.assert_array_equal(line.get_ydata(), accuracy[panel, index])
        places = axes.transData.transform([(e, 0) for e in (0, 4, 16, 64)])[:, 0]
        np.testing.assert_allclose(np.diff(places) / (places[1] - places[0]), [1, 1, 2])
        assert axes.get_ylim() == (-2, 102) and axes.get_xlim() == (0, 255)


def test_distance_sweep_has_dots_of_runs_and_lines_of_means():
    axes = figures._draw_distance_sweep(*SWEEP, LEVELS).axes[0]
    assert axes.get_xscale() == "log"
    assert shown(axes.get_xticklabels())[1:-1] == ["0.0001", "0.001", "0.01"]
    lines = axes.get_lines()
    means, dots = lines[::2], lines[1::2]
    np.testing.assert_array_equal(means[0].get_xydata(), np.c_[LEVELS[0], LEVELS[1]])
    np.testing.assert_array_equal(dots[0].get_xydata(), np.c_[SWEEP[0], SWEEP[1]])
    for number in range(4):
        row, column = divmod(number, 2)
        np.testing.assert_array_equal(means[1 + number].get_ydata(), LEVELS[2][row, column])
        np.testing.assert_array_equal(dots[1 + number].get_ydata(), SWEEP[2][row, column])
    assert not {dot.get_linestyle() for dot in dots} - {"None", ""}
    labels = shown(axes.figure.legends[0].get_texts())
    assert labels == ["clean", "step_ll, epsilon 2", "step_ll, epsilon 16",
                      "iter_fgsm, epsilon 2", "iter_fgsm, epsilon 16"]  # fmt: skip
    assert len({(line.get_color(), str(line.get_linestyle())) for line in means}) == 5


def test_lambda_zero_has_a_place():
    weights = [0.0, 1e-4]
    axes = figures._draw_distance_sweep(
        weights, [1, 2], [[[3, 4]]], [4], ["pgd"], (weights, [1, 2], [[[3, 4]]])
    ).axes[0]
    assert axes.get_xscale() == "symlog"
    assert np.isfinite(axes.transData.transform([(0, 1)])).all()


def test_embedding_map_draws_points_and_arrows_inside():
    points, labels, traces, *_ = MAP
    figure = figures._draw_embedding_map(points, labels, 10 * traces, *MAP[3:])
    for panel, axes in enumerate(figure.axes):
        assert len(axes.collections) == 12
        for label, dots in enumerate(axes.collections):
            np.testing.assert_array_equal(dots.get_offsets(), points[panel, labels == label])
        looks = {
            (tuple(dots.get_facecolor()[0]), len(dots.get_paths()[0])) for dots in axes.collections
        }
        assert len(looks) == 12  # more classes than colours
        arrows = [text for text in axes.texts if text.get_text() == ""]
        assert len(arrows) == 3 * 3
        np.testing.assert_array_equal(arrows[0].xyann, 10 * traces[panel, 0, 0])
        np.testing.assert_array_equal(arrows[0].xy, 10 * traces[panel, 0, 1])
        (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
        inside = (10 * traces[panel] >= (left, low)) & (10 * traces[panel] <= (right, high))
        assert inside.all()
        assert [text.get_text() for text in axes.texts if text.get_text()] == [
            str(label) for label in range(12)
        ]
    assert figure.axes[0].get_xlabel() == "embedding 1"
    assert figure.axes[1].get_ylabel() == "component 2 (20 %)"


def test_loss_surface_has_one_scale_and_the_border():
    loss = np.full((2, 1, 3, 3), 1e-9)
    loss[1, 0, 2] = 50
    margin = np.array([[[[-1, -1, 1]] * 3], [[[-1, -1, -1]] * 3]])
    figure = figures._draw_loss_surface([-8, 0, 8], loss, margin, ["a", "b"], ["image 3"])
    first, second, bar = figure.axes
    meshes = [axes.collections[0] for axes in (first, second)]
    assert {mesh.get_clim() for mesh in meshes} == {(1e-3, 50)}
    np.testing.assert_allclose(meshes[1].get_array()[2], 50)
    border = first.collections[1].get_paths()[0].vertices
    np.testing.assert_allclose(border[:, 0], 4)
    assert len(second.collections) == 1
    assert bar.get_ylabel() == "cross entropy of the true class"
    assert first.get_ylabel() == "image 3"


PAIR = [("a", "b")] * 2
THREE = np.zeros((1, 1, 3))
BAD = {
    "heat map transposed": lambda: heat_map(VALUES.T, NAMES, NAMES[:7]),
    "heat map flat": lambda: heat_map([1, 2], ["a", "b"], ["c"]),
    "heat map empty": lambda: heat_map(np.empty((0, 0)), [], []),
    "no curves": lambda: figures._draw_distribution({}, ()),
    "no images": lambda: figures._draw_distribution({"a": []}, ()),
    "curve of two axes": lambda: figures._draw_distribution({"a": [[1.0]]}, ()),
    "epsilon NaN": lambda: figures._draw_distribution({"a": [np.nan]}, ()),
    "epsilon negative": lambda: figures._draw_distribution({"a": [-1.0]}, ()),
    "other shapes": lambda: figures._draw_examples(IMAGES, IMAGES[:1], PAIR, 8),
    "one image": lambda: figures._draw_examples(IMAGES[0], IMAGES[0], PAIR, 8),
    "two channels": lambda: figures._draw_examples(IMAGES[..., :2], IMAGES[..., :2], PAIR, 8),
    "too few titles": lambda: figures._draw_examples(IMAGES, IMAGES, PAIR[:1], 8),
    "uint8": lambda: figures._draw_examples(IMAGES, IMAGES.astype(np.uint8), PAIR, 8),
    "epsilon 0": lambda: figures._draw_examples(IMAGES, IMAGES, PAIR, 0),
    "not square": lambda: figures._draw_confusion(np.ones((2, 3)), ["a", "b"]),
    "other classes": lambda: figures._draw_confusion(np.eye(2), ["a"]),
    "no classes": lambda: figures._draw_confusion(np.empty((0, 0)), []),
    "negative count": lambda: figures._draw_confusion([[-1]], ["a"]),
    "noises of other pairs": lambda: figures._draw_noise_correlation(
        range(5), CURVES[:3], CURVES[:3], ["a", "b"], ["c", "c"], 1
    ),
    "pairs without kinds": lambda: figures._draw_noise_correlation(
        range(5), CURVES[:2], CURVES[:2], ["a", "b"], [], 1
    ),
    "epsilons descend": lambda: figures._draw_noise_correlation(
        [2, 1], CURVES[:1, :2], CURVES[:1, :2], ["a"], ["b"], 1
    ),
    "gradients of three lines": lambda: figures._draw_gradient_correlation(
        [0], np.ones((1, 3, 1)), np.ones((1, 3, 1)), ["a"], 1
    ),
    "logits of others": lambda: figures._draw_logits(
        range(5), PAIRED, PAIRED, PAIRED[0], ["a"], ["step_ll"], 1
    ),
    "accuracy at -1": lambda: figures._draw_accuracy_curves([-1, 0, 1], THREE, ["a"], ["pgd"]),
    "unknown attack": lambda: figures._draw_accuracy_curves([0, 1, 2], THREE, ["a"], ["fgsm"]),
    "lambda negative": lambda: figures._draw_distance_sweep(
        [-1.0], [9], [[[9]]], [1], ["pgd"], ([-1.0], [9], [[[9]]])
    ),
    "no networks": lambda: figures._draw_accuracy_curves([0, 1, 2], THREE[:0], [], ["pgd"]),
    "map without axis labels": lambda: figures._draw_embedding_map(*MAP[:-1], []),
    "map of three dimensions": lambda: figures._draw_embedding_map(np.zeros((2, 36, 3)), *MAP[1:]),
    "surface not square": lambda: figures._draw_loss_surface(
        range(5), SURFACE[..., :4], SURFACE[..., :4], NAMES[:2], NAMES[:2]
    ),
}


@pytest.mark.parametrize("draw", BAD.values(), ids=BAD)
def test_bad_arguments_are_refused(draw):
    with pytest.raises(ValueError):
        draw()
