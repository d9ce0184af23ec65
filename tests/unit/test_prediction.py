"""Results of sample.py never replace an image or each other."""

import dataclasses
import json
import os
import time

import numpy as np
import pytest
from PIL import Image

from medsegdiff_jax import prediction
from medsegdiff_jax.metrics import apply_temperature
from medsegdiff_jax.segmenter import Segmenter
from medsegdiff_jax.types import InputError
from medsegdiff_jax.version import __version__


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


def test_files_that_no_earlier_call_has_written_are_never_replaced(tiny_model, tmp_path):
    segmenter, masks = Segmenter(tiny_model), folder_of(tmp_path / "masks", "a.png")
    images = find(folder_of(tmp_path / "scans", "a.png"), segmenter)
    before = (masks / "a.png").read_bytes()
    with pytest.raises(InputError, match=r"masks/a\.png: would be replaced, and is no result"):
        prediction.predict(segmenter, images, masks, segmenter.choose(), ("mask",))
    assert (masks / "a.png").read_bytes() == before
    assert [path.name for path in masks.iterdir()] == ["a.png"]


def test_a_link_to_an_image_is_not_replaced_either(run, tmp_path):
    run()
    (tmp_path / "out" / "d.png").symlink_to(tmp_path / "scans" / "a.png")
    (tmp_path / "scans" / "e.png").symlink_to(tmp_path / "out" / "e.png")
    (tmp_path / "scans" / "a.png").rename(tmp_path / "out" / "e.png")
    for path in (tmp_path / "out" / "d.png", tmp_path / "scans" / "e.png"):
        with pytest.raises(InputError, match=rf"{path.name}: would be replaced"):
            run(cases={path.stem: (path,)})


def test_results_do_not_come_to_lie_among_the_inputs(tiny_model, tmp_path):
    segmenter, folder = Segmenter(tiny_model), folder_of(tmp_path / "scans", "a.jpg", "b.jpg")
    with pytest.raises(InputError, match=r"a\.jpg: is an input and lies in --output"):
        prediction.predict(
            segmenter, find(folder, segmenter), folder, segmenter.choose(), ("mask",)
        )
    assert {path.name for path in folder.iterdir()} == {"a.jpg", "b.jpg"}


def test_without_steps_there_is_no_animation(tiny_model, tmp_path):
    segmenter = Segmenter(tiny_model)
    images = find(folder_of(tmp_path / "scans", "a.png"), segmenter)
    with pytest.raises(InputError, match="--steps=0 there is no way from noise"):
        prediction.predict(
            segmenter, images, tmp_path / "out", segmenter.choose(steps=0), ("mask", "animation")
        )
    assert not (tmp_path / "out").exists()


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


@pytest.fixture
def run(tiny_model, tmp_path, monkeypatch):
    """Segments three images into one folder; returns the names of those that it computed."""
    segmenter = Segmenter(tiny_model)
    images = find(folder_of(tmp_path / "scans", "a.png", "b.png", "c.png"), segmenter)

    def call(save=("mask", "probability"), cases=images, **changes):
        computed = []
        stream = Segmenter.stream

        def watched(self, cases, *args, **kwargs):
            for result in stream(self, cases, *args, **kwargs):
                computed.append(result.case_id)
                yield result

        with monkeypatch.context() as patch:
            patch.setattr(Segmenter, "stream", watched)
            settings = segmenter.choose(**changes)
            prediction.predict(segmenter, cases, tmp_path / "out", settings, save)
        listed = json.loads((tmp_path / "out" / "run.json").read_text())["cases"]
        assert listed.keys() == images.keys()
        return "".join(computed)

    return call


def test_a_second_run_computes_only_what_is_missing_or_stale(run, tmp_path):
    assert run() == "abc" and run() == ""
    assert run(batch_size=1) == ""  # moves the last digits only
    (tmp_path / "out" / "b_probability.png").unlink()
    assert run() == "b"
    later = time.time() + 5
    os.utime(tmp_path / "scans" / "c.png", (later, later))
    assert run() == "c"
    os.utime(tmp_path / "scans" / "c.png", (0, 0))  # replaced by an older file
    assert run() == "c"
    assert run(save=("mask", "uncertainty")) == "abc"  # was not saved
    assert run(save=("mask", "uncertainty"), seed=1) == "abc"
    assert run(save=("mask", "uncertainty"), seed=1) == ""
    assert run(save=("mask", "uncertainty"), seed=1, members=12, tolerance=0.9) == "abc"
    entries = json.loads((tmp_path / "out" / "run.json").read_text())["cases"].values()
    assert run(decision="probable") == "abc" and run(decision="probable") == ""
    assert run(decision="probable", mirror=False) == "abc"
    assert all(entry["members"] in (11, 12) for entry in entries)


