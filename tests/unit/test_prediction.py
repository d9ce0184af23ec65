"""Results of sample.py never replace an image or each other."""

import numpy as np
import pytest
from PIL import Image

from medsegdiff_jax import prediction
from medsegdiff_jax.segmenter import Segmenter
from medsegdiff_jax.types import InputError


def folder_of(path, *names):
    """A folder with a small colour image per name."""
    path.mkdir()
    for name in names:
        Image.fromarray(np.full((9, 7, 3), 80, np.uint8)).save(path / name)
    return path


def find(folder, segmenter):
    """The cases of a folder."""
    return prediction.find_cases(folder, None, segmenter.task)


@pytest.mark.parametrize("save", [("mask",), ("mask", "overlay")])
def test_the_images_themselves_are_never_replaced(tiny_model, tmp_path, save):
    folder = folder_of(tmp_path / "scans", "a.png")
    segmenter = Segmenter(tiny_model)
    before = (folder / "a.png").read_bytes()
    with pytest.raises(InputError, match=r"a\.png: would be replaced"):
        prediction.predict(segmenter, find(folder, segmenter), folder, segmenter.choose(), save)
    assert (folder / "a.png").read_bytes() == before
    assert [path.name for path in folder.iterdir()] == ["a.png"]


@pytest.mark.parametrize("names", [("a.png", "a_overlay.png"), ("b.png", "contact_sheet.jpg")])
def test_two_results_of_one_name_are_refused_before_anything_is_written(
    tiny_model, tmp_path, names
):
    segmenter = Segmenter(tiny_model)
    images = find(folder_of(tmp_path / "scans", *names), segmenter)
    with pytest.raises(InputError, match=names[1].replace("jpg", "png")):
        prediction.predict(
            segmenter, images, tmp_path / "out", segmenter.choose(), ("mask", "overlay")
        )
    assert not (tmp_path / "out").exists()
