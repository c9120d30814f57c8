"""What a result was made from, found again: its record, its data by digest, its checkpoint by digest.

Not here: computing it again and comparing (reproduce.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from jointseg.checkpoint import final_digest
from jointseg.config import Config
from jointseg.data.files import is_folder
from jointseg.data.store import Store, is_store, prepare
from jointseg.errors import InputError
from jointseg.json_files import read_json
from jointseg.published import ROW_NAMES
from jointseg.settings import with_overrides
from jointseg.stages import STAGES
from pipeline.run_store import ARTIFACTS
from pipeline.study.tracked_trials import TRIAL_RECORD
from pipeline.tracked_files import download, ended_otherwise, read_tracked, reading_of
from pipeline.tracking import Tracker
from pipeline.workspace import REPORT, SETTINGS, Workspace

SCHEME = "mlflow:"
# What a record has at least, and of which kind.
OF_A_TRIAL = {
    "settings": dict, "score": int | float, "fold_scores": list, "boundary_f1": int | float | None, "trial": int, "data": str,
    "frames": list, "checkpoint": str, "config": dict, "by_frame": list,
}  # fmt: skip
OF_A_FRAME = {"frame", "fold", "mean_iou", "pixel_accuracy", "confusion"}
OF_A_RUN = dict.fromkeys(("table2", "table3", "search", "data", "provenance"), dict)


@dataclass(frozen=True)
class Evidence:
    """A record, and the folder of a run (or one with a run's parts) that it may have been made in."""

    name: str
    record: Mapping[str, Any]
    place: Workspace | None

    @property
    def is_run(self) -> bool:
        """Whether this is a whole run's report; else it is a trial's."""
        return "table3" in self.record

    @property
    def commit(self) -> str | None:
        """The commit of the code that scored it; None where that is not known."""
        if not self.is_run:
            return self.record.get("commit")
        commits: dict[str, str | None] = self.record.get("commits", {})
        return commits.get("evaluate", self.record["provenance"]["commit"])

    @property
    def config(self) -> Config:
        """The whole config that the record was made with.

        Raises:
            InputError: the record has none, or one that this version does not know.
        """
        flat: dict[str, Any] = self.record["provenance"]["config"] if self.is_run else self.record["config"]
        try:
            return with_overrides(Config(), flat)
        except InputError as error:
            raise InputError(f"{self.name}: {error}") from None


@contextmanager
def gathered(what: str, *, out: Path | None) -> Iterator[Evidence]:
    """The record that `what` names, a file or `mlflow:RUN_ID`, and where it may have been made.

    Args:
        what: path of a crf_settings.json, a trial.json or a report.json; or an MLflow run of a trial, a search or a pipeline.
        out: the run's folder, where `what` does not lie in it.

    Raises:
        InputError: there is no such record.
    """
    if not what.startswith(SCHEME):
        path = Path(what).resolve()
        place = Workspace(out.resolve()) if out is not None else _run_above(path)
        yield Evidence(str(path), _checked(what, read_json(path)), place)
        return
    run_id = what.removeprefix(SCHEME)
    tracker = Tracker.of_run(run_id, out)
    with TemporaryDirectory(prefix="jointseg-") as folder:
        names = (TRIAL_RECORD, SETTINGS, REPORT)
        with reading_of(run_id):
            record = next((found for name in names if (found := read_tracked(tracker, run_id, name))), None)
            ended = ended_otherwise(tracker, run_id)
        if record is None and out is not None:  # a folder that was moved: MLflow looks where it was
            kept = [out / ARTIFACTS / run_id / "artifacts" / name for name in names]
            record = next((read_json(path) for path in kept if path.is_file()), None)
        if record is None:
            if ended is not None:
                raise InputError(f"{what}: a trial that {ended}: it has no score to reproduce")
            raise InputError(f"{what}: has no {TRIAL_RECORD}, {SETTINGS} or {REPORT}: not a trial, a search or a whole run")
        with reading_of(run_id):
            place = Workspace(out.resolve()) if out is not None else _downloaded(tracker, Workspace(Path(folder)))
        yield Evidence(what, _checked(what, record), place)


def _downloaded(tracker: Tracker, place: Workspace) -> Workspace:
    """The parts of a run that MLflow has, laid out as in a run's folder."""
    for stage in STAGES.values():
        download(tracker, stage.name, "checkpoint", place.final(stage))
    return place


def _run_above(path: Path) -> Workspace | None:
    places = map(Workspace, path.parents)
    return next((place for place in places if place.config.is_file() and place.phases.is_file()), None)


def _checked(what: str, record: Any) -> dict[str, Any]:
    if not isinstance(record, dict) or not {"by_frame", "table3"} & record.keys():
        raise InputError(f"{what}: not a record; allowed: a trial.json, a search's {SETTINGS} or a run's {REPORT}")
    kinds: Mapping[str, Any] = OF_A_TRIAL if "by_frame" in record else OF_A_RUN
    missing = [name for name in kinds if name not in record]
    if missing:
        raise InputError(f"{what}: not a whole record: it has no {', '.join(missing)}")
    wrong = [name for name, kind in kinds.items() if not isinstance(record[name], kind)]
    if wrong or not all(isinstance(own, dict) and own.keys() >= OF_A_FRAME for own in record.get("by_frame", ())):
        raise InputError(f"{what}: not a record: {', '.join(wrong) or 'by_frame'} holds something else than one does")
    if "by_frame" in record:
        if [own["frame"] for own in record["by_frame"]] != record["frames"]:
            raise InputError(f"{what}: not a whole record: by_frame has not each of frames once, in their order")
        if len(record["fold_scores"]) != len({own["fold"] for own in record["by_frame"]}):
            raise InputError(f"{what}: not a whole record: fold_scores has not each of by_frame's folds once")
        numbers = [
            *record["fold_scores"],
            *(own[name] for own in record["by_frame"] for name in ("mean_iou", "pixel_accuracy")),
        ]
    else:
        tables = {"table3": list(ROW_NAMES), "table2": [row for row in ROW_NAMES if row != "unary_sem"]}
        for table, rows in tables.items():
            if record[table].keys() != set(rows) or not all(isinstance(own, dict) for own in record[table].values()):
                raise InputError(f"{what}: not a whole record: {table} has not the rows {', '.join(rows)}")
        numbers = [value for table in tables for own in record[table].values() for value in own.values()]
    if not all(value is None or (isinstance(value, int | float) and not isinstance(value, bool)) for value in numbers):
        raise InputError(f"{what}: not a record: a score is no number")
    return record


def find_store(evidence: Evidence, data: Path | None, scratch: Path) -> Path:
    """The prepared store with the record's digest: `data` (a store, or frames, prepared in `scratch` now), the run's own, or
    that which the run was given.

    Raises:
        InputError: none has it, or `data` is no folder.
    """
    wanted = evidence.record["data"]["digest"] if evidence.is_run else evidence.record["data"]
    if data is not None and not is_folder(data):
        raise InputError(f"--data: {data} is not a folder")
    looked: list[str] = []
    source = evidence.config.data.source
    for folder in (data, evidence.place.store if evidence.place is not None else None, source):
        if folder is None or not is_folder(folder):
            continue
        store = Store.open(folder) if is_store(folder) else prepare(folder, scratch / f"store-{len(looked)}")
        if store.digest == wanted:
            return store.path.resolve()  # Ray works in a folder of its own
        looked.append(f"{folder} ({store.digest[:12]})")
    raise InputError(
        f"{evidence.name}: its data has digest {wanted[:12]}; looked in {', '.join(looked) or 'no folder'}; "
        "give its folder as --data"
    )


def find_checkpoint(evidence: Evidence) -> Path:
    """The finished stage 2 whose weights have the record's digest, in the run's folder.

    Raises:
        InputError: it is not there.
    """
    wanted: str = evidence.record["checkpoint"]
    if evidence.place is None:
        raise InputError(f"{evidence.name}: lies in no run's folder; give the one with checkpoint {wanted[:12]} as --out")
    final = evidence.place.final(STAGES["stage2"])
    refuse_other_checkpoint(final, wanted)
    return final


def refuse_other_checkpoint(final: Path, wanted: str) -> None:
    """Raise InputError unless the finished stage's weights have this digest."""
    found = final_digest(final)
    if found != wanted:
        raise InputError(f"{final}: is checkpoint {found[:12]}; the record was made with {wanted[:12]}")
