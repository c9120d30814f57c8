"""What a report says, as tables and sentences of plain text, drawn from the contents of report.json alone.

Not here: how report.json comes about (pipeline/report.py), how a page or a terminal shows it (page.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from jointseg.data.frame import FRAME_HEIGHT, FRAME_WIDTH
from jointseg.evaluation_config import EvaluationConfig
from jointseg.labels import CLASS_NAMES
from jointseg.metrics import CROPS
from jointseg.published import (
    HIGHER_IS_BETTER,
    NUM_TEST_FRAMES,
    ROW_NAMES,
    TABLE2_METRICS,
    TABLE2_RIVALS,
    TABLE3_METRICS,
    TABLE3_RIVALS,
)
from pipeline.notation import NONE, Number, fixed, percent, points
from pipeline.row_gains import COMPARED

Report: TypeAlias = Mapping[str, Any]

METRIC_NAMES = {
    "mean_iou": "mean IoU",
    "mean_accuracy": "mean accuracy",
    "pixel_accuracy": "pixel accuracy",
    "delta1": "δ < 1.25",
    "delta2": "δ < 1.25²",
    "delta3": "δ < 1.25³",
    "abs_rel": "abs rel",
    "sq_rel": "sq rel, m",
    "rmse": "RMSE, m",
    "rmse_log": "RMSE log",
    "si_log_std": "si log, std",
    "si_log_var": "si log, variance",
}


@dataclass(frozen=True)
class Table:
    """Cells of text, the first column a name, the others numbers."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Finding:
    """One sentence computed from the numbers; `against` where it speaks against the method or the run."""

    text: str
    against: bool = False


def floor_class(report: Report) -> str:
    """Name of the class that the segmentation floor gives every pixel."""
    return CLASS_NAMES[int(report["floors"]["class"])]


def floor_depth(report: Report) -> str | None:
    """What the depth floor gives every picture; None where the train split has no depth to take the mean of."""
    floors = report["floors"]
    if "depth" in floors:  # of earlier versions: one depth everywhere
        return None if floors["depth"] is None else f"constant {fixed(floors['depth'], 2)} m"
    return None if floors["mean_depth"] is None else "each pixel's mean depth"


def segmentation_table(report: Report, *, rivals: bool = False) -> Table:
    """Table 3: a row a model, each metric with the paper's number beside it, the floor last."""
    published = (report["paper"] or {}).get("table3", {})
    header = tuple(cell for name in TABLE3_METRICS for cell in (METRIC_NAMES[name], "paper"))

    def row(title: str, own: Mapping[str, Number], papers: Mapping[str, Number]) -> tuple[str, ...]:
        return (title, *(percent(of.get(name)) for name in TABLE3_METRICS for of in (own, papers)))

    rows = [row(ROW_NAMES[key], metrics, published.get(key, {})) for key, metrics in report["table3"].items()]
    if rivals and report["paper"]:
        rows += [row(name, {}, metrics) for name, metrics in TABLE3_RIVALS.items()]
    rows.append(row(f"floor: all “{floor_class(report)}”", report["floors"], {}))
    return Table("Table 3: semantic segmentation, %", ("", *header), tuple(rows))


def depth_table(report: Report, *, rivals: bool = False) -> Table:
    """Table 2, upright as in the paper: a row a metric; the paper's one column stands beside its final model."""
    published = (report["paper"] or {}).get("table2", {})
    columns: list[tuple[str, Mapping[str, Number]]] = []
    for key, metrics in report["table2"].items():
        columns.append((ROW_NAMES[key], metrics))
        if key == "sem_crf_plus":
            columns.append(("paper", published.get(key, {})))
    if rivals and report["paper"]:
        columns += TABLE2_RIVALS.items()
    columns.append((f"floor: {floor_depth(report) or NONE}", report["floors"]))
    rows = tuple(
        (f"{METRIC_NAMES[name]} {'↑' if name in HIGHER_IS_BETTER else '↓'}", *(fixed(of.get(name)) for _, of in columns))
        for name in TABLE2_METRICS
    )
    return Table(
        "Table 2: depth (↑ higher, ↓ lower is better; si: scale-invariant)", ("", *(title for title, _ in columns)), rows
    )


