"""``qvla bench``: arguments, what it prints, what it writes."""

import json
import sys

import pytest

from qvla_ros.cli.main import main
from qvla_ros.evaluate import load_bench


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
    assert report["machine"]["torch"] != "absent"
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


def test_another_device_is_refused(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "kernels", "--device", "cuda"])
    assert "invalid choice: 'cuda'" in capsys.readouterr().err


def test_the_triton_kernels_are_compiled_or_their_absence_is_named(capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    assert main(["bench", "gates"]) == 2
    assert "Triton is not installed" in capsys.readouterr().err
