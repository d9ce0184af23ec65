"""The quality benchmark: plans, what their rows are measured by, and when they are stale."""

import json

import pytest
from absl import flags
from absl.testing import flagsaver

from benchmarks import commands, quality
from medsegdiff_jax.types import InputError

PLAN = {
    "title": "t",
    "data": {"a": ["--config.data.image_size=16"], "b": []},
    "training": ["--config.num_steps=4"],
    "models": {
        "V2": {"config": "default", "flags": [], "sampling": ["--decision=probable"]},
        "V2, 1 member": {"config": "default", "flags": [], "sampling": ["--members=1"]},
        "eps": {
            "config": "default",
            "flags": ["--config.diffusion.prediction=eps"],
            "sampling": [],
        },
    },
    "seeds": [0, 1],
}


@pytest.fixture(autouse=True)
def parsed_flags():
    """The flags of the benchmark with their defaults."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["quality", "--plan=none"])


def test_rows_that_differ_in_sampling_share_a_training():
    runs = list(quality.runs_of(PLAN, {"a": "/data/a"}))
    assert [(run.model, run.seed) for run in runs[:3]] == [
        ("V2", 0),
        ("V2, 1 member", 0),
        ("eps", 0),
    ]
    assert len(runs) == 6 and {run.dataset for run in runs} == {"a"}
    first, one_member, eps = (run.training_name() for run in runs[:3])
    assert first == one_member != eps != runs[3].training_name()
    assert len({run.file_name() for run in runs}) == 6
    assert runs[2].training[-1] == "--config.diffusion.prediction=eps"
    assert [run.sampling for run in runs[:3]] == [("--decision=probable",), ("--members=1",), ()]


def test_a_row_like_another_adds_to_its_flags(tmp_path):
    models = {
        "V2": {"config": "default,tiny", "flags": ["--a"], "sampling": ["--b"]},
        "one step": {"like": "V2", "sampling": ["--steps=1"]},
        "eps": {"like": "one step", "flags": ["--eps"]},
        "unet": {"config": "unet"},
    }
    (tmp_path / "plan.json").write_text(json.dumps(PLAN | {"models": models}))
    assert quality.read_plan(str(tmp_path / "plan.json"))["models"] == {
        "V2": {"config": "default,tiny", "flags": ["--a"], "sampling": ["--b"]},
        "one step": {"config": "default,tiny", "flags": ["--a"], "sampling": ["--b", "--steps=1"]},
        "eps": {
            "config": "default,tiny",
            "flags": ["--a", "--eps"],
            "sampling": ["--b", "--steps=1"],
        },
        "unet": {"config": "unet", "flags": [], "sampling": []},
    }


def test_a_later_flag_of_a_row_replaces_an_earlier_one():
    how = {"config": "default", "flags": ["--w=(1,2)", "--w=(3,4)"], "sampling": ["--s=1", "--s=2"]}
    run = next(quality.runs_of(PLAN | {"models": {"wide": how}}, {"a": "/data/a"}))
    assert [word for word in run.training if word.startswith("--w")] == ["--w=(3,4)"]
    assert run.sampling == ("--s=2",)


def test_a_public_dataset_has_its_own_config():
    plan = PLAN | {"data": {"btcv": [], "b": []}}
    runs = list(quality.runs_of(plan, {"btcv": "/data/btcv", "b": "/data/b"}))
    configs = {run.dataset: run.training[0] for run in runs if run.model == "eps"}
    assert configs == {
        "btcv": "--config=configs/btcv.py:default",
        "b": "--config=configs/folder.py:default",
    }


def test_a_plan_for_choosing_is_scored_on_validation_cases(tmp_path, monkeypatch):
    run = next(quality.runs_of(PLAN | {"split": "validation"}, {"a": "/data/a"}))
    called = []

    def stop(*words):
        called.append(words)
        if "sample.py" in words:
            raise InputError("as far as this")

    for module in (commands, quality):
        monkeypatch.setattr(module, "command", stop)
    with pytest.raises(InputError, match="as far"):
        quality.measure(run, tmp_path)
    cases = str(tmp_path / "a_validation")
    assert "--split=validation" in called[1] and f"--output={cases}" in called[1]
    assert f"--input={cases}" in called[2]
    assert run.commands()["data"] == ["--split=validation"]
    assert run.commands() != next(quality.runs_of(PLAN, {"a": "/data/a"})).commands()


def test_a_row_of_other_commands_is_stale(tmp_path, monkeypatch):
    (tmp_path / "plan.json").write_text(json.dumps(PLAN | {"seeds": [0]}))
    measured = []

    def measure(run, work):
        measured.append(run.model)
        return {"model": run.model, "commands": run.commands()}

    monkeypatch.setattr(quality, "measure", measure)
    monkeypatch.setattr(quality, "table", lambda rows, models: "")
    rows = tmp_path / "rows" / "plan"
    with flagsaver.flagsaver(
        plan=str(tmp_path / "plan.json"), data=["a=/data/a"], rows=str(rows.parent)
    ):
        quality.main([])
        assert measured == ["V2", "V2, 1 member", "eps"]
        quality.main([])
        assert len(measured) == 3
        stale = json.loads((rows / "V2_a_0.json").read_text())
        stale["commands"]["sample.py"] = []
        (rows / "V2_a_0.json").write_text(json.dumps(stale))
        quality.main([])
    assert measured[3:] == ["V2"]


def test_a_row_that_the_plan_has_no_more_is_left_out(tmp_path, monkeypatch, capsys):
    (tmp_path / "plan.json").write_text(json.dumps(PLAN | {"seeds": [0]}))
    rows = tmp_path / "rows" / "plan"
    rows.mkdir(parents=True)
    (rows / "old_a_0.json").write_text(json.dumps({"model": "old", "dataset": "a", "seed": 0}))
    shown = []
    monkeypatch.setattr(quality, "measure", lambda run, work: {"model": run.model})
    monkeypatch.setattr(quality, "table", lambda rows, models: shown.extend(rows) or "")
    with flagsaver.flagsaver(
        plan=str(tmp_path / "plan.json"), data=["a=/data/a"], rows=str(rows.parent)
    ):
        quality.main([])
    assert {row["model"] for row in shown} == {"V2", "V2, 1 member", "eps"}
    assert "left out: old" in capsys.readouterr().out


NO_CONFIG = json.dumps(PLAN | {"models": {"V2": {"flags": []}}})
LIKE_NONE = json.dumps(PLAN | {"models": {"eps": {"like": "V2"}, "V2": {"config": "default"}}})


@pytest.mark.parametrize("text", [None, "{", "[]", '{"title": "t"}', NO_CONFIG, LIKE_NONE])
def test_a_wrong_plan_is_named(tmp_path, text):
    path = tmp_path / "plan.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=r"--plan: .*plan\.json"):
        quality.read_plan(str(path))


def test_a_case_has_the_mean_over_its_classes(tmp_path):
    (tmp_path / "per_case.csv").write_text("case,class,dice\nx,a,0.5\ny,a,0.25\nx,b,0.75\n")
    assert commands.values_of_cases(tmp_path / "per_case.csv", "dice") == {
        "x": 0.625,
        "y": 0.25,
    }


PLANS = sorted((quality.ROOT / "benchmarks" / "plans").glob("*.json"))


def test_shipped_plans_can_be_read_and_name_recipes(tmp_path):
    assert PLANS
    for path in PLANS:
        plan = quality.read_plan(str(path))
        runs = list(quality.runs_of(plan, dict.fromkeys(plan["data"], str(tmp_path))))
        assert runs and json.dumps(runs)


@pytest.mark.parametrize("plan", [path.stem for path in PLANS])
def test_shipped_rows_were_made_by_the_commands_of_the_shipped_plans(plan):
    plans, rows = (quality.ROOT / "benchmarks" / part for part in ("plans", "results/quality"))
    content = quality.read_plan(str(plans / f"{plan}.json"))
    runs = quality.runs_of(content, dict.fromkeys(content["data"], "/data"))
    commands = {run.file_name(): run.commands() for run in runs}
    shipped = list((rows / plan).glob("*.json"))
    assert shipped or plan == "paper_256px"  # which nobody has run yet
    for path in shipped:
        assert json.loads(path.read_text())["commands"] == commands[path.name], path.name