def test_results_of_another_version_are_made_anew(run, tmp_path):
    """Or the head of run.json would claim them for this one."""
    path = tmp_path / "out" / "run.json"
    assert run() == "abc"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"jax": "0.0.0", "devices": []}))
    assert run() == ""
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": "0.0.0"}))
    assert run() == "abc" and json.loads(path.read_text())["version"] == __version__
    assert run() == ""


def test_replacing_results_of_other_settings_is_said(run, tmp_path, caplog):
    with caplog.at_level("WARNING", logger="medsegdiff_jax"):
        run()
        run(save=("mask", "overlay"))
        assert "replaced" not in caplog.text
        run(seed=1, decision="probable")
    assert f"{tmp_path / 'out'}: its results, made with another decision and seed" in caplog.text


def test_a_kind_that_is_named_twice_is_written_once(run, tmp_path):
    assert run(save=("mask", "overlay", "mask")) == "abc"
    entry = json.loads((tmp_path / "out" / "run.json").read_text())["cases"]["a"]
    assert entry["files"] == {"mask": ["a.png"], "overlay": ["a_overlay.png"]}


def test_samples_of_an_earlier_call_do_not_stay_among_those_of_this(tiny_model, tmp_path):
    segmenter, out = Segmenter(tiny_model), tmp_path / "out"
    cases = find(folder_of(tmp_path / "scans", "a.png", "b.png"), segmenter)

    def predict(members, *names):
        chosen = {case: cases[case] for case in names}
        settings = segmenter.choose(members=members, steps=1)
        prediction.predict(segmenter, chosen, out, settings, ("mask", "members"))
        return sorted(path.stem for path in out.glob("*_member_*"))

    assert len(predict(3, "a", "b")) == 6
    (out / "a_member_07.png").write_text("of the user")
    # What is not sampled anew stays.
    b = [f"b_member_{index:02d}" for index in range(3)]
    assert predict(2, "a") == ["a_member_00", "a_member_01", "a_member_07", *b]


def test_calls_for_parts_of_a_folder_add_up(tiny_model, tmp_path):
    segmenter = Segmenter(tiny_model)
    images = find(folder_of(tmp_path / "scans", "a.png", "b.png"), segmenter)
    settings = segmenter.choose(steps=0)

    def listed(case):
        part = {case: images[case]}
        prediction.predict(segmenter, part, tmp_path / "out", settings, ("mask",))
        return set(json.loads((tmp_path / "out" / "run.json").read_text())["cases"])

    assert listed("a") == {"a"} and listed("b") == {"a", "b"}
    (tmp_path / "out" / "a.png").unlink()
    assert listed("b") == {"b"}


def test_calls_at_the_same_time_add_up(tiny_model, tmp_path, monkeypatch):
    """The second begins and ends while the first segments its only case; both add a picture."""
    segmenter = Segmenter(tiny_model)
    images = find(folder_of(tmp_path / "scans", "a.png", "b.png"), segmenter)
    settings, stream = segmenter.choose(steps=0), Segmenter.stream
    prediction.predict(segmenter, images, tmp_path / "out", settings, ("mask",))

    def predict(case):
        save = ("mask", "overlay")
        prediction.predict(segmenter, {case: images[case]}, tmp_path / "out", settings, save)

    def meanwhile(self, cases, *args, **kwargs):
        monkeypatch.setattr(Segmenter, "stream", stream)
        predict("b")
        yield from stream(self, cases, *args, **kwargs)

    monkeypatch.setattr(Segmenter, "stream", meanwhile)
    predict("a")
    listed = json.loads((tmp_path / "out" / "run.json").read_text())["cases"]
    assert {case: set(entry["files"]) for case, entry in listed.items()} == {
        "a": {"mask", "overlay"},
        "b": {"mask", "overlay"},
    }


