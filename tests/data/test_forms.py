"""Images of a user's own in every form: read as an independent reader reads them, or refused.

Before this table every program refused every row with "is none of digits, mnist, cifar10,
cifar100". The comment beside a row says what became of it where something else took the data: the
loaders that people would have written around ``Dataset``, or ``data.batches``.
"""

import os
import sys
import types

import keras
import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds

from cascade_keras import data
from cascade_keras.data import decoded, parts
from cascade_keras.data.settings import DataSettings
from cascade_keras.errors import InputError
from cascade_keras.learned import dataset_of

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (12, 6, 9, 1), np.uint8)
COLOUR = RNG.integers(0, 256, (12, 10, 30, 3), np.uint8)
LABELS = np.arange(12) % 3
SPLIT = {"validation_split": 0.5}


def save(images, labels, root, names="abc", suffix="png", **options):
    """Write image files as a user has them, and return them as arrays."""
    for number, (image, label) in enumerate(zip(images, labels)):
        folder = root / names[label]
        folder.mkdir(parents=True, exist_ok=True)
        image = image if isinstance(image, PIL.Image.Image) else picture(image)
        image.save(folder / f"{number:03}.{suffix}", **options)


def picture(image):
    return PIL.Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def by_class(images, labels):
    """In the order of a folder: class by class."""
    order = np.argsort(labels, kind="stable")
    return images[order], labels[order]


def bilinear(images, size):
    """Half-pixel centres, without antialiasing, in NumPy."""

    def along(values, axis, new):
        old = values.shape[axis]
        at = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        low = np.floor(at).astype(int)
        high, part = np.minimum(low + 1, old - 1), at - low
        part = part.reshape([-1 if i == axis else 1 for i in range(values.ndim)])
        return np.take(values, low, axis) * (1 - part) + np.take(values, high, axis) * part

    return along(along(images.astype(float), 1, size[0]), 2, size[1])


def check_rounded(found, exact):
    """Of a half either neighbour is right, as 32 bits know it no better."""
    assert found.dtype == np.uint8 and found.shape == exact.shape
    assert np.abs(found - exact.astype(float)).max() <= 0.5 + 1e-3


def folder_of_splits(place):
    save(COLOUR[:9], LABELS[:9], place / "train")
    save(COLOUR[9:], LABELS[9:], place / "test")
    (place / "train" / "a" / "notes.txt").write_text("not an image")
    (place / "train" / ".hidden").mkdir()
    return (*by_class(COLOUR[:9], LABELS[:9]), *by_class(COLOUR[9:], LABELS[9:]))


def folder_of_classes(place):
    save(GREY, LABELS, place, ("first", "train", "z z"))  # "train" is a class here
    x, y = by_class(GREY, LABELS)
    taken = np.tile([False, True, False, True], 3)  # of four images of a class the 2nd and 4th
    return x[~taken], y[~taken], x[taken], y[taken]


def folder_of_sizes(place):
    save(COLOUR[:9], LABELS[:9], place / "train")
    save(COLOUR[9:, :7, :12], LABELS[9:], place / "test")
    train, labels = by_class(COLOUR[:9], LABELS[:9])
    test, test_labels = by_class(COLOUR[9:, :7, :12], LABELS[9:])
    return bilinear(train, (5, 40)), labels, bilinear(test, (5, 40)), test_labels


def folder_of_kinds(place):
    """A palette, grey beside colours, an opaque alpha channel, one bit a pixel, BMP and GIF."""
    kinds = [
        picture(COLOUR[0]).quantize(8),
        PIL.Image.fromarray(COLOUR[1, :, :, 0]),
        picture(COLOUR[2]).convert("RGBA"),
        picture(COLOUR[3]).convert("1"),
    ]
    save(kinds, [0, 1, 0, 1], place / "train")
    save([picture(COLOUR[4])], [0], place / "train", suffix="BMP")
    save([picture(COLOUR[5])], [1], place / "test", suffix="gif")
    files = [sorted((place / split).rglob("*.*")) for split in ("train", "test")]
    read = [np.stack([np.array(PIL.Image.open(f).convert("RGB")) for f in fs]) for fs in files]
    # 000.BMP and 000.png of class a: capital letters come first.
    return read[0], np.array([0, 0, 0, 1, 1]), read[1], np.array([1])


