"""Tables whose truth is known, for every test of the scaling laws; and the public ones, where they are at hand."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

TRUTH = {"A": 480.0, "B": 2100.0, "E": 1.8, "alpha": 0.35, "beta": 0.37}


def law(n, d, A=TRUTH["A"], B=TRUTH["B"], E=TRUTH["E"], alpha=TRUTH["alpha"], beta=TRUTH["beta"]):
    return E + A * n**-alpha + B * d**-beta


def best_size(budget, A, B, E, alpha, beta):
    """N* of C = 6 n d: where alpha A / n^alpha = beta B / d^beta."""
    return (alpha * A / (beta * B)) ** (1 / (alpha + beta)) * (budget / 6) ** (beta / (alpha + beta))


@pytest.fixture(scope="session")
def truth():
    return dict(TRUTH)


@pytest.fixture(scope="session")
def scattered():
    """Maker of tables whose n and d are anywhere: (rows, noise of ln loss, seed, parameters) -> n, d, loss."""

    def make(rows=60, noise=0.0, seed=0, **parameters):
        rng = np.random.default_rng(seed)
        n, d = 10 ** rng.uniform(7, 10, rows), 10 ** rng.uniform(8.5, 11.5, rows)
        loss = law(n, d, **(TRUTH | parameters)) * np.exp(noise * rng.standard_normal(rows))
        return pd.DataFrame({"n": n, "d": d, "loss": loss})

    return make


@pytest.fixture(scope="session")
def profiles():
    """Maker of IsoFLOP tables: `points` sizes a budget, within `spread` of N*, or of what `center` makes of N*."""

    def make(budgets=(1e18, 1e19, 1e20, 1e21), points=9, spread=8.0, noise=0.0, seed=0, center=None, **parameters):
        rng, frames = np.random.default_rng(seed), []
        given = TRUTH | parameters
        for k, budget in enumerate(budgets):
            middle = best_size(budget, **given) * (1.0 if center is None else center[k])
            n = middle * np.geomspace(1 / spread, spread, points)
            d = budget / (6 * n)
            loss = law(n, d, **given) * np.exp(noise * rng.standard_normal(points))
            frames.append(pd.DataFrame({"compute": float(budget), "n": n, "d": d, "loss": loss}))
        return pd.concat(frames, ignore_index=True)

    return make


@pytest.fixture(scope="session")
def shared():
    """The folder of public tables, which lies beside the repository, if anywhere."""
    folder = Path(__file__).parents[3] / "shared" / "data" / "scaling"
    if not folder.is_dir():
        pytest.skip(f"no public tables at {folder}")
    return folder


@pytest.fixture(scope="session")
def chinchilla(shared):
    """The runs of Hoffmann et al. as Epoch AI read them off: n, d, loss without the five highest losses."""
    table = pd.read_csv(shared / "epoch_chinchilla_svg_extracted_data.csv").nsmallest(240, "loss")
    n = table["Model Size"].to_numpy()
    return pd.DataFrame({"n": n, "d": table["Training FLOP"].to_numpy() / (6 * n), "loss": table["loss"].to_numpy()})


@pytest.fixture(scope="session")
def muennighoff(shared):
    return pd.read_csv(shared / "muennighoff_182_fit_points.csv")
