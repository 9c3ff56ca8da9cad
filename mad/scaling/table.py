"""Tables of runs, ours or anybody's, with the columns that the fits read.

    arch   architecture (one for all, where there is none)      compute      training FLOPs; 6 n d where there is none
    n, d   parameters, tokens; one of them may follow from compute          loss         nats per token
    state_size   recurrent state, elements      seq_len   tokens of a sequence      unique   tokens that were different
    run    what a row is a checkpoint of

Other names of these are known (ALIASES) or given. `flops` is not among them: in our records it is the forward pass of
one sequence. Everything becomes float64 on entry, because 6 n d overflows int64 beyond 9.2e18.
"""

import hashlib
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mad.records import STATUSES, Store, read_csv
from mad.records import table as records_table
from mad.registry import nearest
from mad.scaling.checks import Refused, ScalingWarning, Units

Frame = Any  # a data frame or series: which one, pandas' own annotations leave open too often to be checked

ALIASES = {
    "n": ("params_nonembedding", "params", "parameters", "num_params", "n_params", "model size", "model_size"),
    "d": ("tokens", "training tokens", "training_tokens", "num_tokens", "n_tokens"),
    "loss": ("valid_loss", "val_loss", "test_loss", "eval_loss", "final_loss", "l"),
    "compute": ("flops_exact", "flops_6nd", "training flop", "training flops", "training_flops", "total_flops", "c"),
    "arch": ("architecture", "group", "model", "setting"),
    "state_size": ("state", "m"),
    "seq_len": ("task.seq_len", "sequence_length", "context_length", "t"),
    "unique": ("unique_tokens", "u"),
    "run": ("run_name",),
}
TEXT = ("arch", "run")
PLAUSIBLE_NATS = 20.0  # a token at most: a uniform guess among half a billion ids
PER_TOKEN = 6.0  # FLOPs of training a parameter on a token
FEWEST_FLOPS, MOST_FLOPS = 0.05, 1000.0  # the same; few where most parameters are experts', many at long sequences


class DroppedRows(ScalingWarning):
    """Rows that hold no result were left out."""


def read(path: str | Path, columns: Mapping[str, str] | None = None, group: str | None = None) -> Frame:
    """A CSV file, or the records of a results folder (without any: its results.csv), as `standard` makes it.

    `attrs["sha256"]` is the file's, or of the records as CSV.

    Raises:
        ValueError: no such file, or no table.
    """
    store = Store(path) if Path(path).is_dir() else None
    records = store.records() if store is not None and store.exists() else []
    if records:  # of a sweep that is still under way, or brought here packed: its CSV may be older, or not there
        table = records_table(records)
        text = table.to_csv(index=False).encode()
    else:
        chosen = {group, *(source for name, source in (columns or {}).items() if name in TEXT)}
        table, text = read_table(csv_file(path), chosen), csv_file(path).read_bytes()
    found = standard(table, columns, group)
    _units(found)
    found.attrs["sha256"] = hashlib.sha256(text).hexdigest()
    return found


def _units(table: Frame) -> None:
    """Warn of losses and compute that can hardly be in nats and FLOPs, and of which architectures."""
    rows = dict(list(table.groupby("arch")))
    flops = {arch: per_token(runs["compute"], runs["n"], runs["d"]) for arch, runs in rows.items()}
    high = [arch for arch, runs in rows.items() if runs["loss"].median() > PLAUSIBLE_NATS]
    odd = [arch for arch in rows if not FEWEST_FLOPS < flops[arch] < MOST_FLOPS]
    of_high, of_odd = (f" of {', '.join(archs)}" if len(archs) < len(rows) else "" for archs in (high, odd))
    if high:
        warnings.warn(
            f"half of the losses{of_high} are above {PLAUSIBLE_NATS:.0f}, but nats a token are at most ln(vocabulary), "
            "12 for 150,000 ids; of a perplexity give the logarithm, of a sum the mean",
            Units,
            stacklevel=3,
        )
    if odd:
        warnings.warn(
            f"the compute{of_odd} is {flops[odd[0]]:.2g} n d, but training takes about {PER_TOKEN:.0f} FLOPs a "
            "parameter and token: it may be in another unit, as GFLOPs, and what is said in FLOPs is then in that one",
            Units,
            stacklevel=3,
        )


def csv_file(path: str | Path, name: str = "results.csv") -> Path:
    """The file itself, or that of this name in a results folder. Raises ValueError where there is none."""
    file = Path(path) / name if Path(path).is_dir() else Path(path)
    if not file.is_file():
        holds = f"records or {name}" if name == "results.csv" else name
        raise ValueError(f"{file} does not exist; expected a CSV file, or a results folder with {holds}")
    return file


def read_table(file: Path, texts: Collection[str | None] = ()) -> Frame:
    """The table as it stands there, names in columns of TEXT and in `texts`. Raises ValueError where it is none."""
    known = {other for name in TEXT for other in (name, *ALIASES[name])}
    try:
        return read_csv(file, lambda column: column in texts or column.strip().lower() in known)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not a CSV table: {error}") from None


def per_token(compute: Any, n: Any, d: Any) -> float:
    """Training FLOPs of a parameter on a token, the median of the runs'; PER_TOKEN where compute was derived."""
    return float(np.median(compute / (n * d)))


