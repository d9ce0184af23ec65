"""What a trained V2 learned in its two bridges: Gaussians of U-SA, NBP filters over the steps.

    python -m benchmarks.learned_filters --checkpoint=runs/mine --figure=docs/learned_filters.png

Prints width and shift of the Gaussians, in pixels, and the range of every filter's gain over the
frequencies at some steps; draws both. A filter that does not differ between frequencies or steps
has learned nothing that its initial value (0.95 everywhere) does not do.
"""

import itertools
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from medsegdiff_jax import checkpoint, cli, networks, plots
from medsegdiff_jax.networks.spectral import NBPFilter
from medsegdiff_jax.networks.uncertain_attention import gaussian_weights
from medsegdiff_jax.types import InputError

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Model to look into.")
_FIGURE = flags.DEFINE_string("figure", None, "PNG to write.")

STEPS = (1, 250, 500, 750, 1000)  # thousandths of T
KERNELS = 8  # Gaussians that are drawn: the narrowest to the widest


def gaussians(params: Any, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each channel: width [C], mean [2, C] in pixels, and the kernel [C, size, size]."""
    if "gaussian" not in params.get("gate", {}):
        raise InputError("this model has no U-SA")
    gaussian = params["gate"]["gaussian"]
    mean, width = gaussian["mean"], nn.softplus(gaussian["width"])
    rows, columns = (gaussian_weights(axis, width, size) for axis in mean)
    return np.asarray(width), np.asarray(mean), np.einsum("yc,xc->cyx", rows, columns)


def filters(loaded: checkpoint.LoadedModel) -> dict[str, np.ndarray]:
    """Module -> gain [len(STEPS), rows, columns // 2 + 1] on the half plane of frequencies."""
    size, task = loaded.config.data.image_size, loaded.task
    model = networks.build(loaded.config.model, task, size)
    image = jnp.zeros((1, size, size, task.image_channels))
    x_t = jnp.zeros((1, size, size, task.mask_channels))

    @jax.jit
    def gains(t: Any) -> Any:
        _, state = model.apply(
            {"params": loaded.params}, image, x_t, t,
            capture_intermediates=lambda module, _: isinstance(module, NBPFilter),
        )  # fmt: skip
        return state["intermediates"]

    total = loaded.config.diffusion.num_timesteps
    at_steps = [
        jax.tree_util.tree_leaves_with_path(gains(max(1, n * total // 1000))) for n in STEPS
    ]
    if not at_steps[0]:
        raise InputError("this model has no NBP filter")
    names = [path[1].key for path, _ in at_steps[0]]
    values = [np.concatenate([gain for _, gain in same]) for same in zip(*at_steps, strict=True)]
    return dict(zip(names, values, strict=True))


def draw(path: Path, width: np.ndarray, kernels: np.ndarray, gain: dict[str, np.ndarray]) -> None:
    """The kernels in the first row, then a row per filter and a column per step."""
    figure = plots.new_figure(8.0, 1.4 + 0.75 * len(gain))
    top, below = figure.subfigures(2, 1, height_ratios=(1.4, 0.75 * len(gain)))
    chosen = np.argsort(width)[np.linspace(0, len(width) - 1, KERNELS).astype(int)]
    for axes, channel in zip(top.subplots(1, KERNELS), chosen, strict=True):
        axes.imshow(kernels[channel], cmap="gray", vmin=0)
        axes.set_title(f"width {width[channel]:.2f}", fontsize=7)
        axes.set_axis_off()
    panels = below.subplots(len(gain), len(STEPS), squeeze=False)
    for (row, (name, values)), column in itertools.product(
        enumerate(gain.items()), range(len(STEPS))
    ):
        axes = panels[row, column]
        # Zero frequency of the queries to the middle, of the keys to the left.
        shown = axes.imshow(np.fft.fftshift(values[column], axes=0), vmin=0, vmax=1, aspect="auto")
        axes.set_xticks([])
        axes.set_yticks([])
        if row == 0:
            axes.set_title(f"t = {STEPS[column] / 1000:g} T", fontsize=7)
        if column == 0:
            axes.set_ylabel(name.removeprefix("block_"), fontsize=6)
    below.colorbar(shown, ax=panels, shrink=0.5, label="gain")
    plots.write_figure(path, figure)


def main(argv: list[str]) -> None:
    """Prints and draws."""
    del argv
    loaded = checkpoint.load_model(_CHECKPOINT.value)
    width, mean, kernels = gaussians(loaded.params, loaded.config.model.anchor_kernel)
    shift = np.abs(mean).max(axis=0)
    print(f"Gaussians of {len(width)} channels, pixels: width {width.min():.2f} to "
          f"{width.max():.2f}, median {np.median(width):.2f} (1.00 at first); "
          f"largest shift {shift.max():.2f}")  # fmt: skip
    gain = filters(loaded)
    print("gain over frequencies  " + "".join(f"t = {n / 1000:g} T".rjust(14) for n in STEPS))
    for name, values in gain.items():
        cells = (f"{one.min():.2f} to {one.max():.2f}".rjust(14) for one in values)
        print(f"{name:23}{''.join(cells)}")
    if _FIGURE.value:
        draw(Path(_FIGURE.value), width, kernels, gain)


if __name__ == "__main__":
    flags.mark_flags_as_required(["checkpoint"])
    cli.run(main)
