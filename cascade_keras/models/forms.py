"""The texts that name a network, and what is known of one before it is built; no TensorFlow.

resnet20, lenet, ...                a network of ours, see specs
app:MobileNetV2                     one of keras.applications without its top, see applications
app:MobileNetV2(alpha=0.35)         the same with arguments of its function
PATH.keras, PATH.h5                 a Keras model in a file, with its weights
my_module:make                      what make(input_shape, num_classes) returns, a Keras model
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from cascade_keras import own_code
from cascade_keras.errors import InputError, about, shown
from cascade_keras.files import expand
from cascade_keras.models import specs

NAMED, APPLICATION, FILE, FUNCTION = "named", "application", "file", "function"
_PREFIX = "app:"
_FILES = (".keras", ".h5", ".hdf5")
_LONGEST_LABEL = 40


@dataclasses.dataclass(frozen=True)
class Application:
    """What is known of a network of keras.applications.

    Attributes:
        preprocessing: what it takes: "tf" [-1, 1]; "torch" and "caffe" each their way of taking
            ImageNet's mean colour away; "inside" 0..255, the rest being a part of the network.
        smallest: side of the smallest images.
        arguments: of its function, that a text may give.
    """

    preprocessing: str
    smallest: int = 32
    arguments: tuple[str, ...] = ()


# What is known of each of keras.applications, by its name.
APPLICATIONS: dict[str, Application] = {
    **{f"ConvNeXt{size}": Application("inside") for size in ("Tiny", "Small", "Base", "Large",
                                                            "XLarge")},
    **{f"DenseNet{depth}": Application("torch") for depth in (121, 169, 201)},
    **{f"EfficientNetB{number}": Application("inside") for number in range(8)},
    **{f"EfficientNetV2{size}": Application("inside") for size in ("B0", "B1", "B2", "B3", "S", "M",
                                                                  "L")},
    "InceptionResNetV2": Application("tf", 75),
    "InceptionV3": Application("tf", 75),
    "MobileNet": Application("tf", arguments=("alpha", "depth_multiplier", "dropout")),
    "MobileNetV2": Application("tf", arguments=("alpha",)),
    "MobileNetV3Large": Application("inside", arguments=("alpha", "minimalistic")),
    "MobileNetV3Small": Application("inside", arguments=("alpha", "minimalistic")),
    "NASNetLarge": Application("tf"),
    "NASNetMobile": Application("tf"),
    **{f"ResNet{depth}": Application("caffe") for depth in (50, 101, 152)},
    **{f"ResNet{depth}V2": Application("tf") for depth in (50, 101, 152)},
    "VGG16": Application("caffe"),
    "VGG19": Application("caffe"),
    "Xception": Application("tf", 71),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Form:
    """What a text says of the network that it names.

    Attributes:
        kind: NAMED, APPLICATION, FILE or FUNCTION.
        text: as it was given.
        name: of the application, else the text.
        arguments: of the application's function.
    """

    kind: str
    text: str
    name: str
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def modules(self) -> tuple[str, ...]:
        """The user's module that has the function, where there is one."""
        return (self.text.partition(":")[0],) if self.kind == FUNCTION else ()

    @property
    def label(self) -> str:
        """What a folder's name can hold of it."""
        if self.kind == NAMED:
            return self.text
        if self.kind == FILE:
            short = pathlib.PurePath(self.text).stem
        else:
            short = self.text.rpartition(":")[2].lower()
        return re.sub(r"[^\w.+-]+", "-", short).strip("-.")[:_LONGEST_LABEL] or "network"


def form_of(text: str) -> Form:
    """Return what a text says; whether there is such a network is for ``check`` to tell.

    Raises:
        InputError: an application's arguments that cannot be read.
    """
    if text.startswith(_PREFIX):
        name, arguments = _application(text)
        return Form(APPLICATION, text, name, arguments)
    if own_code.names_function(text):
        return Form(FUNCTION, text, text)
    if text.lower().endswith(_FILES):
        return Form(FILE, text, text)
    return Form(NAMED, text, text)


