"""What TensorBoard shows of a run beside the scalars of its training.

    runs/NAME/tensorboard/          robustness, embedding distances, panels, histograms, graph, text
              .../final/            flags and final accuracies: the run's row in the HParams tab
              .../projector/        embeddings of clean and adversarial images, classes, thumbnails
              .../projector_config.pbtxt

All of it looks at a few test images, the same ones throughout. Nothing is trained or chosen by
them, no random state is used, and the network is in inference mode, so that a run ends with the
same weights with and without a dashboard.
"""

from __future__ import annotations

import collections
import pathlib
import re
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf
from google.protobuf import text_format
from tensorboard.plugins import projector
from tensorboard.plugins.histogram.summary_v2 import histogram_pb
from tensorboard.plugins.hparams import api as hparams_api
from tensorboard.plugins.hparams.api_pb2 import STATUS_SUCCESS
from tensorboard.plugins.hparams.summary import session_end_pb

from cascade_keras.attacks.specs import Attack
from cascade_keras.evaluation.white_box import WhiteBox
from cascade_keras.files import write_atomically, write_text
from cascade_keras.runs import events, panels
from cascade_keras.runs.panels import View, result_name, strongest
from cascade_keras.runs.run import FINAL, PROJECTOR, PROJECTOR_CONFIG

# A gradient of an image takes two passes through the network. A training step takes three, and
# two more for each adversarial image, of which half of a batch consists.
_GRADIENT_PER_TRAINED_IMAGE = 0.5


def expected_steps(images: int, attacks: Sequence[Attack], batch_size: int) -> float:
    """Return how many training steps take as long as a look, roughly."""
    gradients = sum(attack.gradients for attack in attacks)
    return _GRADIENT_PER_TRAINED_IMAGE * gradients * images / batch_size


