"""TensorBoard's event files of a run that may be resumed."""

from __future__ import annotations

import contextlib
import errno
import pathlib
import time
from collections.abc import Iterator

import tensorflow as tf

from cascade_keras.files import write_atomically

_VERSION = "brain.Event:2"  # of event files in which a restart is announced rather than guessed


def open_writer(directory: pathlib.Path, first_step: int) -> tf.summary.SummaryWriter:
    """Return a writer of a run's events; what was written after the step it resumes is void.

    A process that is killed has written events of steps after its last checkpoint, which are
    done again. TensorBoard drops them where it reads that a session starts at such a step.

    Args:
        directory: of the event files.
        first_step: the number of steps done when the run goes on, 0 at its start.

    Raises:
        OSError: the disk is full or the like.
    """
    with writing(directory):
        if any(directory.glob("events.out.tfevents.*")):
            _announce_restart(directory, first_event_step(first_step))
        return tf.summary.create_file_writer(str(directory))


@contextlib.contextmanager
def writing(directory: pathlib.Path) -> Iterator[None]:
    """Say in one line that events cannot be written.

    It has to be around each writing in a training: Keras takes some of TensorFlow's errors, such as
    that of a file that grows too large, for the end of the data.

    Raises:
        OSError: naming the directory.
    """
    try:
        yield
    except tf.errors.OpError as error:
        reason = str(error.message or error).strip().splitlines()[0].rpartition("; ")[2][:80]
        raise OSError(errno.EIO, f"events cannot be written ({reason})", str(directory)) from error


def first_event_step(first_step: int) -> int:
    """Return the step of the first events of a session, above those of the steps before it."""
    return first_step + 1 if first_step else 0


def _announce_restart(directory: pathlib.Path, step: int) -> None:
    """Write an event file that begins a session.

    TensorBoard reads a directory's files in the order of their names, which begin with the second
    in which they were made; "-" comes before any name of a machine.
    """
    now = time.time()
    name = f"events.out.tfevents.{int(now):010d}.-restart-{step}"
    log = tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START)
    start = tf.compat.v1.Event(wall_time=now, step=step, session_log=log)
    # Twice: the first session that TensorBoard sees is no restart to it.
    begun = [tf.compat.v1.Event(wall_time=now, file_version=_VERSION), start, start]

    def write(partial: pathlib.Path) -> None:
        with tf.io.TFRecordWriter(str(partial)) as writer:
            for event in begun:
                writer.write(event.SerializeToString())

    write_atomically(directory / name, write)