def rules_table(report: Report) -> Table:
    """Each row's mean IoU, and the depth of the last, by other rules than the run's: one switch changed at a time."""
    rows, last = list(report["table3"]), "sem_crf_plus"
    depth = {"delta1": METRIC_NAMES["delta1"], "rmse": METRIC_NAMES["rmse"]}

    def line(title: str, own: Mapping[str, Mapping[str, Number]], depths: Mapping[str, Number]) -> tuple[str, ...]:
        return (title, *(percent(own[row]["mean_iou"]) for row in rows), *(fixed(depths.get(name)) for name in depth))

    lines = [line("as above", report["table3"], report["table2"].get(last, {}))]
    lines += [line(f"`{rule}`", own, own.get(last, {})) for rule, own in report["rules"].items()]
    header = ("", *(f"{ROW_NAMES[row]}, mean IoU" for row in rows), *(f"{ROW_NAMES[last]}, {name}" for name in depth.values()))
    return Table("By other rules", header, tuple(lines))


def data_line(report: Report) -> str:
    """One line that says what data this is."""
    data, config = report["data"], report["provenance"]["config"]
    if data["real"]:
        kind = f"Real NYU Depth v2 frames (`{data['source']}`)"
    elif config["data.source"] is None:
        kind = f"Synthetic rooms, seed {config['data.rooms_seed']} (no real frame)"
    else:
        kind = f"Frames of `{data['source']}` (not NYU Depth v2's own)"
    held = "also trained on" if config["data.train_on_validation"] else "left out of training"
    present = sum(pixels > 0 for pixels in data["class_pixels"].values())
    return (
        f"{kind}: {data['num_train']} train and {data['num_test']} test frames of {FRAME_WIDTH} × {FRAME_HEIGHT}; "
        f"{data['validation']['frames']} of the train frames for validation and the search, {held}; "
        f"{present} of {len(CLASS_NAMES)} classes; {percent(data['void_share'])} % of pixels unlabelled; "
        f"depth {fixed(data['min_depth'], 2)} to {fixed(data['max_depth'], 2)} m, "
        f"raw depth missing at {percent(data['hole_share'])} % of pixels; digest `{data['digest'][:16]}`."
    )


ABSENT_RULE = {
    "ignore": "classes in neither truth nor prediction are left out of means (FCN's rule)",
    "zero": "classes without a pixel count as 0 in means",
    "gt_present": "means are over the classes of the truth alone",
}
POOLING_RULE = {"pixels": "pooled over all pixels of all frames", "images": "taken of each frame and averaged over frames"}
TRUTH = {"filled": "the depth with its holes filled in", "raw": "the sensor's valid depth alone"}


def frames_line(report: Report) -> str:
    """What is scored: which frames, and which part of them."""
    part = _scored_part(report["provenance"]["config"]["evaluation.crop"])
    return f"Both tables: {report['data']['num_test']} test frames at {FRAME_WIDTH} × {FRAME_HEIGHT}, {part}."


def views_line(report: Report) -> str:
    """What the network sees of a picture, where that is more than the picture; else nothing."""
    config = report["provenance"]["config"]
    own = {name: config[f"evaluation.{name}"] for name in ("scales", "mirror") if f"evaluation.{name}" in config}
    evaluation = EvaluationConfig(**own)  # reports of earlier versions have neither
    if not evaluation.views:
        return ""
    return (
        f"The network sees {evaluation.views_said} of each picture: its probabilities and depth are means over them, before "
        "the CRF. The paper does not say that it does so."
    )


def protocol(report: Report) -> list[str]:
    """How the numbers were taken: what the paper leaves open, and what stands beside what."""
    config, num_test = report["provenance"]["config"], report["data"]["num_test"]
    absent, pooling = ABSENT_RULE[config["evaluation.absent_classes"]], POOLING_RULE[config["evaluation.depth_pooling"]]
    depth = floor_depth(report)
    at = f"{depth}, of that split too" if depth else "none for depth, of which that split has none"
    floors = f"every pixel “{floor_class(report)}”, the train split's commonest class; {at}"
    lines = [
        frames_line(report),
        *filter(None, [views_line(report)]),
        f"Table 3: one confusion matrix over all frames, unlabelled pixels left out; {absent}.",
        f"Table 2: against {TRUTH[config['evaluation.depth_truth']]}; {pooling}. "
        f"{ROW_NAMES['unary_sem']} has no depth: stage 1 trains none.",
        f"Floors, which look at no picture: {floors}.",
        *([_intervals(config["data.validation_by"])] if report.get("gains") else []),
    ]
    if not report["paper"]:
        return [*lines, f"The paper's columns are empty ({NONE}): its numbers are of NYU Depth v2, and this is other data."]
    lines.append(
        "The paper prints one depth column and does not say of which row: it stands beside Sem-CRF+, its final model. Its "
        "scale-invariant 0.061 can only be a variance, and Eigen & Fergus's 0.171 only a standard deviation: "
        "the two do not compare."
    )
    if num_test != NUM_TEST_FRAMES:
        lines.append(
            f"The paper's numbers are over all {NUM_TEST_FRAMES} test frames, these over {num_test}: they do not compare."
        )
    return lines


