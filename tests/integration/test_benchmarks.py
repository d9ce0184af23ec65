"""The benchmarks run on small models and write what they say."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from benchmarks import programs
from configs import folder


def test_throughput_reports_a_row_per_kind_of_work(command, tmp_path):
    done = command(
        "benchmarks/throughput.py",
        "--config=configs/folder.py:unet,tiny",
        "--config.data.image_size=16",
        "--batch=2",
        "--repeats=3",
        "--peak_tflops=1",
        f"--output={tmp_path / 'report.json'}",
    ).output
    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    assert set(rows) == {"train", "segment"} and "train" in done
    for row in rows.values():
        assert row["images_per_s"] > 0 and row["low_s"] <= row["median_s"] <= row["high_s"]
    assert rows["train"]["gflops"] > 0 and 0 < rows["train"]["mfu"] < 1
    assert rows["train"]["collectives"] == {}  # one device


def test_steps_and_members_scores_prefixes_of_one_ensemble(command, trained, disc_folder, tmp_path):
    said = command(
        "benchmarks/steps_and_members.py",
        f"--checkpoint={trained}",
        f"--data={disc_folder}",
        "--steps=0,2",
        "--members=1,13",
        f"--output={tmp_path / 'rows.json'}",
        f"--figure={tmp_path / 'rows.png'}",
    ).output
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [(row["steps"], row["members"]) for row in rows] == [(0, 4), (2, 1), (2, 13)]
    assert all(0 <= row["dice"]["mean"] <= 1 and row["dice"]["n_cases"] == 4 for row in rows)
    needed, unstable = rows[-1]["members_needed_median"], rows[-1]["cases_not_stable"]
    assert unstable == 4 if needed is None else 11 <= needed <= 13
    assert f"{rows[0]['dice']['mean']:.4f}" in said
    with Image.open(tmp_path / "rows.png") as figure:
        assert figure.width > 200


def test_the_figure_of_members_averages_seeds_and_classes(command, tmp_path):
    for seed, middle in ((0, 0.5), (1, 0.7)):
        curves = {"a": [0.4, middle, 0.6], "b": [0.6, middle, 0.8]}
        dice = {name: [{"mean": mean} for mean in curve] for name, curve in curves.items()}
        scores = {"uncertainty": {"dice_of_first": dice}}
        for model in ("V2", "unwanted"):
            row = {"model": model, "dataset": "cells", "scores": scores}
            (tmp_path / f"{model}{seed}.json").write_text(json.dumps(row))
    figure = tmp_path / "members.png"
    flags = (f"--rows={tmp_path}", "--model=V2", f"--figure={figure}")
    said = command("benchmarks/members_figure.py", *flags).output
    assert "V2 0.5000 0.6000 0.7000" in said and "unwanted" not in said
    with Image.open(figure) as drawn:
        assert drawn.width > 200


def test_raters_and_members_are_drawn_beside_each_other(command, tmp_path):
    data, predictions = tmp_path / "data", tmp_path / "predictions"
    mask = np.zeros((16, 16), np.uint8)
    mask[4:9, 4:12] = 1

    def write(path, pixels):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)

    write(data / "images" / "a.jpg", 200 - 100 * mask)
    write(data / "masks_1" / "a.png", mask)
    write(data / "masks_2" / "a.png", np.roll(mask, 1, axis=0))
    for name in ("probability", "uncertainty"):
        write(predictions / f"a_{name}.png", 255 * mask)
    figure = tmp_path / "figure.png"
    flags = (f"--data={data}", f"--predictions={predictions}", "--cases=a", f"--figure={figure}")
    refused = command("benchmarks/raters_and_members.py", *flags)
    assert "no members of a" in refused.refusal and not figure.exists()
    write(predictions / "a_member_00.png", np.roll(mask, 4, axis=1))
    command("benchmarks/raters_and_members.py", *flags)
    with Image.open(figure) as drawn:
        pixels = np.asarray(drawn.convert("RGB")).astype(int)
    columns = np.array_split(pixels, 5, axis=1)
    cyan = [int(((c[..., 2] - c[..., 0]) > 100).sum()) for c in columns[:3]]
    assert cyan[0] == 0 and cyan[1] > 1.5 * cyan[2] > 0  # two raters, one member


def test_programs_are_lowered_from_shapes():
    config = folder.get_config("default,tiny")
    config.data.image_size, config.sampling.members = 16, 3
    step = programs.training_step(config, 2, jax.devices()[:1]).lower()
    drawn = programs.ensemble(config, 2, jax.devices()[:1]).lower()
    state, _ = step.out_info
    assert state.step.shape == () and step.cost_analysis()["flops"] > 0
    assert drawn.out_info.members.shape == (3, 2, 16, 16, 1)


def test_a_message_that_is_sent_in_pieces_counts_once():
    line = "%gather.{} = f32[8,4]{{1,0}} all-gather(%x), channel_id={}, dimensions={{0}}"
    program = "\n".join(line.format(*pair) for pair in ((1, 5), (2, 5), (3, 6)))
    assert programs.collectives(program) == {"all-gather": {"count": 2, "bytes": 256}}


def test_what_a_program_moves_is_operands_and_results_of_its_kernels():
    program = """
%inner (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  ROOT %n = f32[4]{0} negate(%p)
}

ENTRY %main (x: bf16[8,4], y: f32[8,4]) -> f32[8,4] {
  %x = bf16[8,4]{1,0} parameter(0)
  %y = f32[8,4]{1,0:T(8,128)} parameter(1)
  %f.1 = (bf16[8,4]{1,0}, f32[8]{0}) fusion(%x, %y), kind=kLoop, calls=%inner
  %g = f32[8]{0} get-tuple-element(%f.1), index=1
  ROOT %r = f32[8,4]{1,0} broadcast(%g), dimensions={0}
}
"""
    fusion, broadcast = (64 + 128) + (64 + 32), 32 + 128
    assert programs.moved(program) == fusion + broadcast


@pytest.mark.parametrize("topology", ["nonsense", "h100:nonsense"])
def test_a_topology_that_no_compiler_knows_is_named(command, topology):
    flags = ("--config=configs/folder.py", f"--topology={topology}")
    refused = command("benchmarks/accelerator_programs.py", *flags)
    assert f"--topology={topology}" in refused.refusal
