"""What the report says of the search: the settings found, fold by fold, and whether they beat the paper's.

Not here: the search's pictures (pipeline/study/figures.py), the page (page.py).
"""

from __future__ import annotations

from pipeline.notation import CRF_ROWS, percent, setting, setting_of_the_paper
from pipeline.reporting.tables import Finding, Report, Table
from pipeline.study.earlier import TAKEN_FROM
from pipeline.study.result import WHOLE_SCENES
from pipeline.study.spaces import papers_values

FIGURES = {
    "slices.png": "Mean IoU against each parameter; dashed: the paper's value.",
    "parallel.png": "Every trial as a line through its parameters; red: the paper's point.",
    "importance.png": "Share of mean IoU's variance that each parameter explains by itself (fANOVA; the rest is of several "
    "together), ± over resamples of the trials.",
    "folds.png": "The folds of the ten best trials and of the paper's point.",
    "pareto.png": "The two objectives against each other, and the front that no trial beats.",
    "frames.png": "The frames that gained and that lost most under the settings found, beside the paper's.",
}
"""What each picture in a study's folder shows."""


def was_searched(report: Report) -> bool:
    """Whether the settings are a search's; else they were given, and have no score."""
    return report["search"]["study"] is not None


def crf_table(report: Report) -> Table:
    """The CRF settings beside the paper's; where a search found them, with what each scores on the subset."""
    search = report["search"]
    best, published = search["best"], papers_values()
    papers = search.get("paper", {"settings": published})
    rows = [
        (
            path.removeprefix("crf."),
            symbol,
            unit,
            setting(best["settings"][path]) + ("" if path in search["searched"] else " (held)"),
            setting_of_the_paper(path)
            + ("" if papers["settings"][path] == published[path] else f" (held at {setting(papers['settings'][path])})"),
        )
        for path, (symbol, unit) in CRF_ROWS.items()
    ]
    if not was_searched(report):
        return Table("CRF settings", ("setting", "symbol", "unit", "given", "paper"), tuple(rows))
    rows.append(("score", "mean IoU", "%", percent(best["score"], 2), percent(papers["score"], 2)))
    return Table("CRF settings", ("setting", "symbol", "unit", "found", "paper"), tuple(rows))


def fold_table(report: Report) -> Table:
    """The found and the paper's settings fold by fold, and over folds; the nested estimate beside them."""
    search = report["search"]
    rows = [("found", search["folds"]), *([("paper", search["paper_folds"])] if search["paper_folds"] else [])]
    scores = [search["best"]["score"], search["paper"]["score"]]
    cells = [
        (
            name,
            *(percent(score, 2) for score in folds["scores"]),
            f"{percent(folds['mean'], 2)} ± {percent(folds['standard_error'], 2)}",
            percent(pooled, 2),
        )
        for (name, folds), pooled in zip(rows, scores, strict=False)
    ]
    nested = search["nested"]
    cells.append(
        ("chosen on the other folds", *(percent(score, 2) for score in nested["folds"]), "", percent(nested["score"], 2))
    )
    header = ("", *(f"fold {fold}" for fold in range(len(nested["folds"]))), "mean ± standard error", "pooled")
    return Table("Mean IoU by fold, %", header, tuple(cells))


