"""The text that ``make evidence-closed-loop`` prints."""


def table_text(found: dict) -> str:
    """What is printed."""
    lines = _policy_lines(found)
    lines.append(f"make demo's checkpoint against float: {_pairs(found['packed_against_float'])}")
    half = _pairs(found["half_chunks_against_whole"])
    lines.append(f"the same, asked after half of each chunk, against whole ones: {half}")
    if isinstance(found["ros_in_the_loop"], dict):
        for name, one in found["ros_in_the_loop"].items():
            lines.append(f"{name}: {_share(one)}; in process {_pairs(one['against_in_process'])}")
            lines.append(
                f"  {one['identical_actions']} episodes of identical actions; chunk age "
                f"{one['chunk_age_ms']}, {one['deadline_misses']} deadline misses in "
                f"{one['steps']} steps, {one['expired_chunks']} expired chunks, drops "
                f"{one['drops']}"
            )
    if isinstance(found["calibration_ablation"], dict):
        for arm, one in found["calibration_ablation"].items():
            lines.append(
                f"calibrated with {arm}, {one['bits']:g} bits: error "
                f"{one['heldout_action_error']:.4f}, {_share(one)}; {_pairs(one['against_first'])}"
            )
    if isinstance(found["larger_policy"], dict):
        lines += ["the larger policy", *_policy_lines(found["larger_policy"])]
    return "\n".join(lines)


def _policy_lines(found: dict) -> list[str]:
    lines = ["float policy"]
    if isinstance(found["float_success"], dict):
        for task, one in found["float_success"]["tasks"].items():
            lines.append(f"  {task:<24}{_share(one)}")
        lines.append(f"  mean over tasks {100 * found['float_success']['mean_over_tasks']:.1f} %")
    lines.append(f"{'method':<16}{'bits':>5}{'MB':>7}{'error':>8}  success, against BF16")
    for one in found["cells"]:
        lines.append(
            f"{one['method']:<16}{one['bits']:>5g}{one['file_bytes'] / 1e6:>7.1f}"
            f"{one['heldout_action_error']:>8.4f}  {_share(one)}; {_pairs(one['against_bf16'])}"
        )
    return [*lines, f"rank correlation with failure: {_predictors_text(found)}"]


def _predictors_text(found: dict) -> str:
    told = found["predictor_rank_correlation"]
    if isinstance(told, str):
        return told
    rows = [
        f"  {name:<24}{one['spearman_with_failure']:>6.3f} {one['bootstrap_95']}"
        for name, one in told.items()
        if isinstance(one, dict)
    ]
    return "\n".join([f"over {told['cells']} cells", *rows])


def _share(one: dict) -> str:
    low, high = one["wilson_95"]
    return f"{one['successes']}/{one['n']} ({100 * low:.0f} to {100 * high:.0f} %)"


def _pairs(one: dict | str) -> str:
    if isinstance(one, str):
        return one
    return (
        f"{one['n']} pairs, {one['successes']} and {one['other_successes']}, "
        f"p = {one['p_value']:.3g}"
    )