class Dashboard:
    """Writes what TensorBoard shows of a network.

    Args:
        writer: of the event files of the training; its owner closes it. TensorBoard reads one
            file of a directory at a time, so this one is shared.
        directory: where that writer writes.
        trainer: an ``AdversarialTrainer``.
        images: float32 in [0, 1], (N, H, W, C).
        labels: true classes, (N,).
        attack_names: of ``attacks.specs.ATTACKS``, without the network's own "clean".
        epsilons: in 0..255 units.
        seed: of the starts of pgd and the noise of step_rand.
    """

    def __init__(
        self,
        writer: tf.summary.SummaryWriter,
        directory: pathlib.Path,
        trainer,
        images: np.ndarray,
        labels: np.ndarray,
        attacks: Sequence[Attack],
        *,
        seed: int = 0,
        first_step: int = 0,
    ):
        self.writer = writer
        self.directory = pathlib.Path(directory)
        self.trainer = trainer
        self.images = np.asarray(images, np.float32)
        self.labels = np.asarray(labels)
        self.attacks = list(attacks)
        self._first_event_step = events.first_event_step(first_step)
        self._white_boxes = {
            attack.name: WhiteBox(
                trainer.inference_logits,
                self.images.shape[1:],
                [attack],
                seed=seed,
                batch_size=len(self.images),
            )
            for attack in self.attacks
        }
        self._kept = {}
        self._network = tf.function(
            lambda images: _outputs_of(trainer, images), autograph=False
        ).get_concrete_function(tf.TensorSpec([None, *self.images.shape[1:]], tf.float32, "images"))
        # A directory of its own: TensorBoard takes all scalars beside a run's hyperparameters for
        # metrics to compare runs by, and only the final ones are.
        self._final = events.open_writer(self.directory / FINAL, 0)

    def open(self, name: str, flags: Mapping[str, object]) -> None:
        """Write what is known at the start: the network's graph, the flags, what is shown.

        Args:
            name: of the run.
            flags: those that determine its result.
        """
        with events.writing(self.directory):
            with self.writer.as_default(self._first_event_step):
                tf.summary.graph(self._network.graph)
                tf.summary.text("about", self._about(flags))
            with self._final.as_default(0):
                hparams_api.hparams(_hyperparameters(flags), trial_id=name)
            self.writer.flush()
            self._final.flush()

    def keep(self, attack: Attack, first: int, versions: np.ndarray) -> None:
        """Remember adversarial images of the finished network that the evaluation makes anyway.

        Args:
            attack: that made them.
            first: index of the first one among the test images.
            versions: (epsilons, batch, H, W, C).
        """
        count = len(self.images)
        if first == 0 and versions.shape[1] >= count:
            for epsilon, images in zip(attack.epsilons, versions, strict=True):
                self._kept[attack.name, epsilon] = images[:count].copy()

    def look(self, step: int, craft: bool = True) -> list[View]:
        """Attack the network as it is and write all that changes in the course of a training.

        Args:
            step: the number of steps done.
            craft: make the images that were not kept; else those are left out.
        """
        views = self._views(craft)
        with events.writing(self.directory):
            with self.writer.as_default(step):
                self._write_scalars(views)
                self._write_panels(views, step)
                self._write_histograms(views, step)
            self.writer.flush()
        self._write_projector(views)
        return views

    def finish(self, step: int, results: Sequence[Mapping]) -> None:
        """Write the final accuracies, which mark the row of the run as finished.

        Args:
            step: the number of steps done.
            results: as in metrics.json.
        """
        with events.writing(self.directory):
            with self._final.as_default(step):
                for result in results:
                    attack, epsilon = result["attack"], result["epsilon"]
                    about = str(Attack(attack, (epsilon,), result.get("options", {})))
                    name = f"final/{result_name(attack, epsilon)}"
                    tf.summary.scalar(name, result["accuracy"], description=about)
                end = session_end_pb(STATUS_SUCCESS).SerializeToString()
                tf.summary.experimental.write_raw_pb(end)
            self._final.flush()

    def close(self) -> None:
        """Write out the events; safe to call twice."""
        with events.writing(self.directory):
            self._final.close()

    def _views(self, craft: bool) -> list[View]:
        views = [self._view(Attack.clean(), 0.0, self.images)]
        for attack in self.attacks:
            for epsilon, images in self._adversarial(attack, craft).items():
                views.append(self._view(attack, epsilon, images))
        return views

    def _view(self, attack: Attack, epsilon: float, images: np.ndarray) -> View:
        return View(attack, epsilon, images, self.labels, **self._outputs(images))

    def _adversarial(self, attack: Attack, craft: bool) -> dict[float, np.ndarray]:
        kept = {
            e: self._kept[attack.name, e] for e in attack.epsilons if (attack.name, e) in self._kept
        }
        if len(kept) == len(attack.epsilons) or not craft:
            return kept
        found = {}
        self._white_boxes[attack.name](
            self.images,
            self.labels,
            show=lambda shown, first, versions: found.update(
                zip(shown.epsilons, versions, strict=True)
            ),
        )
        return found

    def _outputs(self, images: np.ndarray) -> dict[str, np.ndarray]:
        return {name: value.numpy() for name, value in self._network(tf.constant(images)).items()}

    def _write_scalars(self, views: Sequence[View]) -> None:
        clean = views[0]
        for view in views:
            accuracy = 100 * np.mean(view.predicted == self.labels)
            self._write_scalar("robustness", view, accuracy)
            if view is not clean:
                distances = np.linalg.norm(view.embedding - clean.embedding, axis=-1)
                self._write_scalar("embedding_distance", view, distances.mean())

    def _write_scalar(self, group: str, view: View, value: float) -> None:
        tf.summary.scalar(f"{group}/{view.name}", value, description=str(view.attack))

    def _write_panels(self, views: Sequence[View], step: int) -> None:
        for tag, picture in panels.pictures(views, step).items():
            tf.summary.image(tag, picture[None])

    def _write_histograms(self, views: Sequence[View], step: int) -> None:
        values = {f"weights/{name}": kernel for name, kernel in _kernels(self.trainer.network)}
        for view in strongest(views):
            values[f"embeddings/{view.name}"] = view.embedding
            values[f"logits/{view.name}"] = view.logits
        for tag, array in values.items():
            # By NumPy: tf.summary.histogram takes several milliseconds each.
            message = histogram_pb(tag, array[np.isfinite(array)])
            tf.summary.experimental.write_raw_pb(message.SerializeToString(), step)

    def _write_projector(self, views: Sequence[View]) -> None:
        """Write one point for each image of each view; the newest look's replace the last one's."""
        folder = self.directory / PROJECTOR
        folder.mkdir(exist_ok=True)
        points = np.concatenate([view.embedding for view in views])
        thumbnails = np.concatenate([view.images for view in views])
        rows = [("class", "attack", "epsilon", "predicted", "correct", "image")]
        for view in views:
            rows += [
                (
                    label,
                    view.attack.name,
                    f"{view.epsilon:g}",
                    seen,
                    "yes" if seen == label else "no",
                    i,
                )
                for i, (label, seen) in enumerate(zip(self.labels, view.predicted, strict=True))
            ]
        table = "".join("\t".join(map(str, row)) + "\n" for row in rows)
        write_atomically(
            folder / "embeddings.tsv",
            # Nine digits give every float32 back.
            lambda path: np.savetxt(path, points, fmt="%.9g", delimiter="\t"),
        )
        write_text(folder / "metadata.tsv", table)
        picture = panels.png(panels.sprite(thumbnails))
        write_atomically(folder / "sprite.png", lambda path: path.write_bytes(picture))
        config = projector.ProjectorConfig()
        embedding = config.embeddings.add(
            tensor_name="embeddings", tensor_path=f"{PROJECTOR}/embeddings.tsv"
        )
        embedding.metadata_path = f"{PROJECTOR}/metadata.tsv"
        embedding.sprite.image_path = f"{PROJECTOR}/sprite.png"
        embedding.sprite.single_image_dim.extend([self.images.shape[2], self.images.shape[1]])
        # Not visualize_embeddings(), which does not write it at once.
        write_text(self.directory / PROJECTOR_CONFIG, text_format.MessageToString(config))

    def _about(self, flags: Mapping[str, object]) -> str:
        shown = "; ".join(
            f"{attack} at epsilon {', '.join(f'{epsilon:g}' for epsilon in attack.epsilons)}"
            for attack in self.attacks
        )
        table = "\n".join(f"| {name} | {_escaped(_text(value))} |" for name, value in flags.items())
        return (
            f"**robustness**, **images**, **embeddings**: the first {len(self.images)} test images "
            f"under {_escaped(shown)} (pixel values of 0..255), white box, true labels. "
            "**accuracy**, **loss**: training batches, averaged. Accuracies are per cent; "
            "embedding distances L2, averaged over the images.\n\n"
            f"| flag | value |\n|---|---|\n{table}\n"
        )


