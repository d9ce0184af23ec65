"""How much of the denoising gradient reaches the bridges of a trained V2: gate, filters, evidence.

    python -m benchmarks.bridge_gradients --checkpoint=[LABEL=]RUN --data=FOLDER \
        --output=FILE --figure=PNG

At several t the command takes the gradient of the denoising loss, averaged over EXAMPLES training
images of FOLDER (a dataset of `configs/folder.py`) with true masks under the noise, and prints for
each part of the network the root mean square over its parameters, relative to that of the diffusion
UNet. A part whose gradient is far below 1 hardly matters to the answer where it stands. It also
prints what the gate does: its standard deviation over an image's pixels, and by how much the
cross-entropy grows when every pixel is given the image's mean gate.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks.provenance import write
from medsegdiff_jax import (
    checkpoint,
    cli,
    input_pipeline,
    losses,
    networks,
    plots,
    process,
)
from medsegdiff_jax.types import Array, Batch, Condition, InputError, Params

EXAMPLES = 64
THOUSANDTHS = (1000, 800, 600, 400, 200, 100, 50)  # of T
WHOLE = "diffusion UNet"
PARTS = {  # the first whose words are all in a parameter's path has it
    "U-SA Gaussian": {"gate", "gaussian"},
    "U-SA 1x1": {"gate"},
    "NBP filters": {"nbp_filter"},
    "SS-Former": {"ss_former"},
    "evidence": {"evidence_maps"},
    "condition UNet": {"condition_model"},
    WHOLE: set(),
}


class Probe:
    """A trained model and a batch of training examples."""

    def __init__(self, run: str, folder: str):
        """Raises InputError unless the model is a V2 with x0-prediction."""
        loaded = checkpoint.load_model(run)
        config, self.params, self.description = loaded.config, loaded.params, loaded.description
        if config.model.name != "medsegdiff_v2" or config.diffusion.prediction != "x0":
            raise InputError(f"{run}: is not a medsegdiff_v2 with x0-prediction")
        self._process = process.build(config.diffusion, loaded.task.one_hot)
        self._network = networks.build(config.model, loaded.task, config.data.image_size)
        config.data.path = folder
        dataset = input_pipeline.load(config.data)
        batches = input_pipeline.train_batches(dataset, config.data, batch_size=EXAMPLES, seed=0)
        self.batch = next(batches)
        self._gradient = jax.jit(jax.value_and_grad(self._loss))
        self._loss_of = jax.jit(self._loss)

    def _loss(self, params: Params, batch: Batch, t: Array, gate: Array) -> Array:
        mask = jnp.asarray(batch["mask"])
        eps = jax.random.normal(jax.random.key(0), mask.shape)
        condition = self.encode(params, batch["image"])
        if condition.anchor is not None:
            flat = jnp.mean(condition.anchor, axis=(1, 2), keepdims=True)
            condition = condition.replace(anchor=flat + gate * (condition.anchor - flat))
        x_t = self._process.corrupt(self._process.mask_to_x0(mask), eps, t)
        x_in = self._process.network_input(x_t, t)
        arguments = ({"params": params}, x_in, t, condition)
        output = self._network.apply(*arguments, method="denoise")
        return jnp.mean(losses.cross_entropy(output, mask, self._process.one_hot))

    def encode(self, params: Params, image: Array) -> Condition:
        """image: [B, H, W, C] -> what the network knows of it."""
        return self._network.apply({"params": params}, image, method="encode")

    def row(self, t: int) -> dict[str, float]:
        """Cross-entropy, the same with a flat gate, and the parts' relative gradients at t."""
        arguments = (self.params, self.batch, jnp.int32(t))
        loss, gradients = self._gradient(*arguments, jnp.float32(1))
        flat = self._loss_of(*arguments, jnp.float32(0))
        return {"t": t, "ce": float(loss), "ce_flat_gate": float(flat), **relative(gradients)}

    def steps(self) -> list[int]:
        """THOUSANDTHS of this model's T."""
        return [n * self._process.schedule.num_steps // 1000 for n in THOUSANDTHS]


def part_of(path: tuple[Any, ...]) -> str:
    """The part of the network that a parameter belongs to."""
    words = {entry.key for entry in path}
    return next(name for name, needed in PARTS.items() if needed <= words)


def relative(gradients: Params) -> dict[str, float]:
    """Root mean square of each part's gradient over that of WHOLE; parts that exist alone."""
    squares: dict[str, list[np.ndarray]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        squares.setdefault(part_of(path), []).append(np.square(np.ravel(leaf), dtype=np.float64))
    sizes = {name: np.sqrt(np.concatenate(found).mean()) for name, found in squares.items()}
    return {name: float(sizes[name] / sizes[WHOLE]) for name in PARTS if name in sizes}


def draw(path: Path, results: dict[str, list[dict[str, float]]]) -> None:
    """Relative gradient against t, a panel per run."""
    figure = plots.new_figure(4.2 * len(results) + 1.4, 3.4)
    panels = figure.subplots(1, len(results), squeeze=False, sharey=True)[0]
    for axes, (label, rows) in zip(panels, results.items(), strict=True):
        for name in PARTS:
            if name in rows[0] and name != WHOLE:
                axes.semilogy([row["t"] for row in rows], [row[name] for row in rows], label=name)
        axes.axhline(1, color="grey", lw=0.8, ls=":")
        axes.set(xlabel="t", title=label)
    panels[0].set_ylabel(f"RMS gradient / that of the {WHOLE}")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    plots.write_figure(path, figure)


def main(argv: list[str]) -> None:
    """Prints a table per run; writes JSON and figure."""
    del argv
    if not _CHECKPOINT.value or len(_CHECKPOINT.value) != len(_DATA.value):
        raise InputError("--checkpoint, --data: give one folder of data per model, in their order")
    results, gates, described = {}, {}, {}
    for item, folder in zip(_CHECKPOINT.value, _DATA.value, strict=True):
        label, _, run = item.rpartition("=")
        label, probe = label or Path(run).name, Probe(run, folder)
        described[label] = probe.description
        results[label] = rows = [probe.row(t) for t in probe.steps()]
        anchor = jax.jit(probe.encode)(probe.params, probe.batch["image"]).anchor
        gates[label] = None if anchor is None else float(jnp.std(anchor, axis=(1, 2)).mean())
        print(f"{label}: standard deviation of the gate over an image {gates[label]}")
        print("".join(name.rjust(16) for name in rows[0]))
        for row in rows:
            print("".join(f"{value:.4g}".rjust(16) for value in row.values()))
    if _OUTPUT.value:
        how = {"examples": EXAMPLES, "checkpoints": described, "gate_std": gates}
        write(_OUTPUT.value, **how, models=results)
    if _FIGURE.value:
        draw(Path(_FIGURE.value), results)


if __name__ == "__main__":
    # Here, so that tests can import this beside another benchmark with flags of the same names.
    _CHECKPOINT = flags.DEFINE_multi_string("checkpoint", [], "[LABEL=]RUN; repeatable.")
    _DATA = flags.DEFINE_multi_string("data", [], "Folder of its dataset; one per checkpoint.")
    _OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.")
    _FIGURE = flags.DEFINE_string("figure", None, "PNG to write.")
    cli.run(main)
