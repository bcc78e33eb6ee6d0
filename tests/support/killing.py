"""Runs of programs that can be stopped at any of their writes, and what lies on the disk then.

A ``Launcher`` is a process that has imported TensorFlow and the package once and forks a process
for each run, which saves seconds a run. The kernel hands every system call of such a run that
creates, opens for writing, writes, renames, removes, cuts or flushes a file or folder to the
launcher before it is done (seccomp's user notification: Linux 5.6 on x86-64; no root, no
compiler), be it Python's or that of a C++ library. So none is overlooked, and there the run can be

    killed, by SIGKILL, before a call, after it, or in it: half of the bytes are written
    looked at: a copy is made of what lies on the disk, which is what SIGKILL would leave there

    with Launcher() as launcher:
        run = launcher.run(["train", "--steps=4"], place)
        launcher.run(["train", "--steps=4"], other, kill=("in", run.events[3]), sizes=run.sizes)

The threads of OpenBLAS and of TensorFlow's look for devices do not live in a forked process;
neither has work to do there: no operation has run, so TensorFlow has made none of its pools.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import pathlib
import platform
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import traceback

from support.files import ROOT

# System calls of x86-64: which argument is a path, or the descriptor of a file.
OPEN, OPENAT, CREAT = 2, 257, 85
WRITES = {1: "write", 18: "write", 20: "writev", 296: "writev", 40: "sendfile", 326: "copy"}
OTHERS = {
    82: "rename", 264: "renameat", 316: "renameat", 83: "mkdir", 258: "mkdirat", 87: "unlink",
    263: "unlinkat", 84: "rmdir", 76: "truncate", 77: "ftruncate", 285: "fallocate", 74: "fsync",
    75: "fsync", 26: "msync", 86: "link", 265: "linkat", 88: "symlink", 266: "symlinkat",
}  # fmt: skip
_PLAIN = {
    "renameat": "rename",
    "mkdirat": "mkdir",
    "unlink": "remove",
    "unlinkat": "remove",
    "rmdir": "remove",
    "linkat": "link",
    "symlinkat": "link",
    "symlink": "link",
}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
PIDFD_GETFD, SECCOMP, ARCHITECTURE = 438, 317, 0xC000003E
NOTIFICATION_SIZES = 3
RECEIVE, SEND = 0xC0502100, 0xC0182101
CONTINUE = 1
NOTIFY, ALLOW = 0x7FC00000, 0x7FFF0000
_libc = ctypes.CDLL(None, use_errno=True)


def _is_supported() -> bool:
    """Whether this kernel tells of system calls, which a container may forbid."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return False
    return _libc.syscall(SECCOMP, NOTIFICATION_SIZES, 0, ctypes.create_string_buffer(6)) == 0


SUPPORTED = _is_supported()


@dataclasses.dataclass(frozen=True)
class Event:
    """A call that changes, or is about to change, what lies on the disk.

    Attributes:
        kind: create, open, write, rename, mkdir, remove, truncate, reserve, flush, link.
        path: relative to the working directory, without what differs from run to run.
        nth: how many of this kind and path there were before.
    """

    kind: str
    path: str
    nth: int

    def __str__(self) -> str:
        return f"{self.kind} {self.path} ({self.nth + 1})"


@dataclasses.dataclass
class Ran:
    """What became of a run.

    Attributes:
        status: its exit status, negative for a signal.
        output, errors: what it printed.
        events: all but writes, in order.
        sizes: bytes that were written into a file since it was opened, by the event of that.
        largest: bytes that were reserved at once on the disk.
        memory: bytes that the process had at most.
        points: for each copy of the disk: before or in which event, and which state it is.
        seconds: it took.
    """

    status: int
    output: str
    errors: str
    events: list[Event]
    sizes: dict[Event, int]
    points: list[tuple[str, Event | None, int]]
    seconds: float
    largest: int
    memory: int


_RANDOM = (
    (r"\.partial-\d+-[0-9a-f]+-", ".partial-"),
    (r"events\.out\.tfevents\.\d+\.[^/]*?(\.v2|\.profile-empty|$)", r"events.out.tfevents\1"),
    (r"incomplete\.?[A-Za-z0-9_]{6,8}", "incomplete.X"),
    (r"/plugins/profile/[^/]+", "/plugins/profile/X"),
    (r"\.tempstate\d+|\.tmp[0-9a-f]{32}", ".temporary"),
)


