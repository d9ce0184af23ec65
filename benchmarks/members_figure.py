"""Dice against the number of members (figure 3 of the paper), from rows of `benchmarks.quality`.

    rows=benchmarks/results/quality
    python -m benchmarks.members_figure --rows=$rows/comparison_32px --rows=$rows/folders_64px \
        --rows=$rows/isic2017_64px --model=V2 --model="V1 of equal cost" --model=EnsDiff \
        --model=SegDiff --figure=docs/members.png

Members are fused by vote, whatever fused the masks of the row; half of them suffice, so that an
even number marks more than an odd one. A panel per folder and dataset, the mean over seeds and
classes.
"""

from pathlib import Path

import numpy as np
from absl import flags

from medsegdiff_jax import atomic, cli, plots
from medsegdiff_jax.types import InputError

_ROWS = flags.DEFINE_multi_string("rows", None, "Folder of rows; repeatable.")
_MODELS = flags.DEFINE_multi_string("model", None, "Name of a row; repeatable. Others stay out.")
_FIGURE = flags.DEFINE_string("figure", None, "PNG to write.")

Panels = dict[str, dict[str, np.ndarray]]
_COLUMNS = 3


def read(folder: Path) -> Panels:
    """Title of a panel -> model -> Dice [n] of the vote of the first 1, 2, ... n members."""
    found: dict[str, dict[str, list[np.ndarray]]] = {}
    for path in sorted(folder.glob("*.json")):
        row = atomic.read_json(path)
        if row["model"] not in _MODELS.value:
            continue
        title = f"{row['dataset']}\n{folder.name}"
        curves = row["scores"]["uncertainty"]["dice_of_first"].values()
        dice = np.array([[one["mean"] for one in curve] for curve in curves])
        found.setdefault(title, {}).setdefault(row["model"], []).append(dice.mean(0))
    return {
        title: {model: np.mean(of[model], axis=0) for model in _MODELS.value if model in of}
        for title, of in found.items()
    }


def draw(path: Path, panels: Panels) -> None:
    """A panel per dataset with a line per model, which keeps its colour in all of them."""
    columns, rows = min(_COLUMNS, len(panels)), -(-len(panels) // _COLUMNS)
    figure = plots.new_figure(3.4 * columns + 0.4, 3.0 * rows + 0.4)
    handles = {}
    for number, (title, curves) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(rows, columns, number)
        for model, dice in curves.items():
            color = f"C{_MODELS.value.index(model)}"
            n = np.arange(1, len(dice) + 1)
            (handles[model],) = axes.plot(n, dice, color=color, marker="o", ms=3, lw=1.4)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("members, fused by vote")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.25)
        if number % columns == 1 or columns == 1:
            axes.set_ylabel("mean Dice")
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=4, fontsize=8)
    plots.write_figure(path, figure)


def main(argv: list[str]) -> None:
    """Draws the figure, prints its numbers."""
    del argv
    panels: Panels = {}
    for folder in _ROWS.value:
        panels |= read(Path(folder))
    if not panels:
        raise InputError("--rows, --model: no rows of these models in these folders")
    for title, curves in panels.items():
        for model, dice in curves.items():
            print(title.replace("\n", " "), model, " ".join(f"{one:.4f}" for one in dice))
    draw(Path(_FIGURE.value), panels)


if __name__ == "__main__":
    flags.mark_flags_as_required(["rows", "model", "figure"])
    cli.run(main)
