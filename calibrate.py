"""Calibrates a trained model: python calibrate.py --checkpoint=runs/mine."""

from absl import flags

from medsegdiff_jax import cli

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Workdir or checkpoint in it.")
_MEMBERS = flags.DEFINE_integer("members", None, "Samples per image; default: the model's config.")
_STEPS = flags.DEFINE_integer("steps", None, "Denoising steps.")
_SAMPLER = flags.DEFINE_string("sampler", None, "ddim, ddpm, dpmpp or dpmpp_sde.")
_MIRROR = flags.DEFINE_bool("mirror", None, "Members also look at mirror images.")

FEW = 20  # validation cases


def main(argv: list[str]) -> None:
    """Fits a temperature on the validation cases and stores it beside the checkpoint."""
    del argv
    from medsegdiff_jax.temperature import CALIBRATION, calibrate

    found = calibrate(
        _CHECKPOINT.value,
        members=_MEMBERS.value,
        steps=_STEPS.value,
        sampler=_SAMPLER.value,
        mirror=_MIRROR.value,
    )
    before, after = found["ece"]["before"], found["ece"]["after"]
    print(
        f"temperature {found['temperature']:.3f} from {found['cases']} validation cases: "
        f"calibration error near borders {before:.4f} before, {after:.4f} after"
    )
    if found["cases"] < FEW:
        print(f"caution: these are few cases; delete {CALIBRATION} in the checkpoint to undo it")


if __name__ == "__main__":
    flags.mark_flags_as_required(["checkpoint"])
    cli.run(main)