def normal(path: str) -> str:
    """Return a path without process numbers, times and random parts."""
    for pattern, text in _RANDOM:
        path = re.sub(pattern, text, path)
    return path


class Launcher:
    """Starts programs, one at a time, in a directory; a context manager."""

    def __init__(self):
        paths = [str(ROOT), str(ROOT / "tests")]
        environment = {
            **os.environ, "PYTHONPATH": os.pathsep.join(paths), "TF_CPP_MIN_LOG_LEVEL": "3",
            "OPENBLAS_NUM_THREADS": "1", "COLUMNS": "200", "CUDA_VISIBLE_DEVICES": "-1",
        }  # fmt: skip
        self._process = subprocess.Popen(
            [sys.executable, "-m", "support.killing"], env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip

    def __enter__(self) -> Launcher:
        return self

    def __exit__(self, *_) -> None:
        self._process.stdin.close()
        self._process.wait()

    def run(
        self,
        argv,
        place,
        *,
        kill=None,
        copies=None,
        sizes=None,
        limit=None,
        room=None,
        delay=0.0,
        seconds=120,
        name="",
    ) -> Ran:
        """Run a program in a directory and return what became of it.

        Args:
            argv: the program's name and its flags.
            place: the working directory, whose files are watched.
            kill: ("before", "in" or "after", event), an earlier run's.
            copies: a directory in which what lies on the disk is copied before every event, in the
                middle of every file, and after the last one.
            sizes: of an earlier run: half of it is the middle of a file.
            limit: of the bytes of a file (RLIMIT_FSIZE), as a full disk.
            room: bytes above which reserving a file fails, though it is not a limit of the disk.
            delay: seconds to wait before it starts.
            seconds: after which it is killed, with status -9.
            name: of its logs, where two run in one directory.
        """
        sizes = [[*dataclasses.astuple(event), size] for event, size in (sizes or {}).items()]
        request = {
            "argv": list(map(str, argv)), "place": str(place), "limit": limit, "delay": delay,
            "kill": kill and [kill[0], dataclasses.astuple(kill[1])],
            "copies": copies and str(copies), "sizes": sizes, "seconds": seconds, "room": room,
            "name": name,
        }  # fmt: skip
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the launcher has ended"
        reply = json.loads(line)
        reply["events"] = [Event(*event) for event in reply["events"]]
        reply["sizes"] = {Event(*event): size for *event, size in reply["sizes"]}
        reply["points"] = [
            (how, event and Event(*event), state) for how, event, state in reply["points"]
        ]
        return Ran(**reply)


# The launcher's own side.


def serve() -> None:
    """Import everything; then fork a process for each line that asks for one."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _import_all()
    for line in sys.stdin:
        replies.write(json.dumps(_serve_one(json.loads(line))) + "\n")
        replies.flush()


def _import_all() -> None:
    """Import what programs use; nothing of it may run an operation."""
    from cascade_keras.startup import import_tensorflow

    import_tensorflow()  # first, as it is quiet
    import h5py  # noqa: F401
    import keras  # noqa: F401
    import matplotlib.backends.backend_agg
    import matplotlib.backends.backend_pdf
    import matplotlib.pyplot  # noqa: F401
    import rich.console  # noqa: F401
    import sklearn.datasets  # noqa: F401
    import tensorflow_datasets
    import tensorflow_datasets.image_classification  # noqa: F401
    from tensorflow_serving.apis import prediction_log_pb2  # noqa: F401

    from cascade_keras import bank, evaluation, figures, sources, training  # noqa: F401
    from cascade_keras.cli import analyze, craft, evaluate, export, prepare_data, train  # noqa: F401
    from cascade_keras.data import archives  # noqa: F401
    from cascade_keras.evaluation import pictures  # noqa: F401
    from cascade_keras.runs import session  # noqa: F401


def _serve_one(request: dict) -> dict:
    place = pathlib.Path(request["place"])
    logs = [place.parent / f".{place.name}{request['name']}.{x}" for x in ("output", "errors")]
    ours, theirs = socket.socketpair()
    started = time.monotonic()
    child = os.fork()
    if not child:
        ours.close()
        _be_program(request, logs, theirs)
    theirs.close()
    watch = Watch(child, place, request)
    with ours:
        _, descriptors, *_ = socket.recv_fds(ours, 1, 1)
        if descriptors:
            watch.follow(descriptors[0])
        _, status, used = os.wait4(child, 0)
    output, errors = (log.read_text(errors="replace") for log in logs)
    for log in logs:
        log.unlink()
    return {
        "status": os.waitstatus_to_exitcode(status), "output": output, "errors": errors,
        "events": watch.events, "sizes": [[*e, n] for e, n in watch.sizes.items()],
        "points": watch.points, "seconds": time.monotonic() - started,
        "largest": watch.largest, "memory": used.ru_maxrss * 1024,
    }  # fmt: skip


def _be_program(request: dict, logs, channel) -> None:
    """Become a program's process: what a fork of the launcher does."""
    status = 1
    try:
        for number, log in enumerate(logs, 1):
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1) for n in (1, 2))
        os.chdir(request["place"])
        if request["limit"]:
            import resource

            resource.setrlimit(resource.RLIMIT_FSIZE, (request["limit"],) * 2)
        name, *flags = request["argv"]
        if name == "prepare_data":
            _expect_few_images()
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        time.sleep(request["delay"])
        listener = install_filter()
        socket.send_fds(channel, [b"f"], [listener])
        os.close(listener)
        channel.close()
        module = sys.modules[f"cascade_keras.cli.{name}"]
        status = module.main([name, *flags])
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _expect_few_images() -> None:
    from cascade_keras.data import archives
    from support.archives import COUNTS

    for layout in (archives.MNIST, archives.CIFAR10, archives.CIFAR100):
        layout.counts.update(COUNTS)