def check(
    text: str,
    *,
    embedding_at: str = "logits",
    weights: str | None = None,
    imports: Sequence[str] = (),
    setting: str = "model",
) -> Form:
    """Refuse a text that cannot name a network, before TensorFlow is imported.

    Args:
        text: see above.
        embedding_at: the stage of a network of ours, or of an application, that is the embedding.
        weights: a file of an application's weights.
        imports: modules that register networks; they are imported where a name of ours is meant.
        setting: that has the text.

    Raises:
        InputError: an unknown name, a file or module that is not there, or what it cannot have.
    """
    with about(setting):
        form = form_of(text)
    for module in imports:
        own_code.check_module(module, "import_")
    if form.kind == NAMED:
        own_code.import_all(imports)
        specs.look_up(text, embedding_at)
    elif form.kind == APPLICATION:
        _check_application(form, embedding_at, setting)
    elif form.kind == FILE:
        _check_file(text, setting)
    else:
        own_code.check_module(text.partition(":")[0], setting)
    if form.kind in (FILE, FUNCTION) and embedding_at != "logits":
        raise InputError(
            f"is of networks of ours, got {shown(embedding_at)}; of {text} name a layer or output "
            "by embedding",
            "embedding_at",
        )
    _check_weights(form, weights)
    return form


def _application(text: str) -> tuple[str, dict[str, Any]]:
    """Return the application's name and the arguments of ``app:Name(key=value, ...)``."""
    match = re.fullmatch(r"app:(\w*)(?:\((.*)\))?", text)
    if not match:
        raise InputError(
            f"must be written as app:MobileNetV2 or app:MobileNetV2(alpha=0.35), got {shown(text)}"
        )
    arguments: dict[str, Any] = {}
    if match[2]:
        try:
            call = ast.parse(f"f({match[2]})", mode="eval").body
            if (
                not isinstance(call, ast.Call)
                or call.args
                or any(keyword.arg is None for keyword in call.keywords)
            ):
                raise ValueError
            arguments = {str(each.arg): ast.literal_eval(each.value) for each in call.keywords}
        except (ValueError, SyntaxError, AttributeError, RecursionError, MemoryError) as error:
            raise InputError(f"arguments are written as (alpha=0.35), got {shown(text)}") from error
    return match[1], arguments


def _check_application(form: Form, embedding_at: str, setting: str) -> None:
    row = APPLICATIONS.get(form.name)
    if row is None:
        lower = {name.lower(): name for name in APPLICATIONS}
        near = difflib.get_close_matches(form.name.lower(), lower, n=3)
        words = f"; near are {', '.join(lower[name] for name in near)}" if near else ""
        raise InputError(
            f"keras.applications has no {shown(form.name)}{words or '; its names are such as '}"
            + ("" if near else "MobileNetV2, ResNet50, EfficientNetB0"),
            setting,
        )
    unknown = sorted(set(form.arguments) - set(row.arguments))
    if unknown:
        known = f"{', '.join(row.arguments)} alone" if row.arguments else "no argument"
        raise InputError(f"{form.name} takes {known}, got {unknown[0]}", setting)
    if embedding_at not in ("features", "logits"):
        raise InputError(
            f"{shown(embedding_at)} is none of features, logits, which {form.name} has; name "
            "another layer by embedding",
            "embedding_at",
        )


def _check_file(text: str, setting: str) -> None:
    path = expand(text)
    if text.lower().endswith(".weights.h5"):
        raise InputError(
            f"{path} holds weights alone; name a network, and the file by init_from", setting
        )
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(f"{path} {problem}; name a .keras or .h5 file of a Keras model", setting)


def _check_weights(form: Form, weights: str | None) -> None:
    if weights is None:
        return
    if form.kind != APPLICATION:
        raise InputError(
            f"is of applications (app:NAME) alone; give {form.text} its weights by init_from",
            "model_weights",
        )
    path = expand(weights)
    if not path.name.endswith(".h5"):
        raise InputError(f"{path} is neither a .weights.h5 nor a .h5 file", "model_weights")
    if not path.is_file():
        raise InputError(f"{path} does not exist; nothing is ever downloaded", "model_weights")
