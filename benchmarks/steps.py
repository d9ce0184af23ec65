"""Dice of a trained binary model against the number of steps, on a folder of pictures.

    python -m benchmarks.steps --checkpoint=runs/mine --data=FOLDER --steps=0,1,2,5,10 --members=4 \
        --output=benchmarks/results/steps.json

FOLDER has images/, masks/ and test.txt. Every row samples the same cases with the same seed and
fuses by the mean. --samplers=ddim,dpmpp adds rows of other samplers.
"""

import json
import time
from pathlib import Path

from absl import flags

from benchmarks.provenance import hardware, versions
from medsegdiff_jax import cli, imaging, metrics, picture_output
from medsegdiff_jax.metrics import aggregate
from medsegdiff_jax.segmenter import Segmenter

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Model to sample.")
_DATA = flags.DEFINE_string("data", None, "Folder with images/, masks/ and test.txt.")
_STEPS = flags.DEFINE_list("steps", "0,1,2,5,10", "Numbers of steps.")
_SAMPLERS = flags.DEFINE_list("samplers", "ddim", "Some of ddim, ddpm, dpmpp, dpmpp_sde.")
_MEMBERS = flags.DEFINE_integer("members", 4, "Samples per image.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.")


def main(argv: list[str]) -> None:
    """Samples, scores, prints a table, writes --output."""
    del argv
    root = Path(_DATA.value)
    segmenter = Segmenter.load(_CHECKPOINT.value)
    cases = picture_output.find(root, root / "test.txt", segmenter.task)
    images = {name: imaging.read_image(path) for name, (path,) in cases.items()}
    masks = picture_output.find(root / "masks", root / "test.txt", segmenter.task)
    references = {name: imaging.read_labels(path) > 0 for name, (path,) in masks.items()}
    rows = []
    print("sampler    steps  members  Dice [95% interval]        s per case")
    for sampler in _SAMPLERS.value:
        for steps in map(int, _STEPS.value):
            settings = segmenter.choose(
                steps=steps, members=_MEMBERS.value, sampler=sampler, fusion="mean", batch_size=25
            )
            began = time.perf_counter()
            results = list(segmenter.stream(images.items(), settings))
            seconds = (time.perf_counter() - began) / len(results)
            dice = aggregate.summarize(
                [metrics.dice(one.mask > 0, references[one.case_id]) for one in results]
            )
            rows.append({**vars(settings), "dice": vars(dice), "seconds_per_case": seconds})
            print(f"{sampler:9}  {steps:5d}  {settings.members:7d}  {dice.mean:.4f} "
                  f"[{dice.low:.4f}, {dice.high:.4f}]  {seconds:10.2f}", flush=True)  # fmt: skip
    if _OUTPUT.value:
        result = {
            "hardware": hardware(),
            "versions": versions(),
            "checkpoint": segmenter.description,
            "cases": len(images),
            "rows": rows,
        }
        Path(_OUTPUT.value).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    flags.mark_flags_as_required(["checkpoint", "data"])
    cli.run(main)
