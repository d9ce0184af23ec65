"""Training examples per second of the input pipeline, by threads and by processes.

    python -m benchmarks.input_pipeline --config=configs/demo.py --config.data.image_size=256 \
        --output=benchmarks/results/input_pipeline.json

Runs the pipeline alone: reading records, augmentation, class channels, batches of 16.
"""

import itertools
import time

from absl import flags
from ml_collections import ConfigDict, config_flags

from benchmarks.provenance import write
from medsegdiff_jax import cli, input_pipeline

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.")
_COUNTS = flags.DEFINE_list("counts", "1,2,4,8", "Numbers of threads or processes.")
_SECONDS = flags.DEFINE_float("seconds", 8.0, "Of each measurement.")

BATCH = 16
WARM_UP = 4  # batches


def rate(dataset: input_pipeline.Dataset, data: ConfigDict, seconds: float) -> float:
    """Examples per second once the stream runs."""
    batches = input_pipeline.train_batches(dataset, data, batch_size=BATCH, seed=0)
    for _ in itertools.islice(batches, WARM_UP):
        pass
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        next(batches)
        count += BATCH
    return count / (time.perf_counter() - began)


def main(argv: list[str]) -> None:
    """Measures, prints a table, writes --output."""
    del argv
    config = _CONFIG.value
    dataset = input_pipeline.load(config.data)
    rows = []
    print(f"{dataset.name} {dataset.image_shape}: examples/s\n  n   threads  processes")
    for count in map(int, _COUNTS.value):
        threads = config.data.copy_and_resolve_references()
        threads.update(workers=0, read_threads=count)
        processes = config.data.copy_and_resolve_references()
        processes.update(workers=count, read_threads=1)
        row = {
            "count": count,
            "threads": round(rate(dataset, threads, _SECONDS.value), 1),
            "processes": round(rate(dataset, processes, _SECONDS.value), 1),
        }
        rows.append(row)
        print(f"{count:3d}  {row['threads']:8.1f}  {row['processes']:9.1f}", flush=True)
    if _OUTPUT.value:
        facts = {"dataset": dataset.name, "image_shape": dataset.image_shape}
        write(_OUTPUT.value, **facts, examples_per_second=rows)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    cli.run(main)
