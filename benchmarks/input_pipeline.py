#!/usr/bin/env python
"""Time of reading a training batch of CIFAR-10's size: gather, random crop, flip, to [0, 1].

    python benchmarks/input_pipeline.py [--batches=500]

The images are random numbers: nothing here depends on what they show. Compare with the time of a
step, from train_step.py. In training, batches are prepared while the step before them runs.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np

from cascade_keras import data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=500)
    count = parser.parse_args().batches
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (50_000, 32, 32, 3), dtype=np.uint8)
    labels = rng.integers(0, 10, 50_000).astype(np.int32)
    for batch_size in (64, 128):
        batches = iter(data.batches(images, labels, batch_size, seed=0, crop=24, augment=True))
        for _ in range(20):
            next(batches)
        start, before = time.perf_counter(), time.process_time()
        for _ in range(count):
            next(batches)
        wall = (time.perf_counter() - start) / count
        cpu = (time.process_time() - before) / count
        print(f"{batch_size} images: {1e3 * wall:.2f} ms a batch, {1e3 * cpu:.2f} ms of CPU time")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