def search_finding(report: Report) -> Finding:
    """What the search says, computed: its best against the paper's settings, and what choosing adds by chance."""
    search = report["search"]
    if not was_searched(report):
        return Finding(f"Nothing was searched: stage 3 began with the CRF settings of `{search[TAKEN_FROM]}`.", against=False)
    best, papers, gain, nested = search["best"]["score"], search["paper"]["score"], search["gain"], search["nested"]
    ends = [
        f"{search[state]} of them {said}"
        for state, said in (("failed", "failed"), ("stopped", "stopped early"))
        if search[state]
    ]
    asked = ", ".join([f"{search['trials']} trials", *ends])
    where = f"on the {_frames(report)[0]} validation frames{_whose(report)}"
    theirs = "the paper's CRF settings"
    if search.get("paper_held"):
        theirs = f"the paper's values of what was searched (the run's own of {', '.join(search['paper_held'])})"
    if papers is None:
        said = f"{theirs[0].upper()}{theirs[1:]} have no score {where}; the best of {asked} has {percent(best, 2)} %."
        return Finding(said, against=True)
    if best <= papers:
        return Finding(
            f"The search found nothing better than {theirs}: {percent(papers, 2)} % mean IoU {where}, {asked}.",
            against=True,
        )
    noise = (
        "within noise of the paper's"
        if gain["within_noise"]
        else f"beyond the noise of resampling {gain.get('over', 'frames')}"
    )
    unseen = nested.get("gain")  # older results have none
    of_it = ""
    if unseen is not None:
        interval = f"{percent(unseen['low'], 2)} to {percent(unseen['high'], 2)}"
        side = "below" if unseen["difference"] < 0 else "above"
        of_it = f", {percent(abs(unseen['difference']), 2)} {side} the paper's ({interval})"
    return Finding(
        f"The search's best has {percent(best, 2)} % mean IoU {where}, {theirs} {percent(papers, 2)} % "
        f"({asked}): a gain of {percent(gain['difference'], 2)} points, 95 % interval {percent(gain['low'], 2)} to "
        f"{percent(gain['high'], 2)}, {noise}. It was chosen on those very frames: chosen on all folds but one and scored on "
        f"that one, it has {percent(nested['score'], 2)} %{of_it}. The tables are of the test split.",
        against=bool(gain["within_noise"]),
    )


def _frames(report: Report) -> tuple[int, str]:
    """How many frames were searched on, and their digest; reports of earlier versions say it of the run's own alone."""
    search, validation = report["search"], report["data"]["validation"]
    return search.get("frames", validation["frames"]), search.get("subset", validation["digest"])


def _whose(report: Report) -> str:
    earlier = report["search"].get(TAKEN_FROM)
    return "" if earlier is None else f" and the network of an earlier run (`{earlier}`)"


def search_note(report: Report) -> str:
    """How the search's score was taken, and what a pixel is."""
    search, config = report["search"], report["provenance"]["config"]
    reference, size = config["crf_reference_size"], config["network.input_size"]
    pixels = (
        f"Pixels are those of a {reference} × {reference} input; at this run's {size} × {size} they count "
        f"× {size / reference:.3g}."
    )
    unnamed = set(CRF_ROWS) - set(search["searched"])
    if not was_searched(report):
        return f"{'“(held)”: not in the file, this run’s own. ' if unnamed else ''}{pixels}"
    number, digest = _frames(report)
    held = " “(held)”: not searched." if unnamed else ""
    asked = search["settings"]
    how = "of the CRF alone on stage 2's output"
    if asked["fidelity"] == "finetune":
        how = f"after {asked['finetune_iterations']} iterations of stage 3 from the trial's settings"
    return (
        f"Mean IoU over {number} validation frames{_whose(report)} (digest `{digest[:16]}`) {how}, "
        f"{search['trials']} trials (space `{asked['space']}`, sampler `{asked['sampler']}`, seed "
        f"{asked['seed']}), {search['failed']} failed.{held} {pixels}"
    )


def fold_note(report: Report) -> str:
    """What the table of folds shows."""
    balanced, stopped = report["search"]["balanced_by"], report["search"]["stopped"]
    drawn = f"balanced by {balanced}" if balanced else "drawn at random: scene types are not known"
    if balanced == WHOLE_SCENES:
        drawn = "made of whole scenes, so that no two have frames of one"
    return (
        f"Mean IoU of each fold of the validation frames, %; folds are {drawn}. “Chosen on the other folds”: for each fold the "
        f"trial that is best on the others: the choice between trials has not seen the frames that it is scored on, though a "
        f"sampler that goes by scores has{_unless_stopped(stopped)}."
    )


def _unless_stopped(stopped: int) -> str:
    if not stopped:
        return ""
    return f"; so have the {stopped} trials that were stopped early on the first of these frames, and cannot be chosen"
