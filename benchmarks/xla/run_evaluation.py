"""Evaluate what lower_evaluation.py has lowered, on the device that JAX has; needs no TensorFlow.

    python run_evaluation.py --programs=FOLDER --output=FOLDER --weights=trained --precision=tf32

OUTPUT has NAME--ATTACK.npz of each network and attack: a bit for each epsilon and image, whether it
is still classified correctly. What is there is not computed again, so the same command goes on.
The weights are those in FOLDER, or in ``--weights``, the output of ``run_training.py``; a network
that has none yet is left out and said. ``--networks`` and ``--attacks`` take some alone.

Programs are compiled several at a time; ``evaluating.py`` calls them.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import pathlib
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
from evaluating import Attacks
from run_training import PIXEL_LEVELS, PRECISIONS, Program, State, save

COMPILING = 8  # programs at a time


class OverError(Exception):
    """The time is over."""


class Evaluation:
    """The networks of a folder under the attacks of its plan.

    Args:
        programs: of ``lower_evaluation.py``.
        output: for the results; made where needed.
        weights: other folders with weights.
        precision: a name of ``PRECISIONS``.
        networks, attacks: names; all of them when empty.
        seconds: after which no further batch is begun.
    """

    def __init__(
        self,
        programs: pathlib.Path,
        output: pathlib.Path,
        weights: Sequence[pathlib.Path] = (),
        precision: str = "float32",
        networks: Sequence[str] = (),
        attacks: Sequence[str] = (),
        seconds: float = float("inf"),
    ):
        self.programs, self.output, self.precision = programs, output, precision
        self.folders = [programs, *weights]
        self.stop_at = time.time() + seconds
        self.plan = json.loads((programs / "evaluation.json").read_text())
        self.networks = {each["name"]: each for each in self.plan["networks"]}
        self.attacks = tuple(attacks) or ("clean", *self.plan["attacks"])
        unknown = set(networks) - set(self.networks)
        if unknown:
            raise SystemExit(f"{programs} has no network {', '.join(sorted(unknown))}")
        self.names = tuple(networks) or tuple(self.networks)
        self._compiled: dict[str, Program] = {}
        self._images: dict[str, dict[str, np.ndarray]] = {}
        self._weights: dict[str, State] = {}
        output.mkdir(parents=True, exist_ok=True)

    # What is there.

    def _file(self, name: str, attack: str) -> pathlib.Path:
        return self.output / f"{name}--{attack}.npz"

    def _stored(self, name: str) -> pathlib.Path | None:
        """Return the file of a network's weights, None where there is none yet."""
        files = (folder / f"{name}.npz" for folder in self.folders)
        return next((file for file in files if file.exists()), None)

    def images(self, name: str) -> dict[str, np.ndarray]:
        """Return images, float32 in [0, 1], labels and keys of a network's test images."""
        file = self.networks[name]["data"]
        if file not in self._images:
            with np.load(self.programs / f"{file}.npz") as kept:
                found = {each: kept[each] for each in kept.files}
            found["images"] = found["images"].astype(np.float32) / PIXEL_LEVELS
            self._images[file] = found
        return self._images[file]

    def weights(self, name: str) -> State:
        """Return a network's weights, on the device."""
        if name not in self._weights:
            with np.load(self._stored(name)) as kept:
                own = [each for each in kept.files if each.startswith("network/")]
                self._weights[name] = {each: jax.device_put(kept[each]) for each in own}
        return self._weights[name]

    def _program(self, name: str) -> str:
        """Return the path of a program without suffix, of a network's kind and a part."""
        kind, _, part = name.partition("/")
        return str(self.programs / f"{kind}-{part}")

    def compile(self) -> None:
        """Compile all that is needed, several at a time."""
        left = [(name, attack) for name in self.names for attack in self.attacks]
        left = [(n, a) for n, a in left if self._stored(n) and not self._file(n, a).exists()]
        needed = {
            f"{self.networks[name]['kind']}/{part}"
            for name, attack in left
            for part in ("predict", *self._parts(name, attack))
        }
        started = time.perf_counter()
        with concurrent.futures.ThreadPoolExecutor(COMPILING) as pool:
            made = pool.map(lambda name: Program(self._program(name), self.precision), needed)
            self._compiled = dict(zip(needed, made, strict=True))
        print(f"compiled {len(needed)} in {time.perf_counter() - started:.1f} s", flush=True)

    def _parts(self, name: str, attack: str) -> Sequence[str]:
        """Return the programs of an attack on a network, beside that which classifies."""
        if attack == "autoattack":
            return self.plan["stages"][self.networks[name]["kind"]]
        return {"clean": (), "pgd": ("pgd_start", "pgd_climb")}.get(attack, (attack,))

    def call(self, name: str, part: str, *arguments) -> list[np.ndarray]:
        """Return what a program makes of arguments and a network's weights.

        Raises:
            OverError: the time is over.
        """
        if time.time() > self.stop_at:
            raise OverError
        program = self._compiled[f"{self.networks[name]['kind']}/{part}"]
        given = [jax.device_put(each) for each in arguments]
        return [np.asarray(each) for each in program.results(given, self.weights(name))]

    def _attacks(self, name: str) -> Attacks:
        """Return the attacks on a network."""
        given, others = self.images(name), []
        if self.plan["transfer"]:
            others = [other for other in self.names if other != name and self._stored(other)]
            shape = given["images"].shape
            others = [each for each in others if self.images(each)["images"].shape == shape]
        stages = self.plan["stages"][self.networks[name]["kind"]]
        return Attacks(self.plan, name, given, stages, self.call, others)

    def work(self) -> None:
        """Evaluate one network after the other, by what takes the least first."""
        self.compile()
        for attack in self.attacks:
            for name in self.names:
                file = self._file(name, attack)
                if file.exists():
                    continue
                if not self._stored(name):
                    print(f"{name}: no weights yet", flush=True)
                    continue
                started = time.perf_counter()
                try:
                    found = self._attacks(name)(attack)
                except OverError:
                    print(f"{name}: {attack} is left for another time", flush=True)
                    return
                save(file, found)
                spent = time.perf_counter() - started
                shares = ", ".join(f"{100 * row.mean():.2f}" for row in found["right"])
                print(f"{name}: {attack} {shares} % in {spent:.1f} s", flush=True)


def listed(kind: Callable = str) -> Callable:
    """Return what makes a list of a text with commas."""
    return lambda text: tuple(map(kind, filter(None, text.split(","))))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--programs", required=True, type=pathlib.Path)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("evaluated"))
    parser.add_argument("--weights", type=listed(pathlib.Path), default=(), help="other folders")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--networks", type=listed(), default=())
    parser.add_argument("--attacks", type=listed(), default=())
    parser.add_argument("--seconds", type=float, default=float("inf"), help="then stop")
    Evaluation(**vars(parser.parse_args())).work()


if __name__ == "__main__":
    main()
