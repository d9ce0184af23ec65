"""Parameters and arithmetic of every network at one size, as a Markdown table.

    python -m benchmarks.network_cost --size=paper

FLOPs are those that XLA counts in one forward pass for one colour image and a binary task, before
it optimises the program: 2 per multiplication with addition. `encode` runs once per view,
`denoise` once per step and ensemble member; the last column is one segmentation with the config's
own steps and members. Nothing is compiled or run.
"""

import argparse
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from benchmarks.programs import binary_task
from configs import base
from medsegdiff_jax import denoiser, networks


def gflops(function, *arguments) -> float:
    """What XLA counts in `function` for arguments of these shapes."""
    return jax.jit(function).lower(*arguments).cost_analysis().get("flops", 0.0) / 1e9


def cost(config: ConfigDict) -> dict[str, float]:
    """Millions of parameters and GFLOPs of `encode`, `denoise` and a whole segmentation."""
    side = config.data.image_size
    model = networks.build(config.model, binary_task(), side)
    image, x_t = (jax.ShapeDtypeStruct((1, side, side, k), jnp.float32) for k in (3, 1))
    t = jax.ShapeDtypeStruct((), jnp.int32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image, x_t, t)
    encode = functools.partial(model.apply, method="encode")
    row = {"parameters": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables)) / 1e6}
    row["encode"], row["denoise"] = gflops(encode, variables, image), 0.0
    if model.generative:
        condition = jax.eval_shape(encode, variables, image)
        denoise = functools.partial(model.apply, method="denoise")
        row["denoise"] = gflops(denoise, variables, x_t, t, condition)
    row["segmentation"] = of_segmentation(row, config.sampling, config.sampling.members)
    return row


def of_segmentation(row: Mapping[str, float], sampling: Mapping[str, Any], members: float) -> float:
    """GFLOP of a whole segmentation, of a row of `cost`, with so many members."""
    views = denoiser.count_views(sampling["mirror"])
    return views * row["encode"] + sampling["steps"] * members * row["denoise"]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="small", choices=base.SIZES)
    size = parser.parse_args().size
    print("| `model.name` | M parameters | `encode` | `denoise` | segmentation, GFLOP |")
    print("| --- | --- | --- | --- | --- |")
    for name in networks.NETWORKS:
        row = cost(base.get_config(f"{'default' if name == 'medsegdiff_v2' else name},{size}"))
        cells = [f"{value:.4g}" if value else "-" for value in row.values()]
        print(f"| `{name}` | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
