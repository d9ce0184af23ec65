"""Images in, segmentations out: the trained model behind one call.

    segmenter = Segmenter.load("runs/demo")
    result = segmenter(images, members=10, steps=10, seed=0)

Every image is resized to the training size, sampled, fused, and the fused *probability* is resized
back to the image's own size and decided there; labels are never interpolated. Several trainings,
such as the folds of a cross-validation, make one ensemble:

    Segmenter.load("runs/fold0", "runs/fold1")
"""

import dataclasses
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from medsegdiff_jax import decision, denoiser, fusion, imaging, networks, process
from medsegdiff_jax.checkpoint import LoadedModel, load_models
from medsegdiff_jax.drawing import DrawFn, Ensemble, Group, draw_all
from medsegdiff_jax.ensemble_size import WINDOW, Stability
from medsegdiff_jax.metrics.calibration import apply_temperature
from medsegdiff_jax.partitioning import (
    compiler_options,
    even_batch,
    on_data,
    replicated,
    sampling_mesh,
    shard_batch,
)
from medsegdiff_jax.settings import Settings
from medsegdiff_jax.types import Array, InputError, case_key, check_at_least


@dataclasses.dataclass(frozen=True)
class CaseResult:
    """One segmented image, in its own size.

    Attributes:
      case_id: its name.
      image: [H, W, C] as given.
      mask: [H, W] label ids, uint8 or uint16.
      probability: [H, W, K] float32 fused, in [0, 1], before the temperature (`Segmenter.scaled`).
      uncertainty: [H, W] float32 entropy of the members' mean, in [0, 1].
      fused_members: n, the number of members that were fused.
      seconds: its share of the wall-clock time: that of a batch, from the end of the one before, is
        divided evenly among its cases.
      members: [n, H, W] label ids of each, or None if not asked for.
      path: [steps, S, S, 2 K] float32 how the first sample came about, at the network's size: the
        noisy masks, of unit variance, and the probabilities made of them; None if not asked for.
    """

    case_id: str
    image: np.ndarray
    mask: np.ndarray
    probability: np.ndarray
    uncertainty: np.ndarray
    fused_members: int
    seconds: float
    members: np.ndarray | None = None
    path: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """Segmented images, in their own sizes: arrays if all sizes agree, else lists of arrays.

    Attributes:
      mask: [B, H, W] label ids.
      probability: [B, H, W, K] float32 in [0, 1], scaled by the checkpoint's temperature.
      uncertainty: [B, H, W] float32 in [0, 1].
      members: [B, n, H, W] label ids; a list if the n differ (`Settings.tolerance`).
    """

    mask: np.ndarray | list[np.ndarray]
    probability: np.ndarray | list[np.ndarray]
    uncertainty: np.ndarray | list[np.ndarray]
    members: np.ndarray | list[np.ndarray]


