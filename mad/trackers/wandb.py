"""Weights & Biases: each record as a run, then the leaderboard as one more.

Without an API key the runs are written offline, under `<folder>/wandb/`, and nothing touches the network; the command
that uploads them is printed. WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE and WANDB_BASE_URL mean what they always mean.
`<folder>/wandb/published.json` remembers what was published, so that a re-run publishes what is new.
"""

import contextlib
import hashlib
import logging
import netrc
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mad.records import Record, dumps, loads, replace, table, write_csv
from mad.trackers.base import Tracker, registry

log = logging.getLogger(__name__)

TAG_LENGTH = 64  # the longest tag W&B takes


@registry.register("wandb")
class WandB(Tracker):
    """Runs in the project WANDB_PROJECT (default: mad), grouped by sweep."""

    def publish(self, records: Sequence[Record], sweep: str, folder: str | Path) -> None:
        folder = Path(folder)
        try:
            _publish(records, sweep, folder)
        except Exception as error:  # whatever it is, the results are safe
            reason = f"{type(error).__name__}: {error}"
            log.warning("W&B: %s. The results in %s are complete; the same command publishes the rest", reason, folder)


def _publish(records: Sequence[Record], sweep: str, folder: Path) -> None:
    where = mode()
    if where == "disabled":
        return
    published = Published(folder / "wandb" / "published.json")
    digests = {record.run_id: _digest(vars(record)) for record in records}
    new = [record for record in records if not published.has(record.run_id, digests[record.run_id])]
    whole = _digest([sweep, sorted(digests.values())])
    if published.has("leaderboard", whole):
        return
    import wandb  # half a second

    print(f"W&B: publishing {len(new)} runs and the leaderboard ({where})", flush=True)
    with _files_in(folder / "wandb"):
        try:
            for record in new:
                _replay(wandb, record, _options(wandb, sweep, folder, where))
                published.add(record.run_id, digests[record.run_id])
            _leaderboard(wandb, records, sweep, folder / "wandb", whole, _options(wandb, sweep, folder, where))
            published.add("leaderboard", whole)
        finally:
            wandb.teardown()
    if where == "offline":
        runs = f"{shlex.quote(str(folder / 'wandb'))}/offline-run-*"
        print(f"W&B: written offline; to upload: wandb login && wandb sync {runs}")


def _options(wandb: Any, sweep: str, folder: Path, where: str) -> dict[str, Any]:
    """What all runs have in common. A new object each time, because `init` writes into the settings."""
    return {
        "project": os.environ.get("WANDB_PROJECT") or "mad",
        "dir": str(folder),
        "group": sweep,
        "mode": where,
        "resume": "allow",  # a run that was retried is one run
        "reinit": "create_new",  # a run that the caller has open stays open
        "settings": wandb.Settings(
            silent=True,
            console="off",
            disable_git=True,  # our records say more, and of the time of training
            save_code=False,
            x_disable_meta=True,
            x_disable_stats=True,
            x_save_requirements=False,
        ),
    }


def _replay(wandb: Any, record: Record, options: dict[str, Any]) -> None:
    """One record as one W&B run."""
    about = {"status": record.status, "started": record.started, "device": record.device}
    config = record.config | about | {"git_commit": record.git_commit, "versions": record.versions}
    arch, task = (config.get(key) or {} for key in ("arch", "task"))
    tags = [str(tag)[:TAG_LENGTH] for tag in (arch.get("name"), task.get("name")) if tag]
    run = wandb.init(id=record.run_id, name=name(record), tags=tags, config=config, **options)
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    for point in record.curve:
        run.log(point)
    summary = {**record.metrics, **record.cost, "steps": record.steps, "seconds": record.seconds}
    run.summary.update({**summary, **about, "error": record.last_error})
    run.finish(exit_code=1 if record.status == "failed" else 0)


def _leaderboard(
    wandb: Any, records: Sequence[Record], sweep: str, folder: Path, digest: str, options: dict[str, Any]
) -> None:
    """One run of the type `leaderboard`, with the ranking as a table and the results as an artifact."""
    from mad import leaderboard  # pandas, half a second

    board = leaderboard.build(table(records))
    files = (folder / f"leaderboard-{digest}").resolve()  # its own folder: a later upload finds what was recorded
    files.mkdir(parents=True, exist_ok=True)
    write_csv(records, files / "results.csv")
    leaderboard.write_csv(board, files / "leaderboard.csv")
    leaderboard.write_markdown(board, files / "leaderboard.md")

    run = wandb.init(id=f"leaderboard-{digest}", name=f"leaderboard {sweep}", job_type="leaderboard", **options)
    cells = board.astype(object).where(board.notna(), None)
    run.log({"leaderboard": wandb.Table(columns=list(cells.columns), data=cells.values.tolist())})
    artifact = wandb.Artifact(f"{re.sub(r'[^A-Za-z0-9_.-]', '-', sweep)}-results", type="results")
    for file in sorted(files.iterdir()):
        artifact.add_file(str(file), policy="immutable")  # uploaded from there, without another copy
    run.log_artifact(artifact)
    run.finish()


@contextlib.contextmanager
def _files_in(folder: Path) -> Iterator[None]:
    """Files that W&B keeps until an upload belong to the sweep, not in the home folder, if nobody said otherwise."""
    said = os.environ.get("WANDB_DATA_DIR")
    os.environ["WANDB_DATA_DIR"] = said or str(folder.resolve())
    try:
        yield
    finally:
        if said is None:
            del os.environ["WANDB_DATA_DIR"]


def name(record: Record) -> str:
    """'hyena · mqar · lr 0.0005 · wd 0.1 · seed 0'."""
    config = record.config
    arch, task, optim = (config.get(key) or {} for key in ("arch", "task", "optim"))
    grid = f"lr {optim.get('lr')} · wd {optim.get('weight_decay')} · seed {config.get('seed')}"
    return f"{arch.get('name') or arch.get('stack')} · {task.get('name')} · {grid}"


def mode() -> str:
    """WANDB_MODE, or online if there is an API key, or offline. Asks neither the network nor the user."""
    if said := os.environ.get("WANDB_MODE"):
        return said
    return "online" if any(map(os.environ.get, ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"))) or _key() else "offline"


def _key() -> str | None:
    """The password of W&B's host in the netrc file, where `wandb login` puts it."""
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").netloc
    places = [os.environ.get("NETRC"), "~/.netrc", "~/_netrc"]
    for path in (Path(place).expanduser() for place in places if place):
        try:
            found = netrc.netrc(path).authenticators(host)
        except (OSError, netrc.NetrcParseError):
            continue
        if found and found[2]:
            return found[2]
    return None


class Published:
    """What W&B has: digests of the records by run id, and of all of them under `leaderboard`."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self.digests = dict(loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):  # none, or unreadable: publish again
            self.digests = {}

    def has(self, key: str, digest: str) -> bool:
        return self.digests.get(key) == digest

    def add(self, key: str, digest: str) -> None:
        """Kept on disk at once: a publication that is interrupted goes on where it was."""
        self.digests[key] = digest
        self.path.parent.mkdir(parents=True, exist_ok=True)
        replace(self.path, dumps(self.digests))


def _digest(value: Any) -> str:
    return hashlib.sha256(dumps(value).encode()).hexdigest()[:16]