def standard(
    table: Frame, columns: Mapping[str, str] | None = None, group: str | None = None
) -> Frame:  # fmt: skip
    """The columns above, as many as there are, a row a run that has a loss; `attrs["columns"]` says where each is from.

    Args:
        columns: standard name -> the table's name, {"n": "params"}.
        group: the table's column that tells architectures apart; as {"arch": group}.

    Raises:
        Refused: nothing is left. ValueError: a column is missing, or holds no numbers.
    """
    chosen = dict(columns or {})
    if group and chosen.setdefault("arch", group) != group:
        raise ValueError(f"the group is {group!r}, but the column of arch is {chosen['arch']!r}; give one of them")
    for name, source in chosen.items():
        if name not in ALIASES:
            raise ValueError(f"unknown column {name!r}{nearest(name, ALIASES)}; expected one of {', '.join(ALIASES)}")
        if source not in table:
            raise ValueError(
                f"the table has no column {source!r}{nearest(source, map(str, table))} for {name}; "
                f"it has: {', '.join(map(str, table))}"
            )
    lower = {str(column).strip().lower(): column for column in reversed(list(table))}
    sources = {
        name: chosen.get(name) or next((lower[key] for key in (name, *others) if key in lower), None)
        for name, others in ALIASES.items()
    }
    _apart(sources, chosen)
    found = {name: table[source] for name, source in sources.items() if source is not None}
    found = {k: column for k, column in found.items() if k not in TEXT or k in chosen or column.notna().any()}
    new = pd.DataFrame({name: _cast(name, column) for name, column in found.items()})
    if "loss" not in new:
        raise _missing("loss", table)
    _derive(new, table)
    new = _kept(new, table)
    if "arch" not in new:
        new["arch"] = "all"
    new = new.reset_index(drop=True)
    new.attrs["columns"] = {name: source or "derived" for name, source in sources.items() if name in new}
    return new


def _apart(sources: Mapping[str, str | None], chosen: Mapping[str, str]) -> None:
    """Raises ValueError where two names share a column, but for one of TEXT: a size may be an architecture's name."""
    for name, source in chosen.items():
        for other in (key for key, column in sources.items() if column == source and key != name):
            if other in chosen:
                raise ValueError(f"column {source!r} is given for {other} and for {name}; it can be one of them")
            if not {name, other} & set(TEXT):
                raise ValueError(
                    f"column {source!r} is given for {name}, and by its name it is {other}; say which column {other} is"
                )


def _cast(name: str, column: Frame) -> Frame:
    if name in TEXT:
        return column.astype(str).where(column.notna())
    numbers: Frame = pd.to_numeric(column, errors="coerce")
    numbers = numbers.astype(np.float64)
    wrong = column[numbers.isna() & column.notna()]
    if len(wrong):
        raise ValueError(
            f"column {column.name!r} ({name}) must hold numbers, got {wrong.iloc[0]!r} in row {wrong.index[0]}"
        )
    return numbers


def _kept(new: Frame, table: Frame) -> Frame:
    """Rows of finished runs with a finite loss; how many others there were is said."""
    good = np.isfinite(new["loss"]) & (new["loss"] > 0)
    if "status" in table and table["status"].isin(STATUSES).any():  # ours; another's words mean what they mean there
        good &= table["status"].fillna("ok").isin(["ok", ""]).to_numpy()
    for name in ("n", "d", "compute"):
        if name in new:
            good &= np.isfinite(new[name]) & (new[name] > 0)
    unnamed = [name for name in TEXT if name in new and new[name].isna().any()]
    for name in unnamed:  # they would be runs of nothing, in no fit
        good &= new[name].notna()
    also = "".join(f", or no {name}" for name in unnamed)
    if not good.any():
        raise Refused(
            "no row has a finite positive loss, n, d and compute, and status ok where there is one"
            + "".join(f", and {name}" for name in unnamed)
        )
    if not good.all():
        warnings.warn(
            f"{int((~good).sum())} of {len(good)} rows are left out: not ok, or a loss, n, d or compute that is "
            f"missing, infinite or not above 0{also}",
            DroppedRows,
            stacklevel=3,
        )
    return new[good].copy()


def _derive(new: Frame, table: Frame) -> None:
    """Any two of n, d and compute give the third, by 6 n d."""
    have = [name for name in ("n", "d", "compute") if name in new]
    if len(have) < 2:
        raise _missing(next(name for name in ("n", "d") if name not in new), table)
    if "compute" not in new:
        new["compute"] = PER_TOKEN * new["n"] * new["d"]
    elif "d" not in new:
        new["d"] = new["compute"] / (PER_TOKEN * new["n"])
    elif "n" not in new:
        new["n"] = new["compute"] / (PER_TOKEN * new["d"])


def _missing(name: str, table: Frame) -> ValueError:
    return ValueError(
        f"the table lacks {name!r}: none of {', '.join((name, *ALIASES[name]))} is among its columns "
        f"{', '.join(map(str, table))}; say which it is: --columns {name}=COLUMN"
    )


def part(table: Frame, arch: str) -> Frame:
    """The rows of one architecture.

    Raises:
        ValueError: there is none of that name.
    """
    names = sorted(table["arch"].unique())
    if arch not in names:
        raise ValueError(f"no runs of {arch!r}{nearest(arch, names)}; the table has: {', '.join(names)}")
    return table[table["arch"] == arch]


def clusters(table: Frame) -> Any:
    """What `cluster=` of a fit takes: the run of each row where rows are checkpoints, else None."""
    return table["run"] if "run" in table and table["run"].duplicated().any() else None


def last(table: Frame) -> Frame:
    """A row a run of one architecture: the last one where rows are checkpoints."""
    if clusters(table) is None:
        return table
    return table.loc[table.groupby("run")["d"].idxmax()].sort_index()
