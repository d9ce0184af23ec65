"""Segments: python sample.py --checkpoint=runs/mine --input=FOLDER --output=OUT."""

from absl import flags

from medsegdiff_jax import cli

_CHECKPOINT = flags.DEFINE_multi_string(
    "checkpoint", None, "Workdir, checkpoint or exported folder; of several one ensemble is made."
)
_INPUT = flags.DEFINE_string("input", None, "Image or NIfTI file, or folder of them.")
_LIST = flags.DEFINE_string("list", None, "Text file of case names: only these.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write.")
_MEMBERS = flags.DEFINE_integer(
    "members", None, "Samples per image and checkpoint; default: the model's config."
)
_STEPS = flags.DEFINE_integer(
    "steps", None, "Denoising steps; 0 = condition model alone, a member per view."
)
_SAMPLER = flags.DEFINE_string("sampler", None, "ddim, ddpm, dpmpp or dpmpp_sde.")
_FUSION = flags.DEFINE_string("fusion", None, "mean, blend, vote or staple.")
_DECISION = flags.DEFINE_string(
    "decision", None, "dice: the mask that promises the highest Dice; probable: pixel by pixel."
)
_MIRROR = flags.DEFINE_bool("mirror", None, "Members also look at mirror images.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "Images, or slices, at once.")
_TOLERANCE = flags.DEFINE_float(
    "tolerance",
    None,
    "Draw, --members at most, until the mask of all so far moves by at most this Dice, e.g. 0.001.",
)
_SEED = flags.DEFINE_integer("seed", 0, "Of all noise.")
_SAVE = flags.DEFINE_list(
    "save",
    "mask,probability,uncertainty,overlay",
    "Some of mask, probability, uncertainty, overlay, members, animation.",
)


def main(argv: list[str]) -> None:
    """Segments what --input names and writes the results to --output."""
    del argv
    from medsegdiff_jax import prediction
    from medsegdiff_jax.segmenter import Segmenter

    prediction.check_save(_SAVE.value)
    segmenter = Segmenter.load(*_CHECKPOINT.value)
    cases = prediction.find_cases(_INPUT.value, _LIST.value, segmenter.task)
    settings = segmenter.choose(
        members=_MEMBERS.value,
        steps=_STEPS.value,
        sampler=_SAMPLER.value,
        fusion=_FUSION.value,
        decision=_DECISION.value,
        mirror=_MIRROR.value,
        batch_size=_BATCH_SIZE.value,
        seed=_SEED.value,
        tolerance=_TOLERANCE.value,
    )
    print(f"using {segmenter.description} from {', '.join(_CHECKPOINT.value)}")
    views = ", with mirror images" if settings.mirror else ""
    enough = f" at most, until the mask moves by at most {settings.tolerance}"
    print(
        f"{segmenter.most_members(settings)} members{enough if settings.tolerance else ''}, "
        f"{settings.steps} {settings.sampler} steps, fused by {settings.fusion}{views}"
    )
    print(f"writing {', '.join(_SAVE.value)} of {len(cases)} cases to {_OUTPUT.value}", flush=True)
    prediction.predict(segmenter, cases, _OUTPUT.value, settings, _SAVE.value)


if __name__ == "__main__":
    flags.mark_flags_as_required(["checkpoint", "input", "output"])
    cli.run(main)