class Segmenter:
    """A trained model, or several in one ensemble, on all devices of this process.

    Of M trainings each draws `Settings.members` samples, training k with seed + k; sample j of the
    ensemble is one of training j mod M. What the condition model says is the mean of theirs. The
    settings are those of the first. Temperatures do not count, since a mean of several trainings is
    calibrated otherwise.
    """

    def __init__(self, loaded: LoadedModel, *more: LoadedModel):
        """Takes what `checkpoint.load_models` returns; `load` is the usual way in."""
        models, alone = [loaded, *more], not more
        config = loaded.config
        self.task, self.config = loaded.task, config
        self.description = "; ".join(model.description for model in models)
        self.temperature = loaded.temperature if alone else 1.0
        self.fitted_with = loaded.fitted_with if alone else {}
        self.sets_temperatures_aside = not alone and any(m.temperature != 1 for m in models)
        known_mirrored = bool(config.data.augment.flip)
        settings = Settings(**config.sampling.to_dict())
        self.settings = dataclasses.replace(settings, mirror=settings.mirror and known_mirrored)
        self._known_mirrored = known_mirrored
        self._size = config.data.image_size
        self._model = networks.build(config.model, loaded.task, self._size)
        self._process = process.build(config.diffusion, loaded.task.one_hot)
        self._devices = jax.local_devices()
        whole = replicated(sampling_mesh(1, self._devices))
        self.params = jax.device_put([model.params for model in models], whole)
        self._compiled: dict[tuple, tuple[Mesh, denoiser.SegmentFn]] = {}
        self._paths: dict[tuple, denoiser.PathFn] = {}

    @classmethod
    def load(cls, path: str | os.PathLike, *more: str | os.PathLike) -> "Segmenter":
        """From workdirs of train.py, checkpoints in them, or exported folders.

        Raises:
          InputError: there is no model at a path, it is damaged, or it does not belong with the
            first (see `checkpoint.load_models`).
        """
        return cls(*load_models([path, *more]))

    def __call__(
        self,
        images: np.ndarray | Sequence[np.ndarray],
        *,
        case_ids: Sequence[str] | None = None,
        **settings: float | str | None,
    ) -> Segmentation:
        """Segments images of any sizes.

        Args:
          images: [B, H, W, C], or a sequence of [H, W, C]: uint8, uint16, or float (kept if in
            [0, 1], else scaled by its own range); C as in training (grey and RGB are converted).
          case_ids: names; the noise of an image follows from its name and the seed alone, that of
            a slice, "volume/0007", from what is before the slash. Without them an image's own
            content names it.
          **settings: fields of `Settings`; what is not given comes from the model's config.

        Raises:
          InputError: an image or a setting that cannot be used.
        """
        if getattr(images, "ndim", 4) == 3:
            raise InputError(
                f"images: {images.shape} is not [B, H, W, C]; of one image give image[None]"
            )
        ids = [content_id(image) for image in images] if case_ids is None else list(case_ids)
        if len(ids) != len(images):
            raise InputError(f"{len(ids)} case_ids for {len(images)} images")
        if not ids:
            raise InputError("no images were given")
        if not all(isinstance(one, str) for one in ids):
            raise InputError("case_ids: names are strings")
        cases = zip(ids, images, strict=True)
        chosen = self.choose(**settings).for_cases(len(ids))
        results = list(self.stream(cases, chosen, keep_members=True))
        return Segmentation(
            mask=_stack([one.mask for one in results]),
            probability=_stack([self.scaled(one.probability, chosen) for one in results]),
            uncertainty=_stack([one.uncertainty for one in results]),
            members=_stack([one.members for one in results]),
        )

    def choose(self, **changes: float | str | None) -> Settings:
        """The model's settings with these changes (None = unchanged).

        Raises:
          InputError: an unknown field or an impossible value.
        """
        settings = self.settings.changed(**changes)
        fusion.check_method(settings.fusion, self._model.encode_segments)
        if settings.mirror and not self._known_mirrored:
            raise InputError("mirror: the model was trained without (data.augment.flip=False)")
        if settings.steps == 0:  # nothing random is drawn, so there is one member per view
            views = denoiser.count_views(settings.mirror)
            settings = dataclasses.replace(settings, members=views, tolerance=0.0)
        elif settings.members <= 2:
            settings = dataclasses.replace(settings, mirror=False)
        most = self.most_members(settings)
        if settings.tolerance and most <= WINDOW:
            raise InputError(
                f"tolerance: at most {most} members are too few for it; an ensemble is "
                f"stable when {WINDOW} of them in a row change nothing, the first not counted"
            )
        check_at_least("members", settings.members)
        how = {field: getattr(settings, field) for field in ("steps", "sampler", "member_chunk")}
        denoiser.check_settings(self._model, self._process.schedule.num_steps, **how)
        return settings

    def most_members(self, settings: Settings) -> int:
        """Samples per image of all trainings together; the most of them if there is a tolerance."""
        return settings.members * len(self.params)

    def drawn_at_once(self, settings: Settings) -> int:
        """Samples of each training per call of the compiled ensemble."""
        if not settings.tolerance:
            return settings.members
        return min(settings.members, -(-settings.member_chunk // len(self.params)))

    def temperature_of(self, settings: Settings) -> float:
        """What scales the probabilities, not the masks; 1 if it is votes that are fused."""
        return self.temperature if settings.fusion in fusion.OF_PROBABILITIES else 1.0

    def scaled(self, probability: np.ndarray, settings: Settings) -> np.ndarray:
        """A fused probability [..., K] at the checkpoint's temperature, as others get it."""
        temperature = self.temperature_of(settings)
        if temperature == 1:
            return probability
        scaled = apply_temperature(probability, temperature, one_hot=self.task.one_hot)
        return scaled.astype(np.float32)

    def stream(
        self,
        cases: Iterable[tuple[str, np.ndarray]],
        settings: Settings,
        *,
        keep_members: bool = False,
        keep_path: bool = False,
    ) -> Iterator[CaseResult]:
        """Segments (case id, image [H, W, C]) pairs batch by batch; memory holds a few batches.

        While the devices sample one batch, a thread reads the next, and the caller deals with the
        results of the last (see `drawing`).

        Args:
          cases: read lazily.
          settings: from `choose`.
          keep_members: also return every sample.
          keep_path: also return how the first sample came about.

        Yields:
          A result per case, in order.

        Raises:
          InputError: an image that cannot be used; names the case. A path of 0 steps.
        """
        ensembles = (self._new_ensemble(*case, settings) for case in cases)
        draw = self._drawing(settings, keep_path)
        for ensemble in draw_all(ensembles, draw, self._batch(settings)):
            result = self._result(ensemble, settings)
            if keep_members:
                members = self._all_labels(ensemble.members, ensemble.image.shape[:2])
                result = dataclasses.replace(result, members=members)
            yield result

    def _new_ensemble(self, case_id: str, image: np.ndarray, settings: Settings) -> Ensemble:
        rule = None
        if settings.tolerance:
            rule = Stability(self.task, settings.fusion, tolerance=settings.tolerance)
        small, most = self._prepare(case_id, image), self.most_members(settings)
        return Ensemble(case_id, image, small, rule, most)

    def _drawing(self, settings: Settings, keep_path: bool) -> DrawFn:
        """Starts calls of the compiled ensemble; a call takes its time from the end of the last."""
        mesh, segment = self._segment_fn(settings)
        trace = self._path_fn(settings, mesh) if keep_path else None
        trainings = jax.device_put(self.params, replicated(mesh))
        seeds = [np.uint32((settings.seed + k) % 2**32) for k in range(len(trainings))]
        size, ended = self._batch(settings), time.perf_counter()

        def start(group: Group) -> Callable[[], None]:
            padded = group + [group[-1]] * (size - len(group))
            batch = {
                "image": np.stack([one.network_image for one in padded]),
                "case": np.array([case_key(one.case_id) for one in padded], np.uint32),
                "first": np.array([one.size // len(trainings) for one in padded], np.int32),
            }
            arrays = shard_batch(on_data(mesh), batch)
            image, case, first = (arrays[name] for name in ("image", "case", "first"))
            with jax.set_mesh(mesh):
                drawn = [
                    segment(params, image, case, seed, first)
                    for params, seed in zip(trainings, seeds, strict=True)
                ]
                traced = trace(trainings[0], image, case, seeds[0], 0 * first) if trace else None

            def finish() -> None:
                nonlocal ended
                found, paths = jax.device_get((drawn, traced))
                for index, one in enumerate(group):
                    of_each = np.stack([each.members[:, index] for each in found], axis=1)
                    one.add(of_each.reshape(-1, *of_each.shape[2:]))
                    if found[0].condition_probability is not None:
                        conditions = [each.condition_probability[index] for each in found]
                        one.condition_probability = np.mean(conditions, axis=0)
                    one.path = None if paths is None else paths[index]
                began, ended = ended, time.perf_counter()
                for one in group:
                    one.seconds += (ended - began) / len(group)

            return finish

        return start

    def _result(self, ensemble: Ensemble, settings: Settings) -> CaseResult:
        """Network-sized samples -> the fused answer in the image's own size."""
        shape = ensemble.image.shape[:2]
        condition = ensemble.condition_probability
        fused = fusion.fuse(ensemble.members, self.task, settings.fusion, condition)
        doubt = fusion.uncertainty(ensemble.members, self.task)
        probability = imaging.resize_probability(fused, shape)
        how = "probable" if self.task.modalities else settings.decision
        decide = decision.rule(how, lambda: [probability], self.task)
        mask = imaging.mask_to_labels(decide(probability), self.task)
        return CaseResult(
            case_id=ensemble.case_id,
            image=ensemble.image,
            mask=mask,
            probability=probability,
            uncertainty=imaging.resize_probability(doubt[..., None], shape)[..., 0],
            fused_members=ensemble.size,
            seconds=ensemble.seconds,
            path=ensemble.path,
        )

    def _segment_fn(self, settings: Settings) -> tuple[Mesh, denoiser.SegmentFn]:
        """The compiled ensemble for these settings, and its mesh."""
        fields = ("steps", "sampler", "member_chunk", "mirror")
        chosen = {field: getattr(settings, field) for field in fields}
        mesh = sampling_mesh(self._batch(settings), self._devices)
        members = self.drawn_at_once(settings)
        if settings.tolerance:
            members += -members % mesh.shape["model"]  # the devices draw these anyway
        key = (mesh.axis_sizes, members, *chosen.values())
        if key not in self._compiled:
            fn = denoiser.make_members_fn(self._model, self._process, **chosen)
            self._compiled[key] = mesh, denoiser.compile_segment_fn(fn, mesh, members)
        return self._compiled[key]

    def _batch(self, settings: Settings) -> int:
        return even_batch(settings.batch_size, len(self._devices))

    def _path_fn(self, settings: Settings, mesh: Mesh) -> denoiser.PathFn:
        """The compiled path of one member, once per mesh, steps and sampler."""
        key = (mesh.axis_sizes, settings.steps, settings.sampler)
        if key not in self._paths:
            how = {"steps": settings.steps, "sampler": settings.sampler}
            trace = denoiser.make_path_fn(self._model, self._process, **how)
            self._paths[key] = jax.jit(
                trace, out_shardings=replicated(mesh), compiler_options=compiler_options(mesh)
            )
        return self._paths[key]

    def _prepare(self, case_id: str, image: np.ndarray) -> np.ndarray:
        """[H, W, C] -> [S, S, C] float32, exactly as the training data were prepared."""
        image = np.asarray(image)
        if image.ndim != 3 or 0 in image.shape:
            raise InputError(f"{case_id}: an image must be [H, W, C], this one is {image.shape}")
        if self.task.modalities and (
            image.dtype != np.uint16 or image.shape[-1] != self.task.image_channels
        ):
            raise InputError(
                f"{case_id}: the model was trained on volumes (sample.py reads these); a slice is "
                f"uint16 [H, W, {self.task.image_channels}] from volumes.to_stored"
            )
        if image.dtype.kind == "f":
            with np.errstate(over="ignore"):
                image = image.astype(np.float32)
            if not np.isfinite(image).all():
                raise InputError(f"{case_id}: the image has pixels that are not finite in float32")
        try:
            small = imaging.resize_image(image, (self._size, self._size))
            small = imaging.to_unit(imaging.match_channels(small, self.task.image_channels))
        except InputError as error:
            raise InputError(f"{case_id}: {error}") from error
        return imaging.normalize(small, self.task)

    def _all_labels(self, members: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        """Samples [n, S, S, K] -> label ids [n, H, W]."""
        return np.stack(
            [self._labels(imaging.resize_probability(member, shape)) for member in members]
        )

    def _labels(self, probability: np.ndarray) -> np.ndarray:
        return imaging.mask_to_labels(fusion.decide(probability, self.task), self.task)


def content_id(image: Array | np.ndarray) -> str:
    """A name for an image that has none: the CRC-32 of its pixels, as 8 hex digits."""
    return f"{zlib.crc32(np.ascontiguousarray(image).tobytes()):08x}"


def _stack(arrays: list[np.ndarray]) -> np.ndarray | list[np.ndarray]:
    alike = all(array.shape == arrays[0].shape for array in arrays)
    return np.stack(arrays) if alike else arrays
