"""The data a run is given, a folder of frames or a store that was prepared from one, and which of its frames are for what.

Not here: how either is read (jointseg/data/source.py, store.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jointseg.config import Config, DataConfig
from jointseg.data.frame import Frame, valid_depth
from jointseg.data.manifest import write_manifest
from jointseg.data.rooms import refuse_too_many, train_numbers
from jointseg.data.source import Progress, open_source
from jointseg.data.store import Store, is_store, prepare
from jointseg.data.views import View, draw_validation, make_views, subset_digest
from jointseg.errors import InputError
from jointseg.json_files import write_json
from jointseg.labels import VOID
from jointseg.settings import SettingsError
from pipeline.workspace import Workspace


def bring_in(source: Path, store: Path, *, progress: Progress | None = None) -> None:
    """Have the frames of `source` at `store`: a new store of a folder of frames, a link to a store.

    Raises:
        InputError: as `prepare`, or `source` is a damaged store.
    """
    if not is_store(source):
        prepare(source, store, progress=progress)
        return
    Store.open(source)
    if store.is_symlink():  # left by an interruption; it leads nowhere, or there would be a store
        store.unlink()
    store.parent.mkdir(parents=True, exist_ok=True)
    store.symlink_to(source.resolve())


def check_source(data: DataConfig) -> None:
    """See that `data.source` leaves frames to train on, and that these have labels, and depth of the kind that is trained on;
    and that the validation frames, by which a search would choose once all is trained, have labels.

    Raises:
        InputError: they have not, the source cannot be read, or there would be too many synthetic rooms.
    """
    if data.source is None:
        refuse_too_many(data.rooms_train, data.rooms_test)
        try:
            draw_validation(train_numbers(data.rooms_train, data.rooms_test, data.rooms_seed), data)
        except InputError as error:
            raise InputError(f"{error} (synthetic rooms, data.rooms_train of them: --data gives NYU's frames)") from None
        return
    with _opened(data.source) as (train, read):
        validated = draw_validation(train, data)
        trained = [number for number in train if data.train_on_validation or number not in validated]
        if not any((read(number).labels != VOID).any() for number in trained):
            raise InputError(f"{data.source}: no frame that is trained on has a labelled pixel")
        if not any((read(number).labels != VOID).any() for number in validated):
            raise SettingsError(
                "data.validation_frames",
                f"{len(validated)}: no frame of {data.source} that is drawn has a labelled pixel; allowed: more, or another "
                "data.validation_seed",
            )
        kind = f"{data.train_depth}_depth"
        if not any(valid_depth(getattr(read(number), kind)).any() for number in trained):
            other = "filled" if data.train_depth == "raw" else "raw"
            raise SettingsError(
                "data.train_depth",
                f"{data.train_depth}: no frame of {data.source} that is trained on has such a depth; allowed where there is "
                f"one: {other}",
            )


def list_frames(place: Workspace, store: Store, data: DataConfig) -> tuple[View, ...]:
    """Draw the validation frames and list the views that are trained on, a file of the run's folder each; returns the views."""
    subset = draw_validation(store.train, data)
    description = {
        "frames": subset,
        "seed": data.validation_seed,
        "digest": subset_digest(subset, data.validation_seed, store.digest),
        "in_training": data.train_on_validation,
    }
    write_json(place.validation, description)
    held_out = set() if data.train_on_validation else set(subset)
    views = make_views([number for number in store.train if number not in held_out], data)
    seeds = {"data.views_seed": data.views_seed, "data.validation_seed": data.validation_seed}
    write_manifest(views, place.views, seeds=seeds, store_digest=store.digest)
    return views


def dataset_of(config: Config, place: Workspace) -> dict[str, Any]:
    """The frames of a run that has them, as `Tracker.log_dataset` takes them."""
    store, source = Store.open(place.store), config.data.source
    return {
        "name": source.name if source else "synthetic rooms",
        "digest": store.digest,
        "source": str(source or place.rooms),
        "frames": {"train": len(store.train), "test": len(store.test), "validation": len(place.subset()["frames"])},
    }


@contextmanager
def _opened(source: Path) -> Iterator[tuple[tuple[int, ...], Callable[[int], Frame]]]:
    """The numbers of the train frames, and what reads one."""
    if is_store(source):
        store = Store.open(source)
        yield store.train, store.frame
    else:
        with open_source(source) as frames:
            yield frames.train, frames.read
