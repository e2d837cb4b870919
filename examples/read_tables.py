#!/usr/bin/env python3
"""Reads a folder of result tables with two readers that share no code with neurosieve, and prints what they see.

    pip install deltalake duckdb
    python examples/read_tables.py FOLDER

Prints one JSON object: per table its row count by delta-rs for Python and by DuckDB over the same files, the
table's version and its columns. Exits with 1 where the two counts differ.
"""

import json
import sys
from pathlib import Path

import duckdb
from deltalake import DeltaTable, QueryBuilder

TABLES = ["scans", "tokens", "masks", "findings", "failures", "runs", "reverts"]


def read(folder: Path) -> dict:
    table = DeltaTable(str(folder))
    files = table.file_uris()
    query = "SELECT count(*) AS n FROM read_parquet($files)"
    by_duckdb = duckdb.execute(query, {"files": files}).fetchone()[0] if files else 0
    counted = QueryBuilder().register("t", table).execute("SELECT count(*) AS n FROM t").read_all()
    columns = [field.name for field in table.schema().fields]
    return {
        "rows": counted["n"][0].as_py(),
        "rows_duckdb": by_duckdb,
        "version": table.version(),
        "columns": columns,
    }


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    root = Path(sys.argv[1])
    seen = {name: read(root / name) for name in TABLES}
    print(json.dumps(seen, indent=2))
    return 0 if all(t["rows"] == t["rows_duckdb"] for t in seen.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
