"""What ``bin/zoo`` is told; needs no TensorFlow."""

from __future__ import annotations

import dataclasses

from cascade_keras import presets
from cascade_keras.errors import InputError
from cascade_keras.settings import NOT_NEGATIVE, Rule, Settings, setting

_NAME = Rule(presets.is_name, "small letters, digits, - . _, and not all")
_NOTE = Rule(lambda v: len(v) <= 300, "a text of at most 300 characters")


@dataclasses.dataclass(frozen=True)
class ZooSettings(Settings):
    """Of which run and reports a preset is made, and where: the flags of ``bin/zoo``."""

    run: str | None = setting(None, "A finished run's folder, runs/NAME.", path=True)
    report: tuple[str, ...] = setting(
        (),
        "Its reports, white box, of the test split; where several have the same attack, the one of "
        "the most images counts.",
        path=True,
    )
    name: str | None = setting(
        None, "Of the preset; default: DATASET-MODEL-LOSS of the run's.", _NAME
    )
    output: str | None = setting(
        None, "Directory in which its folder is made; default: that of the package.", path=True
    )
    seconds: float | None = setting(
        None,
        "What the training took; default: what trained_by.json beside the run says.",
        NOT_NEGATIVE,
    )
    note: str | None = setting(
        None,
        "A sentence for the model card, such as by what it was trained; default: what "
        "trained_by.json beside the run says.",
        _NOTE,
    )
    leaderboard: str | None = setting(
        None, "Write the leaderboard of the package's presets here, as Markdown.", path=True
    )

    def __post_init__(self):
        super().__post_init__()
        for name in ("report", "name", "output", "seconds", "note"):
            if self.run is None and getattr(self, name) not in (None, ()):
                raise InputError("has a meaning only with run", name)
