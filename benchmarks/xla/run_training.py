"""Train what lower_training.py has lowered, on the device that JAX has; needs no TensorFlow.

    python run_training.py --programs=FOLDER --output=FOLDER --precision=tf32
    python run_training.py --programs=FOLDER --time=200

Takes one run of runs.json after the other; several processes on the same two folders share them.
OUTPUT has NAME.npz of a run that is done, NAME.state.npz of one that is under way, from which the
same command goes on, and NAME.log: a line of metrics a thousand steps. A run whose first weights
or sources are other runs' waits for these. ``--time`` trains nothing and measures each program.

The banks of cascade sources are crafted by each process that needs one, with the precision of the
training, and lie on the device: 1.4 GB each of CIFAR-10 for epsilons 1..16.

On a GPU, XLA_FLAGS="--xla_gpu_enable_command_buffer=+CONVOLUTION --xla_gpu_graph_min_graph_size=1"
has the kernels of a step launched together. Calls JAX by names that it keeps private, as 0.11.2 has
them.
"""

from __future__ import annotations

import argparse
import fcntl
import gzip
import json
import os
import pathlib
import re
import statistics
import time
from collections.abc import Iterator

os.environ["JAX_ENABLE_X64"] = "1"  # the step counter is an int64
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # other processes want some too

import jax
import numpy as np
from jax._src import xla_bridge
from jax._src.lib import xla_client
from order import Order, Partners, centres

# Of convolutions and products of float32: the device's own choice is TF32 where it has that.
PRECISIONS = {"float32": "HIGHEST", "tf32": "DEFAULT"}

State = dict[str, jax.Array]
PIXEL_LEVELS = np.float32(255)
# Of a run that an earlier version has lowered.
NO_SOURCES = {"cascade": {"sources": [], "crafters": []}, "ensemble": []}


class Program:
    """A lowered program, compiled for the first device.

    Args:
        path: without suffix.
        precision: a name of ``PRECISIONS``.

    Attributes:
        record: what the program reads and how much.
        seconds: that compiling took.
    """

    def __init__(self, path: pathlib.Path, precision: str):
        self.record = json.loads(pathlib.Path(f"{path}.json").read_text())
        with np.load(f"{path}.npz") as constants:
            self._constants = {name: jax.device_put(constants[name]) for name in constants.files}
        with gzip.open(f"{path}.hlo.gz") as file:
            computation = xla_client.XlaComputation(file.read())
        self._assigned = dict(_aliases(computation.as_hlo_text()))
        module = xla_client._xla.mlir.xla_computation_to_mlir_module(computation)
        backend = xla_bridge.get_backend()
        devices = xla_client.DeviceList((backend.local_devices()[0],))
        started = time.perf_counter()
        self._executable = backend.compile_and_load(
            portable(module, PRECISIONS[precision]), devices, xla_client.CompileOptions()
        )
        self.seconds = time.perf_counter() - started

    def __call__(self, arguments: list[jax.Array], state: State, sources: State) -> State:
        """Run a loop; return the state after it. The one before is used up, ``sources`` are not."""
        names, first = self.record["inputs"], len(arguments)
        results = self.results(arguments, {**state, **sources})
        changed = {names[i - first]: results[output] for output, i in self._assigned.items()}
        return {**state, **changed}

    def results(self, arguments: list[jax.Array], variables: State) -> list[jax.Array]:
        """Return all that the program returns: results, then the variables that it has assigned."""
        found = {**variables, **self._constants}
        inputs = [*arguments, *(found[name] for name in self.record["inputs"])]
        results = self._executable.execute_sharded(inputs).disassemble_into_single_device_arrays()
        return [on_devices[0] for on_devices in results]


def portable(module: str, precision: str) -> str:
    """Return a module in StableHLO alone, as plugins take it, with another precision."""
    copies = re.compile(r"mhlo\.copy (%\S+) : (tensor<\S*>)")
    module = copies.sub(r"stablehlo.reshape \1 : (\2) -> \2", module)
    module = module.replace("<precision DEFAULT>", f"<precision {precision}>")
    return module.replace("[DEFAULT, DEFAULT]", f"[{precision}, {precision}]")


