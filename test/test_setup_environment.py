"""What the set-up says when a step fails, and that a machine without Triton gets an environment."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "setup_environment.py"


@pytest.fixture
def setup():
    spec = importlib.util.spec_from_file_location("setup_environment", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("output", "code", "said"),
    [
        ("OSError: [Errno 28] No space left on device", 6, "disk full"),
        ("NewConnectionError: cannot connect", 5, "no network"),
        ("ERROR: No matching distribution found for triton", 7, "no package for this machine"),
        ("anything else", 7, "see the output above"),
    ],
)
def test_the_reason_of_a_failure_is_read_from_the_output(setup, output, code, said) -> None:
    error = setup.reason_of(output, "pip install failed")
    assert error.code == code
    assert said in str(error)


def test_without_a_triton_for_this_machine_the_set_up_goes_on_and_says_so(
    setup, tmp_path, monkeypatch, capsys
) -> None:
    def no_package(*_: str) -> None:
        raise setup.NoPackageError("no package for this machine")

    monkeypatch.setattr(setup, "TRITON_FOLDER", tmp_path / "triton")
    monkeypatch.setattr(setup, "pip", no_package)
    setup.add_triton()
    assert "tests that need Triton will be skipped" in capsys.readouterr().err


def test_without_a_network_it_does_not_go_on(setup, tmp_path, monkeypatch) -> None:
    def no_network(*_: str) -> None:
        raise setup.SetupError("no network", 5)

    monkeypatch.setattr(setup, "TRITON_FOLDER", tmp_path / "triton")
    monkeypatch.setattr(setup, "pip", no_network)
    with pytest.raises(setup.SetupError, match="no network"):
        setup.add_triton()
