"""A trained model as a folder to pass on: EMA parameters and model.json, nothing else.

Where the training's data and first weights lay is nobody else's business, and left out.
"""

import os

from medsegdiff_jax.checkpoint import load_model, save_exported
from medsegdiff_jax.version import __version__


def export(checkpoint: str | os.PathLike, output: str | os.PathLike) -> str:
    """Writes the model at `checkpoint` to `output`; returns which weights it took.

    model.json holds the config (network, schedule, preprocessing, sampling), the task (classes,
    label values) and, in words, what goes in and comes out, so that another program can use the
    parameters.

    Raises:
      InputError: no model at `checkpoint`, or `output` is not empty.
    """
    loaded = load_model(checkpoint)
    data, diffusion = loaded.config.data, loaded.config.diffusion
    modalities = loaded.task.modalities
    config = loaded.config.to_dict()
    config["data"].update(path="", cache_dir="")
    config["init_from"] = ""
    metadata = {
        **loaded.metadata,
        "config": config,
        "exported_by": __version__,
        "source": loaded.description,
        "temperature": loaded.temperature,
        "fitted_with": dict(loaded.fitted_with),
        "preprocessing": {
            "size": [data.image_size, data.image_size],
            "resize": "bilinear, antialiased when shrinking",
            "range": "uint8 / 255, uint16 / 65535, float in [0, 1]",
            "volumes": "uint16 over each modality's window, or its 0.5 and 99.5 percentiles of the "
            "voxels that are not 0"
            if modalities
            else None,
            "plane": data.plane if modalities else None,
            "neighbours": data.neighbours,
        },
        "value_ranges": {
            "image": "[-1, 1]"
            if modalities
            else "mean 0, standard deviation 1 per image and channel",
            "x_0": [-diffusion.input_scale, diffusion.input_scale],
            "network input": "x_t divided by sqrt(alpha_t^2 s^2 + sigma_t^2)",
            "network output": diffusion.prediction,
        },
    }
    save_exported(output, loaded.params, metadata)
    return loaded.description
