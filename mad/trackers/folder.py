"""A finished results folder, published: what `python -m mad.publish` and `python -m mad.leaderboard --publish` do."""

import sys
from pathlib import Path

from mad.records import Store
from mad.trackers.base import build
from mad.trackers.wandb import WandB


def publish_folder(name: str, folder: str | Path, *, workspace: bool = False, dry_run: bool = False) -> bool:
    """Replay all records of a results folder into the tracker `name`.

    Runs keep their ids, so what is there already is updated, and what was published unchanged is not sent again. Can
    be repeated at any time: the folder's records are only read. What was published is remembered beside them, where
    that can be written.

    Args:
        name: wandb | trackio | none.
        folder: `results/<sweep>`, with records; a table alone does not do.
        workspace: save a view of the sweep in W&B too; the address is printed.
        dry_run: only print what would be published.

    Returns:
        Whether all of it is published; where not, a warning has said why.

    Raises:
        ValueError: the tracker is unknown or not installed, the folder holds no records, or the tracker has no views.
    """
    tracker, path = build(name), Path(folder)
    if workspace and not isinstance(tracker, WandB):
        raise ValueError(f"only wandb has saved views, {name} has none; leave out --workspace")
    store = Store(path)
    if not store.exists():
        raise ValueError(
            f"{path} is no results folder with records (runs/*.json, records.jsonl.gz); expected one, as "
            "results/quickstart"
        )
    records = store.records()
    if not records:
        raise ValueError(f"{path} holds no records yet")
    if dry_run:
        try:
            print(tracker.outline(records, store.sweep, path))
        except Exception as error:  # of the tracker's own, whose storage is asked
            print(f"{name}: {type(error).__name__}: {error}; what is published is not known", file=sys.stderr)
            return False
        return True
    idle = tracker.idle(records, store.sweep, path)
    if idle is not None:
        print(idle)
    done = idle is not None or tracker.publish(records, store.sweep, path)
    if done and workspace:
        assert isinstance(tracker, WandB)
        try:
            print(f"W&B: the view of {store.sweep}: {tracker.save_view(records, store.sweep, path)}")
        except Exception as error:  # the runs are published
            print(f"W&B: no view was saved: {error}{tracker.advice(error)}", file=sys.stderr)
            return False
    return done
