"""What could be expected at best: fresh raters of the test phantoms in the place of a model.

    python -m benchmarks.fresh_raters --side=64 --output=OUT
    python evaluate.py --predictions=OUT --references=runs/demo/test --output=REPORT

Writes a folder like sample.py does: as members the masks of COUNT raters who are not among those of
the dataset, as probability their exact distribution, as mask what that makes more probable. With
--side everything went through pictures of that size, as the samples of a network of that size do.
"""

from pathlib import Path

import numpy as np
from absl import flags

from data.phantom import model
from medsegdiff_jax import atomic, cli, display, fusion, imaging
from medsegdiff_jax.progress import progress
from medsegdiff_jax.result_files import file_names

TASK = model.TASKS["binary"]
SEED = 9


def mask_through(mask: np.ndarray, side: int) -> np.ndarray:
    """Mask [N, N] bool -> what is left of it, [N, N, 1] in [0, 1], after `side` x `side` pixels.

    It is resized as training masks are, and comes back as the fused probability does.
    """
    small = imaging.resize_labels(mask.astype(np.uint8), (side, side)).astype(np.float32)
    return imaging.resize_probability(small[..., None], mask.shape)


def probability_through(probability: np.ndarray, side: int) -> np.ndarray:
    """The same of probabilities [N, N], which are resized like a picture."""
    small = imaging.resize_image(probability[..., None].astype(np.float32), (side, side))
    return imaging.resize_probability(small, probability.shape)


def write_case(folder: Path, case: str, count: int, side: int) -> dict[str, list[str]]:
    """Writes the files of a case; returns {what: file name or names}, as run.json lists them."""
    raters = model.fresh_raters(case, count, SEED) > 0
    probability = probability_through(model.rater_probability(case)[0], side)
    members = [fusion.decide(mask_through(rater, side), TASK) for rater in raters]
    pictures = {
        "mask": [imaging.mask_to_labels(fusion.decide(probability, TASK), TASK)],
        "probability": [display.to_byte(probability[..., 0])],
        "members": [imaging.mask_to_labels(member, TASK) for member in members],
    }
    files: dict[str, list[str]] = {}
    for what, arrays in pictures.items():
        names = file_names(case, what, TASK, count, ".png")
        for name, array in zip(names, arrays, strict=True):
            imaging.write_png(folder / name, array)
        files[what] = names
    return files


def main(argv: list[str]) -> None:
    """Writes all test phantoms and run.json."""
    del argv
    folder, count, side = Path(_OUTPUT.value), _COUNT.value, _SIDE.value
    folder.mkdir(parents=True, exist_ok=True)
    number = model.SPLIT_SIZES["test"]
    names = [model.case_id("binary", "test", index) for index in range(number)]
    cases = {
        case: {"files": write_case(folder, case, count, side)}
        for case in progress(names, number, "drawing raters")
    }
    how = {"checkpoint": "fresh raters", "sampling": {"members": count, "side": side}}
    atomic.write_json(folder / "run.json", {**how, "task": TASK.to_json(), "cases": cases})


if __name__ == "__main__":
    # Here, so that tests can import this beside another benchmark with flags of the same names.
    _OUTPUT = flags.DEFINE_string("output", None, "Folder to write.")
    _COUNT = flags.DEFINE_integer("count", 10, "Raters per case.", lower_bound=1)
    _SIDE = flags.DEFINE_integer("side", model.NATIVE_SIZE, "Of the network.", lower_bound=1)
    flags.mark_flags_as_required(["output"])
    cli.run(main)
