"""The run's results for people: report.json, report.md, report.html and figures/.

Not here: what the evaluation left (evaluation_files.py), the pictures (jointseg/figures.py), what the page says
(reporting/tables.py).
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from rich.console import RenderableType

from jointseg.checkpoint import final_digest, load_final
from jointseg.config import Config
from jointseg.crf_figure import learned_matrices
from jointseg.curves_figure import training_curves
from jointseg.data.store import Store
from jointseg.errors import InputError
from jointseg.figures import qualitative, save_png, with_and_without_crf
from jointseg.json_files import read_json, write_json
from jointseg.labels import CLASS_NAMES
from jointseg.published import ROW_NAMES, TABLE2, TABLE2_METRICS, TABLE3, TABLE3_METRICS
from jointseg.search_figures import search_history
from jointseg.settings import flatten, with_overrides
from jointseg.stages import STAGES
from jointseg.whole import appearing_whole, write_atomically
from pipeline.evaluation_files import frames_file, load_predictions, read_metrics
from pipeline.failures import interruptions_wait
from pipeline.log_lines import in_step_order, read_lines
from pipeline.provenance import provenance
from pipeline.reporting import html, page
from pipeline.reporting.confusions import named_confusions
from pipeline.reporting.search import FIGURES
from pipeline.run_store import run_store
from pipeline.study.earlier import TAKEN_FROM
from pipeline.study.trial_record import STOPPED
from pipeline.workspace import Workspace

WITH_CRF, WITHOUT_CRF = "sem_crf_plus", "unary_sem_depth"


def write(config: Config, place: Workspace, store: Store) -> None:
    """Write figures/, report.json, report.md and report.html from what the evaluation and the search left; again, the same."""
    captions = _draw(place, store)
    write_json(place.report, _report(config, place, store))
    text = page.markdown(read_json(place.report), name=place.out.name, figures=captions)
    write_atomically(place.report_page, text)
    write_atomically(place.report_html, html.page(text, folder=place.out))


def headline(place: Workspace) -> dict[str, float]:
    """The scores of each row by which runs are compared, as MLflow's metrics; those without a value are left out."""
    found = read_json(place.report)
    scores = {
        f"test/{row}/{name}": found[table][row][name]
        for table, names in (("table3", ("mean_iou", "pixel_accuracy")), ("table2", ("delta1", "rmse")))
        for row in found[table]
        for name in names
    }
    return {name: value for name, value in scores.items() if value is not None}


def description(place: Workspace) -> str:
    """The report's tables and findings in Markdown, without pictures, for a page that shows no files."""
    return page.description(read_json(place.report))


def summary(place: Workspace) -> RenderableType:
    """What the command line prints at the end, from report.json alone.

    Raises:
        InputError: there is no report yet.
    """
    if not place.report.is_file():
        raise InputError(f"{place.report}: not found; the report is written after evaluation")
    here = Path.cwd()
    out = place.out.relative_to(here) if place.out.is_relative_to(here) else place.out
    store = run_store(place.out)
    elsewhere = None if store.elsewhere is None else f"{store.elsewhere}, experiment {store.experiment}"
    read = place.report_html if place.report_html.is_file() else place.report_page  # of runs that ended before there was one
    return page.terminal(read_json(place.report), out=str(out), page=read.name, mlflow=elsewhere)


def _report(config: Config, place: Workspace, store: Store) -> dict[str, Any]:
    metrics = read_metrics(place)
    rows = {row: metrics["rows"][row] for row in ROW_NAMES if row in metrics["rows"]}
    data, done = _data(place, store), place.done()
    return {
        "table2": {row: _only(own, TABLE2_METRICS) for row, own in rows.items() if "rmse" in own},
        "table3": {row: _only(own, TABLE3_METRICS) for row, own in rows.items()},
        "rules": metrics.get("rules", {}),  # evaluations of earlier versions have none of either
        "gains": metrics.get("gains", {}),
        "floors": metrics["floors"],
        "confusions": named_confusions(place),
        "paper": {"table2": TABLE2, "table3": TABLE3} if data["real"] else None,
        "search": _search(config, place),
        "data": data,
        "provenance": provenance(_as_searched(config, place), place.out),
        # The report's own time is known only after it is written.
        "seconds": {phase: row["seconds"] for phase, row in done.items() if phase != "report"},
        "checkpoints": {
            stage.name: final_digest(place.final(stage)) for stage in STAGES.values() if place.final(stage).is_dir()
        },
        "notes": _notes(place),
        "commits": {phase: row["commit"] for phase, row in done.items() if phase != "report"},
    }


def _only(metrics: Mapping[str, float | None], names: tuple[str, ...]) -> dict[str, float | None]:
    return {name: metrics.get(name) for name in names}


def _notes(place: Workspace) -> list[str]:
    """What the stages' workers said while they trained; what they said at each start, once."""
    return list(dict.fromkeys(note["said"] for stage in STAGES.values() for note in read_lines(place.notes(stage))))


def _data(place: Workspace, store: Store) -> dict[str, Any]:
    validation = read_json(place.validation)
    info = dataclasses.asdict(store.info)
    return {
        **info,  # the counts, and whether they are real
        "source": store.source,
        "digest": store.digest,
        "class_pixels": dict(zip(CLASS_NAMES, info["class_pixels"], strict=True)),
        "validation": {
            "frames": len(validation["frames"]),
            "seed": validation["seed"],
            "digest": validation["digest"],
        },
    }


def _as_searched(config: Config, place: Workspace) -> Config:
    """The config with the search that stage 3 started from, which may have had settings of its own."""
    result = read_json(place.crf_settings)
    searched = {f"search.{name}": value for name, value in result.get("search", {}).items()}  # none where nothing was searched
    return with_overrides(config, {**searched, "search.settings": result.get(TAKEN_FROM)})


