"""The folder `--out`: where each part of a run lies, which phases have finished, and its config.

Not here: what the phases do (phases.py).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jointseg.checkpoint import refuse_other_config
from jointseg.config import Config
from jointseg.data.files import is_file_to_read, unreadable
from jointseg.data.manifest import read_origin
from jointseg.data.store import Store
from jointseg.errors import InputError
from jointseg.json_files import write_json
from jointseg.stages import Stage
from jointseg.whole import locked, write_atomically

STAGE_LOG, LOADED, NOTES = "log.jsonl", "loaded.txt", "notes.jsonl"
"""Of a stage's folder."""
SETTINGS, TRIALS = "crf_settings.json", "trials.parquet"
"""Of a study's folder; the first also of the run's, where it is the result that stage 3 starts from."""
REPORT = "report.json"
PIPELINE = ("data", "stage1", "stage2", "search", "stage3_sem_crf", "stage3", "evaluate", "report")
"""The phases of `run`, in order."""
PHASES = (*PIPELINE, "one_stage")
"""All there are."""


@dataclass(frozen=True)
class Workspace:
    """Paths inside one `--out`, all absolute."""

    out: Path

    @property
    def config(self) -> Path:
        """The whole config, JSON."""
        return self.out / "config.json"

    @property
    def store(self) -> Path:
        """The prepared frames."""
        return self.out / "data"

    @property
    def rooms(self) -> Path:
        """Synthetic rooms in NYU's layout, where no data was given."""
        return self.out / "rooms"

    @property
    def views(self) -> Path:
        """The manifest of the views that are trained on."""
        return self.out / "views.parquet"

    @property
    def validation(self) -> Path:
        """The validation subset: its frames, seed and digest."""
        return self.out / "validation.json"

    @property
    def features(self) -> Path:
        """What the frozen layers say of each view (`data.cache_features`)."""
        return self.out / "features"

    def stage(self, stage: Stage) -> Path:
        """A stage's checkpoints and log."""
        return self.out / stage.name

    def log(self, stage: Stage) -> Path:
        """What the stage has reported, a line each."""
        return self.stage(stage) / STAGE_LOG

    def final(self, stage: Stage) -> Path:
        """A finished stage's weights."""
        return self.stage(stage) / "final"

    def loaded(self, stage: Stage) -> Path:
        """What the stage took from `network.weights`, a text; there only where it began with them."""
        return self.stage(stage) / LOADED

    def notes(self, stage: Stage) -> Path:
        """What its workers had to say while it trained, a line each; there only if they had something."""
        return self.stage(stage) / NOTES

    @property
    def search(self) -> Path:
        """The search's unaries, and a folder for each study."""
        return self.out / "search"

    @property
    def scores(self) -> Path:
        """Records of `jointseg score`."""
        return self.search / "scores"

    @property
    def crf_settings(self) -> Path:
        """The result of the study that stage 3 starts from."""
        return self.out / SETTINGS

    def study(self) -> Path:
        """The folder of that study, once there is a result.

        Raises:
            InputError: the result is missing, or is none of a search.
        """
        name = self._study_name()
        if name is None:
            raise InputError(f"{self.crf_settings}: its settings were given, no search found them")
        return self.search / name

    def has_study(self) -> bool:
        """Whether that result is a study's, and not settings that were given (`search.settings`). Raises as `study`."""
        return self._study_name() is not None

    def _study_name(self) -> str | None:
        try:
            name: str | None = json.loads(self.crf_settings.read_text(encoding="utf-8"))["study"]
            return name
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self.crf_settings}: not a search's result ({error!r})") from None

    def trials(self) -> Path:
        """One row a trial of that study.

        Raises:
            InputError: the result is missing, or its study's folder is gone.
        """
        path = self.study() / TRIALS
        if not is_file_to_read(path):
            raise InputError(f"{path}: missing; allowed: the study that {self.crf_settings} is the result of")
        return path

    @property
    def evaluation(self) -> Path:
        """The sums of each row, and the predictions that figures are drawn from."""
        return self.out / "evaluation"

    @property
    def figures(self) -> Path:
        """Pictures, PNG."""
        return self.out / "figures"

    @property
    def report(self) -> Path:
        """The run's results, JSON."""
        return self.out / REPORT

    @property
    def report_page(self) -> Path:
        """The same for people, Markdown."""
        return self.out / "report.md"

    @property
    def report_html(self) -> Path:
        """That page as one file, with its pictures inside."""
        return self.out / "report.html"

    @property
    def phases(self) -> Path:
        """Which phases have finished, how long each took (from where it last went on), and under which commit."""
        return self.out / "phases.json"

    @property
    def tracking(self) -> Path:
        """Which MLflow store has the runs, where it is not the folder's own."""
        return self.out / "tracking.json"

    def done(self) -> dict[str, dict[str, Any]]:
        """Of each finished phase, in order: `seconds`, and the `commit` of the code that finished it, None where not known.

        Raises:
            InputError: the file is damaged, or may not be read.
        """
        if not is_file_to_read(self.phases):
            return {}
        try:
            found = json.loads(self.phases.read_text(encoding="utf-8"))
            # Until commit a0aeccc the seconds stood alone.
            rows = {phase: row if isinstance(row, dict) else {"seconds": row, "commit": None} for phase, row in found.items()}
            return {
                phase: {"seconds": float(rows[phase]["seconds"]), "commit": rows[phase]["commit"]}
                for phase in PHASES
                if phase in rows
            }
        except OSError as error:
            raise unreadable(self.phases, error) from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{self.phases}: damaged ({error!r})") from None

    def subset(self) -> dict[str, Any]:
        """The validation subset: `frames`, `seed` and `digest`.

        Raises:
            InputError: its file is missing or damaged.
        """
        try:
            found: dict[str, Any] = json.loads(self.validation.read_text(encoding="utf-8"))
            return {**found, "frames": tuple(found["frames"]), "digest": found["digest"]}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self.validation}: missing or damaged ({error})") from None

    def finished(self, phase: str) -> bool:
        """Whether the phase has finished."""
        assert phase in PHASES
        return phase in self.done()

    def finish(self, phase: str, *, seconds: float, commit: str | None = None) -> None:
        """Record that the phase has finished, by the code of `commit`. What it leaves must be whole by now."""
        row = {"seconds": round(seconds, 2), "commit": commit}
        write_json(self.phases, {**self.done(), phase: row})

    def forget(self, phase: str) -> None:
        """Have the phase done again: what it was made from is another now."""
        write_json(self.phases, {name: row for name, row in self.done().items() if name != phase})

    def require(self, phase: str, *, wanted: str) -> None:
        """Raise InputError unless the phase has finished."""
        if not self.finished(phase):
            if not self.out.is_dir():
                raise InputError(f"{self.out}: no such folder; {wanted} needs one in which {phase} has finished")
            finished = ", ".join(self.done()) or "nothing"
            raise InputError(f"{self.out}: {wanted} needs {phase}, which has not finished there; finished: {finished}")

    def refuse_other_frames(self) -> None:
        """Raise InputError where the store is another than the one that the views are of: it may be a link, and made again."""
        if self.finished("data"):
            then, now = read_origin(self.views).store_digest, Store.open(self.store).digest
            if then != now:
                raise InputError(
                    f"{self.store}: other frames than {self.out} began with (digest {now[:12]}, not {then[:12]}); allowed: "
                    "the same, or a new --out"
                )

    def load_config(self) -> Config | None:
        """The config of this folder, or None in a new one.

        Raises:
            InputError: the file is not such a config, or may not be read.
        """
        if not is_file_to_read(self.config):
            return None
        try:
            return Config(**json.loads(self.config.read_text(encoding="utf-8")))
        except OSError as error:
            raise unreadable(self.config, error) from None
        except InputError as error:
            raise InputError(f"{self.config}: {error}") from None
        except (ValueError, TypeError) as error:
            raise InputError(f"{self.config}: not a config ({error})") from None

    def refuse_other_config(self, config: Config, *, free: Collection[str] = ()) -> None:
        """Raise InputError where the folder has another config, naming the fields that differ, or files and no config.

        Those of `free` may differ.
        """
        there = self.load_config()
        if there is not None:
            refuse_other_config(there, config, place=self.out, free=free)
        elif self.out.is_dir() and any(not path.name.startswith(".") for path in self.out.iterdir()):
            raise InputError(f"{self.out}: holds files but no config.json; give a new or empty folder as --out")

    def adopt_config(self, config: Config) -> None:
        """Make `config` this folder's.

        Raises:
            InputError: the folder has another one, or cannot be written.
        """
        self.refuse_other_config(config)
        if self.config.is_file():
            return
        try:
            write_atomically(self.config, config.model_dump_json(indent=1))
        except OSError as error:
            raise InputError(f"{self.out}: cannot be written: {error.strerror}") from None

    def is_scored(self, key: str) -> bool:
        """Whether another process computes the score of this name now."""
        try:
            with self.locked(self.scores, key):
                return False
        except InputError:
            return True

    @contextmanager
    def locked(self, folder: Path | None = None, name: str = "") -> Iterator[None]:
        """Keep other runs out for the length of the block.

        Args:
            folder: out of which; None: the whole run's.
            name: of what they are kept from doing there, where other things may be done meanwhile.

        Raises:
            InputError: another run has it, or the folder cannot be made.
        """
        folder, busy = folder or self.out, "another run is working in this folder; wait for it, or end it"
        with locked(folder / f".{name}{'.' if name else ''}lock", of=folder, busy=busy):
            yield
