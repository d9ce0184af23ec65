"""Peak memory and time of segmenting one large scan with a model of volumes.

    python -m benchmarks.large_volume --checkpoint=runs/mine --shape=512,512,300 \
        --output=benchmarks/results/large_volume.json

The scan is noise; sample.py runs on it in a process of its own, whose peak resident memory is read.
"""

import os
import resource
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
from absl import flags

from benchmarks.commands import command
from benchmarks.provenance import write
from medsegdiff_jax import cli
from medsegdiff_jax.checkpoint import load_model

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Model trained on volumes.")
_SHAPE = flags.DEFINE_list("shape", "512,512,300", "Voxels along each axis.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.")
_SAMPLING = ("--members=1", "--steps=1", "--batch_size=16", "--decision=dice")


def write_scan(path: Path, shape: tuple[int, ...], modalities: int) -> None:
    """An int16 scan of noise, a file with all modalities."""
    rng = np.random.default_rng(0)
    voxels = rng.integers(-1000, 2000, (*shape, modalities), dtype=np.int16)
    affine = np.diag([-0.8, -0.8, 1.5, 1.0])
    nib.save(nib.Nifti1Image(voxels.squeeze(-1) if modalities == 1 else voxels, affine), path)


def main(argv: list[str]) -> None:
    """Measures, prints one line, writes --output."""
    del argv
    shape = tuple(int(size) for size in _SHAPE.value)
    task = load_model(_CHECKPOINT.value).task
    with tempfile.TemporaryDirectory() as folder:
        scan = Path(folder) / "scan.nii"
        write_scan(scan, shape, len(task.modalities))
        flags_ = [f"--checkpoint={os.path.abspath(_CHECKPOINT.value)}", f"--input={scan}"]
        began = time.perf_counter()
        command("sample.py", *flags_, f"--output={folder}/out", *_SAMPLING)
        seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20  # KiB on Linux
    voxels = np.prod(shape) * len(task.modalities)
    print(
        f"{'x'.join(map(str, shape))}, {len(task.classes)} classes: peak {peak:.2f} GiB "
        f"({voxels * 4 / 2**30:.2f} GiB is the scan in float32), {seconds:.0f} s"
    )
    if _OUTPUT.value:
        facts = {"peak_GiB": round(peak, 3), "seconds": round(seconds, 1)}
        write(_OUTPUT.value, shape=shape, classes=task.classes, **facts)


if __name__ == "__main__":
    flags.mark_flags_as_required(["checkpoint"])
    cli.run(main)
