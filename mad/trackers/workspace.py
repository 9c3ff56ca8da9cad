"""A saved view of a sweep in W&B: its runs by architecture, the best first, beside curves and what a score costs.

Through the package wandb-workspaces (the extra `workspaces`). A view is built without a network, and saved with one.
"""

import importlib
import warnings
from types import ModuleType
from typing import Any

INSTALL = "pip install 'mad[workspaces]'"
PINNED = ("status", "params", "flops", "state_size", "seconds")  # columns, after the score and its valid_
ARCH = "arch.value.name"  # W&B keeps the config key `arch` under `value`


def modules() -> tuple[ModuleType, ModuleType]:
    """wandb-workspaces: views, and their panels.

    Raises:
        ValueError: it is not installed.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # it declares its models in pydantic's older way
            panels = importlib.import_module("wandb_workspaces.reports.v2")
            views = importlib.import_module("wandb_workspaces.workspaces")
    except ImportError as error:
        raise ValueError(f"a saved view needs the package wandb-workspaces: {INSTALL} ({error})") from error
    return views, panels


def build(entity: str, project: str, sweep: str, score: str) -> Any:
    """The view of `sweep`, not saved yet: `.save()` saves it, and then it has a `.url`."""
    views, panels = modules()
    final, log_scale = panels.SummaryMetric(score), {"log_x": True}
    return views.Workspace(
        entity=entity,
        project=project,
        name=f"mad {sweep} by {score}",
        sections=[
            views.Section(
                name="Curves",
                is_open=True,
                panels=[
                    panels.LinePlot(x="step", y=[metric], title=metric) for metric in (score, "loss", "train_loss")
                ],
            ),
            views.Section(
                name="What a score costs",
                is_open=True,
                panels=[
                    panels.ScatterPlot(x=panels.SummaryMetric(cost), y=final, title=f"{score} and {cost}", **log_scale)
                    for cost in ("state_size", "flops", "params")
                ],
            ),
        ],
        runset_settings=views.RunsetSettings(
            filters=views.And(views.Metric("Group") == sweep, views.Metric("JobType") != "leaderboard"),
            groupby=[views.Config(ARCH)],
            order=[views.Ordering(views.Summary(score), ascending=False)],
            pinned_columns=[f"summary:{column}" for column in (score, f"valid_{score}", *PINNED)],
        ),
    )
