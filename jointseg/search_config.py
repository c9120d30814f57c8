"""Every setting of the search. Not here: its spaces (tune_spaces/), what is searched for (crf/settings.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from jointseg.settings import Count, Seed, Settings, SettingsError

SamplerName = Literal["tpe", "cmaes", "nsga2", "qmc", "random", "grid"]


class SearchConfig(Settings):
    """The search of CRF settings on the validation subset (paper, 4.1)."""

    space: str = "crf"
    """A file of tune_spaces/ (`crf_weights`, `crf_bandwidths`, `crf`, `depth_or_not`), or a function of one's own:
    `path/to/file.py:function` or `module:function`."""
    trials: Count = 40
    """Trials, the paper's point included as trial 0. A study goes on where this is raised."""
    start: Path | None = None
    """Settings tried after the paper's: a search's crf_settings.json, or JSON of values by config path."""
    settings: Path | None = None
    """Stage 3 starts from the settings in this file and nothing is searched. An earlier run's crf_settings.json, where its
    search left it, for a last training on all frames (`data.train_on_validation`) when everything has been chosen; or
    `{"crf.theta_alpha": 109, ...}`, of which what is not named keeps this run's value."""
    sampler: SamplerName = "tpe"
    """Who asks for points: `tpe` (multivariate), `cmaes` (one objective), `nsga2` (two), `qmc`
    (Sobol), `random`, or `grid`: `grid_levels` values of every number, in an order drawn by the seed."""
    objective: Literal["miou", "miou,seconds", "miou,boundary_f1"] = "miou"
    """What is sought: mean IoU, or beside it the seconds of a trial or the F1 of class boundaries. Seconds are measured: with
    them the list of trials is not the seed's alone."""
    batch: Count = 4
    """Trials asked for together, as soon as all trials of the batch before the last have ended. The list of trials depends on
    the seed and on this number, not on how many run at once."""
    fidelity: Literal["inference", "finetune"] = "inference"
    """What a trial is: `inference`, the CRF alone on cached unaries; or `finetune`, a short stage 3 (`stage3` with
    `finetune_iterations`) that begins with the trial's settings, on as many workers as `training` asks for."""
    finetune_iterations: Count = 100
    """Iterations of a `finetune` trial's stage 3."""
    early_stop: bool = False
    """End a trial after a fold if, on the frames seen, it lies behind the best of the trials told so far by more than
    resampling frames explains. The sampler is told that it was pruned, and at which score. For `inference`, one objective."""
    concurrent: int = Field(0, ge=0)
    """Trials at once, at most; 0: as many as there are CPUs, and GPUs where they ask for some, for."""
    cpus_per_trial: Count = 1
    """CPUs asked of Ray for each trial, and the threads it uses."""
    gpus_per_trial: float = Field(0.0, ge=0, le=1)
    """Share of a GPU for each trial of the CRF, on which it then runs; 0: on the CPU."""
    filter_cache: int = Field(1536, ge=0)
    """MiB of the CRF's filters that each trial process keeps for the next trial, at most (100 frames at 257 x 257 have 1100 to
    1450); on CPUs those of all processes of a machine together no more than a quarter of its memory."""
    node_folder: Path | None = None
    """A folder on a disk of each node's own, for a copy of the unaries that its trials read (100 frames at 513: 3.3 GB);
    None: they read the run's folder. For folders shared over a network. The copy stays until it is removed."""
    startup_trials: int = Field(10, ge=0)
    """Random trials before TPE or CMA-ES starts to model."""
    grid_levels: int = Field(3, ge=2)
    """Values of each number in a `grid`."""
    seed: Seed = 0
    """Seed of the sampler, of the folds and of the bootstrap."""
    folds: int = Field(5, ge=2)
    """Folds of the validation frames, balanced by scene type where it is known; with `data.validation_by=scene` of whole
    scenes."""
    resamples: Count = 20_000
    """Resamples for the interval of a gain over the paper's point: of the frames; with `data.validation_by=scene` of whole
    scenes."""

    @model_validator(mode="after")
    def _stops_what_can_be_stopped(self) -> Self:
        if self.early_stop and (self.objective != "miou" or self.fidelity != "inference"):
            raise SettingsError("early_stop", "is for objective=miou and fidelity=inference; true is not allowed with others")
        return self
