"""What every program is told of its images; needs no TensorFlow."""

from __future__ import annotations

import dataclasses
import os

from cascade_keras import own_code
from cascade_keras.data import forms, specs
from cascade_keras.data.specs import Origin
from cascade_keras.errors import InputError
from cascade_keras.settings import POSITIVE, Rule, Settings, items_of, number, setting

LARGEST_SIDE = 4096
SIDES = Rule(
    lambda v: len(v) in (1, 2) and all(1 <= side <= LARGEST_SIDE for side in v),
    f"one or two whole numbers in 1..{LARGEST_SIDE} such as 96 or 96,64",
)
PART = Rule(lambda v: 0 < v < 1, "above 0 and below 1")


def parse_sides(text: str) -> tuple[int, ...]:
    """Return the numbers that 96 or 96,64 means.

    Raises:
        ValueError: it means none.
    """
    return tuple(number(int, side) for side in items_of(text))


@dataclasses.dataclass(frozen=True)
class DataSettings(Settings):
    """Which images: the flags that the programs share."""

    dataset: str | None = setting(
        None,
        lambda: (
            f"Whose images: {', '.join(specs.DATASETS)}; a folder of train/CLASS/*.png and "
            "test/CLASS/*.png, also jpg, jpeg, bmp and gif; FILE.npz of x_train, y_train, x_test "
            "and y_test; module:function, which returns (train, test), each (images, labels) or a "
            "tf.data.Dataset; or any name of TensorFlow Datasets. Default: what the first network "
            "that is named has learned."
        ),
    )
    import_: tuple[str, ...] = setting(
        (),
        "Modules to import first, which register datasets, layers and the like.",
        operational=True,
    )
    data_dir: str | None = setting(
        None, "TensorFlow Datasets' directory.", path=True, operational=True
    )
    image_size: tuple[int, ...] | None = setting(
        None,
        "Height and width that images are brought to, 96 or 96,64: bilinear without antialiasing, "
        "as Keras reads folders, the aspect ratio not kept; whole pixel values. Default: as they "
        "are.",
        SIDES,
        parse=parse_sides,
        repeats=True,
    )
    validation_split: float | None = setting(
        None,
        "The part of the training images that is tested on instead, where there are no test "
        "images: of each class evenly spaced ones.",
        PART,
    )
    num_classes: int | None = setting(
        None, "How many classes there are; default: as the data say.", POSITIVE
    )
    cache_dir: str = setting(
        "decoded",
        "Where images that do not fit into the memory are decoded to, once.",
        path=True,
        operational=True,
    )

    def __post_init__(self):
        # First: the choices of other settings may be what they register.
        imports = next(field for field in dataclasses.fields(self) if field.name == "import_")
        own_code.import_all(self._checked(imports, self.import_))
        super().__post_init__()
        if self.image_size is not None and len(self.image_size) == 1:
            object.__setattr__(self, "image_size", self.image_size * 2)
        if self.dataset is not None and self.dataset not in specs.DATASETS:
            forms.check_text(self.dataset)

    def origin(self, recorded: Origin | None = None) -> Origin:
        """Return what says which images, each of its parts as set, else as recorded.

        Args:
            recorded: by a network; it counts where ``dataset`` is not set.

        Raises:
            InputError: neither says it.
        """
        text = self.dataset or (recorded.text if recorded else None)
        if text is None:
            raise InputError("must be given", "dataset")
        if self.dataset is not None or recorded is None:
            recorded = Origin(text)
        own = {
            "image_size": self.image_size,
            "validation_split": self.validation_split,
            "num_classes": self.num_classes,
            "imports": self.import_,
            "data_dir": self.data_dir and os.path.abspath(os.path.expanduser(self.data_dir)),
        }
        return dataclasses.replace(recorded, **{k: v for k, v in own.items() if v})
