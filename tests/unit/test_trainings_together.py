"""Several trainings as one ensemble: whose samples come where, and which do not belong together."""

import dataclasses

import jax
import numpy as np
import pytest

from medsegdiff_jax import checkpoint, fusion
from medsegdiff_jax.segmenter import Segmenter
from medsegdiff_jax.types import InputError, Modality

CASES = [
    (name, np.random.default_rng(key).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    for key, name in enumerate("abcde")
]


@pytest.fixture(scope="module")
def models(tiny_model):
    """Three sets of weights of one network."""
    factors = (1.0, 0.8, -0.9)
    return [
        dataclasses.replace(
            tiny_model, params=jax.tree.map(lambda leaf, f=factor: f * leaf, tiny_model.params)
        )
        for factor in factors
    ]


@pytest.fixture(scope="module")
def together(models):
    """Them as one."""
    return Segmenter(*models)


def drawn(segmenter, **changes):
    """Every case's samples at the network's size, and its result."""
    kept = []
    ensemble = segmenter._result

    def watched(one, settings):
        kept.append((one.members, one.condition_probability))
        return ensemble(one, settings)

    segmenter._result = watched
    try:
        results = list(segmenter.stream(CASES, segmenter.choose(**changes), keep_members=True))
    finally:
        del segmenter._result
    return [*zip(*kept, strict=True)], results


@pytest.mark.parametrize(("members", "steps", "seed"), [(3, 2, 5), (2, 1, 2**32 - 1), (1, 0, 0)])
def test_samples_of_the_trainings_take_turns_each_with_a_seed_of_its_own(
    models, together, members, steps, seed
):
    changes = {"members": members, "steps": steps}
    (ours, our_conditions), results = drawn(together, seed=seed, **changes)
    alone = [
        drawn(Segmenter(model), seed=(seed + k) % 2**32, **changes)[0]
        for k, model in enumerate(models)
    ]
    for case, result in enumerate(results):
        assert result.fused_members == len(ours[case]) == 3 * len(alone[0][0][case])
        for k, (theirs, _) in enumerate(alone):
            np.testing.assert_allclose(ours[case][k::3], theirs[case], atol=1e-6)
        mean = np.mean([conditions[case] for _, conditions in alone], axis=0)
        np.testing.assert_allclose(our_conditions[case], mean, atol=1e-6)
        blend = fusion.fuse(ours[case], together.task, "blend", mean)
        np.testing.assert_allclose(result.probability, blend, atol=1e-6)
        np.testing.assert_array_equal(
            result.members[..., None] > 0, fusion.decide(ours[case], together.task) > 0
        )
    assert np.abs(ours[0][0] - ours[0][1]).max() > 0.01  # else the turns would not show


def test_a_tolerance_counts_the_members_of_all(together):
    (ours, _), results = drawn(together, members=8, tolerance=0.9, member_chunk=2)
    assert together.drawn_at_once(together.choose(members=8, tolerance=0.9, member_chunk=5)) == 2
    assert together.drawn_at_once(together.choose(members=8, member_chunk=5)) == 8
    # The first has nothing before it; then ten, of this training and that, change little.
    assert {result.fused_members for result in results} == {11}
    (fixed, _), _ = drawn(together, members=4)
    for stopped, case in zip(ours, fixed, strict=True):
        np.testing.assert_allclose(stopped, case[:11], atol=1e-6)
    with pytest.raises(InputError, match="at most 9 members are too few"):
        together.choose(members=3, tolerance=0.9)


def test_temperatures_are_those_of_single_trainings(models):
    hot = [dataclasses.replace(m, temperature=2.0, fitted_with={"steps": 2}) for m in models]
    alone, together = Segmenter(hot[0]), Segmenter(*hot[:2])
    settings = alone.choose()
    assert alone.temperature_of(settings) == 2 and alone.fitted_with == {"steps": 2}
    assert together.temperature_of(settings) == 1 and together.fitted_with == {}
    assert together.sets_temperatures_aside and not alone.sets_temperatures_aside
    assert not Segmenter(*models[:2]).sets_temperatures_aside


def changed(model, field, value):
    """The model with another field of its config."""
    config = model.config.copy_and_resolve_references()
    config.update_from_flattened_dict({field: value})
    return dataclasses.replace(model, config=config)


def loading(monkeypatch, models):
    """`load_models` of folders with these models in them."""
    folders = {f"run{k}": model for k, model in enumerate(models)}
    monkeypatch.setattr(checkpoint, "load_model", folders.get)
    return checkpoint.load_models(list(folders))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model.widths", (8, 8)),
        ("diffusion.prediction", "eps"),
        ("data.image_size", 32),
        ("data.plane", "coronal"),
        ("data.neighbours", 1),
        ("data.augment.flip", False),
    ],
)
def test_another_network_or_preparation_does_not_belong(models, monkeypatch, field, value):
    others = [models[0], models[1], changed(models[2], field, value)]
    assert len(loading(monkeypatch, others[:2])) == 2
    with pytest.raises(InputError, match=f"run2: has another {field} than run0"):
        loading(monkeypatch, others)


def test_another_task_does_not_belong(models, monkeypatch):
    scans = dataclasses.replace(models[0].task, modalities=(Modality("CT", (-100.0, 200.0)),))
    narrow = dataclasses.replace(models[0].task, modalities=(Modality("CT", (-90.0, 200.0)),))
    others = [dataclasses.replace(models[0], task=task) for task in (scans, narrow)]
    with pytest.raises(InputError, match=r"run1: has another task\.modalities than run0"):
        loading(monkeypatch, others)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", 7),
        ("data.fold", 2),
        ("data.path", "elsewhere"),
        ("model.remat", True),
        ("sampling.batch_size", 2),
    ],
)
def test_seeds_data_and_training_may_differ(models, monkeypatch, field, value):
    others = [models[0], changed(models[1], field, value)]
    assert loading(monkeypatch, others) == others


def test_a_checkpoint_counts_once(models, monkeypatch, tmp_path):
    monkeypatch.setattr(checkpoint, "load_model", lambda path: models[0])
    with pytest.raises(InputError, match="run: is given twice"):
        checkpoint.load_models([tmp_path / "run", tmp_path / "other", tmp_path / "x/../run"])
