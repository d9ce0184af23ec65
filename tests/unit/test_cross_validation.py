"""Folds of the training and validation cases, whatever divided these before."""

from pathlib import Path

import numpy as np
import pytest

from configs import base
from data.catalogue import Case, cross_validation
from medsegdiff_jax import input_pipeline
from medsegdiff_jax.types import InputError
from tests.layouts import save_image


def cases(*names, group=""):
    return tuple(Case(name, (Path(name),), (), group) for name in names)


def ids(splits):
    return {split: [case.id for case in found] for split, found in splits.items()}


def folds_of(splits, folds):
    return [ids(cross_validation(splits, folds, fold)) for fold in range(folds)]


@pytest.mark.parametrize("folds", [2, 3, 5, 13])
def test_every_case_validates_once_and_trains_otherwise(folds):
    names = [f"c{number:02d}" for number in range(13)]
    splits = {"train": cases(*names[:9]), "validation": cases(*names[9:]), "test": cases("t")}
    found = folds_of(splits, folds)
    assert sorted(name for fold in found for name in fold["validation"]) == names
    assert {len(fold["validation"]) for fold in found} <= {13 // folds, -(-13 // folds)}
    for fold in found:
        assert sorted(fold["train"] + fold["validation"]) == names and fold["test"] == ["t"]
    # What validated before makes no difference.
    other = {"train": cases(*names[3:]), "validation": cases(*names[:3]), "test": cases("t")}
    assert folds_of(other, folds) == found


def test_cases_of_a_group_validate_together():
    patients = {f"p{number}": [f"p{number}_{i}" for i in range(number + 1)] for number in range(6)}
    every = tuple(
        case for patient, names in patients.items() for case in cases(*names, group=patient)
    )
    found = folds_of({"train": every, "validation": (), "test": ()}, 3)
    for fold in found:
        validating = {name.partition("_")[0] for name in fold["validation"]}
        assert len(validating) == 2
        assert set(fold["validation"]) == {name for one in validating for name in patients[one]}


@pytest.mark.parametrize(
    ("folds", "fold", "message"),
    [
        (1, 0, "data.folds: 1 is not 0"),
        (-5, 0, "data.folds: -5 is not 0"),
        (5, 5, "data.fold: 5 is not in 0..4"),
        (5, -1, "data.fold: -1 is not in 0..4"),
        (4, 0, "data.folds: 3 cases, or groups, are too few for 4 folds"),
    ],
)
def test_folds_that_cannot_be(folds, fold, message):
    splits = {"train": cases("a", "b"), "validation": cases("c"), "test": ()}
    with pytest.raises(InputError, match=message):
        cross_validation(splits, folds, fold)


def test_folds_are_datasets_of_their_own(tmp_path):
    root = tmp_path / "input"
    for number, name in enumerate("abcdef"):
        save_image(root / "images" / f"{name}.png", np.full((8, 8), number, np.uint8))
        save_image(root / "masks" / f"{name}.png", 255 * np.eye(8, dtype=np.uint8))
    (root / "test.txt").write_text("f\n")
    data = base.get_config().data
    data.path, data.image_size, data.cache_dir = str(root), 8, str(tmp_path / "cache")
    data.fold = 1
    with pytest.raises(InputError, match=r"data\.fold: 1 needs data\.folds"):
        input_pipeline.load(data)
    data.folds = 2
    one = input_pipeline.load(data)
    data.fold = 0
    other = input_pipeline.load(data)
    names, others = ({k: names_of(v) for k, v in found.sources.items()} for found in (one, other))
    assert names["train"] == others["validation"] and names["validation"] == others["train"]
    assert sorted(names["train"] + names["validation"]) == list("abcde") and names["test"] == ["f"]
    assert one.fingerprint != other.fingerprint
    assert "cross-validation: fold 1 of 0..1 validates" in one.report


def names_of(source):
    return [example["id"].decode() for example in source]
