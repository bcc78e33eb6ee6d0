"""Starve every program of room, and give it places that it cannot write.

    python tests/sweeps/disk.py              both, about 5 minutes on 2 cores

The outputs of a program lie on a file system of 1 kB to 10 MB (a tmpfs, which only root may make;
others: no file may become larger than that). It must end, or say in one line that it cannot, with
exit code 2. Then there is room, and the same command must end with what a run with room has.

Then each place that a program writes to is a folder on a read-only file system, a file where a
folder is to be, or a folder where a file is to be. It must say so in one line, and change nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

from common import Pool, faults_of_refusal, report, said
from support.programs import PROGRAMS, canonical, differences, make_place

SIZES = {"1 kB": 1024, "10 kB": 10_240, "100 kB": 102_400, "1 MB": 2**20, "10 MB": 10 * 2**20}
ROOM = "100m"


def _elsewhere(name: str, *flags: str) -> tuple[str, ...]:
    """Return a program's flags with its outputs on another disk."""
    own = {flag.partition("=")[0] for flag in flags}
    return (*(flag for flag in PROGRAMS[name] if flag.partition("=")[0] not in own), *flags)


STARVED = {
    "train": _elsewhere("train", "--runs_dir=disk/runs", "--saved_dir=disk/saved"),
    "own": _elsewhere("own", "--runs_dir=disk/runs", "--cache_dir=disk/decoded"),
    "cascade by bank": _elsewhere(
        "cascade by bank", "--runs_dir=disk/runs", "--cascade_bank=disk/bank"
    ),
    "craft": _elsewhere("craft", "--output=disk/bank"),
    "evaluate": _elsewhere("evaluate", "--output=disk/report", "--images_dir=disk/images"),
    "analyze": _elsewhere("analyze", "--output=disk/figures"),
    "export": _elsewhere("export", "--output=disk/saved/piv"),
    "prepare_data": _elsewhere("prepare_data", "--data_dir=disk/data"),
}


def can_mount() -> bool:
    """Whether file systems can be made here."""
    with tempfile.TemporaryDirectory() as place:
        return not _mount(pathlib.Path(place), "size=16k") and not _unmount(pathlib.Path(place))


def _mount(place: pathlib.Path, options: str) -> int:
    command = ["mount", "-t", "tmpfs", "-o", options, "none", str(place)]
    return subprocess.run(command, capture_output=True, check=False).returncode


def _unmount(place: pathlib.Path) -> int:
    return subprocess.run(["umount", str(place)], capture_output=True, check=False).returncode


@contextlib.contextmanager
def mounted(place: pathlib.Path, options: str):
    """Make a file system at a place as long as the block runs."""
    place.mkdir(parents=True, exist_ok=True)
    assert not _mount(place, options), "cannot mount"
    try:
        yield place
    finally:
        _unmount(place)


def starve(pool: Pool, name: str, size: str, start: pathlib.Path, work: pathlib.Path, whole: dict):
    """Return "ends" or "one line", and what is wrong."""
    place = work / f"{name} {size}"
    shutil.copytree(start, place)
    with contextlib.ExitStack() as stack:
        limit = None
        if whole["mounts"]:
            options = f"size={SIZES[size]},nr_inodes=1000"
            disk = stack.enter_context(mounted(place / "disk", options))
        else:
            disk, limit = place / "disk", SIZES[size]
            disk.mkdir()
        ran = pool.run(STARVED[name], place, limit=limit)
        wrong = faults_of_refusal(ran) if ran.status else []
        if whole["mounts"]:
            subprocess.run(["mount", "-o", f"remount,size={ROOM}", str(disk)], check=True)
        again = pool.run(STARVED[name], place)
        if again.status:
            wrong.append(f"with room, status {again.status}: {said(again)[-1:]}")
        else:
            changed = differences(whole[name], canonical(disk))
            wrong += [f"with room, another end: {changed[:5]}"] if changed else []
    shutil.rmtree(place)
    return ("one line" if ran.status else "ends"), wrong, (said(ran) or [""])[-1]


# Places. For each flag: the program with it, what it names, files and folders below it.
PLACES = {
    "train --runs_dir": ("train", "runs_dir", (), ("run/config.json", "run/metrics.json",
                         "run/model.keras", "run/checkpoints/step-00000002.keras"),
                         ("run", "run/checkpoints", "run/tensorboard")),
    "train --saved_dir": ("train", "saved_dir", (), (), ("run",)),
    "train --cache_dir": ("own", "cache_dir", (), (), ()),
    "train --cascade_bank": ("cascade by bank", "cascade_bank", (), ("bank.json", "images.npy"),
                             ()),
    "craft --output": ("craft", "output", (), ("bank.json", "images.npy", "labels.npy"), ()),
    "evaluate --output": ("evaluate", "output", (), ("config.json", "report.json", "report.md",
                          "report.csv", "predictions/std--step_ll.npy",
                          "seconds.json"), ("predictions", "confusion")),
    "evaluate --images_dir": ("evaluate", "images_dir", (), (), ()),
    "analyze --output": ("analyze", "output", (), tuple(f"noise_correlation.{kind}" for kind in
                         ("png", "pdf", "txt", "npz")), ()),
    "export --output": ("export", "output", (), (), ()),
    "prepare_data --data_dir": ("prepare_data", "data_dir", (), (), ("mnist", "mnist/3.0.1")),
}  # fmt: skip


