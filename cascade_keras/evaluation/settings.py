"""All that an evaluation can be told, with what follows from the networks; needs no TensorFlow."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from cascade_keras import presets
from cascade_keras.attacks.specs import (
    ATTACKS,
    SUITE,
    Attack,
    image_attacks,
    names,
    why_not_measured,
)
from cascade_keras.attacks.versions import VERSIONS
from cascade_keras.data.settings import DataSettings
from cascade_keras.data.specs import DatasetSpec
from cascade_keras.errors import InputError, about
from cascade_keras.evaluation.asked import Asked
from cascade_keras.files import expand, folder_name, is_path, named_twice
from cascade_keras.learned import dataset_of, learned_by
from cascade_keras.provenance import members_of, networks_in
from cascade_keras.settings import (
    ENSEMBLES,
    EPSILON,
    EPSILONS,
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    SOME,
    NetworkSettings,
    Rule,
    batch_size_setting,
    check_apart,
    setting,
    trust_setting,
)
from cascade_keras.workers import worker_setting

CW = "cw_linf"
_PGD, _MI_FGSM, _CW, _AUTOATTACK = (
    ATTACKS[name].options for name in ("pgd", "mi_fgsm", "cw_linf", "autoattack")
)
# The setting that gives an option of an attack; the options of other attacks are their rows'.
_SETTINGS_OF_OPTIONS = {
    "pgd": {
        "steps": "pgd_steps",
        "step_size": "pgd_step_size",
        "restarts": "pgd_restarts",
        "objective": "pgd_loss",
    },
    "mi_fgsm": {
        option: f"mi_fgsm_{option}"
        for option in ("steps", "diversity", "translation", "scales", "nesterov")
    },
    "autoattack": {
        "version": "autoattack",
        "iterations": "autoattack_iterations",
        "queries": "queries",
    },
    "square": {"queries": "queries"},
    CW: {"search": "cw_search", "images": "cw_images", "iterations": "cw_iterations"},
}
SHARE = Rule(lambda v: 0 < v <= 1, "above 0 and at most 1")
# A pixel value cannot be changed by more in a step.
_STEP_SIZE = Rule(lambda v: 0 < v <= 255, "above 0 and at most 255")


def possible() -> tuple[str, ...]:
    """Return the attacks that can be asked for: all but other searches for minimal epsilons."""
    return (*image_attacks(), *names(SUITE), CW)


@dataclasses.dataclass(frozen=True)
class EvaluationSettings(NetworkSettings, DataSettings):
    """What an evaluation is told; each field is a flag of ``bin/evaluate`` too.

    None stands for what follows from the networks and their dataset, see ``resolved``.
    """

    # Which networks on which images.
    target: tuple[str, ...] = setting(
        (),
        "Networks that classify. zoo:NAME is one that the package brings along, zoo:all those of "
        "the dataset named.",
        path=True,
    )
    source: tuple[str, ...] = setting(
        (),
        "Networks whose adversarial images are shown to every target (black box); default: each "
        "target is its own source (white box). a+b+c is one of several networks, an ensemble.",
        path=True,
    )
    ensemble: str = setting(ENSEMBLES[0], "What the mean of a+b+c is of.", choices=ENSEMBLES)
    trust_source: bool = trust_setting()
    split: str = setting("test", "Of the dataset.", choices=("test", "train"))
    num_images: int = setting(
        1000, "First images of the split, at most as many as it has.", POSITIVE
    )
    inference_noise: float = setting(
        0.0, "Add random signs of so many pixel values before a network.", EPSILON
    )
    seed: int = setting(0, "Of the attacks that draw random numbers and of inference_noise.", SEED)
    batch_size: int | None = batch_size_setting(250, "Images at a time")

    # Which attacks.
    attack: tuple[str, ...] = setting(
        ("step_ll", "step_fgsm", "iter_fgsm", "pgd"),
        "White box or from the sources.",
        SOME,
        choices=possible,
        why=why_not_measured,
    )
    epsilon: tuple[float, ...] | None = setting(
        None, "One or several; default: the dataset's largest.", EPSILONS
    )
    pgd_steps: int = setting(_PGD["steps"], "Of each start.", POSITIVE)
    pgd_step_size: float | None = setting(
        _PGD["step_size"], "Default: 2.5 epsilon / steps.", _STEP_SIZE
    )
    pgd_restarts: int = setting(_PGD["restarts"], "Random starts; the worst counts.", POSITIVE)
    pgd_loss: str = setting(
        _PGD["objective"], "What is ascended.", choices=("cross_entropy", "margin", "dlr")
    )
    mi_fgsm_steps: int = setting(_MI_FGSM["steps"], "Of epsilon / steps each.", POSITIVE)
    mi_fgsm_diversity: float = setting(
        _MI_FGSM["diversity"],
        "Probability that an image is shown to its source resized and padded.",
        Rule(lambda v: 0 <= v <= 1, "in [0, 1]"),
    )
    mi_fgsm_translation: int = setting(
        _MI_FGSM["translation"],
        "Pixels across of the Gaussian that smooths its gradients, odd; 1: none.",
        Rule(lambda v: v > 0 and v % 2 == 1, "odd and above 0"),
    )
    mi_fgsm_scales: int = setting(
        _MI_FGSM["scales"], "Gradients a step, of the image divided by 1, 2, 4, ...", POSITIVE
    )
    mi_fgsm_nesterov: bool = setting(_MI_FGSM["nesterov"], "Take them where the momentum leads.")
    cw_search: str = setting(
        _CW["search"],
        "descent: down from the best so far; grid: the published one, hours.",
        choices=("descent", "grid"),
    )
    cw_images: int = setting(_CW["images"], "As many of each class as can be.", POSITIVE)
    cw_threshold: tuple[float, ...] | None = setting(
        None, "Epsilons that are counted above; default: epsilon.", EPSILONS
    )
    cw_iterations: int = setting(_CW["iterations"], "At most, for each constant and tau.", POSITIVE)
    autoattack: str = setting(
        _AUTOATTACK["version"],
        "fast: its gradient attacks, and Square where the diagnosis finds these wanting; standard: "
        "the published one; rand: for randomised networks.",
        choices=VERSIONS,
    )
    autoattack_iterations: int = setting(
        _AUTOATTACK["iterations"], "Of each gradient attack in it.", POSITIVE
    )
    queries: int = setting(_AUTOATTACK["queries"], "Of square, in autoattack too.", POSITIVE)
    diagnosis_images: int = setting(
        200,
        "Of the search for masked gradients; 0: none, and a fast autoattack does not go on.",
        NOT_NEGATIVE,
    )

    # Instead of measuring.
    verify: str | None = setting(
        None,
        "A report: compute a share of it again and say whether it holds, by exit code 0 or 1.",
        path=True,
        operational=True,
    )
    verify_share: float = setting(0.1, "How much of it, of all gradients.", SHARE, operational=True)
    dry_run: bool = setting(
        False, "Print tasks, passes and how long they would take, and end.", operational=True
    )

    # What comes of it.
    output: str | None = setting(
        None,
        "Directory; default: reports/NAME of the first target.",
        path=True,
        operational=True,
    )
    images_dir: str | None = setting(
        None,
        "Keep adversarial images here, and take those that are there; not those of the square that "
        "a fast AutoAttack goes on to.",
        path=True,
        operational=True,
    )
    confusion: bool = setting(False, "Write confusion matrices.", operational=True)
    examples: int = setting(
        0, "Draw so many misclassified images an attack.", NOT_NEGATIVE, operational=True
    )
    worker: str | None = worker_setting("batches")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("target", "source"):
            with about(name):
                paths = presets.expanded(getattr(self, name), self.dataset)
            object.__setattr__(self, name, paths)
            twice = named_twice(getattr(self, name))
            if twice is not None:
                raise InputError(f"{twice} is named twice; name each network once", name)

    def options(self, attack: str) -> dict[str, Any]:
        """Return what an attack is given beside epsilons and seed."""
        named = _SETTINGS_OF_OPTIONS.get(attack, {})
        return {option: getattr(self, name) for option, name in named.items()}

    def attack_at(self, name: str, epsilons: Sequence[float] | None = None) -> Attack:
        """Return an attack as it is run here, at all epsilons when none are given."""
        chosen = self.epsilon if epsilons is None else tuple(epsilons)
        return Attack(name, chosen, self.options(name))

    def row(
        self,
        targets: Sequence | None = None,
        sources: Sequence | None = None,
        dataset: DatasetSpec | None = None,
    ) -> DatasetSpec:
        """Return the row of the dataset, see ``resolved``."""
        networks = self._networks(targets, sources)
        learned_by(networks)  # in any case: it refuses networks that are not there
        return dataset_of(self, networks, given=dataset, trust=self.trust_source)

    def _networks(self, targets: Sequence | None, sources: Sequence | None) -> dict[str, Sequence]:
        """Return the networks of each setting, of ensembles the members."""
        networks = {"target": targets or self.target, "source": sources or self.source}
        if not networks["target"]:
            raise InputError("name at least one network", "target")
        with about("target"):
            for target in filter(is_path, networks["target"]):
                if len(members_of(target)) > 1:
                    raise InputError(
                        f"{target} would be an ensemble, which only a source can be; name its "
                        "networks as targets of their own, with commas"
                    )
        with about("source"):
            members = [member for source in networks["source"] for member in networks_in(source)]
        return {**networks, "source": members}

    def resolved(
        self,
        targets: Sequence | None = None,
        sources: Sequence | None = None,
        dataset: DatasetSpec | None = None,
    ) -> EvaluationSettings:
        """Return the settings with every None filled in that can be.

        Args:
            targets, sources: networks that were given beside the settings: paths or whatever has
                a ``name`` and a ``provenance``.
            dataset: the row of a dataset that was given beside the settings, or of ``row``.

        Raises:
            InputError: there is no target, a network is not there, or none says what it learned;
                or two of the places are one.
        """
        networks, row = self._networks(targets, sources), self.row(targets, sources, dataset)
        output = self.output
        if output is None:
            output = f"reports/{folder_name(_name(networks['target'][0]), 'output')}"
        epsilon = tuple(sorted(self.epsilon or (row.max_epsilon,)))
        settings = dataclasses.replace(
            self,
            dataset=self.dataset or (row.name if row.origin is None and dataset is None else None),
            epsilon=epsilon,
            cw_threshold=tuple(sorted(self.cw_threshold or epsilon)),
            output=output,
        )
        paths = {
            name: tuple(path for path in given if is_path(path)) for name, given in networks.items()
        }
        check_apart("output", settings.output, **paths)
        check_apart("images_dir", settings.images_dir, output=settings.output, **paths)
        return settings

    def asked(self) -> Asked:
        """Return what is measured, once the settings are resolved."""
        attacks = {name: self.attack_at(name) for name in self.attack if name != CW}
        minimal = {CW: self.attack_at(CW, self.cw_threshold)} if CW in self.attack else {}
        return Asked(
            attacks,
            minimal,
            self.epsilon,
            {name: self.options(name) for name in _SETTINGS_OF_OPTIONS},
            num_images=self.num_images,
            diagnosis_images=self.diagnosis_images,
            batch_size=self.batch_size,
            seed=self.seed,
            inference_noise=self.inference_noise,
            told=self.told(),
        )


def _name(network: Any) -> str:
    """Return what a network is called, for the name of its report."""
    if is_path(network):
        return presets.plain(expand(network).resolve().name)
    return getattr(network, "name", None) or getattr(network, "__name__", "network")
