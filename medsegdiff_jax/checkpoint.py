"""Checkpoints by orbax: the training state to resume, and the slim model to use.

A workdir's `checkpoints/<step>/` holds three items: `state` (step, parameters, optimizer), `ema`
(the averaged parameters, all that inference needs) and `metadata` (config, task, dataset
fingerprint). The latest and the best by validation Dice are kept. An exported folder holds
`params/` and `model.json`.
"""

import dataclasses
import hashlib
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from medsegdiff_jax import atomic, networks, train_state
from medsegdiff_jax.train_state import TrainState
from medsegdiff_jax.trees import differing
from medsegdiff_jax.types import InputError, Params, Task

METRIC = "dice"
CALIBRATION = "calibration.json"
UNRANKED = -1.0  # Dice of a checkpoint that was saved without validation
EXPORT_FORMAT = 1
_FOLDER = "checkpoints"

_COMPUTED = ("dtype", "remat")  # fields of a network about how it is computed, not what
_PREPARED = ("image_size", "plane", "neighbours", "augment.flip")  # how images come to a network


def has_checkpoint(workdir: str | os.PathLike) -> bool:
    """Whether a training in `workdir` has been saved."""
    folder = Path(workdir) / _FOLDER
    return folder.is_dir() and any(path.name.isdigit() for path in folder.iterdir())


class Checkpoints:
    """The checkpoints of one workdir; a context manager, leaving it waits for pending writes."""

    def __init__(self, workdir: str | os.PathLike, metadata: dict[str, Any]):
        """Opens `workdir`/checkpoints; every checkpoint will carry `metadata` (JSON-able)."""
        self._metadata = metadata
        # What a killed process had half written would stay for good.
        self._manager = _open_manager(Path(workdir) / _FOLDER, cleanup_tmp_directories=True)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        with _named(Path(self._manager.directory)):
            self._manager.close()

    def save(self, state: TrainState, dice: float | None) -> None:
        """Writes `state` in the background; `dice` None if it was not validated."""
        metric = UNRANKED if dice is None or not math.isfinite(dice) else float(dice)
        step = int(state.step)
        with _named(Path(self._manager.directory)):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(_resumable(state)),
                    ema=ocp.args.StandardSave(state.ema_params),
                    metadata=ocp.args.JsonSave(self._metadata),
                ),
                metrics={METRIC: metric},
                force=True,
            )
            self._manager.check_for_errors()

    def restore_latest(self, abstract: TrainState) -> TrainState | None:
        """The newest state, or None in a new workdir.

        Args:
          abstract: ShapeDtypeStructs with the shardings that the result shall have.

        Raises:
          InputError: the checkpoint is damaged or belongs to another network.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        with _readable(Path(self._manager.directory) / str(step)):
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(_resumable(abstract)),
                    ema=ocp.args.StandardRestore(abstract.ema_params),
                ),
            )
        return TrainState(ema_params=restored.ema, **restored.state)


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A trained model, ready for inference.

    Attributes:
      params: EMA parameters, float32.
      config: the config of the run.
      task: what it segments.
      description: one line that says which weights these are.
      metadata: everything that was stored beside the parameters.
      temperature: of its calibration (see `temperature`), 1 without one.
      fitted_with: the settings of sampling that it was fitted with; empty without one.
      folder: the checkpoint, None for an exported model.
    """

    params: Params
    config: ConfigDict
    task: Task
    description: str
    metadata: dict[str, Any]
    temperature: float = 1.0
    fitted_with: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    folder: Path | None = None


def load_model(path: str | os.PathLike) -> LoadedModel:
    """EMA parameters of a workdir (its best checkpoint), a checkpoint or an exported folder.

    Raises:
      InputError: there is no model at `path`, or it is damaged.
    """
    root = Path(path)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder, so no checkpoint")
    if (root / "model.json").is_file():
        with _readable(root):
            metadata = atomic.read_json(root / "model.json")
            if metadata["format"] != EXPORT_FORMAT:
                raise InputError(
                    f"{root}: exported in format {metadata['format']}; this version reads format "
                    f"{EXPORT_FORMAT}"
                )
            loaded = _load(root / "params", metadata, f"{metadata['source']}, exported")
        return dataclasses.replace(
            loaded,
            temperature=metadata.get("temperature", 1.0),
            fitted_with=metadata.get("fitted_with", {}),
        )
    if (root / "ema").is_dir():
        return _load_step(root)
    if not (root / _FOLDER).is_dir():
        raise InputError(
            f"{root}: neither a workdir of train.py, nor a checkpoint in it, nor an exported model"
        )
    with _open_manager(root / _FOLDER) as manager:
        step = manager.best_step()
        if step is None:
            raise InputError(f"{root}: the workdir has no finished checkpoint yet")
        return _load_step(Path(manager.directory) / str(step))


