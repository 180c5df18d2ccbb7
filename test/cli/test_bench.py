"""``qvla bench``: arguments, what it prints, what it writes."""

import json
import sys

import pytest

from qvla_ros.cli.main import main
from qvla_ros.evaluate import compile_gates, load_bench
from qvla_ros.evaluate.compile_gates import CompileGate


def test_kernels_are_measured_and_written(tmp_path, capsys) -> None:
    out, plot = tmp_path / "kernels.json", tmp_path / "kernels.svg"
    words = ["bench", "kernels", "--shapes", "64x128", "--tokens", "1,17", "--repeats", "1"]
    assert main([*words, "--device", "cpu", "--json", str(out), "--plot", str(plot)]) == 0
    printed = capsys.readouterr().out
    assert "64x128,   1 tokens: bf16 " in printed
    assert "scratch memory of all layers" in printed
    report = json.loads(out.read_text())
    assert report["kind"] == "kernels"
    assert report["device"] == "cpu"
    assert report["machine"]["torch"] != "not installed"
    assert [case["tokens"] for case in report["times"]] == [1, 17]
    assert report["average_bits_per_weight"] == pytest.approx(4.3)
    assert report["rivals"].keys() == {"torch_int8", "torch_int4", "torch_int_mm"}
    assert "64 x 128" in plot.read_text()


def test_loading_a_synthetic_checkpoint_is_measured(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(load_bench, "_SHAPE", (256, 256))
    out = tmp_path / "load.json"
    assert main(["bench", "--json", str(out), "load", "--gib", "0.001"]) == 0
    assert "the file" in capsys.readouterr().out
    assert json.loads(out.read_text())["file_bytes"] >= 0.001 * 2**30


def test_loading_a_file_that_is_none_is_an_error_of_the_user(tmp_path, capfd) -> None:
    (tmp_path / "x").write_text("no checkpoint")
    assert main(["bench", "load", str(tmp_path / "x")]) == 2
    assert "could not be loaded, see above" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("option", "value"),
    [("--shapes", "64x"), ("--shapes", "0x4"), ("--shapes", "big"), ("--tokens", "1,x")],
)
def test_a_malformed_list_is_named(option, value, capsys) -> None:
    assert main(["bench", "kernels", option, value]) == 2
    assert f"{option}: " in capsys.readouterr().err


@pytest.mark.parametrize("size", ["nan", "-1", "0", "inf", "big"])
def test_a_size_that_is_none_is_refused(size, capsys) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "load", "--gib", size])
    assert "--gib" in capsys.readouterr().err


def test_a_folder_for_the_result_that_is_not_there_is_told_at_once(tmp_path, capsys) -> None:
    assert main(["bench", "--json", str(tmp_path / "no" / "load.json"), "load"]) == 2
    assert "there is no such folder" in capsys.readouterr().err


def test_a_gate_with_a_fault_is_told_and_is_the_exit_status(capsys, monkeypatch) -> None:
    def spilling(architecture: int, variant: str) -> CompileGate:
        spills = 7 if (architecture, variant) == (87, "a16") else 0
        return CompileGate(
            architecture, variant, "HMMA UTCHMMA HGMMA", "IMMA IGMMA", 100, spills, 0, 0, 0
        )

    monkeypatch.setattr(
        CompileGate, "faults", lambda gate: ["bad"] * bool(gate.spill_instructions)
    )
    monkeypatch.setattr(compile_gates, "compile_gate", spilling)
    assert main(["bench", "gates"]) == 1
    assert capsys.readouterr().out.endswith("\nbad\n")


def test_another_device_is_refused(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "kernels", "--device", "cuda"])
    assert "invalid choice: 'cuda'" in capsys.readouterr().err


def test_the_triton_kernels_are_compiled_or_their_absence_is_named(capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    assert main(["bench", "gates"]) == 2
    assert "Triton is not installed" in capsys.readouterr().err
