"""What runs leave behind, and where it is kept.

store = Store("results/mine")
store.write(record)
store.table()                           # a data frame, one row a run
"""

from mad.records.claims import Claim, Claims
from mad.records.files import dumps, loads, replace, save
from mad.records.record import DONE, FAILURES, RUN_ID, SCHEMA, STATUSES, Record
from mad.records.store import Store
from mad.records.table import COST, read_csv, table, write_csv

__all__ = [
    "COST", "DONE", "FAILURES", "RUN_ID", "SCHEMA", "STATUSES", "Claim", "Claims", "Record", "Store", "dumps", "loads",
    "read_csv", "replace", "save", "table", "write_csv",
]  # fmt: skip