def install_filter() -> int:
    """Have the kernel ask before each call that writes; return where it asks."""
    load, equal, is_set, above, answer = 0x20, 0x15, 0x45, 0x25, 0x06
    numbers = [(n, "notify") for n in (*OTHERS, CREAT)]
    numbers += [(OPENAT, "openat"), (OPEN, "open"), *((n, "write") for n in WRITES)]
    lines = [(load, "", "", 4), (equal, "", "allow", ARCHITECTURE), (load, "", "", 0)]
    lines += [(equal, label, "", number) for number, label in numbers]
    lines += [(answer, "", "", ALLOW)]
    labels = {}
    for label, line in {
        "openat": [(load, "", "", 32), (is_set, "notify", "allow", WRITING)],
        "open": [(load, "", "", 24), (is_set, "notify", "allow", WRITING)],
        "write": [(load, "", "", 16), (above, "notify", "allow", 2)],  # not to a terminal
        "notify": [(answer, "", "", NOTIFY)],
        "allow": [(answer, "", "", ALLOW)],
    }.items():
        labels[label] = len(lines)
        lines += line
    code = b"".join(
        struct.pack("HBBI", kind, *(labels[x] - at - 1 if x else 0 for x in (yes, no)), value)
        for at, (kind, yes, no, value) in enumerate(lines)
    )
    buffer = ctypes.create_string_buffer(code)
    program = struct.pack("HxxxxxxQ", len(lines), ctypes.addressof(buffer))
    _libc.prctl(38, 1, 0, 0, 0)  # no new privileges, which those without root must give up
    listener = _libc.syscall(SECCOMP, 1, 1 << 3, ctypes.create_string_buffer(program))
    if listener < 0:
        raise OSError(ctypes.get_errno(), "no seccomp notification here")
    return listener


