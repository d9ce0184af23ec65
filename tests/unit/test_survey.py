"""What a survey says of cases that have been read, beside what whole folders show."""

from pathlib import Path

import pytest

from data.catalogue import Case, Catalogue, MaskFile
from data.staging import Facts
from data.survey import survey
from medsegdiff_jax.types import InputError, Task

ROOT = Path("scans")


def surveyed(cases, task=None):
    """The survey of pictures, each {labels in the file, whether nothing is left of them}."""
    facts = [
        Facts((64, 64), (64, 64), (), 1, "uint8", ({0: 4000, **labels},), (empty,))
        for labels, empty in cases
    ]
    found = [
        Case(str(i), (ROOT / f"{i}.png",), ((MaskFile(ROOT / f"{i}_mask.png"),),))
        for i in range(len(cases))
    ]
    splits = {"train": tuple(found), "validation": (), "test": ()}
    return survey(Catalogue(ROOT, task, ("",), splits), facts)


def test_masks_of_which_nothing_is_left_are_counted():
    report = surveyed([({255: 9}, True), ({255: 900}, False), ({}, True)]).report
    assert "of 1 of 2 masks with labels nothing is left at the size of the network" in report
    assert "nothing is left" not in surveyed([({255: 900}, False), ({}, True)]).report


def test_masks_of_which_nothing_is_left_at_all_are_refused():
    with pytest.raises(InputError, match=r"^scans: of no mask .* data\.image_size"):
        surveyed([({255: 9}, True), ({255: 9}, True), ({}, True)])


@pytest.mark.parametrize(
    ("exclusive", "values", "found", "absent"),
    [
        (True, (1, 2, 4), {4: 9}, "disc, cup"),
        (False, (1, 2, 4), {5: 9}, "cup"),
        (False, (1, 2, 4), {7: 9}, ""),
    ],
)
def test_declared_classes_that_no_mask_has_are_named(exclusive, values, found, absent):
    task = Task(("disc", "cup", "rim"), values, exclusive, 1)
    notes = [
        line for line in surveyed([(found, False)], task).report.splitlines() if "note" in line
    ]
    assert notes == ([f"  note    in no mask: {absent}"] if absent else [])


@pytest.mark.parametrize("task", [None, Task(("disc",), (1,), True, 1)])
def test_masks_that_are_all_empty_are_refused(task):
    with pytest.raises(InputError, match="^scans: every mask is empty"):
        surveyed([({}, True), ({}, True)], task)
