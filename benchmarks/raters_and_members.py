"""What raters say of an image, and what members of an ensemble say: a row per case.

    make demo
    python -m benchmarks.raters_and_members --data=runs/demo/test \
        --predictions=runs/demo/predictions --cases=binary_test_027,binary_test_016 \
        --figure=docs/phantom_members.png

Outlines of every rater (`masks/` or `masks_*/`) and of every member, then the fused probability and
the uncertainty. Whatever is not 0 in a mask is foreground.
"""

from pathlib import Path

import numpy as np
from absl import flags

from benchmarks.predicted import picture
from medsegdiff_jax import cli, display, imaging, plots
from medsegdiff_jax.types import InputError

_DATA = flags.DEFINE_string("data", None, "Folder with images/ and masks/ or masks_*/.")
_PREDICTIONS = flags.DEFINE_string("predictions", None, "Written by sample.py, with members.")
_CASES = flags.DEFINE_list("cases", [], "Names of cases.")
_FIGURE = flags.DEFINE_string("figure", None, "PNG to write.")

TITLES = ("image", "raters", "members", "probability", "uncertainty")


def of_raters(folder: Path, case: str) -> list[np.ndarray]:
    """Every rater's mask, bool [H, W].

    Raises:
      InputError: no rater has marked the case.
    """
    folders = sorted(folder.glob("masks*"))
    masks = [imaging.read_labels(picture(one, case)) > 0 for one in folders]
    if not masks:
        raise InputError(f"{folder}: has neither masks/ nor masks_*/")
    return masks


def of_members(folder: Path, case: str) -> list[np.ndarray]:
    """Every member's mask, bool [H, W].

    Raises:
      InputError: members were not saved.
    """
    found = sorted(folder.glob(f"{case}_member_[0-9]*.png"))
    if not found:
        raise InputError(f"{folder}: no members of {case} (sample.py --save=mask,...,members)")
    return [imaging.read_labels(path) > 0 for path in found]


def draw(path: Path, data: Path, predictions: Path, cases: list[str]) -> None:
    """Writes the figure."""
    figure = plots.new_figure(1.8 * len(TITLES), 1.8 * len(cases) + 0.25)
    grid = figure.subplots(len(cases), len(TITLES), squeeze=False)
    for axes, title in zip(grid[0], TITLES, strict=True):
        axes.set_title(title, fontsize=9)
    for line, case in zip(grid, cases, strict=True):
        image = display.to_rgb(imaging.read_image(picture(data / "images", case)))
        outlined = ([], of_raters(data, case), of_members(predictions, case))
        for axes, masks in zip(line[:3], outlined, strict=True):
            axes.imshow(image)
            for mask in masks:
                axes.contour(mask, [0.5], colors="tab:cyan", linewidths=0.7)
        for axes, name in zip(line[3:], TITLES[3:], strict=True):
            values = imaging.read_image(picture(predictions, case, f"_{name}"))[..., 0]
            axes.imshow(values, cmap="gray" if name == "probability" else "magma", vmin=0, vmax=255)
        for axes in line:
            axes.set_axis_off()
    plots.write_figure(path, figure)


def main(argv: list[str]) -> None:
    """Draws the figure."""
    del argv
    if not _CASES.value:
        raise InputError("--cases: wants at least one name")
    draw(Path(_FIGURE.value), Path(_DATA.value), Path(_PREDICTIONS.value), _CASES.value)


if __name__ == "__main__":
    flags.mark_flags_as_required(["data", "predictions", "figure"])
    cli.run(main)