class Watch:
    """Follows a process call by call, copies what lies on the disk, and kills it where asked."""

    def __init__(self, child: int, place: pathlib.Path, request: dict):
        self.child, self.place = child, place.resolve()
        self.events: list[tuple] = []
        self.sizes: dict[tuple, int] = {}
        self.points: list[tuple] = []
        self._seen: dict[tuple, int] = {}
        self._opened: dict[str, tuple] = {}  # which event opened a file last
        self._kill = request["kill"]
        self._target = tuple(self._kill[1]) if self._kill else None
        self._half = {tuple(event): size // 2 for *event, size in request["sizes"]}
        self._copies = request["copies"] and pathlib.Path(request["copies"])
        self._states: dict[str, int] = {}
        self._end = time.monotonic() + request["seconds"]
        self._killed = self._next = False
        self.largest, self._room = 0, request["room"]

    def follow(self, listener: int) -> None:
        """Answer the process until it has ended."""
        ended = os.pidfd_open(self.child)
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        poll.register(ended, select.POLLIN)
        try:
            while True:
                ready = dict(poll.poll(1000))
                if time.monotonic() > self._end:
                    os.kill(self.child, signal.SIGKILL)
                if ended in ready:
                    break
                if ready.get(listener, 0) & select.POLLIN:
                    self._answer(listener)
        finally:
            os.close(ended)
            os.close(listener)
        if self._copies:
            self._copy("at the end", None)

    def _answer(self, listener: int) -> None:
        notice = bytearray(80)
        try:
            fcntl.ioctl(listener, RECEIVE, notice)
        except OSError:
            return  # the thread is gone
        number, pid, _, call, _, _, *arguments = struct.unpack("QIIiIQ6Q", notice)
        error = 0
        try:
            self._look(pid, call, arguments)
            if OTHERS.get(call) in ("fallocate", "ftruncate", "truncate"):
                size = arguments[3 if call == 285 else 1]
                self.largest = max(self.largest, size)
                error = -errno.EFBIG if self._room and size > self._room else 0
        except OSError as problem:  # the process ends meanwhile
            if not self._killed:
                print(f"system call {call}: {problem}", file=sys.stderr)
        if not self._killed:
            with contextlib.suppress(OSError):
                fcntl.ioctl(
                    listener, SEND, struct.pack("QqiI", number, 0, error, 0 if error else CONTINUE)
                )

    def _look(self, pid: int, call: int, arguments) -> None:
        if call in WRITES:
            path = self._of_descriptor(pid, arguments[0])
            if path:
                self._on_write(pid, call, arguments, path)
            return
        found = self._event(pid, call, arguments)
        if found is None:
            return
        kind, path = found
        if self._next:
            self._stop()
            return
        key = (kind, path)
        event = (*key, self._seen.get(key, 0))
        self._seen[key] = event[2] + 1
        self.events.append(event)
        if self._copies:
            self._copy("before", event)
        if kind in ("create", "open", "cut"):
            self._opened[path] = event
            self.sizes[event] = 0
        if event == self._target and self._kill[0] != "in":
            if self._kill[0] == "before":
                self._stop()
            self._next = True

    def _on_write(self, pid: int, call: int, arguments, path: str) -> None:
        event = self._opened.get(normal(path))
        if event is None:
            return
        if self._next:
            self._stop()
            return
        address, count = self._buffer(pid, call, arguments)
        before = self.sizes[event]
        self.sizes[event] += count
        half = self._half.get(event)
        if half is None or not before <= half < before + count:
            return
        part = _memory(pid, address, half - before) if half > before else b""
        if self._copies:
            self._copy("in", event, path, (self._offset(pid, call, arguments), part))
        if event == self._target and self._kill[0] == "in":
            with _borrowed(self.child, arguments[0]) as descriptor:
                if call == 18:
                    os.pwrite(descriptor, part, arguments[3])
                else:
                    os.write(descriptor, part)
            self._stop()

    def _stop(self) -> None:
        self._killed = True
        os.kill(self.child, signal.SIGKILL)

    def _buffer(self, pid: int, call: int, arguments) -> tuple[int, int]:
        """Return where the bytes are that are written, and how many."""
        if WRITES[call] == "writev":
            pairs = struct.iter_unpack("QQ", _memory(pid, arguments[1], 16 * arguments[2]))
            pairs = list(pairs)
            return pairs[0][0], sum(length for _, length in pairs)
        return arguments[1], arguments[{"write": 2, "sendfile": 3, "copy": 4}[WRITES[call]]]

    def _offset(self, pid: int, call: int, arguments) -> int:
        if call == 18:
            return arguments[3]
        info = pathlib.Path(f"/proc/{pid}/fdinfo/{arguments[0]}").read_text()
        position, flags = re.search(r"pos:\s*(\d+)\nflags:\s*(\d+)", info).groups()
        if int(flags, 8) & os.O_APPEND:
            return os.stat(f"/proc/{pid}/fd/{arguments[0]}").st_size
        return int(position)

    # Which file a call is about.

    def _event(self, pid: int, call: int, a) -> tuple[str, str] | None:
        if call in (OPEN, OPENAT, CREAT):
            at, text = (a[0], a[1]) if call == OPENAT else (-100, a[0])
            flags = os.O_CREAT | os.O_TRUNC | os.O_WRONLY
            flags = flags if call == CREAT else a[2 if call == OPENAT else 1]
            path = self._path(pid, at, text)
            if path is None:
                return None
            there = os.path.lexists(self.place / path)
            if not there and not flags & os.O_CREAT:
                return None
            kind = "create" if not there else "cut" if flags & os.O_TRUNC else "open"
            return kind, normal(path)
        kind = OTHERS[call]
        if kind in ("fsync", "ftruncate", "fallocate"):
            path = self._of_descriptor(pid, a[0])
            name = {"fsync": "flush", "ftruncate": "truncate", "fallocate": "reserve"}[kind]
            return path and (name, normal(path))
        if kind == "msync":
            return "flush", "a map"
        at, text = (a[0], a[1]) if kind.endswith("at") else (-100, a[0])
        if kind in ("renameat", "linkat"):
            new = self._path(pid, a[2], a[3])
        elif kind == "symlinkat":
            new = self._path(pid, a[1], a[2])
        else:
            new = self._path(pid, -100, a[1]) if kind in ("rename", "link", "symlink") else None
        path = new or self._path(pid, at, text)
        kind = _PLAIN.get(kind, kind)
        if path is None or (
            (kind in ("mkdir", "remove"))
            and ((kind == "mkdir") == os.path.lexists(self.place / path))
        ):
            return None  # elsewhere, or a call that fails
        return kind, normal(path)

    def _path(self, pid: int, at: int, address: int) -> str | None:
        text = _text(pid, address)
        at = ctypes.c_int(at & 0xFFFFFFFF).value
        base = os.readlink(f"/proc/{pid}/cwd" if at == -100 else f"/proc/{pid}/fd/{at}")
        path = os.path.normpath(os.path.join(base, text))
        return self._below(path)

    def _of_descriptor(self, pid: int, number: int) -> str | None:
        return self._below(os.readlink(f"/proc/{pid}/fd/{number}").removesuffix(" (deleted)"))

    def _below(self, path: str) -> str | None:
        place = f"{self.place}/"
        return path.removeprefix(place) if path.startswith(place) else None

    # What lies on the disk.

    def _copy(self, how: str, event: tuple | None, path: str = "", half=None) -> None:
        """Copy the directory unless one like it was copied before."""
        target = self._copies / str(len(self._states))
        shutil.copytree(self.place, target, symlinks=True)
        if half:
            with open(target / path, "r+b") as file:
                file.seek(half[0])
                file.write(half[1])
        found = state_of(target)
        if found in self._states:
            shutil.rmtree(target)
        number = self._states.setdefault(found, len(self._states))
        self.points.append((how, event, number))


def state_of(place: pathlib.Path) -> str:
    """Return a hash of everything in a directory but names' random parts."""
    found = hashlib.sha256()
    for folder, folders, files in os.walk(place):
        folders.sort()
        for name in sorted(folders):
            found.update(normal(os.path.relpath(os.path.join(folder, name), place)).encode() + b"/")
        for name in sorted(files, key=normal):
            path = pathlib.Path(folder, name)
            found.update(normal(os.path.relpath(path, place)).encode() + b"\0")
            content = os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
            found.update(hashlib.sha256(content).digest())
    return found.hexdigest()


def _memory(pid: int, address: int, count: int) -> bytes:
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        return os.pread(memory.fileno(), count, address)


def _text(pid: int, address: int) -> str:
    text = b""
    while b"\0" not in text:
        text += _memory(pid, address + len(text), 4096 - (address + len(text)) % 4096)
    return os.fsdecode(text.partition(b"\0")[0])


@contextlib.contextmanager
def _borrowed(pid: int, number: int):
    """Give a descriptor of another process, with its place in the file."""
    process = os.pidfd_open(pid)
    descriptor = _libc.syscall(PIDFD_GETFD, process, number, 0)
    os.close(process)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), "descriptor")
    try:
        yield descriptor
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    serve()
