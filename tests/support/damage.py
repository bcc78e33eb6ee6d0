"""Every way in which a file that we read can be damaged, and what a program makes of it.

From a place in which every program has run, each JSON file, array and archive is damaged: every
field on its own, and the file as a whole. Then the program that reads it is run again. It must
refuse the file in one line that names it, with exit code 2 and every other file as it was; or do
what it does with the file intact, where what is damaged is not needed or can be computed again.
"""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import os
import pathlib
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator

import numpy as np

from support.programs import PROGRAMS, TRAIN, canonical, differences

DEEP = "[" * 100_000 + "]" * 100_000
WRONG = {"text": "much", "number": 7, "list": [], "object": {}, "bool": True, "null": None}
HUGE = {"2^31": 2**31, "2^63": 2**63, "1e308": 1e308}
LITERALS = {"1e400": "1e400", "NaN": "NaN", "deep": DEEP}
MARK = '"@@"'  # where a literal goes that Python would not write

# Readers: what is run, on which of the place's folders.
PIVOT = (*TRAIN, "--tensorboard=none", "--loss=pivot", "--adversarial_batch_size=8", "--name=piv")
EVALUATE = (
    "evaluate", "--target=saved/std", "--attack=step_ll", "--epsilon=4", "--num_images=20",
    "--batch_size=10", "--diagnosis_images=0", "--images_dir=images", "--output=reports/run",
)  # fmt: skip
OWN = (*PROGRAMS["own"][:-2], "--tensorboard=none")
_OWN_FILES = ["own.py", "photos", "decoded"]
READERS = {
    "train": ((*PIVOT, "--noexport"), ["runs/piv"]),
    "resume": ((*PIVOT, "--noexport"), ["runs/piv"]),
    "own": ((*OWN, "--name=new"), _OWN_FILES),
    "go on decoding": ((*OWN, "--name=new"), _OWN_FILES),
    "resume own": ((*OWN, "--name=own"), [*_OWN_FILES, "runs/own"]),
    "evaluate own": (("evaluate", "--target=runs/own", "--import=own", *EVALUATE[2:-2],
                      "--output=reports/own"), [*_OWN_FILES, "runs/own"]),
    "cascade": ((*PROGRAMS["cascade by bank"][:-1], "--max_epsilon=2",
                 "--bank_examples=70", "--name=new"),
                ["runs/std", "saved/std", "banks/std"]),
    "craft": (PROGRAMS["craft"], ["saved/std", "banks/std"]),
    "craft of a run": ((*PROGRAMS["craft"][:1], "--source=runs/std", *PROGRAMS["craft"][2:]),
                       ["runs/std", "banks/std"]),
    "go on crafting": (PROGRAMS["craft"], ["saved/std", "banks/std"]),
    "evaluate": (EVALUATE, ["saved/std", "reports", "images"]),
    "evaluate kept images": (EVALUATE, ["saved/std", "images"]),
    "analyze": (PROGRAMS["analyze"], ["saved/std", "runs/piv", "figures"]),
    "export": (PROGRAMS["export"], ["runs/piv", "saved/piv"]),
}  # fmt: skip


def make_place(launcher, place: pathlib.Path, programs=PROGRAMS) -> pathlib.Path:
    """Let programs run in a directory that ``programs.make_place`` has filled."""
    made = {name: PROGRAMS[name] for name in ("craft", "analyze", "export")}
    made |= {"evaluate": EVALUATE, "own": (*OWN, "--name=own")}
    for name, argv in made.items():
        if name not in programs:
            continue
        ran = launcher.run(argv, place)
        assert ran.status == 0, ran.output + ran.errors
    return place


def prepare(reader: str, place: pathlib.Path) -> None:
    """Put a copy of the place into the state that a reader finds."""
    if reader in ("resume", "resume own"):
        run = place / ("runs/piv" if reader == "resume" else "runs/own")
        for name in ("metrics.json", "model.keras", "checkpoints/step-00000004.keras"):
            (run / name).unlink()
    if reader == "go on decoding":
        (file,) = place.glob("decoded/*/decoded.json")
        content = json.loads(file.read_text())
        file.write_text(json.dumps(content | {"complete": 20, "fingerprint": None}, indent=2))
    if reader == "go on crafting":
        file = place / "banks/std/bank.json"
        file.write_text(file.read_text().replace('"complete_shards": 3', '"complete_shards": 1'))


