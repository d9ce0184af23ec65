"""What Segmenter does around the network: pixels as in training, constant batches, own sizes."""

import dataclasses

import jax
import numpy as np
import pytest

from medsegdiff_jax import decision, fusion, imaging
from medsegdiff_jax.ensemble_size import members_needed
from medsegdiff_jax.partitioning import sampling_mesh
from medsegdiff_jax.segmenter import Segmenter
from medsegdiff_jax.types import Drawn, InputError, Modality, case_key, slice_id

SIDE = 16
MEMBERS_ALONE = ("mean", "vote", "staple")
SIZES = ((20, 28), (16, 16), (40, 9), (13, 31), (20, 28))


@pytest.fixture(scope="module")
def segmenter(tiny_model):
    """One segmenter for all tests: its compiled functions are shared."""
    return Segmenter(tiny_model)


@pytest.fixture(scope="module")
def images():
    """Five colour images of four sizes."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]


class Recorder:
    """Stands in for the compiled ensemble: remembers its inputs, answers with given samples.

    Its condition model marks nothing.
    """

    def __init__(self, samples):
        self.samples, self.calls = samples, []

    def __call__(self, params, image, case, seed, first):
        """Same arguments and result as a SegmentFn."""
        self.calls.append((np.asarray(image), np.asarray(case), int(seed)))
        shape = (len(image), *self.samples.shape[1:])
        members = np.broadcast_to(self.samples[:, None], (len(self.samples), *shape))
        return Drawn(members, np.zeros(shape, np.float32))


@pytest.fixture
def recorded(segmenter, monkeypatch):
    """Puts a Recorder of three different members in place of the network; returns it."""
    ramp = np.linspace(0, 1, 16, dtype=np.float32)
    steep = np.clip(3 * ramp - 1, 0, 1)
    rows = (ramp, steep, 0.2 + 0.5 * ramp)
    members = np.stack([np.tile(row, (16, 1)) for row in rows])[..., None]
    recorder = Recorder(members)
    monkeypatch.setattr(
        segmenter, "_segment_fn", lambda settings: (sampling_mesh(1, jax.devices()), recorder)
    )
    return recorder


def test_the_network_sees_what_training_saw(segmenter, images, recorded):
    grey16 = np.random.default_rng(1).integers(0, 65536, (30, 22, 1), dtype=np.uint16)
    segmenter([images[0], grey16], case_ids=["colour", "grey"])
    seen, keys, _ = recorded.calls[0]
    for index, image in enumerate((images[0], grey16)):
        stored = imaging.match_channels(imaging.resize_image(image, (16, 16)), 3)
        np.testing.assert_array_equal(
            seen[index], imaging.normalize(imaging.to_unit(stored), segmenter.task)
        )
    # CRC-32 of "colour" and "grey", from Perl's Compress::Zlib.
    assert keys[:2].tolist() == [0xFAF865CE, 0xE193FAE2]


def test_a_call_with_few_images_computes_few(segmenter, images, recorded):
    segmenter(images[:1], batch_size=4)
    assert recorded.calls[0][0].shape == (1, 16, 16, 3)


def test_every_batch_has_one_shape_and_padding_is_dropped(segmenter, images, recorded):
    result = segmenter(images, batch_size=2)
    assert len(result.mask) == 5
    assert [call[0].shape for call in recorded.calls] == [(2, 16, 16, 3)] * 3


def test_ragged_batches_are_traced_once(tiny_model, images):
    segmenter = Segmenter(tiny_model)
    for count in (5, 4, 3):
        segmenter(images[:count], batch_size=2)
    (compiled,) = segmenter._compiled.values()
    assert compiled[1]._cache_size() == 1


def test_the_next_batch_is_started_before_the_last_is_dealt_with(segmenter, images, recorded):
    cases = ((str(index), image) for index, image in enumerate(images))
    results = segmenter.stream(cases, segmenter.choose(batch_size=1))
    assert next(results).case_id == "0" and len(recorded.calls) == 2


def test_what_came_before_an_unreadable_image_is_not_lost(segmenter, images, recorded):
    def cases():
        yield "a", images[0]
        raise InputError("b: cannot be read")

    results = segmenter.stream(cases(), segmenter.choose(batch_size=1))
    assert next(results).case_id == "a"
    with pytest.raises(InputError, match="b: cannot be read"):
        next(results)


def test_a_path_leads_from_noise_to_the_first_sample(segmenter):
    image = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    settings = segmenter.choose(members=2, steps=3)
    (result,) = segmenter.stream([("a", image)], settings, keep_members=True, keep_path=True)
    assert result.path.shape == (3, SIDE, SIDE, 2)
    noise, chance = result.path[..., 0], result.path[..., 1]
    assert abs(noise[0].mean()) < 0.2 and 0.9 < noise[0].std() < 1.1
    first = fusion.decide(chance[-1][..., None], segmenter.task)
    np.testing.assert_array_equal(imaging.mask_to_labels(first, segmenter.task), result.members[0])
    with pytest.raises(InputError, match="steps=0 has no path"):
        next(segmenter.stream([("a", image)], segmenter.choose(steps=0), keep_path=True))


def test_slices_of_a_volume_start_from_the_same_noise(segmenter):
    image = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    cases = [(name, image) for name in (slice_id("a", 0), slice_id("a", 1), slice_id("b", 0))]
    settings = segmenter.choose(members=2, steps=2, batch_size=3)
    first, second, other = segmenter.stream(cases, settings, keep_path=True)
    np.testing.assert_allclose(first.path, second.path, atol=1e-4)
    assert np.abs(first.path - other.path).max() > 0.1


def test_probabilities_are_resized_and_then_decided(segmenter, recorded):
    image = np.zeros((16, 64, 3), np.uint8)
    result = segmenter([image], case_ids=["x"], fusion="mean", decision="probable")
    row = result.probability[0, 8, :, 0]
    fused = recorded.samples.mean(axis=0)
    expected = imaging.resize_probability(fused, (16, 64))[8, :, 0]
    np.testing.assert_allclose(row, expected, rtol=1e-6)
    assert len(np.unique(row)) > 40  # a resized decision would have two values
    np.testing.assert_array_equal(result.mask[0, 8], np.where(row >= 0.5, 255, 0))
    vote = segmenter([image], case_ids=["x"], fusion="vote").probability[0, 8, :, 0]
    decided = fusion.decide(recorded.samples, segmenter.task).mean(axis=0)
    np.testing.assert_allclose(vote, imaging.resize_probability(decided, (16, 64))[8, :, 0])
    blend = segmenter([image], case_ids=["x"]).probability[0, 8, :, 0]
    np.testing.assert_allclose(blend, expected / 2, rtol=1e-6)


def test_the_dice_decision_is_made_before_the_temperature(segmenter, recorded, monkeypatch):
    images = [np.zeros((16, 64, 3), np.uint8)]
    probable = segmenter(images, case_ids=["x"], fusion="mean", decision="probable")
    dice = segmenter(images, case_ids=["x"], fusion="mean", decision="dice")
    np.testing.assert_array_equal(dice.probability, probable.probability)
    (probability,) = dice.probability
    decide = decision.rule("dice", lambda: [probability], segmenter.task)
    expected = imaging.mask_to_labels(decide(probability), segmenter.task)
    np.testing.assert_array_equal(dice.mask[0], expected)
    assert (dice.mask >= probable.mask).all() and (dice.mask > probable.mask).any()
    monkeypatch.setattr(segmenter, "temperature", 2.0)
    scaled = segmenter(images, case_ids=["x"], fusion="mean", decision="dice")
    assert np.abs(scaled.probability - dice.probability).max() > 0.1
    np.testing.assert_array_equal(scaled.mask, dice.mask)
    with pytest.raises(InputError, match="decision: 'best' is not one of"):
        segmenter.choose(decision="best")


def jittered(case, member):
    """[16, 16, 1] masks whose border wanders row by row, for some cases more."""
    wandering = np.random.default_rng([int(case), member]).normal(0, 0.5 + int(case) % 5, (16, 1))
    return (np.arange(16.0) < 8.3 + wandering).astype(np.float32)[..., None]


@pytest.mark.parametrize("method", MEMBERS_ALONE)
def test_an_image_gets_the_members_it_needs_whatever_it_is_sampled_with(
    segmenter, images, monkeypatch, method
):
    def drawing(settings):
        def draw(params, image, case, seed, first):
            numbers = np.asarray(first) + np.arange(segmenter.drawn_at_once(settings))[:, None]
            pairs = np.broadcast_to(np.asarray(case), numbers.shape), numbers
            members = [
                [jittered(*one) for one in zip(*row, strict=True)]
                for row in zip(*pairs, strict=True)
            ]
            return Drawn(np.stack(members), None)

        return sampling_mesh(1, jax.devices()), draw

    monkeypatch.setattr(segmenter, "_segment_fn", drawing)
    cases = [(name, image) for name, image in zip("abcde", images, strict=True)]

    def run(members=40, **changes):
        settings = segmenter.choose(members=members, fusion=method, **changes)
        return list(segmenter.stream(cases, settings, keep_members=True))

    whole = run(batch_size=2)
    assert [result.fused_members for result in whole] == [40] * 5
    samples = np.stack([[jittered(case_key(name), n) for name in "abcde"] for n in range(40)])
    needed = members_needed(samples, segmenter.task, method, tolerance=0.006)
    sizes = [size or 40 for size in needed]
    assert len(set(sizes)) > 2 and min(sizes) < 30 and None in needed
    for batch_size, chunk in ((1, 4), (3, 7), (5, 60)):
        found = run(batch_size=batch_size, member_chunk=chunk, tolerance=0.006)
        assert [result.fused_members for result in found] == sizes
        for index, (result, all_members) in enumerate(zip(found, whole, strict=True)):
            np.testing.assert_array_equal(result.members, all_members.members[: sizes[index]])
            own = fusion.fuse(samples[: sizes[index], index : index + 1], segmenter.task, method)
            shape = result.image.shape[:2]
            np.testing.assert_allclose(
                result.probability, imaging.resize_probability(own[0], shape), atol=1e-6
            )
    last = max(size for size in sizes if size < 40)
    found = run(members=last - 1, member_chunk=last - 2, tolerance=0.006)  # draws more than that
    assert [result.fused_members for result in found] == [min(size, last - 1) for size in sizes]


def test_members_drawn_later_are_those_of_a_larger_ensemble(segmenter, images):
    cases = list(zip("abcde", images, strict=True))

    def run(**changes):
        settings = segmenter.choose(members=24, batch_size=3, **changes)
        return list(segmenter.stream(cases, settings, keep_members=True))

    whole = run()
    found = run(member_chunk=5, tolerance=0.02)
    assert {result.fused_members for result in whole} == {24}
    assert max(result.fused_members for result in found) > 10
    for result, all_members in zip(found, whole, strict=True):
        first = all_members.members[: result.fused_members]
        # Another chunk moves last digits, and with them hardly a pixel at one half.
        assert np.mean(result.members != first) < 1e-3


@pytest.mark.parametrize(("members", "tolerance"), [(10, 0.001), (3, 0.9)])
def test_a_tolerance_needs_more_members_than_must_change_nothing(segmenter, members, tolerance):
    with pytest.raises(InputError, match=f"tolerance: at most {members} members are too few"):
        segmenter.choose(members=members, tolerance=tolerance)
    assert segmenter.choose(members=11, tolerance=tolerance).tolerance == tolerance
    assert segmenter.choose(members=members, steps=0, tolerance=tolerance).tolerance == 0


def test_what_float32_does_not_hold_is_refused(segmenter):
    image = np.random.default_rng(0).uniform(size=(1, 9, 9, 3))
    with pytest.raises(InputError, match="a: the image has pixels that are not finite in float32"):
        segmenter(image * 1e39, case_ids=["a"])


def test_names_of_cases_are_strings(segmenter, images):
    with pytest.raises(InputError, match="case_ids: names are strings"):
        segmenter(images[:2], case_ids=[1, 2])


def test_mirror_images_are_for_models_that_know_them(segmenter, tiny_model):
    assert segmenter.settings.mirror
    assert segmenter.choose(steps=0).members == 4  # a view each
    assert segmenter.choose(steps=0, mirror=False).members == 1
    assert [segmenter.choose(members=n).mirror for n in (1, 2, 3)] == [False, False, True]
    config = tiny_model.config.copy_and_resolve_references()
    config.data.augment.flip = False
    sided = Segmenter(dataclasses.replace(tiny_model, config=config))
    assert not sided.settings.mirror and sided.choose(steps=0).members == 1
    with pytest.raises(InputError, match=r"mirror: .*data\.augment\.flip=False"):
        sided.choose(mirror=True)


def test_slices_of_volumes_come_prepared(tiny_model):
    scan = dataclasses.replace(tiny_model.task, modalities=(Modality("CT", (-160.0, 240.0)),) * 3)
    segmenter = Segmenter(dataclasses.replace(tiny_model, task=scan))
    for wrong in (np.zeros((1, 9, 9, 3), np.float32), np.zeros((1, 9, 9, 1), np.uint16)):
        with pytest.raises(InputError, match=r"a slice is uint16 \[H, W, 3\]"):
            segmenter(wrong)
    assert segmenter(np.zeros((1, 9, 9, 3), np.uint16), steps=1, members=1).mask.shape == (1, 9, 9)


def test_a_blend_needs_a_condition_model_that_segments(segmenter, monkeypatch):
    assert segmenter.settings.fusion == "blend"
    monkeypatch.setattr(segmenter._model, "encode_segments", False, raising=False)
    with pytest.raises(InputError, match="fusion: a blend needs"):
        segmenter.choose()
    assert segmenter.choose(fusion="mean").fusion == "mean"
