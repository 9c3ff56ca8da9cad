"""Weights & Biases: each record as a run, then the leaderboard as one more.

Without an API key the runs are written offline, under `<folder>/wandb/`, and nothing touches the network; the command
that uploads them is printed. WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE and WANDB_BASE_URL mean what they always mean.

A run counts as published when W&B's own process said that all of it got there. That process retries for minutes on
end, and where it gives up, `finish` returns as if nothing had been: so the waits are bounded here (WANDB_INIT_TIMEOUT
and WANDB_FINISH_TIMEOUT say otherwise), and its messages are listened to.
"""

import contextlib
import logging
import netrc
import os
import secrets
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mad.records import DONE, Record, table, write_csv
from mad.trackers import workspace
from mad.trackers.base import Replay, Unwritable, board_id, digest, environment, name, registry, slug

log = logging.getLogger(__name__)

TAG_LENGTH = 64  # the longest tag W&B takes
HOSTS = ("api.forge.coreweave.com", "api.wandb.ai")  # W&B's own service: today's name, and the one before
SECONDS = 30  # to wait for a run to begin, or to get there: some kilobytes
LIMITS = ("init_timeout", "finish_timeout")  # W&B's own: 90 s, and none
LOST = ("upload", "sync")  # words of W&B's messages about data that did not get there


@registry.register("wandb")
class WandB(Replay):
    """Runs in the project WANDB_PROJECT (default: mad), grouped by sweep."""

    title = "W&B"
    folder = "wandb"
    entity: str | None = None  # who the runs belong to, where W&B has said it

    def where(self) -> str | None:
        place = f"{os.environ.get('WANDB_ENTITY') or ''}/{project()}"
        return {"disabled": None, "online": f"{host()} {place}"}.get(mode(), f"{mode()} {place}")

    def place(self) -> str:
        return super().place().replace(" /", " ")  # nobody in particular

    def mode(self) -> str:
        return mode()

    @contextlib.contextmanager
    def session(self, folder: Path) -> Iterator[None]:
        import wandb  # half a second

        _check_writable(folder / self.folder)
        kept = os.environ.get("WANDB_DATA_DIR") or str((folder / "wandb").resolve())
        # files that are kept until an upload: here, not in the home folder
        with environment(WANDB_DATA_DIR=kept, WANDB_SILENT="true"):
            try:
                wandb.setup()
                self.said = _listen(wandb)
                yield
            finally:
                wandb.teardown()

    def show(self, record: Record, sweep: str, folder: Path) -> None:
        about = {"status": record.status, "started": record.started, "device": record.device}
        config = record.config | about | {"git_commit": record.git_commit, "versions": record.versions}
        arch, task = (config.get(key) or {} for key in ("arch", "task"))
        tags = [str(tag)[:TAG_LENGTH] for tag in (arch.get("name"), task.get("name")) if tag]
        given: dict[str, Any] = {"id": record.run_id, "name": name(record), "tags": tags, "config": config}
        with self.run(sweep, folder, failed=record.status not in DONE, **given) as run:
            run.define_metric("step")
            run.define_metric("*", step_metric="step")
            for point in record.curve:
                run.log(point)
            summary = {**record.metrics, **record.cost, "steps": record.steps, "seconds": record.seconds}
            run.summary.update({**summary, **about, "error": record.last_error})

    def show_leaderboard(self, records: Sequence[Record], sweep: str, folder: Path, whole: str) -> None:
        """One run of the type `leaderboard`, with the ranking as a table and the results as an artifact."""
        import wandb

        from mad import leaderboard  # pandas, half a second; and it publishes by this module

        board = leaderboard.build(table(records))
        # its own folder: an upload that comes later finds what was recorded
        files = (folder / "wandb" / f"leaderboard-{whole}").resolve()
        files.mkdir(parents=True, exist_ok=True)
        write_csv(records, files / "results.csv")
        leaderboard.write_csv(board, files / "leaderboard.csv")
        leaderboard.write_markdown(board, files / "leaderboard.md")

        about: dict[str, Any] = {"id": board_id(sweep), "name": f"leaderboard {sweep}", "job_type": "leaderboard"}
        with self.run(sweep, folder, **about) as run:
            cells = board.astype(object).where(board.notna(), None)
            run.log({"leaderboard": wandb.Table(columns=list(cells.columns), data=cells.values.tolist())})
            artifact = wandb.Artifact(f"{slug(sweep)}-results", type="results")
            for file in sorted(files.iterdir()):
                artifact.add_file(str(file), policy="immutable")  # uploaded from there, without another copy
            logged = run.log_artifact(artifact)
            if mode() == "online":
                logged.wait(timeout=SECONDS)  # `finish` would wait too, but not say that it was refused

    @contextlib.contextmanager
    def run(self, sweep: str, folder: Path, failed: bool = False, **about: Any) -> Iterator[Any]:
        """A W&B run, finished at the end.

        Raises:
            ConnectionError, TimeoutError: not all of it got there.
        """
        import wandb

        self.said.clear()
        # no `resume`: a run that is there is overwritten; resumed, its curve would be there twice
        options = {"project": project(), "group": sweep, "dir": str(folder), "mode": mode(), "reinit": "create_new"}
        run = wandb.init(**options, **about, settings=_settings(wandb))
        try:
            yield run
        except BaseException:
            with contextlib.suppress(Exception):  # the first error is the one to tell
                run.finish(exit_code=1)
            raise
        self.entity = run.entity
        run.finish(exit_code=1 if failed else 0)
        for message in self.said:
            if mode() == "online" and any(word in message.lower() for word in LOST):
                raise ConnectionError(message)
            log.warning("W&B: %s", message)

    def save_view(self, records: Sequence[Record], sweep: str, folder: Path) -> str:
        """A workspace view of the sweep, saved once; its address.

        Raises:
            ValueError: not online, or wandb-workspaces is not installed.
        """
        if (where := self.where()) is None or mode() != "online":
            raise ValueError(f"a saved view needs W&B online, it is {mode()}: wandb login, and the same command again")
        scores = [(record.config.get("train") or {}).get("score") for record in records]
        score = next(filter(None, scores), "accuracy")
        workspace.modules()
        published, saved = self.published(folder, where), digest([sweep, score])
        if not published.has("view", saved):
            import wandb

            with self.session(folder):
                entity = self.entity or os.environ.get("WANDB_ENTITY") or wandb.Api(timeout=SECONDS).default_entity
                view = workspace.build(str(entity), project(), sweep, score)
                published.add("view address", view.save().url)
                published.add("view", saved)
        return published.digests["view address"]

    def tell(self, folder: Path) -> None:
        if mode() == "offline":
            runs = f"{shlex.quote(str(folder / 'wandb'))}/offline-run-*"
            print(f"W&B: written offline; to upload: wandb login && wandb sync {runs}")

    def advice(self, error: Exception) -> str:
        refused = any(sign in str(error) for sign in ("401", "403", "API key", "not logged in"))
        return f" (is the API key for {host()} right? wandb login --relogin)" if refused else ""