def test_a_damaged_list_of_what_is_done_is_made_anew(run, tmp_path):
    run()
    for text in ("{", "[]", "{}"):
        (tmp_path / "out" / "run.json").write_text(text)
        assert run() == "abc"


def test_what_is_done_is_listed_even_if_the_run_is_killed(run, tmp_path, monkeypatch):
    monkeypatch.setattr(prediction, "LIST_SECONDS", 0)
    written = []
    write = prediction.atomic.write_json
    monkeypatch.setattr(
        prediction.atomic,
        "write_json",
        lambda path, run: (written.append(len(run["cases"])), write(path, run)),
    )
    run()
    assert written == [0, 1, 2, 3, 3]


def test_an_exif_rotation_is_said_to_be_left_out(tiny_model, tmp_path, caplog):
    scans, segmenter = folder_of(tmp_path / "scans", "a.png", "b.png"), Segmenter(tiny_model)
    exif = Image.Exif()
    exif[274] = 6
    Image.open(scans / "b.png").save(scans / "b.png", exif=exif)
    settings = segmenter.choose(steps=0)
    with caplog.at_level("WARNING", logger="medsegdiff_jax"):
        prediction.predict(segmenter, find(scans, segmenter), tmp_path / "out", settings, ("mask",))
    said = [record.getMessage() for record in caplog.records if "EXIF" in record.getMessage()]
    assert len(said) == 1 and said[0].startswith(f"{scans / 'b.png'}: its EXIF rotation is not")
    with Image.open(tmp_path / "out" / "b.png") as mask:
        assert mask.size == (7, 9)  # as it is stored


def test_an_animation_has_a_frame_per_step_and_ends_without_noise(run, tmp_path):
    assert run(save=("mask", "animation")) == "abc"
    with Image.open(tmp_path / "out" / "b_animation.gif") as film:
        assert film.n_frames == 2 + 1  # steps of the tiny model
        height, width = 320, 249  # of images of 9 x 7, magnified
        assert film.size == (3 * width, height)
        for frame, clean in ((1, False), (2, True)):
            film.seek(frame)
            shown = np.asarray(film.convert("RGB"))
            same = np.array_equal(shown[:, :width], shown[:, width : 2 * width])
            assert same == clean


def test_the_probability_that_is_written_is_scaled(tiny_model, tmp_path):
    segmenter, written = Segmenter(tiny_model), []
    cases = find(folder_of(tmp_path / "scans", "a.png"), segmenter)
    for temperature in (1.0, 0.25):
        segmenter.temperature, out = temperature, tmp_path / str(temperature)
        settings = segmenter.choose(fusion="mean")
        prediction.predict(segmenter, cases, out, settings, ("probability",))
        written.append(np.asarray(Image.open(out / "a_probability.png")) / 255)
    np.testing.assert_allclose(written[1], apply_temperature(written[0], 0.25), atol=0.01)
    assert np.abs(written[1] - written[0]).max() > 0.05


def test_the_contact_sheet_is_not_replaced_by_one_with_fewer_cases(run, tmp_path):
    run()
    sheet = tmp_path / "out" / "contact_sheet.png"
    whole = sheet.read_bytes()
    (tmp_path / "out" / "b_probability.png").unlink()
    assert run() == "b" and sheet.read_bytes() == whole
    assert run(seed=1) == "abc" and sheet.read_bytes() != whole


@pytest.mark.parametrize(
    ("marked", "rows", "said"),
    [(30, 2, "3.0 times as large as what is more probable"), (19, 2, ""), (0, 0, "in no case (3)")],
)
def test_masks_beside_what_is_probable_are_reported(
    run, tiny_model, monkeypatch, caplog, marked, rows, said
):
    stream, task = Segmenter.stream, tiny_model.task

    def unsure(self, *args, **kwargs):
        for result in stream(self, *args, **kwargs):
            probability = np.full_like(result.probability, 0.4)
            probability[:rows, :5] = 0.6 if not task.one_hot else (0.4, 0.6)
            mask = np.zeros_like(result.mask)
            mask.flat[:marked] = task.label_values[0]
            yield dataclasses.replace(result, mask=mask, probability=probability)

    monkeypatch.setattr(Segmenter, "stream", unsure)
    with caplog.at_level("WARNING", logger="medsegdiff_jax"):
        run()
    assert said in caplog.text and ("more probable than not" in caplog.text) == bool(said)
