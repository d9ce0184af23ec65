"""How a folder is split, by its lists and names alone."""

import pytest

from data.catalogue import share
from data.folder import Builder
from data.folder.lists import assign
from tests.layouts import case_ids, touch


def split_names(root, fraction=0.1):
    """Split -> case ids by the index alone."""
    return case_ids(Builder.catalogue(root, "", fraction))


@pytest.fixture
def many(tmp_path):
    """Forty cases without lists; empty files, since an index looks at names alone."""
    for number in range(40):
        touch(f"images/{number:02d}.png", f"masks/{number:02d}.png")(tmp_path / "many")
    return tmp_path / "many"


def assert_partition(splits, count=40):
    """Every case is in exactly one split."""
    assert sorted(sum(splits.values(), [])) == [f"{number:02d}" for number in range(count)]


def test_without_lists_eighty_ten_ten_by_name_alone(many):
    splits = split_names(many)
    assert {split: len(cases) for split, cases in splits.items()} == {
        "train": 32,
        "validation": 4,
        "test": 4,
    }
    assert_partition(splits)
    # These very names: results that were published depend on them.
    assert splits["validation"] == ["09", "13", "17", "29"]
    assert splits["test"] == ["03", "07", "08", "39"]


@pytest.mark.parametrize(("fraction", "count"), [(0.0, 0), (0.05, 2), (0.5, 20), (0.99, 35)])
def test_without_lists_the_fraction_counts_all_cases_and_leaves_the_test_split(
    many, fraction, count
):
    splits = split_names(many, fraction)
    assert len(splits["validation"]) == count
    assert splits["test"] == split_names(many)["test"]
    assert_partition(splits)


def test_without_lists_the_default_is_a_ninth_of_what_is_left_by_the_test_split():
    for count in range(2, 300):
        ids = [f"{number:02d}" for number in range(count)]
        rest, test = share(ids, 0.1)
        train, validation = share(rest, 1 / 9)
        expected = {"train": train, "validation": validation, "test": test}
        assert assign({}, ids, 0.1, {}) == expected


def test_with_a_test_list_alone_the_rest_is_for_training(many):
    (many / "test.txt").write_text("03\n01.png\n02\n00.PNG\n")
    splits = split_names(many, fraction=0.25)
    assert splits["test"] == ["03", "01", "02", "00"]  # the order of the list
    assert len(splits["train"]) == 27 and len(splits["validation"]) == 9
    assert_partition(splits)
    assert not split_names(many, fraction=0.0)["validation"]


def test_a_validation_list_is_taken_as_it_is(many):
    (many / "val.txt").write_text("00\n01\n\n")
    splits = split_names(many)
    assert splits["validation"] == ["00", "01"]
    assert len(splits["train"]) == 38 and splits["test"] == []
    assert_partition(splits)