def _check_writable(own: Path) -> None:
    """W&B's files have to be in a folder until they are uploaded; in its own words that is three lines, or none."""
    try:
        own.mkdir(parents=True, exist_ok=True)
        probe = own / f".{secrets.token_hex(4)}.tmp"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise Unwritable(
            f"{own} cannot be written to ({error.strerror or error}), and W&B keeps its files there until they are "
            f"uploaded; copy {own.parent} to a folder of your own, and publish that one"
        ) from error


def _settings(wandb: Any) -> Any:
    """A new object each time, because `init` writes into it."""
    return wandb.Settings(
        silent=True,
        console="off",
        disable_git=True,  # our records say more, and of the time of training
        save_code=False,
        x_disable_meta=True,
        x_disable_stats=True,
        x_save_requirements=False,
        finish_timeout_raises=True,
        **{limit: SECONDS for limit in LIMITS if f"WANDB_{limit.upper()}" not in os.environ},
    )


def _listen(wandb: Any) -> list[str]:
    """W&B's warnings and errors from now on: they go here instead of to the terminal."""
    said: list[str] = []
    ear = logging.Logger("W&B")  # of its own, not in the tree of loggers
    ear.addHandler(_Ear(said))
    wandb.termsetup(wandb.Settings(silent=True), ear)
    return said


class _Ear(logging.Handler):
    def __init__(self, said: list[str]):
        super().__init__(logging.WARNING)
        self.said = said

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage().removeprefix("wandb: ").removeprefix("WARNING ").removeprefix("ERROR "))


def project() -> str:
    return os.environ.get("WANDB_PROJECT") or "mad"


def host() -> str:
    return urlsplit(os.environ.get("WANDB_BASE_URL") or f"https://{HOSTS[0]}").netloc


def mode() -> str:
    """WANDB_MODE, or online if there is an API key, or offline. Asks neither the network nor the user."""
    if said := os.environ.get("WANDB_MODE"):
        return said
    return "online" if any(map(os.environ.get, ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"))) or _key() else "offline"


def _key() -> str | None:
    """The password of W&B's host in the netrc file, where `wandb login` puts it."""
    hosts = HOSTS if host() in HOSTS else (host(),)
    places = [os.environ.get("NETRC"), "~/.netrc", "~/_netrc"]
    for path in (Path(place).expanduser() for place in places if place):
        try:
            known = netrc.netrc(path)
        except (OSError, netrc.NetrcParseError):
            continue
        for found in map(known.authenticators, hosts):
            if found and found[2]:
                return found[2]
    return None