def _text(value) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


# What Markdown or HTML would take for theirs; an underscore within a word is none.
_MARKS = re.compile(r"[&<>|`\\*\[\]~]|(?<![^\W_])_|_(?![^\W_])")


def _escaped(text: str) -> str:
    """Return a text as a table of Markdown shows it as it is."""
    return " ".join(_MARKS.sub(lambda mark: f"&#{ord(mark[0])};", text).split())


def _hyperparameters(flags: Mapping[str, object]) -> dict[str, bool | int | float | str]:
    """Return the flags as TensorBoard takes them; a flag that is not set has no value.

    Left out is what the trained network does not follow from.
    """
    return {
        name: value if isinstance(value, bool | int | float) else _text(value)
        for name, value in flags.items()
        if value not in (None, []) and not name.startswith(("eval_", "log_"))
    }


def _kernels(network) -> list[tuple[str, np.ndarray]]:
    """Return the kernel of each layer, named by kind and order.

    Keras's own numbers count all layers of a process, so they differ between runs.
    """
    counts = collections.Counter()
    found = []
    for layer in network.layers:
        kernel = getattr(layer, "kernel", None)
        if kernel is not None:
            kind = re.sub(r"_\d+$", "", layer.name)
            counts[kind] += 1
            found.append((f"{kind}_{counts[kind]:02d}", kernel.numpy()))
    return found


def _outputs_of(trainer, images: tf.Tensor) -> dict[str, tf.Tensor]:
    """Return the outputs of images in [0, 1], whatever pixels the network itself takes."""
    outputs = trainer.border(images)
    return {"logits": outputs.logits, "embedding": outputs.embedding}