def _aliases(text: str) -> Iterator[tuple[int, int]]:
    """Yield the number of each output that is a variable after the loop, and of that input."""
    header = text.partition("\n")[0]
    for output, aliased in re.findall(r"\{(\d+)\}: \((\d+),", header):
        yield int(output), int(aliased)


class Claim:
    """A run, taken from other processes for as long as this one lives."""

    def __init__(self, path: pathlib.Path):
        self._file = open(path, "w")  # noqa: SIM115
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.is_held = True
        except BlockingIOError:
            self.is_held = False

    def close(self) -> None:
        """Let others have it."""
        self._file.close()


class Trainings:
    """The runs of a folder.

    Args:
        programs: of ``lower_training.py``.
        output: for what is trained; made where needed.
        precision: a name of ``PRECISIONS``.
        names: of runs; all of them when empty.
        seconds: after which what is under way is kept for another time.
    """

    def __init__(
        self,
        programs: pathlib.Path,
        output: pathlib.Path,
        precision: str = "float32",
        names: tuple[str, ...] = (),
        seconds: float = float("inf"),
    ):
        self.programs, self.output, self.precision = programs, output, precision
        self.stop_at = time.time() + seconds
        runs = json.loads((programs / "runs.json").read_text())
        unknown = set(names) - {run["name"] for run in runs}
        if unknown:
            raise SystemExit(f"{programs / 'runs.json'} has no run {', '.join(sorted(unknown))}")
        self.runs = [NO_SOURCES | run for run in runs if not names or run["name"] in names]
        self._compiled: dict[str, Program] = {}
        self._data: dict[str, tuple[jax.Array, jax.Array]] = {}
        self._banks: dict[tuple, jax.Array] = {}
        output.mkdir(parents=True, exist_ok=True)

    def work(self) -> None:
        """Train one run after the other, until there are none left or the time is over."""
        left = self.runs
        while left and time.time() < self.stop_at:
            taken = False
            for run in left:
                taken = self._try(run) or taken
            left = [run for run in left if not self._file(run["name"]).exists()]
            if left and not taken and not self._compile_ahead(left):
                time.sleep(1.0)  # others train what these wait for

    def _compile_ahead(self, runs: list[dict]) -> bool:
        """Compile a program of a run that waits for others; return whether there was one."""
        waiting = (run for run in runs if not self._is_ready(run))
        needed = (name for run in waiting for name in (*run["cascade"]["crafters"], run["program"]))
        name = next((name for name in needed if name not in self._compiled), None)
        if name is not None:
            self.program(name)
        return name is not None

    def _try(self, run: dict) -> bool:
        """Train a run, unless it cannot begin or others are at it; return whether it was tried."""
        name = run["name"]
        if self._file(name).exists() or not self._is_ready(run):
            return False
        claim = Claim(self.output / f"{name}.claim")
        try:
            if not claim.is_held or self._file(name).exists():
                return False
            self.train(run)
            return True
        finally:
            claim.close()

    def _file(self, name: str, kind: str = "") -> pathlib.Path:
        return self.output / f"{name}{kind}.npz"

    def _is_ready(self, run: dict) -> bool:
        """Whether all is there that a run begins with."""
        sources = {*run["cascade"]["sources"], *run["ensemble"]}
        return all(file.exists() for file in (self._first(run), *map(self._file, sources)))

    def _first(self, run: dict) -> pathlib.Path:
        """Return the file of a run's first weights."""
        if run["init_from"]:
            return self._file(run["init_from"])
        return self.programs / f"{run['name']}.start.npz"

    def program(self, name: str) -> Program:
        """Return a program, compiled once."""
        if name not in self._compiled:
            self._compiled[name] = Program(self.programs / name, self.precision)
            print(f"{name}: compiled in {self._compiled[name].seconds:.1f} s", flush=True)
        return self._compiled[name]

    def data(self, name: str) -> tuple[jax.Array, jax.Array]:
        """Return the pixels (N H W, C) and labels (N,) of a file, on the device."""
        if name not in self._data:
            images, labels = self._stored(name)
            pixels = images.reshape(-1, images.shape[-1])
            self._data[name] = jax.device_put(pixels), jax.device_put(labels)
        return self._data[name]

    def _stored(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the images (N, H, W, C) and labels (N,) of a file."""
        with np.load(self.programs / f"{name}.npz") as kept:
            return kept["images"], kept["labels"].astype(np.int32)

    def _weights(self, name: str, owner: str) -> State:
        """Return the weights of a finished run, by names that begin with another owner's."""
        with np.load(self._file(name)) as kept:
            return {
                weight.replace("network", owner, 1): jax.device_put(kept[weight])
                for weight in kept.files
                if weight.startswith("network/")
            }

    def sources(self, run: dict) -> State:
        """Return the weights of a run's ensemble sources, by the names of its program's inputs."""
        found = {}
        for number, name in enumerate(run["ensemble"]):
            found |= self._weights(name, f"ensemble/{number}")
        return found

    def banks(self, run: dict) -> list[jax.Array] | None:
        """Return the images of a run's banks, on the device; None where the time is over."""
        cascade = run["cascade"]
        found = []
        for key in zip(cascade["sources"], cascade["crafters"], strict=True):
            if key not in self._banks:
                crafted = self.craft(*key, run["data"], cascade["examples"])
                if crafted is None:
                    return None
                self._banks[key] = jax.device_put(crafted)
            found.append(self._banks[key])
        return found

    def craft(self, source: str, crafter: str, data: str, examples: int) -> np.ndarray | None:
        """Return a bank: all images at the first epsilon, then at the next, uint8 (n, H W C).

        None where the time is over before it is done.
        """
        program, weights = self.program(crafter), self._weights(source, "network")
        started, record = time.perf_counter(), program.record
        height, width, channels = record["image_shape"]
        images, labels = (each[:examples] for each in self._stored(data))
        images, size = centres(images, height, width), record["batch"]
        shape = len(record["epsilons"]), examples, height * width * channels
        crafted = np.empty(shape, np.uint8)
        for first in range(0, examples, size):
            if time.time() > self.stop_at:
                return None
            first = min(first, examples - size)  # the last batch is a whole one too
            part = slice(first, first + size)
            given = images[part].astype(np.float32) / PIXEL_LEVELS, labels[part]
            (made,) = program.results([*map(jax.device_put, given)], weights)
            crafted[:, part] = np.asarray(made).reshape(shape[0], size, shape[2])
        spent = time.perf_counter() - started
        print(f"{source}: crafted {examples} images in {spent:.1f} s", flush=True)
        return crafted.reshape(-1, shape[2])

    def start(self, run: dict) -> State:
        """Return the variables where a run begins or goes on."""
        kept = self._file(run["name"], ".state")
        goes_on = kept.exists()
        variables = self.program(run["program"]).record["variables"]
        with np.load(kept if goes_on else self._first(run)) as found:
            state = {
                name: found[name]
                if name in found.files and (goes_on or name.startswith("network/"))
                else np.zeros(shape, dtype)
                for name, (shape, dtype) in variables.items()
            }
        with self._given(run) as given:
            own = {name: given[name] for name in given.files if name.startswith("network/")}
        for name, value in {**run["given"], **own}.items():
            state[name] = np.asarray(value, state[name].dtype)
        return {name: jax.device_put(value) for name, value in state.items()}

    def calls(self, run: dict, step: int, count: int, banks: list[jax.Array]) -> list[jax.Array]:
        """Return the arguments of a call for ``count`` steps from one on."""
        record = self.program(run["program"]).record
        with self._given(run) as given:
            rates, held_out = given["rates"][step : step + count], given["held_out"]
        trained = np.setdiff1d(np.arange(record["images"]), held_out)
        order = Order(run["epoch_keys"], trained, record["batch"])(step, count)
        chosen = []
        if banks:
            order, *chosen = self._partners(run, trained)(step, order)
        each_step = (order, rates, *chosen)
        order, rates, *chosen = (filled(each, record["chunk"]) for each in each_step)
        given = map(jax.device_put, (order, np.int64(step), np.int32(count), rates, *chosen))
        return [*self.data(run["data"]), *given, *banks]

    def _given(self, run: dict):
        """Return what was written of a run beside runs.json, open."""
        return np.load(self.programs / f"{run['name']}.given.npz")

    def _partners(self, run: dict, trained: np.ndarray) -> Partners:
        cascade = run["cascade"]
        with np.load(self.programs / f"{run['name']}.cascade.npz") as drawn:
            given = drawn["source"], drawn["epsilon"]
        return Partners(*given, cascade["first_place"], cascade["examples"], trained)

    def train(self, run: dict) -> None:
        """Train a run to its end, or until the time is over."""
        name, state = run["name"], self.start(run)
        program, sources, banks = self.program(run["program"]), self.sources(run), self.banks(run)
        step = int(state["steps"])
        while banks is not None and step < run["steps"] and time.time() < self.stop_at:
            started = time.perf_counter()
            count = min(program.record["chunk"], run["steps"] - step)
            state = program(self.calls(run, step, count, banks), state, sources)
            step += count
            metrics = take_metrics(state)
            spent = (time.perf_counter() - started) / count * 1e3
            with open(self.output / f"{name}.log", "a") as log:
                log.write(json.dumps({"step": step, "ms": round(spent, 3), **metrics}) + "\n")
            if not np.isfinite(metrics["loss"]):
                raise SystemExit(f"{name}: the loss is {metrics['loss']} at step {step}")
            save(self._file(name, ".state"), state)
        if step == run["steps"]:
            save(self._file(name), state)
            self._file(name, ".state").unlink(missing_ok=True)
        print(f"{name}: step {step} of {run['steps']}", flush=True)

    def time_steps(self, steps: int, rounds: int = 3) -> None:
        """Print the milliseconds a step of each program, from first weights."""
        timed = set()
        for run in self.runs:
            if run["program"] in timed or not self._is_ready(run):
                continue
            timed.add(run["program"])
            program, state, spent = self.program(run["program"]), self.start(run), []
            sources, banks = self.sources(run), self.banks(run)
            for number in range(rounds + 1):  # the first one warms up
                arguments = self.calls(run, number * steps, steps, banks)
                started = time.perf_counter()
                state = program(arguments, state, sources)
                state["steps"].block_until_ready()
                spent.append((time.perf_counter() - started) / steps * 1e3)
            median = statistics.median(spent[1:])
            print(f"{run['program']}, {self.precision}: {median:.3f} ms a step, of {spent[1:]}")


def take_metrics(state: State) -> dict[str, float]:
    """Return the means of the metrics since they were last taken, and set them to 0."""
    means = {}
    for name in [name for name in state if name.startswith("metrics/") and name.endswith("/total")]:
        counted = name.replace("/total", "/count")
        total, count = np.asarray(state[name]), np.asarray(state[counted])
        if count:
            means[name.split("/")[1]] = float(total / count)
        # One buffer each: a program uses up all that it is given.
        state[name], state[counted] = (jax.device_put(np.zeros_like(total)) for _ in range(2))
    return means


def filled(rows: np.ndarray, count: int) -> np.ndarray:
    """Return an array with so many rows, the further ones of zeros."""
    return np.pad(rows, ((0, count - len(rows)), *[(0, 0)] * (rows.ndim - 1)))


def save(path: pathlib.Path, state: State) -> None:
    """Write a state, whole or not at all."""
    partial = path.with_suffix(".part")
    with open(partial, "wb") as file:
        np.savez(file, **{name: np.asarray(value) for name, value in state.items()})
    partial.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--programs", required=True, type=pathlib.Path)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("trained"))
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--runs", help="names with commas between; all by default")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="then stop")
    parser.add_argument("--time", type=int, help="so many steps of each program, three times")
    options = parser.parse_args()
    trainings = Trainings(
        options.programs,
        options.output,
        options.precision,
        tuple(options.runs.split(",")) if options.runs else (),
        options.seconds,
    )
    if options.time:
        trainings.time_steps(options.time)
    else:
        trainings.work()


if __name__ == "__main__":
    main()