def jpegs(place):
    """Two decoders of JPEG need not agree to the last bit: Keras's own is what is compared with."""
    smooth = np.kron(COLOUR[:, :2, :3], np.ones((1, 8, 8, 1))).astype(np.uint8)
    save(smooth[:9], LABELS[:9], place / "train", suffix="jpg")
    save(smooth[9:], LABELS[9:], place / "test", suffix="jpeg")
    found = []
    for split in ("train", "test"):
        read = keras.utils.image_dataset_from_directory(
            place / split, shuffle=False, batch_size=None, image_size=(16, 24), verbose=False
        )
        images, labels = zip(*read.as_numpy_iterator())
        found += [np.stack(images), np.array(labels)]
    return found


def one_class(place):
    save(GREY[:4], [0] * 4, place / "train")
    save(GREY[4:6], [0] * 2, place / "test")
    return GREY[:4], np.zeros(4), GREY[4:6], np.zeros(2)


def npz(**stored):
    def make(place):
        np.savez(place / "my data.npz", **stored)
        return

    return make


def npz_of(images, labels, expected=None, save=np.savez, cut=9):
    """x_train and so on, of which ``expected`` is what is to be read."""
    expected = images if expected is None else expected
    whole = np.asarray(labels).reshape(len(labels), -1)
    whole = whole.argmax(axis=1) if whole.shape[1] > 1 else whole[:, 0]

    def make(place):
        parts = {"x_train": images[:cut], "y_train": labels[:cut]}
        save(place / "my data.npz", **parts, x_test=images[cut:], y_test=labels[cut:])
        return expected[:cut], whole[:cut], expected[cut:], whole[cut:]

    return make


def function(body, expected=None):
    def make(place):
        number = len(list(place.glob("*.py")))
        code = f"import numpy as np\nimport tests_of_forms as f\n\ndef load():\n    {body}\n"
        (place / f"own_{place.name}_{number}.py").write_text(code)
        return expected

    return make


