"""The bench for GPUs, every part of it on a CPU and tiny sizes; what it measures there is nothing."""

import json
from dataclasses import replace

import pytest
import torch

from qvla_ros.cli.main import main
from qvla_ros.errors import ConfigurationError
from qvla_ros.evaluate import gpu_bench
from qvla_ros.evaluate.gpu_bench import Bar, Plan, bench_gpu, network_bars, product_bars
from qvla_ros.evaluate.gpu_checks import Check
from qvla_ros.evaluate.gpu_networks import EAGER, GRAPH, PACKED_8, NetworkTimes
from qvla_ros.evaluate.gpu_products import BASELINE, ProductTimes
from qvla_ros.evaluate.kernel_bench import SHAPES


def test_a_dry_run_goes_through_every_part(tmp_path, capsys) -> None:
    file = tmp_path / "gpu.json"
    assert main(["bench", "gpu", "--device", "cpu", "--tiny", "--json", str(file)]) == 0
    told = json.loads(file.read_text())
    assert max(told["checks"].values()) < told["error_limit"]
    assert {network["name"] for network in told["networks"]} > {EAGER, GRAPH, PACKED_8}
    assert {network["images"] for network in told["networks"]} == {1, 2}
    assert [product["tokens"] for product in told["products"]] == [1, 20]
    assert set(told["products"][0]["failed"]) >= {"GemLite"}
    assert told["load"]["file_bytes"] > 0
    assert len(told["bars"]) == 13
    assert "a dry run: no figure of it counts" in told["gpu"]["device"]
    assert "cuBLAS bf16" in capsys.readouterr().out


def test_nothing_is_measured_if_a_kernel_is_wrong(monkeypatch) -> None:
    monkeypatch.setattr(gpu_bench, "_checks", lambda _: [Check("x", float("nan")), Check("y", 0)])
    bench = bench_gpu(Plan.of("cpu", tiny=True, minutes=60), lambda _: None)
    assert bench.faults == ["WRONG: x: relative error nan"]
    assert not bench.networks
    assert not bench.products


def test_a_part_that_fails_is_a_fault_and_the_rest_goes_on(monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("too small")

    monkeypatch.setattr(gpu_bench, "_checks", lambda _: [])
    monkeypatch.setattr(gpu_bench, "bench_networks", fail)
    bench = bench_gpu(Plan.of("cpu", tiny=True, minutes=60), lambda _: None)
    assert bench.faults == [f"{n} images: OutOfMemoryError: too small" for n in (2, 1)]
    assert bench.products


def test_what_is_not_begun_in_time_is_a_fault(monkeypatch) -> None:
    monkeypatch.setattr(gpu_bench, "_checks", lambda _: [])
    bench = bench_gpu(Plan.of("cpu", tiny=True, minutes=0), lambda _: None)
    assert len(bench.faults) == 4
    assert all("the time is over" in fault for fault in bench.faults)


def test_without_a_gpu_it_says_what_is_missing(monkeypatch) -> None:
    monkeypatch.setattr(gpu_bench, "triton_obstacle", lambda: "no CUDA device")
    with pytest.raises(ConfigurationError, match="no CUDA device"):
        Plan.of("cuda", tiny=False, minutes=1)
    with pytest.raises(ConfigurationError, match="for --tiny only"):
        Plan.of("cpu", tiny=False, minutes=1)


def test_the_slowest_shape_counts_and_all_shapes_must_be_there() -> None:
    times = [
        ProductTimes(*shape, tokens, {BASELINE: 10.0, "A16": 8.0 + index}, {})
        for index, shape in enumerate(SHAPES["language"])
        for tokens in (351, 608)
    ]
    bar = product_bars(times)[0]
    assert bar.measured == pytest.approx(10 / 11)
    assert bar.passed
    assert product_bars(times[1:])[0].measured is None
    assert product_bars(times)[1].measured is None


def test_the_bars_of_networks_are_those_of_the_worse_one() -> None:
    def network(name: str, images: int, p50: float, peak: int) -> NetworkTimes:
        return NetworkTimes(name, images, p50, 1.2 * p50, 0, peak, "fused steps in Triton", None)

    networks = [
        network(name, images, p50 * images, peak)
        for images in (1, 2)
        for name, p50, peak in ((EAGER, 30.0, 100), (GRAPH, 20.0, 100), (PACKED_8, 10.0, 28))
    ]
    assert [(bar.measured, bar.passed) for bar in network_bars(networks)] == [
        (3.0, True),
        (2.0, True),
        (0.28, True),
        (1.2, False),
    ]
    for change in ({"obstacle": "not captured"}, {"plan": "module by module: no"}):
        spoilt = replace(networks[-1], **change)  # PACKED_8
        assert spoilt.trouble == next(iter(change.values()))
        assert {bar.measured for bar in network_bars([*networks[:-1], spoilt])} == {None}
    eager_as_graph = replace(networks[1], obstacle="not captured")
    assert network_bars([networks[0], eager_as_graph, *networks[2:]])[1].measured is None


def test_a_kernel_of_ours_that_fails_is_a_fault_and_an_absent_library_is_none(monkeypatch) -> None:
    def measure(_: object, rows: int, columns: int, tokens: tuple[int, ...]):
        failed = {"A8": "OutOfResources: shared memory", "GemLite": "gemlite is not installed"}
        return [ProductTimes(rows, columns, count, {BASELINE: 1.0}, failed) for count in tokens]

    monkeypatch.setattr(gpu_bench, "_checks", lambda _: [])
    monkeypatch.setattr(gpu_bench.ProductBench, "measure", measure)
    plan = Plan.of("cpu", tiny=True, minutes=60)
    assert bench_gpu(plan, lambda _: None).faults == [
        f"64x256, {count} tokens, A8: OutOfResources: shared memory" for count in (1, 20)
    ]
    monkeypatch.setattr(gpu_bench, "bench_networks", lambda *_: [])
    faults = bench_gpu(replace(plan, tiny=False), lambda _: None).faults
    assert "not measured: A8: over cuBLAS bf16, M=608" in faults
    assert not any("GemLite" in fault for fault in faults)


def test_kernels_that_cannot_even_be_checked_are_a_fault(monkeypatch) -> None:
    def fail(_: Plan) -> list[Check]:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(gpu_bench, "_checks", fail)
    bench = bench_gpu(Plan.of("cpu", tiny=True, minutes=60), lambda _: None)
    assert bench.faults == ["the kernels cannot be checked: RuntimeError: no compiler"]
    assert not bench.products


def test_a_bar_is_printed_with_its_verdict() -> None:
    assert str(Bar("a", 2.0, True, 1.5)).split() == ["a", "≥", "2", "1.500", "FAIL"]
    assert str(Bar("a", 2.0, False, 1.5)).split() == ["a", "≤", "2", "1.500", "pass"]
    assert str(Bar("a", 2.0, True, None)).split() == ["a", "≥", "2", "not", "measured", "-"]
