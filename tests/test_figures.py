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


PAIR = [("a", "b")] * 2
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
}


@pytest.mark.parametrize("draw", BAD.values(), ids=BAD)
def test_bad_arguments_are_refused(draw):
    with pytest.raises(ValueError):
        draw()
