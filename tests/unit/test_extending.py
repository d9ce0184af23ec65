"""What docs/extending.md shows can be done that way."""

import re
from pathlib import Path

import pytest

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "extending.md"
BLOCKS = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.S)


def test_the_samplers_alone_draw_what_the_denoiser_knows():
    (block,) = BLOCKS
    names = {}
    exec(block, names)
    x_0 = names["x_0"]
    assert x_0.shape == (4096, 1)
    # Five standard errors.
    assert float(x_0.mean()) == pytest.approx(2, abs=5 * 0.5 / 64)
    assert float(x_0.std()) == pytest.approx(0.5, abs=5 * 0.5 / 64 / 2**0.5)