def _search(config: Config, place: Workspace) -> dict[str, Any]:
    result = read_json(place.crf_settings)
    held = flatten(config.crf, prefix="crf.")
    if not place.has_study():
        given = {"settings": {**held, **result["settings"]}}
        return {"best": given, "study": None, "searched": [*result["settings"]], TAKEN_FROM: result[TAKEN_FROM]}
    (first,) = pq.read_table(place.trials(), filters=[("trial", "==", 0)]).to_pylist()
    papers = {path: first[path] for path in result["searched"] if first[path] is not None}
    kept = ("trials", "failed", "stopped", "searched", "study", "balanced_by", "folds", "paper_folds", "nested", "gain")
    return {
        "best": {"score": result["score"], "settings": result["settings"]},
        # Trial 0: the paper's values of what it drew, the run's own of the rest.
        "paper": {"score": result["paper_score"], "settings": {**held, **papers}},
        **{name: result[name] for name in kept},
        "paper_held": result.get("paper_held", {}),  # results of earlier versions do not say
        "settings": result["search"],
        TAKEN_FROM: result.get(TAKEN_FROM),
        "frames": len(result["frames"]),
        "subset": result["subset"],
    }


@interruptions_wait()
def _draw(place: Workspace, store: Store) -> dict[str, str]:
    """Draw all figures; returns their captions by path from the run's folder."""
    predictions = load_predictions(place, WITH_CRF)
    first_alone = {"first": list(predictions), "best": [], "worst": []}  # of evaluations before commit f5d034b
    pictures = read_metrics(place).get("pictures", first_alone)
    frames = [store.frame(number) for number in pictures["first"]]
    captions = {}
    with appearing_whole(place.figures, replace=True) as folder:
        if frames:
            with_crf, without = ROW_NAMES[WITH_CRF], ROW_NAMES[WITHOUT_CRF]
            save_png(
                qualitative(frames, predictions, title=f"{with_crf} on test frames"),
                folder / "qualitative.png",
            )
            captions["qualitative.png"] = (
                f"{with_crf} on {len(frames)} test frames (as the paper's Fig 2): image, true and predicted classes, raw and "
                "estimated depth."
            )
            alone, title = load_predictions(place, WITHOUT_CRF), f"{with_crf} and {without} on test frames"
            save_png(with_and_without_crf(frames, predictions, alone, title=title), folder / "with_and_without_crf.png")
            captions["with_and_without_crf.png"] = (
                f"With the CRF: {with_crf}; without: {without}, the network it started from (as the paper's Fig 3)."
            )
        if pictures["best"]:
            right = {own["frame"]: own["pixel_accuracy"] for own in pq.read_table(frames_file(place, WITH_CRF)).to_pylist()}
            shown = [store.frame(number) for number in (*pictures["best"], *reversed(pictures["worst"]))]
            title = f"{ROW_NAMES[WITH_CRF]} on its best and its worst test frames"
            save_png(qualitative(shown, predictions, title=title), folder / "best_and_worst.png")
            ends = {"best": pictures["best"], "worst": reversed(pictures["worst"])}
            said = {end: ", ".join(f"{100 * right[number]:.0f}" for number in numbers) for end, numbers in ends.items()}
            captions["best_and_worst.png"] = (
                f"{ROW_NAMES[WITH_CRF]} on the test frames whose pixels it labels best ({said['best']} % rightly) and worst "
                f"({said['worst']} %), the worst last."
            )
        reports = {name: in_step_order(read_lines(place.log(stage))) for name, stage in STAGES.items()}
        if any(reports.values()):
            save_png(training_curves(reports, title="Training, stage after stage"), folder / "training.png")
            captions["training.png"] = "Losses and validation scores of the stages; both stages 3 begin where stage 2 ended."
        weights = load_final(place.final(STAGES["stage3"]))
        matrices = {name.removeprefix("crf."): tensor for name, tensor in weights.items() if name.startswith("crf.")}
        save_png(learned_matrices(matrices, CLASS_NAMES, title="What the CRF has learned"), folder / "crf_weights.png")
        captions["crf_weights.png"] = "The CRF's learned compatibility and weights, class by class (as the paper's Fig 4)."
        if place.has_study():
            captions |= _draw_search(place, folder)
    return {f"{place.figures.name}/{name}": caption for name, caption in captions.items()}


def _draw_search(place: Workspace, folder: Path) -> dict[str, str]:
    """Draw the search's trials, and copy what the study has drawn of them; returns captions by name."""
    trials = read_json(place.crf_settings)["trials"]  # the study may have gone on since
    rows = pq.read_table(place.trials()).sort_by("trial").to_pylist()[:trials]
    scores, stopped = [row["mean_iou"] for row in rows], [row["trial"] for row in rows if row["state"] == STOPPED]
    save_png(search_history(scores, stopped=stopped, title=f"CRF settings: {len(scores)} trials"), folder / "search.png")
    captions = {"search.png": "The search: mean IoU on the validation frames, trial by trial."}
    for name, caption in FIGURES.items() if _is_of_the_result(place) else ():
        drawn = place.study() / "figures" / name
        if drawn.is_file():
            shutil.copyfile(drawn, folder / f"search_{name}")
            captions[f"search_{name}"] = f"The search: {caption[0].lower()}{caption[1:]}"
    return captions


def _is_of_the_result(place: Workspace) -> bool:
    """Whether the study's figures are of the result that stage 3 began from: a study may have been extended since."""
    path = place.study() / place.crf_settings.name
    if not path.is_file():
        return False
    own, there = read_json(path), read_json(place.crf_settings)
    return all(own[name] == there[name] for name in ("trials", "settings"))