def places(mounts: bool):
    """Yield the flag, what is wrong with the place, and what makes it so."""
    for flag, (_, _, _, files, folders) in PLACES.items():
        if mounts:
            yield flag, "read-only", None
        yield flag, "a file for the folder", lambda place: place.write_text("mine")
        for file in files:
            yield (
                flag,
                f"a folder for {file}",
                lambda place, name=file: (place / name).mkdir(parents=True),
            )
        for folder in folders:
            yield flag, f"a file for {folder}", lambda place, name=folder: _file(place / name)


def _file(path: pathlib.Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")


def misplace(pool: Pool, case, start: pathlib.Path, work: pathlib.Path):
    """Return what is wrong with a program whose place cannot be written, and what it said."""
    flag, kind, make = case
    program, name, *_ = PLACES[flag]
    place = work / f"{flag} {kind}".replace("/", "_")
    shutil.copytree(start, place)
    outputs = [x for x in STARVED[program] if "=disk/" in x and not x.startswith(f"--{name}=")]
    argv = [x for x in STARVED[program] if "=disk/" not in x] + outputs + [f"--{name}=there"]
    there = place / "there"
    with contextlib.ExitStack() as stack:
        if make is None:
            stack.enter_context(mounted(there, "ro"))
        else:
            if not kind.startswith("a file for the folder"):
                there.mkdir()
            make(there)
        before = _names(place)
        ran = pool.run(argv, place)
        after = _names(place)
    wrong = faults_of_refusal(ran)
    if before != after:
        wrong.append(f"left {sorted(after ^ before)[:6]}")
    shutil.rmtree(place)
    return wrong, (said(ran) or [""])[-1]


def _names(place: pathlib.Path) -> set[str]:
    return {str(p.relative_to(place)) for p in place.rglob("*") if not p.name.endswith(".lock")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(STARVED), help="programs, of: %(default)s")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--verbose", action="store_true", help="print what the programs said")
    options = parser.parse_args()
    only, wrong = options.only.split(","), {}
    mounts = os.geteuid() == 0 and can_mount()
    base = pathlib.Path(tempfile.mkdtemp(prefix="disk-"))
    with Pool(options.jobs) as pool:
        start = make_place(pool.launchers[0], base / "place")
        whole: dict = {"mounts": mounts}
        for name in only:
            place = base / f"whole {name}"
            shutil.copytree(start, place)
            ran = pool.run(STARVED[name], place)
            assert ran.status == 0, ran.errors
            whole[name] = canonical(place / "disk")
        print(f"A full disk ({'tmpfs' if mounts else 'RLIMIT_FSIZE'}): what it does, then, with "
              "room, the same end.\n")  # fmt: skip
        print(f"| program | {' | '.join(SIZES)} |\n|---|{'---|' * len(SIZES)}")
        pairs = [(name, size) for name in only for size in SIZES]
        found = dict(zip(pairs, pool.map(
            lambda pair: starve(pool, *pair, start, base, whole), pairs), strict=True))  # fmt: skip
        for name in only:
            cells = ["WRONG" if found[name, size][1] else found[name, size][0] for size in SIZES]
            print(f"| {name} | {' | '.join(cells)} |")
        for (name, size), (_, faults, line) in found.items():
            wrong |= {f"{name} {size}": faults} if faults else {}
            if options.verbose and line:
                print(f"  {name} {size}: {line}")
        cases = [case for case in places(mounts) if PLACES[case[0]][0] in only]
        outcomes = pool.map(lambda case: misplace(pool, case, start, base), cases)
    print("\n| flag | places | one line, nothing changed |\n|---|---:|---:|")
    for flag in dict.fromkeys(case[0] for case in cases):
        own = [outcome for case, outcome in zip(cases, outcomes, strict=True) if case[0] == flag]
        print(f"| {flag} | {len(own)} | {sum(not faults for faults, _ in own)} |")
    for case, (faults, line) in zip(cases, outcomes, strict=True):
        wrong |= {f"{case[0]}: {case[1]}": [*faults, line]} if faults else {}
        if options.verbose:
            print(f"  {case[0]}: {case[1]}: {line}")
    shutil.rmtree(base)
    return report(wrong)


if __name__ == "__main__":
    sys.exit(main())
