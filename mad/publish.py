"""`python -m mad.publish results/quickstart --to wandb`: replay a finished sweep into a tracker."""

import argparse
import sys

from mad import trackers


def main(arguments: list[str] | None = None) -> int:
    """The command: exit status 0, 1 where not all was published, 2 for a mistake in the command, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="python -m mad.publish",
        description="Replay the records of results folders into a tracker. Publishing again sends what is new or has "
        "changed: runs keep their ids.",
        epilog="W&B writes offline where nobody is logged in (wandb login). trackio is a local dashboard: "
        "pip install 'mad[trackio]'.",
    )
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="a results folder: results/<sweep>")
    parser.add_argument("--to", default="wandb", metavar="TRACKER", help=f"{' | '.join(trackers.names())} (wandb)")
    parser.add_argument("--workspace", action="store_true", help="W&B: save a view too, by score, grouped by arch")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be published")
    chosen = parser.parse_args(arguments)
    try:
        done = [
            trackers.publish_folder(chosen.to, folder, workspace=chosen.workspace, dry_run=chosen.dry_run)
            for folder in chosen.folders
        ]
    except (ValueError, OSError) as error:
        print(f"mad.publish: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command publishes the rest", file=sys.stderr)
        return 130
    return 0 if all(done) else 1


if __name__ == "__main__":
    sys.exit(main())