# Which files are damaged, for which reader.
JSON = {
    "runs/piv/config.json": ["train", "resume", "export"],
    "runs/std/config.json": ["craft of a run"],
    "runs/piv/metrics.json": ["train", "export"],
    "saved/std/1/assets.extra/cascade_keras.json": ["craft"],
    "runs/own/config.json": ["resume own", "evaluate own"],
    "decoded/photos-*/decoded.json": ["own", "go on decoding"],
    "banks/std/bank.json": ["craft", "go on crafting"],
    "reports/run/config.json": ["evaluate"],
    "reports/run/seconds.json": ["evaluate"],
    "images/std-*/images.json": ["evaluate kept images"],
}
ARRAYS = {
    "banks/std/images.npy": ["craft", "go on crafting", "cascade"],
    "banks/std/labels.npy": ["craft", "go on crafting"],
    "decoded/photos-*/images.npy": ["own", "go on decoding"],
    "reports/run/predictions/std--step_ll.npy": ["evaluate"],
    "reports/run/predictions/std--clean.npy": ["evaluate"],
    "images/std-*/images.npy": ["evaluate kept images"],
}
ARCHIVES = {"figures/noise_correlation.npz": ["analyze"]}
NETWORKS = {
    "runs/piv/checkpoints/step-00000002.keras": ["resume"],
    "runs/std/model.keras": ["craft of a run"],
    "runs/piv/model.keras": ["export"],
    "saved/std/1/variables/variables.index": ["craft"],
    "saved/std/1/variables/variables.data-00000-of-00001": ["craft"],
    "saved/std/1/saved_model.pb": ["craft"],
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One file damaged in one way, and who reads it.

    Attributes:
        reader: a row of ``READERS``.
        file: relative to the place; a pattern.
        damage: what was done to it.
        apply: does it.
        harmless: may be accepted, if what comes of it is as if nothing had been damaged.
    """

    reader: str
    file: str
    damage: str
    apply: Callable[[pathlib.Path], None]
    harmless: bool = False

    def __str__(self) -> str:
        return f"{self.reader}: {self.file}: {self.damage}"


def cases(place: pathlib.Path) -> Iterator[Case]:
    """Yield all of them, from the files of a place."""
    kinds = (JSON, _of_json), (ARRAYS, _of_array), (ARCHIVES, _of_archive), (NETWORKS, _of_whole)
    for files, damages in kinds:
        for file, readers in files.items():
            for found in place.glob(file):
                for damage, apply, harmless in damages(found):
                    for reader in readers:
                        # A recipe that lacks a flag is an older version's: another network.
                        if not (reader == "export" and re.match(r"flags\..* removed", damage)):
                            yield Case(reader, file, damage, apply, harmless)


Damages = Iterator[tuple[str, Callable[[pathlib.Path], None], bool]]


def _of_whole(file: pathlib.Path) -> Damages:
    content = file.read_bytes()
    for name, damaged in {
        "empty": b"", "one byte": content[:1], "a third": content[: len(content) // 3],
        "its end lacks": content[:-3], "text": b"this is not it\n", "binary": bytes(range(256)),
    }.items():  # fmt: skip
        yield name, _writer(damaged), False
    yield "a folder", lambda path: (path.unlink(), path.mkdir()), False
    yield "a pipe", lambda path: (path.unlink(), os.mkfifo(path)), False
    yield "a link to nowhere", lambda path: (path.unlink(), path.symlink_to("nowhere")), False


def _writer(content: bytes) -> Callable[[pathlib.Path], None]:
    return lambda path: path.write_bytes(content)


# JSON.


def _of_json(file: pathlib.Path) -> Damages:
    yield from _of_whole(file)
    text = file.read_text()
    content = json.loads(text)
    for name, damaged in {
        "UTF-16": text.encode("utf-16"), "a list": b"[]", "null": b"null", "deep": DEEP.encode(),
        "an empty object": b"{}", "half of a character": text.encode()[:-3] + b"\xc3",
    }.items():  # fmt: skip
        yield name, _writer(damaged), False
    for place, value in _fields(content):
        yield from _of_field(content, place, value)


def _fields(content, place: tuple = ()) -> Iterator[tuple[tuple, object]]:
    """Yield where each value is, of a list the first one only."""
    if place:
        yield place, content
    if isinstance(content, dict):
        for name, value in content.items():
            yield from _fields(value, (*place, name))
    elif isinstance(content, list) and content:
        yield from _fields(content[0], (*place, 0))


def _of_field(content, place: tuple, value) -> Damages:
    name = ".".join(map(str, place))
    free = place[0] in ("flags", "recipe", "versions") and len(place) > 1
    kind = _kind(value)
    changes = {f"is {k}": v for k, v in WRONG.items() if k != kind}
    if free:  # somebody else's fields, or flags, of which there are many: a few each
        changes = {k: v for k, v in changes.items() if k == "is object"}
    if kind == "number" and not free:
        changes |= {"is negative": -1 if isinstance(value, int) else -0.5, "is a half": 0.5}
        changes |= {f"is {k}": v for k, v in HUGE.items()}
    for change, new in changes.items():
        yield f"{name} {change}", _json_with(content, place, new), free or change == "is a half"
    literals = LITERALS if not free else {}
    for change, text in literals.items():
        yield f"{name} is {change}", _json_with(content, place, "@@", text), False
    yield f"{name} removed", _json_with(content, place), True
    if isinstance(value, dict):
        damaged = _json_with(content, (*place, "unheard_of"), 1)
        # Outsiders add flags, and others fields to what is recorded of a network.
        open_to_others = free or "weights_hash" in content or place[0] == "flags"
        yield f"{name} has another field", damaged, open_to_others


def _kind(value) -> str:
    kinds = {str: "text", bool: "bool", list: "list", dict: "object", type(None): "null"}
    return kinds.get(type(value), "number")


_GONE = object()


def _json_with(content, place: tuple, new=_GONE, literal: str | None = None):
    """Return what writes the content with one field changed."""
    changed = copy.deepcopy(content)
    inner = changed
    for part in place[:-1]:
        inner = inner[part]
    if new is _GONE:
        del inner[place[-1]]
    else:
        inner[place[-1]] = new
    text = json.dumps(changed, indent=2)
    if literal is not None:
        text = text.replace(MARK, literal)
    return _writer(text.encode())


# Arrays.


def _of_array(file: pathlib.Path) -> Damages:
    yield from _of_whole(file)
    array = np.load(file)
    other = np.float32 if array.dtype != np.float32 else np.int16
    objects = np.empty(array.shape, object)
    for name, damaged in {
        "another type": array.astype(other), "wider": array.astype(array.dtype.newbyteorder(">"))
        if array.dtype.itemsize > 1 else array.astype(np.int16),
        "another shape": array[..., :-1], "one axis more": array[None],
        "Fortran's order": np.asfortranarray(np.broadcast_to(array[..., None], (*array.shape, 2))),
        "objects": objects, "text": np.array(["a", "b"]), "a number": np.array(1),
    }.items():  # fmt: skip
        yield name, _writer(_npy(damaged)), False
    content = file.read_bytes()
    yield "longer", _writer(content + b"\0" * 64), False
    shape = str(array.shape).encode()
    for lie in (shape[:-1] + b", 9)", b"(10000000000,)", b"(-1,)", b"'x'", b"(" * 90 + b")" * 90):
        room = len(lie) - len(shape)
        lied = content.replace(shape, lie, 1)
        lied = lied.replace(b" " * max(room, 0), b"", 1) if room > 0 else lied
        yield f"a header of {lie[:16].decode()}", _writer(lied), False
    yield from _out_of_range(file, array)


def _npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def _out_of_range(file: pathlib.Path, array: np.ndarray) -> Damages:
    values = {"labels.npy": (-1, 10, 2**31 - 1), "images.npy": (np.nan, np.inf, -0.5, 1.5)}
    wrong = values.get(file.name, (-2, 10, 32767))  # predictions: 10 classes
    if array.dtype == np.uint8:
        return  # any byte is a pixel
    for value in wrong:
        changed = array.copy()
        changed.flat[changed.size // 2] = value
        yield f"a value of {value}", _writer(_npy(changed)), False


def _of_archive(file: pathlib.Path) -> Damages:
    for name, apply, _ in _of_whole(file):
        yield name, apply, name not in ("a folder", "a pipe")
    with np.load(file) as stored:
        arrays = {name: stored[name] for name in stored.files}
    identity = {"identity": arrays["identity"]} if "identity" in arrays else {}
    changes = {
        "no arrays": identity,
        "no identity": {k: v for k, v in arrays.items() if k != "identity"},
        "another identity": arrays | {"identity": np.array("{}")},
        "objects": {k: v if k == "identity" else np.empty(2, object) for k, v in arrays.items()},
        "one array more": arrays | {"unheard_of": np.zeros(3)},
    }
    for name, array in arrays.items():
        if name == "identity":
            continue
        changes[f"{name} removed"] = {k: v for k, v in arrays.items() if k != name}
        changes[f"{name} is text"] = arrays | {name: np.array(["a", "b"])}
        changes[f"{name} is empty"] = arrays | {name: array[:0] if array.ndim else np.zeros(0)}
        changes[f"{name} is a number"] = arrays | {name: np.array(1.5)}
        changes[f"{name} is NaN"] = arrays | {name: np.full(array.shape, np.nan)}
        changes[f"{name} has an axis more"] = arrays | {name: array[None]}
        changes[f"{name} is complex"] = arrays | {name: np.full(array.shape, 1j)}
    for name, changed in changes.items():
        stream = io.BytesIO()
        np.savez_compressed(stream, **changed)
        yield name, _writer(stream.getvalue()), True
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("identity.npy", _npy(identity.get("identity", np.array("")))[:-4])
    yield "a member cut", _writer(stream.getvalue()), True


# What a program makes of it.


class Judge:
    """Runs cases in copies of a place, and says what is wrong with the outcome."""

    def __init__(self, place: pathlib.Path, base: pathlib.Path):
        self.place, self.base = place, base
        self._intact: dict[str, tuple[dict, str]] = {}

    def _copy(self, reader: str, target: pathlib.Path) -> pathlib.Path:
        for name in READERS[reader][1]:
            if (self.place / name).is_dir():
                shutil.copytree(self.place / name, target / name, symlinks=True)
            else:
                target.mkdir(exist_ok=True)
                shutil.copy2(self.place / name, target)
        prepare(reader, target)
        return target

    def learn(self, launcher, reader: str) -> None:
        """Run a reader on what is not damaged."""
        target = self._copy(reader, self.base / f"intact {reader}")
        ran = launcher.run(READERS[reader][0], target)
        assert ran.status == 0, (reader, ran.output, ran.errors)
        self._intact[reader] = canonical(target)
        shutil.rmtree(target)

    def __call__(self, launcher, case: Case, name: str) -> tuple[str, str]:
        """Return "refused", "as if intact", or what is wrong; and the line that was printed."""
        target = self._copy(case.reader, self.base / name)
        (file,) = target.glob(case.file)
        case.apply(file)
        damaged = str(file.relative_to(target))
        before = _listing(target)
        ran = launcher.run(READERS[case.reader][0], target, seconds=40, room=100 * 2**20)
        lines = [x for x in ran.errors.splitlines() if not re.match(r"step |\S.* min left$", x)]
        line = lines[-1] if lines else ""
        outcome = self._outcome(case, ran, lines, target, damaged, before)
        shutil.rmtree(target)
        return outcome, line

    def _outcome(self, case, ran, lines, target, damaged, before) -> str:
        if "Traceback" in ran.errors:
            return f"traceback: {lines[-1]}"
        if ran.status < 0:
            return f"ended by signal {-ran.status} after {ran.seconds:.0f} s"
        if ran.largest > 50 * 2**20 or ran.memory > 2 * 2**30:
            return f"took {ran.largest >> 20} MB of disk, {ran.memory >> 20} MB of memory"
        if ran.status == 2:
            named = any(name in lines[-1] for name in _names(damaged, case.damage))
            left = _listing(target)
            if len(lines) != 1 + sum(x.startswith("warning:") for x in lines):
                return f"{len(lines)} lines: {lines[:3]}"
            if not named:
                return f"does not name the file: {lines[-1][:200]}"
            if left != before:
                return f"refused, but changed {sorted(set(left.items()) ^ set(before.items()))[:3]}"
            return "refused"
        if ran.status:
            return f"status {ran.status}: {lines}"
        wrong = [x for x in differences(self._intact[case.reader], _safe_canonical(target))
                 if not damaged.startswith(x.rstrip("/"))]  # fmt: skip
        if case.reader == "export" and case.harmless:
            # Another recipe is another network, which gets a version of its own.
            wrong = [x for x in wrong if not x.startswith("saved/piv/2/")]
        if wrong:
            return f"accepted, and another outcome: {wrong[:4]}"
        return "as if intact" if case.harmless else "accepted"


def _names(damaged: str, damage: str) -> list[str]:
    """Return what a message may name: the file, a folder it is in, a flag that it records."""
    folders = [str(path) for path in pathlib.PurePath(damaged).parents if len(path.parts) > 1]
    flag = re.match(r"flags\.(\w+)", damage)
    # A network without a recorded hash is one that this package did not save.
    other = ["the weights of its source differ"] if damage.startswith("weights_hash ") else []
    return [damaged, *folders, *([f"--{flag[1]}"] if flag else []), *other]


def _listing(place: pathlib.Path) -> dict[str, object]:
    """Return every file but locks, by size and time of change."""
    return {
        str(path.relative_to(place)): path.is_dir() or path.lstat().st_mtime_ns
        for path in place.rglob("*") if not path.name.endswith(".lock")
    }  # fmt: skip


def _safe_canonical(place: pathlib.Path) -> dict:
    for path in place.rglob("*"):
        if path.is_fifo() or path.is_symlink():
            path.unlink()
    try:
        return canonical(place)
    except (ValueError, zipfile.BadZipFile, KeyError) as error:
        return {"cannot be compared": str(error)}