def load_models(paths: Sequence[str | os.PathLike]) -> list[LoadedModel]:
    """`load_model` of each, for an ensemble of several trainings.

    They may differ in their data and in how they were trained.

    Raises:
      InputError: as there; a path is given twice; or a model has another network, process,
        preparation or task than the first.
    """
    models = [load_model(path) for path in paths]
    seen: set[Path] = set()
    for path, model in zip(paths, models, strict=True):
        folder = (model.folder or Path(path)).resolve()
        if folder in seen:
            raise InputError(f"{path}: is given twice")
        seen.add(folder)
        if fields := differing(*(_shared(one) for one in (models[0], model))):
            raise InputError(
                f"{path}: has another {', '.join(fields[:5])} than {paths[0]}; models that "
                "sample together have these in common"
            )
    return models


def network_of(config: ConfigDict) -> dict[str, Any]:
    """What weights belong to: the network and the process of a config."""
    model = {field: value for field, value in config.model.items() if field not in _COMPUTED}
    return {"model": model, "diffusion": config.diffusion.to_dict()}


def _shared(model: LoadedModel) -> dict[str, Any]:
    """What trainings that sample together have in common."""
    data = flatten_dict(model.config.data.to_dict(), sep=".")
    prepared = {field: data.get(field) for field in _PREPARED}
    return {**network_of(model.config), "data": prepared, "task": model.task.to_json()}


def digest(params: Params | Sequence[Params]) -> str:
    """SHA-256 of all arrays, in the order of the tree."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(jax.device_get(params)):
        found.update(np.ascontiguousarray(leaf).tobytes())
    return found.hexdigest()


def save_exported(path: str | os.PathLike, params: Params, metadata: dict[str, Any]) -> None:
    """Writes `params` and `metadata` as an exported model folder; it appears whole or not at all.

    Raises:
      InputError: the folder exists and is not empty.
    """
    target = Path(path).resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{path}: exists and is not empty")
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(partial / "params", params)
        described = {"format": EXPORT_FORMAT, **metadata}
        atomic.write_json(partial / "model.json", described)
        if target.exists():
            target.rmdir()
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _load_step(folder: Path) -> LoadedModel:
    with _readable(folder):
        metadata = atomic.read_json(folder / "metadata" / "metadata")
        dice = atomic.read_json(folder / "metrics" / "metrics")[METRIC]
        calibration = folder / CALIBRATION
        stored = atomic.read_json(calibration) if calibration.is_file() else {}
        temperature = float(stored.get("temperature", 1.0))
        fitted_with = dict(stored.get("sampling", {}))
    ranked = "not validated" if dice == UNRANKED else f"validation Dice {dice:.4f}"
    loaded = _load(folder / "ema", metadata, f"EMA weights of step {folder.name} ({ranked})")
    return dataclasses.replace(
        loaded, temperature=temperature, fitted_with=fitted_with, folder=folder
    )


def _load(params: Path, metadata: dict[str, Any], description: str) -> LoadedModel:
    """Restores `params` into the shapes that the stored config gives, on one device."""
    with _readable(params.parent):
        config, task = ConfigDict(metadata["config"]), Task.from_json(metadata["task"])
    model = networks.build(config.model, task, config.data.image_size)
    image_shape = (config.data.image_size, config.data.image_size, task.image_channels)
    shapes = jax.eval_shape(
        lambda key: train_state.init_params(model, image_shape, key), jax.random.key(0)
    )
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), shapes
    )
    with _readable(params.parent), ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(params.resolve(), target)
    return LoadedModel(restored, config, task, description, metadata)


def _resumable(state: TrainState) -> dict[str, Any]:
    return {"step": state.step, "params": state.params, "opt_state": state.opt_state}


def _open_manager(folder: Path, **options: Any) -> ocp.CheckpointManager:
    managers = ocp.checkpoint_managers
    keep = managers.AnyPreservationPolicy(
        [
            managers.LatestN(1),
            managers.BestN(get_metric_fn=lambda metrics: metrics[METRIC], n=1),
        ]
    )
    chosen = ocp.CheckpointManagerOptions(
        best_fn=lambda metrics: metrics[METRIC],
        best_mode="max",
        preservation_policy=keep,
        **options,
    )
    return ocp.CheckpointManager(folder.resolve(), options=chosen)


@contextmanager
def _named(folder: Path) -> Iterator[None]:
    """Gives an error of the disk the folder's name where it has no file's, as when it is full."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror or str(error), str(folder)) from error


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """Turns whatever a damaged file makes the libraries raise into one line with the folder."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # orbax and tensorstore have no common base
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{folder}: the checkpoint cannot be read ({first_line})") from error