def _intervals(drawn_by: str) -> str:
    what = "whole runs of consecutive frames" if drawn_by == "scene" else "the frames"
    return (
        f"Differences of mean IoU have 95 % intervals: resamples of {what}, the same for both rows (paired bootstrap). "
        "They are of these networks; trained from another seed, rows differ too."
    )


def _scored_part(crop: str) -> str:
    if crop == "none":
        return "the whole frame (no crop)"
    rows, columns = CROPS[crop]
    return f"the {crop} crop (rows {rows.start}–{rows.stop - 1}, columns {columns.start}–{columns.stop - 1})"


def findings(report: Report) -> list[Finding]:
    """What the numbers say, computed: each row against the one before it, and the floors."""
    found = [_comparison(report, *pair) for pair in COMPARED if set(pair) <= set(report["table3"])]
    return [*found, *_floor_findings(report)]


def _comparison(report: Report, row: str, other: str) -> Finding:
    groups: dict[str, list[str]] = {"below": [], "equal to": [], "above": []}
    gains = report.get("gains", {})  # reports of earlier versions have none
    for name in TABLE3_METRICS:
        one, two = report["table3"][row].get(name), report["table3"][other].get(name)
        if one is not None and two is not None:
            same = percent(one, 2) == percent(two, 2)  # what is shown is what is compared
            sign = "equal to" if same else "below" if one < two else "above"
            gain = _interval(gains.get(row, {}).get(other, {})) if name == "mean_iou" else ""
            groups[sign].append(f"{METRIC_NAMES[name]} ({percent(one, 2)} against {percent(two, 2)} %{gain})")
    parts = [f"{sign} {ROW_NAMES[other]} in {_and(names)}" for sign, names in groups.items() if names]
    if not parts:
        return Finding(f"{ROW_NAMES[row]} and {ROW_NAMES[other]} cannot be compared: there is no number.", against=True)
    return Finding(f"{ROW_NAMES[row]} is {'; '.join(parts)}.", against=bool(groups["below"]))


def _interval(gain: Mapping[str, Number]) -> str:
    """A gain and its interval, to follow the two numbers that it is between; nothing where there is none."""
    said = points(gain)
    return "" if said == NONE else f": {said}"


def _floor_findings(report: Report) -> list[Finding]:
    """What is no better than its floor; of mean IoU and RMSE also where nothing is."""
    floors = {"table3": f"all “{floor_class(report)}”", "table2": floor_depth(report) or NONE}
    asked = [("table3", name) for name in TABLE3_METRICS] + [("table2", name) for name in TABLE2_METRICS]
    found = [(name, _floor_finding(report, table, name, floor=floors[table])) for table, name in asked]
    return [finding for name, finding in found if finding is not None and (finding.against or name in {"mean_iou", "rmse"})]


def _floor_finding(report: Report, table: str, metric: str, *, floor: str) -> Finding | None:
    bound = report["floors"].get(metric)
    values = {row: metrics[metric] for row, metrics in report[table].items() if metrics.get(metric) is not None}
    if bound is None or not values:
        return None
    name, in_metres, _ = METRIC_NAMES[metric].partition(", m")

    def show(value: Number) -> str:
        return f"{percent(value)} %" if table == "table3" else f"{fixed(value)}{' m' if in_metres else ''}"

    sign = 1 if metric in HIGHER_IS_BETTER else -1
    no_better = [f"{ROW_NAMES[row]} ({show(value)})" for row, value in values.items() if sign * value <= sign * bound]
    no_better += [f"{ROW_NAMES[row]} ({NONE})" for row, own in report[table].items() if own.get(metric, 0) is None]
    if no_better:
        return Finding(f"No better in {name} than the floor of {floor} ({show(bound)}): {_and(no_better)}.", against=True)
    return Finding(f"Every row is better in {name} than the floor of {floor} ({show(bound)}).")


def _and(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
