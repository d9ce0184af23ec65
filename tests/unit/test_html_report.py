"""The report: one file, escaped, complete, with the worst cases first."""

import html.parser
import io
import math

import numpy as np
import pytest
from PIL import Image

from medsegdiff_jax import html_report, worst_cases
from medsegdiff_jax.metrics.aggregate import score_case
from medsegdiff_jax.types import Task

NASTY = "<b>&\"'ü</b>"
TASK = Task(("a", "b"), (1, 2), True, 3)


class Parsed(html.parser.HTMLParser):
    """Links, texts, table cells and unclosed tags of a page."""

    VOID = {"meta", "img", "input", "br", "link"}

    def __init__(self, text):
        super().__init__()
        self.links, self.texts, self.rows, self.open = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.links += [attrs[key] for key in ("src", "href") if key in attrs]
        if tag == "tr":
            self.rows.append([])
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append(data.strip())
            if {"td", "th"} & set(self.open[-3:]):
                self.rows[-1].append(data.strip())


def png(side=4):
    """A black picture."""
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((side, side), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def summary(**more):
    """What metrics.json says of two classes."""
    row = {"mean": 0.75, "sd": 0.125, "low": 0.5, "high": 0.875, "n_valid": 2, "n_cases": 3}
    undefined = dict.fromkeys(row, math.nan) | {"n_valid": 0, "n_cases": 3}
    return {
        "version": "1.2.3",
        "run": {"predictions": [f"runs/{NASTY}"], "sampling": {"members": 10, "steps": 10}},
        "spacing": [1.0, 1.0],
        "nsd_tolerance": 2.0,
        "empty_mask_policy": "strict",
        "conventions": {"dice": "of masks", "empty_strict": "both empty: 1"},
        "references_without_prediction": [],
        "groups": None,
        "classes": {NASTY: {"dice": row}, "b": {"dice": undefined}},
        **more,
    }


ROWS = [
    {"case": f"case {i} {NASTY}", "class": "a", "dice": dice, "hd95": hd95}
    for i, (dice, hd95) in enumerate([(0.5, 12.25), (math.nan, math.nan), (1.0, 0.0)])
]


@pytest.fixture
def page(tmp_path):
    """Writes a report, returns it parsed: page(summary, rows)."""

    def write(content, rows=ROWS, worst=()):
        plots = [html_report.Figure("Dice", png(), "a plot")]
        path = tmp_path / "report.html"
        html_report.write(path, content, rows, plots, list(worst), worst_cases.LEGEND)
        assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
        return Parsed(path.read_text("utf-8"))

    return write


def test_nothing_is_loaded_from_elsewhere_and_all_tags_close(page):
    found = page(summary(), worst=[html_report.Figure(NASTY, png(), NASTY, NASTY)])
    assert not found.open
    assert len([link for link in found.links if link.startswith("data:image/png;")]) == 2
    assert all(link.startswith(("data:", "#")) for link in found.links)


def test_names_are_text_not_markup(page):
    found = page(summary())
    for row in ROWS:
        assert row["case"] in found.texts
    assert f"runs/{NASTY}" in found.texts


def test_the_tables_hold_all_rows_with_the_numbers_of_the_summary(page):
    found = page(summary())
    assert ["class", "Dice"] in found.rows
    assert [NASTY, "0.7500", "0.5000 to 0.8750", "2 of 3 cases"] in found.rows
    dash = html_report.UNDEFINED
    assert ["b", dash, "0 of 3 cases"] in found.rows
    assert [f"case 0 {NASTY}", "a", "0.5000", "12.25"] in found.rows
    assert [f"case 1 {NASTY}", "a", dash, dash] in found.rows
    assert "strict: both empty: 1" in found.texts
    assert "0.75, 3" in page(summary(spacing=[0.75, 3.0])).texts


def test_uncertainty_has_a_section_if_there_is_any(page):
    row = summary()["classes"][NASTY]["dice"]
    uncertainty = {
        "classes": {"a": {"ged": row}},
        "rater_dice": {},
        "calibration": {
            "a": {"border": {"ece": 0.25, "pixels": 1234567, "reliability": {"pixels": [1]}}}
        },
        "ranking": {},
    }
    found = page(summary(uncertainty=uncertainty))
    assert ["class", "GED"] in found.rows
    assert ["a", "0.7500", "0.5000 to 0.8750", "2 of 3 cases"] in found.rows
    assert ["a", "border", "0.2500", "1,234,567"] in found.rows
    assert found.texts.count("Uncertainty") == 2  # in the navigation, too
    assert "Uncertainty" not in page(summary()).texts


def masks(*pixels):
    """A mask [4, 4] with this many pixels."""
    mask = np.zeros(16, bool)
    mask[: pixels[0]] = True
    return mask.reshape(4, 4)


def test_the_worst_cases_come_first_each_once_with_its_worst_class(monkeypatch):
    monkeypatch.setattr(worst_cases, "WORST_CASES", 2)
    scores = [
        score_case(name, kind, masks(predicted), masks(8), (1, 1), 2.0, "strict")
        for name, kind, predicted in [
            ("good", "a", 8),
            ("bad", "a", 8),
            ("bad", "b", 1),
            ("middling", "a", 4),
        ]
    ]
    chosen = worst_cases.choose(scores)
    assert [(one.case, one.class_name) for one in chosen] == [("bad", "b"), ("middling", "a")]


def test_a_worst_case_is_drawn_on_its_image_or_on_grey(tmp_path):
    labels = np.zeros((8, 12), np.uint8)
    labels[2:6, 3:9] = 1
    score = score_case("x", "a", labels == 1, labels == 1, (1, 1), 2.0, "strict")
    Image.fromarray(np.full((8, 12, 3), 200, np.uint8)).save(tmp_path / "x.png")
    for inputs, level, note in (([tmp_path / "x.png"], 200, False), ([], 110, True)):
        figure = worst_cases.picture(score, labels, labels, TASK, None, "axial", inputs, None)
        picture = np.asarray(Image.open(io.BytesIO(figure.png)))
        assert max(picture.shape) == worst_cases.PICTURE_PIXELS
        assert tuple(picture[0, 0]) == (level,) * 3
        assert ("image not found" in figure.caption) == note and "Dice 1.0000" in figure.caption


def test_the_slice_that_differs_most_is_shown():
    reference = np.zeros((3, 4, 4), bool)
    reference[1] = True
    prediction = reference.copy()
    assert worst_cases.worst_slice(prediction, reference) == 1
    prediction[2, :2] = True
    prediction[0, 0] = True
    assert worst_cases.worst_slice(prediction, reference) == 2