class OwnPictures(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    SHAPE = (10, 30, 3)

    def _info(self):
        kinds = tfds.features.ClassLabel(names=["a", "b", "c"])
        features = {"picture": tfds.features.Image(shape=self.SHAPE), "kind": kinds}
        features = tfds.features.FeaturesDict(features)
        return tfds.core.DatasetInfo(
            builder=self, features=features, supervised_keys=("picture", "kind")
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(0, 9), "test": self._generate_examples(9, 12)}

    def _generate_examples(self, first, last):
        for i in range(first, last):
            height = 10 - (i % 2) * (self.SHAPE[0] is None)
            yield i, {"picture": COLOUR[i, :height], "kind": int(LABELS[i])}


class OwnSizes(OwnPictures):
    SHAPE = (None, None, 3)


def prepared(cls, expected=True):
    def make(place):
        made = cls(data_dir=str(place))
        made.download_and_prepare()
        if not expected:
            return None
        found = []
        for split in ("train", "test"):
            # In TFDS's own order, of images that this file knows.
            read = made.as_dataset(split=split).as_numpy_iterator()
            order = [int(np.argmax((e["picture"] == COLOUR).all((1, 2, 3)))) for e in read]
            found += [COLOUR[order], LABELS[order]]
        assert sorted(np.concatenate(found[1::2])) == sorted(LABELS)
        return found

    return make


EYE = np.eye(3)
UNIT = (COLOUR / 255).astype("float32")
TF = "import tensorflow as tf; d = tf.data.Dataset.from_tensor_slices((f.COLOUR, f.LABELS)); "
HALVES = (COLOUR[:9], LABELS[:9], COLOUR[9:], LABELS[9:])
# What is read, by which independent reader, and the shape that networks see.
RIGHT = {
    # 10x30 images: ``data.batches`` cut them to 10x10 without a word.
    "train and test folders": ("", folder_of_splits, {}),
    "class folders alone": ("", folder_of_classes, SPLIT),
    # Of several sizes: np.stack's ValueError in a loader.
    "a folder of several sizes": ("", folder_of_sizes, {"image_size": (5, 40)}),
    "files of every kind": ("", folder_of_kinds, {}),
    "JPEG files": ("", jpegs, {}),
    # One class: a network of one logit, whose loss is 0 from the start.
    "one class": ("", one_class, {}),
    "npz of uint8": ("my data.npz", npz_of(COLOUR, LABELS), {}),
    # (N, H, W): "images must be uint8 of shape", though they were.
    "npz of grey images without an axis": ("my data.npz", npz_of(GREY[..., 0], LABELS, GREY), {}),
    "npz of floats in [0, 1]": ("my data.npz", npz_of(UNIT, LABELS, COLOUR), {}),
    "npz of floats in 0..255": ("my data.npz", npz_of(COLOUR.astype(float), LABELS, COLOUR), {}),
    "npz of int64, compressed": (
        "my data.npz",
        npz_of(COLOUR.astype(int), LABELS, COLOUR, np.savez_compressed),
        {},
    ),
    # (N, 1) labels: compared with (N,) they broadcast to (N, N).
    "npz of labels (N, 1)": ("my data.npz", npz_of(COLOUR, LABELS[:, None]), {}),
    "npz of one-hot labels": ("my data.npz", npz_of(COLOUR, EYE[LABELS]), {}),
    "npz in another size": (
        "my data.npz",
        npz_of(COLOUR, LABELS, bilinear(COLOUR, (20, 7))),
        {"image_size": (20, 7)},
    ),
    "a function of arrays": (
        ":load",
        function("return (f.COLOUR[:9], f.LABELS[:9]), (f.COLOUR[9:], f.LABELS[9:])", HALVES),
        {},
    ),
    "a function of tf.data": (
        ":load",
        function(TF + "return d.take(9), d.skip(9).batch(2)", HALVES),
        {},
    ),
    "any name of TensorFlow Datasets": ("own_pictures", prepared(OwnPictures), {}),
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tests_of_forms", sys.modules[__name__])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


def origin_of(place, text, options):
    if text == ":load":
        (file,) = place.glob("own_*.py")
        return data.Origin(f"{file.stem}:load", **options)
    if text.startswith("own_"):
        return data.Origin(text, data_dir=str(place), **options)
    return data.Origin(str(place / text), **options)


@pytest.mark.parametrize("row", RIGHT.values(), ids=RIGHT)
def test_what_is_read_is_what_another_reader_reads(row, place):
    text, make, options = row
    x_train, y_train, x_test, y_test = make(place)
    spec = data.find(origin_of(place, text, options))
    dataset = data.load(spec, say=lambda text: None)
    exactly = check_rounded if options.get("image_size") else np.testing.assert_array_equal
    exactly(dataset.train[0], x_train)
    np.testing.assert_array_equal(dataset.train[1], y_train)
    exactly(dataset.test[0], x_test)
    np.testing.assert_array_equal(dataset.test[1], y_test)
    assert dataset.train[0].dtype == np.uint8 and dataset.train[1].dtype == np.int32
    assert spec.image_shape == x_train.shape[1:]
    assert spec.examples == len(x_train)
    assert spec.num_classes == max(2, 1 + int(max(y_train)))
    assert len(spec.class_names) in (0, spec.num_classes)
    # Networks see the whole image, and the records a name that a folder can have.
    assert data.sides_of(spec.crop) == x_train.shape[1:3]
    assert spec.name == parts.recorded_name(spec.name)


def broken(content):
    def make(place):
        folder_of_splits(place)
        (place / "train" / "a" / "000.png").write_bytes(content)

    return make


def with_file(name, image, **options):
    def make(place):
        folder_of_splits(place)
        image.save(place / "train" / "b" / name, **options)

    return make


def changed(change):
    def make(place):
        folder_of_splits(place)
        change(place)

    return make


def pipe_loop(place):
    os.symlink(place / "train", place / "train" / "a" / "loop")


def empty(place):
    (place / "train" / "d").mkdir()


SEEN = PIL.Image.fromarray(np.dstack([COLOUR[0], np.full((10, 30), 9, np.uint8)]))
DEEP = PIL.Image.fromarray(GREY[0, ..., 0].astype(np.uint16) * 256)
BAD = COLOUR.astype("float32") / 255
BAD[3, 2, 1] = np.nan
OBJECTS = np.array([COLOUR[0], COLOUR[1, :5]], dtype=object)
START = COLOUR[:9]
# What is refused, and words of the line that says why.
REFUSED = {
    "no folder": ("nothing", lambda place: None, {}, "is not there"),
    "no classes": ("", lambda place: None, {}, "no folders of images"),
    "an empty class folder": ("", changed(empty), {}, "train/d has no images"),
    "a class that is not trained": (
        "", changed(lambda p: os.rename(p / "test" / "a", p / "test" / "e")), {}, "no .*train/e"),
    "no test images": ("", lambda p: save(GREY, LABELS, p), {}, "validation_split: .* no test"),
    "test images and a split": ("", folder_of_splits, SPLIT, "split: .* has test images"),
    "several sizes": ("", folder_of_sizes, {}, "sizes: .*png has 10x30.* 7x12; give image_"),
    "no image in a file": ("", broken(b"GIF? no"), {}, "000.png is not an image"),
    # tf.data says "{{function_node ...}} ... [Op:IteratorGetNext]" and not which file.
    "a file that was cut short": ("", changed(lambda p: cut(p)), {}, "000.png cannot be read"),
    "transparent pixels": ("", with_file("t.png", SEEN), {}, "t.png has transparent pixels"),
    # Keras reads it with 8 bits, which is another image.
    "16 bits": ("", with_file("d.png", DEEP), {"image_size": (9, 9)}, "d.png has 16 bits"),
    "WebP": ("", with_file("w.webp", picture(COLOUR[0])), {}, "w.webp is none of bmp, gif"),
    "a loop of links": ("", changed(pipe_loop), {}, "a/loop is a link to a folder"),
    "no npz": ("x.npz", lambda p: (p / "x.npz").write_text("x"), {}, "x.npz cannot be read"),
    "npz of objects": ("my data.npz", npz(x=OBJECTS, y=LABELS[:2]), SPLIT, "Python objects"),
    "npz of other names": ("my data.npz", npz(a=COLOUR), {}, "holds 'a'; it must hold x_train"),
    "npz without x_test": (
        "my data.npz", npz(x_train=START, y_train=LABELS[:9], y_test=LABELS), {}, "only one of"),
    "npz of fewer labels": ("my data.npz", npz(x=COLOUR, y=LABELS[:9]), SPLIT, "are 9, the i"),
    # float labels were cut to whole numbers by astype.
    "npz of float labels": (
        "my data.npz", npz(x=COLOUR, y=LABELS + 0.5), SPLIT, "labels .* of type float64"),
    "npz of soft labels": ("my data.npz", npz(x=COLOUR, y=EYE[LABELS] / 2), SPLIT, "not one-hot"),
    "npz of labels below 0": ("my data.npz", npz(x=COLOUR, y=LABELS - 1), SPLIT, "one is -1"),
    "npz of labels from 1": ("my data.npz", npz(x=COLOUR, y=LABELS + 1), SPLIT, "of class 0"),
    "npz of NaN": ("my data.npz", npz(x=BAD, y=LABELS), SPLIT, "not finite"),
    # astype(uint8) made 0 and -1 of them.
    "npz of [-1, 1]": ("my data.npz", npz(x=UNIT * 2 - 1, y=LABELS), SPLIT, "lie in -1..1"),
    "npz of 0..255 with fractions": (
        "my data.npz", npz(x=UNIT * 254.5, y=LABELS), SPLIT, "no whole numbers"),
    "npz of 0 and 1": ("my data.npz", npz(x=COLOUR % 2, y=LABELS), SPLIT, "0 and 1 only"),
    "npz of flat images": ("my data.npz", npz(x=START.reshape(9, -1), y=LABELS), SPLIT, "shape"),
    "npz of fewer classes said": (
        "my data.npz", npz(x=COLOUR, y=LABELS), {**SPLIT, "num_classes": 2}, "has 3 classes"),
    "a function of something else": (":load", function("return 5"), {}, "it returns int"),
    "a function of one split": (
        ":load", function("return f.COLOUR, f.LABELS"), {}, "it returns ndarray"),
    "a function that fails": (":load", function("return 1 / 0"), {}, "ZeroDiv.*own_.*line 5"),
    "a function of an endless dataset": (
        ":load", function(TF + "return d.repeat(), d"), {}, "without an end"),
    "a name that is none": ("own_nothing", lambda place: None, {}, "TensorFlow Datasets has none"),
    "TFDS of several sizes": (
        "own_sizes", prepared(OwnSizes, expected=False), {}, "several sizes.* give image_size"),
}  # fmt: skip


def cut(place):
    file = place / "train" / "a" / "000.png"
    file.write_bytes(file.read_bytes()[:-40])


@pytest.mark.parametrize("row", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_read_is_refused_in_a_line(row, place):
    text, make, options, words = row
    make(place)
    with pytest.raises(InputError, match=words) as error:
        data.load(data.find(origin_of(place, text, options)), say=lambda text: None)
    assert "\n" not in str(error.value) and error.value.setting


def test_the_split_takes_evenly_spaced_images_of_each_class():
    labels = np.repeat([0, 1, 2], [10, 7, 1])
    taken = parts.split(labels, 0.3)
    assert np.flatnonzero(taken[:10]).tolist() == [3, 6, 9]
    assert taken[10:17].sum() == 2 and not taken[17]


def test_floats_that_are_no_whole_pixel_values_are_rounded_and_that_is_said(place):
    images = RNG.random((8, 4, 4, 3))
    np.savez(place / "f.npz", x=images, y=np.arange(8) % 2)
    said = []
    dataset = data.load(data.Origin(str(place / "f.npz"), validation_split=0.5), say=said.append)
    assert len(said) == 1 and "rounded to whole pixel values" in said[0]
    kept = np.concatenate([dataset.train[0], dataset.test[0]])
    assert sorted(kept.ravel()) == sorted(np.round(images * 255).astype(np.uint8).ravel())


def test_a_row_that_is_resized_is_read_from_the_recorded_directory(monkeypatch):
    asked = []

    def load(spec, data_dir):
        asked.append(data_dir)
        return [(COLOUR, LABELS.astype(np.int32))] * 2

    row = data.DatasetSpec("elsewhere", load, (10, 30, 3), 3)
    monkeypatch.setitem(data.DATASETS, "elsewhere", row)
    dataset = data.load(data.Origin("elsewhere", image_size=(5, 6), data_dir="/far"))
    assert asked == ["/far"] and dataset.train[0].shape == (12, 5, 6, 3)


def test_a_resized_row_is_found_again_by_its_origin():
    spec = data.find(data.Origin("digits", image_size=(12, 8)))
    assert spec.image_shape == (12, 8, 1) and spec.crop == (12, 8)
    assert data.Origin.of_json(spec.origin.as_json()) == spec.origin
    small, large = data.load("digits"), data.load(spec)
    check_rounded(large.test[0], bilinear(small.test[0], (12, 8)))
    assert data.find("digits") is data.DATASETS["digits"]


def learned(**origin):
    record = {"name": "mine", "fingerprint": "0" * 64, "origin": origin}
    return types.SimpleNamespace(name="net", provenance={"dataset": record})


# A network's record may lie: Python code is run only where a person names it, or trusts the maker.
CODE = [
    ({"text": "CODE:load"}, {}, False),
    ({"text": "CODE:load"}, {"trust": True}, True),
    ({"text": "CODE:load"}, {"dataset": "CODE:load"}, True),
    ({"text": "mnist", "imports": ["CODE"]}, {}, False),
    ({"text": "shapes_x", "imports": ["CODE"]}, {}, None),
]


@pytest.mark.parametrize(("origin", "told", "runs"), CODE)
def test_code_that_a_record_names_is_not_run_by_itself(place, origin, told, runs):
    name = f"code_{len(told)}_{len(origin)}_{place.name[-1]}"
    gives = "(f.COLOUR[:9], f.LABELS[:9]), (f.COLOUR, f.LABELS)"
    (place / "far").mkdir()
    (place / "far" / f"{name}.py").write_text(
        "import pathlib, tests_of_forms as f\npathlib.Path('ran').touch()\n"
        f"def load():\n    return {gives}\n"
    )
    origin = {k: [name] if k == "imports" else v.replace("CODE", name) for k, v in origin.items()}
    if "dataset" in told:
        sys.path.append(str(place / "far"))
    settings = DataSettings(dataset=told.get("dataset", "").replace("CODE", name) or None)
    asked = {"networks": {"target": [learned(**origin, folders=[str(place / "far")])]}}

    def find():
        return dataset_of(settings, **asked, trust=told.get("trust", False))

    if runs is None:
        with pytest.raises(InputError, match=f"dataset: .* Python code {name} .*trust_source"):
            find()
    elif runs is False and "imports" not in origin:
        with pytest.raises(InputError, match=f"dataset: .* Python code {name}:load .*trust_source"):
            find()
    else:
        find()
    assert os.path.exists("ran") == bool(runs)


# What does not fit into the memory.


class Partners:
    rows, examples = range(2, 4), 5

    def read(self, step, indices):
        import tensorflow as tf

        return tf.zeros([2, 8, 30, 3], tf.uint8) + tf.cast(indices, tf.uint8)[:, None, None, None]


@pytest.mark.parametrize(
    ("augment", "partners"),
    [("none", None), ("flip", Partners()), ("crop", Partners()), ("crop_flip", Partners())],
    ids=data.AUGMENTS,
)
def test_a_decoded_file_gives_the_batches_of_the_memory(place, monkeypatch, augment, partners):
    folder_of_splits(place)
    whole, said = data.load(str(place)), []
    monkeypatch.setattr(decoded, "MOST_IN_MEMORY", 1000)
    mapped = data.load(str(place), cache_dir="cache", say=said.append)
    assert isinstance(mapped.train[0], np.memmap) and mapped.fingerprint == whole.fingerprint
    assert "12 images" in said[0] and "10.8 kB" in said[0]
    again = []
    assert data.load(str(place), cache_dir="cache", say=again.append).known and not again
    options = {"seed": 3, "stop": 6, "crop": (8, 30), "augment": augment, "partners": partners}
    both = [data.batches(*dataset.train, 6, **options) for dataset in (whole, mapped)]
    for (one, labels), (other, other_labels) in zip(*both, strict=True):
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.cascade, other.cascade)
        np.testing.assert_array_equal(labels, other_labels)


def test_other_files_are_decoded_into_another_folder(place, monkeypatch):
    monkeypatch.setattr(decoded, "MOST_IN_MEMORY", 1000)
    save(COLOUR, LABELS, place / "data")
    origin = data.Origin(str(place / "data"), **SPLIT)
    first = data.load(origin, cache_dir="cache")
    os.utime(place / "data" / "a" / "000.png", (1, 1))
    assert data.load(origin, cache_dir="cache").fingerprint == first.fingerprint
    assert len(os.listdir("cache")) == 2
    x, y = by_class(COLOUR, LABELS)
    taken = np.tile([False, True, False, True], 3)
    np.testing.assert_array_equal(first.train[0], x[~taken])
    np.testing.assert_array_equal(first.test[0], x[taken])
    np.testing.assert_array_equal(first.test[1], y[taken])


def test_a_disk_without_room_is_said_in_a_line(place, monkeypatch):
    monkeypatch.setattr(decoded, "MOST_IN_MEMORY", 1000)
    folder_of_splits(place)
    usage = types.SimpleNamespace(free=999)
    monkeypatch.setattr(decoded.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError, match=r"cache_dir: .* needs 10\.8 kB, and 999 bytes are"):
        data.load(str(place), cache_dir="cache")
    assert not os.path.exists("cache")


@pytest.mark.parametrize("row", [r for r in RIGHT if "folder" in r or "npz of u" in r or "TFDS" in r
                                 or "TensorFlow" in r])  # fmt: skip
def test_images_are_read_from_any_of_them_on(row, place):
    text, make, options = RIGHT[row]
    make(place)
    splits = data.find(origin_of(place, text, options)).loader
    whole = np.concatenate(list(splits.images()))
    for start in (1, 9, 11):
        np.testing.assert_array_equal(np.concatenate(list(splits.images(start))), whole[start:])
