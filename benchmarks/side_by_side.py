"""Masks of several models on the same pictures (as figure 2 of the paper), a row per case.

    python -m benchmarks.side_by_side \
        --images=runs/demo/test/images --masks=runs/demo/test/masks_1 \
        --predictions=V2=runs/demo/predictions --predictions="condition model=runs/demo_0_steps" \
        --cases=binary_test_000,binary_test_001 --figure=docs/phantom_cases.png

Whatever is not 0 in a mask is foreground; each folder of predictions was written by sample.py with
--save=mask,uncertainty. The uncertainty of the first model closes the row.
"""

from pathlib import Path

import numpy as np
from absl import flags

from benchmarks.predicted import picture
from medsegdiff_jax import cli, display, imaging, metrics, plots
from medsegdiff_jax.types import InputError

_IMAGES = flags.DEFINE_string("images", None, "Folder of pictures.")
_MASKS = flags.DEFINE_string("masks", None, "Folder of their reference masks.")
_PREDICTIONS = flags.DEFINE_multi_string("predictions", [], "NAME=FOLDER of a model; repeatable.")
_CASES = flags.DEFINE_list("cases", [], "Names of cases.")
_FIGURE = flags.DEFINE_string("figure", None, "PNG to write.")


def row(models: dict[str, Path], case: str) -> list[tuple[str, np.ndarray]]:
    """Titles and pictures of a case: reference, each model with its Dice, uncertainty."""
    image = display.to_rgb(imaging.read_image(picture(Path(_IMAGES.value), case)))
    reference = imaging.read_labels(picture(Path(_MASKS.value), case)) > 0
    cells = [(case, display.overlay(image, reference[..., None], None))]
    for name, folder in models.items():
        mask = imaging.read_labels(picture(folder, case)) > 0
        title = f"{name}: {metrics.dice(mask, reference):.3f}"
        cells.append((title, display.overlay(image, mask[..., None], None)))
    doubt = imaging.read_image(picture(next(iter(models.values())), case, "_uncertainty"))
    return [*cells, ("uncertainty", display.grey(doubt[..., 0] / 255))]


def main(argv: list[str]) -> None:
    """Draws the figure."""
    del argv
    models = {}
    for item in _PREDICTIONS.value:
        name, _, folder = item.partition("=")
        models[name] = Path(folder)
    if not models or not all(folder.is_dir() for folder in models.values()):
        raise InputError("--predictions: wants NAME=FOLDER of a folder that exists")
    if not _CASES.value:
        raise InputError("--cases: wants at least one name")
    rows = [row(models, case) for case in _CASES.value]
    columns = len(models) + 2
    figure = plots.new_figure(1.7 * columns, 1.9 * len(rows))
    for line, cells in zip(figure.subplots(len(rows), columns, squeeze=False), rows, strict=True):
        for axes, (title, shown) in zip(line, cells, strict=True):
            axes.imshow(shown)
            axes.set_title(title, fontsize=7)
            axes.set_axis_off()
    plots.write_figure(Path(_FIGURE.value), figure)


if __name__ == "__main__":
    flags.mark_flags_as_required(["images", "masks", "figure"])
    cli.run(main)
