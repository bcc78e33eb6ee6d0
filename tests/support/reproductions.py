"""Stand-ins for the programs of a reproduction: what each leaves on the disk, no TensorFlow."""

from __future__ import annotations

import json
import pathlib
import zipfile

from cascade_keras.data.specs import look_up
from cascade_keras.recorded import (
    FORMAT,
    CascadeRecord,
    DatasetRecord,
    EnsembleRecord,
    Metrics,
    ResultRecord,
    RunConfig,
    SourceRecord,
)


def write_run(settings, *, finished=True, **flags):
    """Write the directory of a run that these settings make.

    Args:
        flags: of its configuration, in place of the settings' own.
    """
    resolved = settings.resolved(look_up(settings.dataset))
    run = pathlib.Path(resolved.runs_dir) / resolved.name
    run.mkdir(parents=True, exist_ok=True)
    values = {**resolved.decisive(), **flags}
    cascade, ensemble = (
        [SourceRecord(name="x", path=path, weights_hash="0") for path in values[f"{kind}_source"]]
        for kind in ("cascade", "ensemble")
    )
    config = RunConfig(
        format=FORMAT,
        flags=values,
        seed=values["seed"],
        dataset=DatasetRecord(name=values["dataset"], fingerprint="0" * 64),
        versions={},
        cascade=CascadeRecord(mode="online", sources=cascade) if cascade else None,
        ensemble=EnsembleRecord(sources=ensemble) if ensemble else None,
    )
    (run / "config.json").write_text(json.dumps(config.as_json()))
    if not finished:
        (run / "checkpoints").mkdir(exist_ok=True)
        (run / "checkpoints" / "step-00000001.keras").touch()
        return
    with zipfile.ZipFile(run / "model.keras", "w") as archive:
        archive.writestr("weights", resolved.name)
    clean = ResultRecord(attack="clean", epsilon=0.0, correct=9, examples=10, accuracy=90.0)
    metrics = Metrics(steps=values["steps"], seed=values["seed"], results=[clean])
    (run / "metrics.json").write_text(json.dumps(metrics.as_json()))


class Programs:
    """What stands in for the runners of ``reproduction.RUNNERS``.

    Attributes:
        ran: names of the jobs, in order.
        killed_in: the number of the job that ends by an exception, before it has left anything.
        errors: what jobs raise instead, by their names.
    """

    def __init__(self):
        self.ran: list[str] = []
        self.killed_in: int | None = None
        self.errors: dict[str, Exception] = {}

    def __call__(self, job, say):
        if self.killed_in == len(self.ran):
            self.killed_in = None
            raise KeyboardInterrupt
        self.ran.append(job.name)
        if job.name in self.errors:
            raise self.errors[job.name]
        if job.program == "train":
            write_run(job.settings)
            return
        job.result.parent.mkdir(parents=True, exist_ok=True)
        job.result.write_text(json.dumps({"made of": list(job.flags)}))
