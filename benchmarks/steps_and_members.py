"""Dice of a trained binary model against steps and members, on a folder of pictures.

    python -m benchmarks.steps_and_members --checkpoint=runs/mine --data=FOLDER --steps=0,1,2,5,10 \
        --members=1,2,5,10,20 --output=benchmarks/results/steps.json --figure=docs/steps.png

FOLDER has images/, masks/ and test.txt. Every row samples the same cases with the same seed and
fuses by the mean, so that a row's members are the first of those of the next row. The largest
ensemble of each sampler and number of steps also tells how many members its cases needed to be
stable (`ensemble_size`, on the members' own masks), and for how many that number was not enough.
"""

import itertools
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from benchmarks.provenance import write
from medsegdiff_jax import cli, imaging, metrics, picture_output, plots
from medsegdiff_jax.ensemble_size import members_needed
from medsegdiff_jax.metrics import aggregate
from medsegdiff_jax.segmenter import Segmenter

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Model to sample.")
_DATA = flags.DEFINE_string("data", None, "Folder with images/, masks/ and test.txt.")
_STEPS = flags.DEFINE_list("steps", "0,1,2,5,10", "Numbers of steps.")
_SAMPLERS = flags.DEFINE_list("samplers", "ddim", "Some of ddim, ddpm, dpmpp, dpmpp_sde.")
_MEMBERS = flags.DEFINE_list("members", "1,4", "Samples per image, ascending.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.")
_FIGURE = flags.DEFINE_string("figure", None, "PNG to write: Dice against members, a line a row.")

Images = Mapping[str, np.ndarray]


def measure(
    segmenter: Segmenter, images: Images, references: Images, largest: int, **settings: Any
) -> dict[str, Any]:
    """A row: Dice over all cases, time per case and, of ensembles of the largest size, stability.

    Args:
      segmenter: the model.
      images: case -> [H, W, C].
      references: case -> [H, W] bool.
      largest: number of members.
      **settings: steps, members and sampler.
    """
    chosen = segmenter.choose(**settings, fusion="mean", batch_size=25)
    whole = 1 < chosen.members == largest
    began, dice, needed = time.perf_counter(), [], []
    for result in segmenter.stream(images.items(), chosen, keep_members=whole):
        dice.append(metrics.dice(result.mask > 0, references[result.case_id]))
        if whole:
            masks = imaging.labels_to_mask(result.members, segmenter.task)
            needed += members_needed(masks[:, None], segmenter.task, "vote")
    seconds = (time.perf_counter() - began) / len(dice)
    row = {**vars(chosen), "dice": vars(aggregate.summarize(dice)), "seconds_per_case": seconds}
    if whole:
        stable = [number for number in needed if number is not None]
        row["members_needed_median"] = statistics.median(stable) if stable else None
        row["cases_not_stable"] = len(needed) - len(stable)
    return row


def draw(path: Path, rows: list[dict[str, Any]]) -> None:
    """Dice against members: a line per sampler and number of steps (figure 3 of the paper)."""
    figure = plots.new_figure(5.0, 3.6)
    axes = figure.add_subplot()
    for (sampler, steps), line in itertools.groupby(rows, lambda r: (r["sampler"], r["steps"])):
        points = [(row["members"], row["dice"]["mean"]) for row in line]
        if steps == 0:
            axes.axhline(points[0][1], color="0.5", ls="--", lw=1, label="condition model alone")
        else:
            axes.plot(*zip(*points, strict=True), marker="o", ms=3.5, label=f"{sampler}, {steps}")
    axes.set_xlabel("members")
    axes.set_ylabel("Dice of the fused mask")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=7, frameon=False, title="sampler, steps", title_fontsize=7)
    plots.write_figure(path, figure)


def main(argv: list[str]) -> None:
    """Samples, scores, prints a table, writes --output and --figure."""
    del argv
    root = Path(_DATA.value)
    segmenter = Segmenter.load(_CHECKPOINT.value)
    cases = picture_output.find(root, root / "test.txt", segmenter.task)
    images = {name: imaging.read_image(path) for name, (path,) in cases.items()}
    masks = picture_output.find(root / "masks", root / "test.txt", segmenter.task)
    references = {name: imaging.read_labels(path) > 0 for name, (path,) in masks.items()}
    sizes, rows = [int(number) for number in _MEMBERS.value], []
    print("sampler    steps  members  Dice [95% interval]        s per case  stable at  not stable")
    for sampler, steps in itertools.product(_SAMPLERS.value, map(int, _STEPS.value)):
        for members in sizes if steps else sizes[:1]:
            settings = {"sampler": sampler, "steps": steps, "members": members}
            row = measure(segmenter, images, references, sizes[-1], **settings)
            rows.append(row)
            dice, needed = row["dice"], row.get("members_needed_median", "")
            print(f"{sampler:9}  {steps:5d}  {row['members']:7d}  {dice['mean']:.4f} "
                  f"[{dice['low']:.4f}, {dice['high']:.4f}]  {row['seconds_per_case']:10.2f}  "
                  f"{needed!s:9}  {row.get('cases_not_stable', '')}", flush=True)  # fmt: skip
    if _OUTPUT.value:
        how = {"checkpoint": segmenter.description, "cases": len(images)}
        write(_OUTPUT.value, **how, rows=rows)
    if _FIGURE.value:
        draw(Path(_FIGURE.value), rows)


if __name__ == "__main__":
    flags.mark_flags_as_required(["checkpoint", "data"])
    cli.run(main)
