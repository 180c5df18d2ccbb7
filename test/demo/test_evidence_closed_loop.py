"""``make evidence-closed-loop`` counts kept episodes, and says what they do not bear out."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from tiny_model import tiny_folder

from demo import calibration_ablation, closed_loop_runs, larger_policy
from demo.calibration_ablation import phases
from demo.closed_loop_figure import write_figure
from demo.closed_loop_runs import KEPT, Settings, keep, run_paired, tasks_of
from demo.closed_loop_table import table_text
from demo.demo_bags import demo_bags
from demo.evidence_closed_loop import NOT_MEASURED, faults, measure
from demo.outliers import outliers
from qvla_ros.cli.main import build_parser
from qvla_ros.errors import ConfigurationError
from qvla_ros.evaluate.method_cell import MethodCell
from qvla_ros.evaluate.rollout_record import RolloutRecord, RosFacts, read_records, write_records

FACTS = RosFacts(0.0, 8, 8, (150.0, 350.0, 350.0), 0, 8, {"superseded": 1}, 0)
KINDS = ("inputs", "weights")
CELLS = {
    "bf16@16": (16.0, 0.001, 50),
    "ours@4": (4.0, 0.004, 50),
    "ours@3": (3.0, 0.007, 49),
    "rtn@4": (4.0, 0.02, 45),
    "rtn@3": (3.0, 0.26, 5),
    "awq@3": (3.0, 0.06, 20),
    "awq@2": (2.0, 0.31, 3),
    "rtn@2": (2.0, 0.35, 2),
    "ours@2": (2.0, 0.018, 46),
}


def episodes(successes: int, policy: str, tasks: int = 1, count: int = 50) -> list[RolloutRecord]:
    digest = f"{sum(policy.encode()):064x}"
    return [
        RolloutRecord(
            "libero_spatial",
            task,
            state,
            state < successes,
            60,
            "aa" * 32,
            digest,
            policy,
            "3.3.2",
        )
        for task in range(tasks)
        for state in range(count)
    ]


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    folder = tmp_path / "kept"
    write_records(folder / "float.jsonl.xz", episodes(45, "float", tasks=5))
    packed = episodes(44, "packed", tasks=5)
    write_records(folder / "packed.jsonl.xz", packed)
    through_ros = [replace(one, ros=FACTS) for one in packed]
    write_records(folder / "ros_lockstep.jsonl.xz", through_ros)
    half = episodes(49, "half chunks", tasks=5)
    write_records(folder / "packed_half_chunks.jsonl.xz", half)
    write_records(folder / "ros_paced.jsonl.xz", [replace(one, ros=FACTS) for one in half])
    told = {}
    for stem, (bits, error, successes) in CELLS.items():
        records = episodes(successes, stem)
        write_records(folder / "cells" / f"{stem}.jsonl.xz", records)
        told[stem] = {
            "method": stem.split("@")[0],
            "bits": bits,
            "file_bytes": 10_000_000,
            "average_bits_per_weight": bits,
            "heldout_action_error": error,
            "heldout_action_rms": 2 * error,
            "heldout_worst_frames": 0.1 - error,
            "heldout_gripper_flips": 0,
            "heldout_hidden_error": 1 / bits,
            "checkpoint_sha256": records[0].policy_sha256,
        }
    (folder / "cells.json").write_text(json.dumps(told))
    return folder


def test_every_figure_is_counted_from_the_episodes(kept):
    found = measure(kept, seed=0)
    assert found["float_success"]["mean_over_tasks"] == 0.9
    assert found["float_success"]["tasks"]["libero_spatial/4"]["n"] == 50
    assert found["packed_against_float"]["only_other"] == 5
    cells = {(one["method"], one["bits"]): one for one in found["cells"]}
    assert cells["ours", 3.0]["against_bf16"]["retention"] == 0.98
    assert cells["rtn", 3.0]["against_bf16"]["p_value"] < 1e-9
    assert cells["rtn", 3.0]["against_ours"]["only_other"] == 44
    assert cells["ours", 4.0]["against_ours"] == NOT_MEASURED
    ros = found["ros_in_the_loop"]["ros_lockstep"]
    assert (ros["n"], ros["identical_actions"], ros["drops"]) == (250, 250, {"superseded": 250})
    assert ros["against_in_process"]["p_value"] == 1.0
    assert found["ros_in_the_loop"]["ros_paced"]["against_in_process"]["only_this"] == 0
    assert found["half_chunks_against_whole"]["only_this"] == 25
    predictor = found["predictor_rank_correlation"]
    assert (predictor["cells"], predictor["episodes_of_each"]) == (8, 50)
    errors, worst = predictor["heldout_action_error"], predictor["heldout_worst_frames"]
    assert errors["spearman_with_failure"] == pytest.approx(1.0)
    assert worst["spearman_with_failure"] == pytest.approx(-1.0)
    assert worst["less_heldout_action_error"][1] < -1
    assert 0 < predictor["heldout_hidden_error"]["spearman_with_failure"] < 1
    assert predictor["heldout_gripper_flips"] == "not measured: all cells are equal"
    assert faults(found) == []
    assert "rtn                 3" in table_text(found)


def test_the_predictors_are_held_against_the_episodes_that_all_cells_have(kept):
    write_records(kept / "cells" / "ours@4.jsonl.xz", episodes(10, "ours@4", count=10))
    predictor = measure(kept, seed=0)["predictor_rank_correlation"]
    assert predictor["episodes_of_each"] == 10
    assert predictor["heldout_action_error"]["spearman_with_failure"] < 0.9


def test_checkpoints_of_other_calibration_states_are_held_against_the_first(kept):
    told = {}
    for arm, successes in (("demonstrations", 40), ("own_rollouts", 44)):
        records = episodes(successes, arm)
        write_records(kept / "calibration" / f"{arm}.jsonl.xz", records)
        sha = records[0].policy_sha256
        told[arm] = {"bits": 2.5, "heldout_action_error": 0.01, "checkpoint_sha256": sha}
    (kept / "calibration" / "checkpoints.json").write_text(json.dumps(told))
    found = measure(kept, seed=0)
    assert found["calibration_ablation"]["demonstrations"]["against_first"] == NOT_MEASURED
    own = found["calibration_ablation"]["own_rollouts"]
    assert (own["successes"], own["against_first"]["only_this"]) == (44, 4)
    assert "calibrated with own_rollouts, 2.5 bits: error 0.0100, 44/50" in table_text(found)
    write_records(kept / "calibration" / "own_rollouts.jsonl.xz", episodes(44, "another"))
    with pytest.raises(ConfigurationError, match=r"own_rollouts.*of another checkpoint"):
        measure(kept, seed=0)


def test_the_larger_policy_is_counted_apart(kept):
    alone = measure(kept, seed=0)
    assert alone["larger_policy"] == NOT_MEASURED
    folder = kept / larger_policy.FOLDER
    write_records(folder / "float.jsonl.xz", episodes(40, "larger", tasks=2))
    records = episodes(39, "larger ours@3", tasks=2)
    write_records(folder / "cells" / "ours@3.jsonl.xz", records)
    told = json.loads((kept / "cells.json").read_text())["ours@3"]
    told["checkpoint_sha256"] = records[0].policy_sha256
    (folder / "cells.json").write_text(json.dumps({"ours@3": told}))
    (folder / larger_policy.OUTLIERS).write_text('{"larger": {"inputs_largest": 900.0}}')
    found = measure(kept, seed=0)
    assert {**found, "larger_policy": NOT_MEASURED} == alone
    larger = found["larger_policy"]
    assert larger["float_success"]["mean_over_tasks"] == 0.8
    (cell,) = larger["cells"]
    assert (cell["successes"], cell["n"], cell["against_bf16"]) == (78, 100, NOT_MEASURED)
    assert table_text(found).startswith(table_text(alone))
    assert "78/100" in table_text(found)


def test_a_larger_policy_is_calibrated_with_bags_of_its_own_tasks(tmp_path, monkeypatch):
    def count(*tasks: int) -> list[int]:
        return [len(demo_bags(use, tasks or None)) for use in ("calibration", "heldout")]

    assert (count(), count(0, 2), count(7)) == ([7, 5], [4, 2], [1, 1])
    monkeypatch.setattr(larger_policy, "MODEL", tmp_path / "model")
    with pytest.raises(ConfigurationError, match="make policy SIZE=large"):
        larger_policy.larger(SimpleNamespace(tasks=None, work=tmp_path, episodes=50))


def test_each_checkpoint_of_the_ablation_is_made_with_its_own_bags_at_the_same_budget(tmp_path):
    settings = Settings(tmp_path, tmp_path, tmp_path, tmp_path, (0,), 50, 20, 1)
    bag = tmp_path / "calibration" / "bags_own_rollouts" / "rollout_0_0"
    bag.mkdir(parents=True)
    first, own = (
        build_parser().parse_args(calibration_ablation.quantize_words(settings, arm))
        for arm in calibration_ablation.ARMS[:2]
    )
    assert own.bags == [bag]
    assert len(first.bags) == 7
    assert (first.bits, first.frames) == (own.bits, own.frames)
    assert first.bits is not None
    assert not {*first.heldout} & {*first.bags}


def test_a_checkpoint_of_another_model_is_not_gone_on_with(tmp_path, monkeypatch):
    out = tmp_path / "calibration" / "demonstrations.qvla.safetensors"
    out.parent.mkdir()
    out.touch()
    manifest = SimpleNamespace(source_fingerprint="00" * 32)
    monkeypatch.setattr(calibration_ablation, "read_manifest", lambda _: manifest)
    monkeypatch.setattr(calibration_ablation, "roll_out", lambda *_: pytest.fail("it runs"))
    settings = Settings(tmp_path, KEPT.parent / "model", out, out, (0,), 50, 20, 1)
    with pytest.raises(ConfigurationError, match=r"of another model: remove .*calibration$"):
        calibration_ablation.run(settings)


@pytest.mark.parametrize(
    ("closed", "shares"),
    [
        ([0] * 20, [20, 0, 0, 0]),
        ([0] * 20 + [1] * 30 + [0] * 5, [12, 17, 13, 13]),
        ([0] * 20 + [1] * 30, [12, 17, 21, 0]),  # never released
        ([0] * 20 + [1] * 10 + [0] * 5 + [1] * 15 + [0] * 5, [12, 17, 13, 13]),  # lost once
    ],
)
def test_the_phases_of_an_episode_are_told_by_its_gripper(closed, shares):
    phase = phases(np.array(closed, bool))
    assert np.bincount(phase, minlength=4).tolist() == shares
    assert (np.diff(phase) >= 0).all()


def test_the_figure_of_the_same_cells_is_the_same_file(kept, tmp_path):
    pytest.importorskip("matplotlib", reason="figures need the extra 'report'")
    cells = measure(kept, seed=0)["cells"]
    without_reference = [one for one in cells if one["method"] != "bf16"]
    for name, chosen in (("a", cells), ("b", cells), ("c", without_reference)):
        write_figure(chosen, tmp_path / f"{name}.svg")
    first, again, other = ((tmp_path / f"{name}.svg").read_bytes() for name in "abc")
    assert first == again != other


def test_a_run_against_a_running_clock_has_as_many_episodes_as_are_asked_for(
    tmp_path, monkeypatch
):
    asked = {}
    monkeypatch.setattr(closed_loop_runs, "roll_out", lambda *_: None)
    monkeypatch.setattr(
        closed_loop_runs, "through_ros", lambda _, name, *rest: asked.update({name: rest[-1]})
    )
    work = tmp_path / "work"
    run_paired(Settings(work, work, work, work, (0, 1, 2), 50, 20, 1))
    assert asked == {"ros_lockstep": 50, "ros_paced": 17}


def test_what_was_not_run_is_not_measured_and_a_fault(tmp_path):
    found = measure(tmp_path, seed=0)
    assert found["float_success"] == found["ros_in_the_loop"] == NOT_MEASURED
    assert found["predictor_rank_correlation"] == NOT_MEASURED
    assert len(faults(found)) == 4
    json.dumps(found, allow_nan=False)
    table_text(found)


@pytest.mark.parametrize(
    ("name", "records", "said"),
    [
        ("float", episodes(30, "float", tasks=5), "mean success 0.600"),
        ("float", episodes(45, "float", tasks=2), "2 tasks of"),
        ("cells/ours@3", episodes(40, "ours@3"), "ours at 3 bits keeps 0.8"),
        ("packed", episodes(44, "packed", count=20), "fewer than 50 pairs"),
        ("packed", episodes(20, "packed", tasks=5), "ros_lockstep differs"),
    ],
)
def test_a_claim_that_the_episodes_do_not_bear_is_a_fault(kept, name, records, said):
    write_records(kept / f"{name}.jsonl.xz", records)
    assert any(said in text for text in faults(measure(kept, seed=0)))


def test_a_repeated_episode_and_another_checkpoint_are_refused(kept):
    with_repeat = [*episodes(50, "ours@4"), episodes(50, "ours@4")[0]]
    write_records(kept / "cells" / "ours@4.jsonl.xz", with_repeat)
    with pytest.raises(ConfigurationError, match="not another sample"):
        measure(kept, seed=0)
    write_records(kept / "cells" / "ours@4.jsonl.xz", episodes(50, "ours"))
    with pytest.raises(ConfigurationError, match="another checkpoint"):
        measure(kept, seed=0)


def test_what_was_run_is_kept_compressed_with_the_facts_of_its_checkpoint(tmp_path):
    work = tmp_path / "work"
    records = episodes(3, "ours@3", count=4)
    write_records(work / "float.jsonl", records)
    write_records(work / "cells" / "ours@3.jsonl", records)
    (work / "compare" / "cells").mkdir(parents=True)
    cell = MethodCell(
        *("ours", 3.0, 9),
        checkpoint_sha256=records[0].policy_sha256,
        mean_l1=0.007,
        frame_errors=(0.006, 0.008),
    )
    cell.write(work / "compare" / "cells" / "ours@3.json")
    settings = Settings(work, work, work, work, (0,), 4, 4, 1)
    assert keep(settings, tmp_path / "kept") == ["float.jsonl.xz", "cells/ours@3.jsonl.xz"]
    assert read_records(tmp_path / "kept" / "cells" / "ours@3.jsonl.xz") == records
    write_records(work / "float.jsonl", records[1:])
    with pytest.raises(ConfigurationError, match="holds 1 episodes of this policy"):
        keep(settings, tmp_path / "kept")
    (found,) = measure(tmp_path / "kept", seed=0)["cells"]
    assert (found["heldout_action_error"], found["successes"], found["n"]) == (0.007, 3, 4)


def test_the_episodes_in_git_can_be_counted_and_are_of_tasks_that_were_trained():
    found = measure(KEPT, seed=0)
    tasks = {int(name.split("/")[1]) for name in found["float_success"]["tasks"]}
    assert tasks == set(tasks_of(KEPT.parent / "training.json"))


def test_outliers_are_told_of_inputs_and_of_weights(tmp_path):
    folder, bags = tiny_folder(tmp_path / "model"), demo_bags("heldout", (0,))
    before = outliers(folder, bags)
    assert all(1 <= before[f"{kind}_median"] <= before[f"{kind}_largest"] < 50 for kind in KINDS)
    for shard in folder.glob("*.safetensors"):
        tensors = load_file(shard)
        for name, tensor in tensors.items():
            if name.endswith("layers.1.input_layernorm.weight"):
                tensor[3] *= 1000  # a column that three matrices read
            if name.endswith("layers.0.mlp.up_proj.weight"):
                tensor[0, 0] = 100.0
        save_file(tensors, shard)
    after = outliers(folder, bags)
    assert after["inputs_largest"] > 100 > after["inputs_median"]
    assert after["weights_largest"] > 30 > after["weights_median"]
