"""How to write tables so that their versions share chunks; docs/tables.md has why, and figures."""

from __future__ import annotations

from typing import Any

PAGE_BYTES_MIN = 32 << 10
PAGE_BYTES_MAX = 128 << 10


def parquet_options() -> dict[str, Any]:
    """The options with which pyarrow writes Parquet files that deduplicate, as a new dict.

    For `pyarrow.parquet.write_table` and `ParquetWriter`, `DataFrame.to_parquet` of pandas, and
    `pyarrow.dataset.ParquetFileFormat().make_write_options`; pyarrow 21 or later.

    Pages end where the column's values say so, and not at a count of rows: a row that is inserted
    moves none of the pages behind it. They are not compressed, as the store does that, and have no
    dictionaries, which any new value changes.

    >>> sorted(castore.tables.parquet_options())
    ['compression', 'use_content_defined_chunking', 'use_dictionary']
    """
    return {
        "compression": "none",
        "use_dictionary": False,
        "use_content_defined_chunking": {
            "min_chunk_size": PAGE_BYTES_MIN,
            "max_chunk_size": PAGE_BYTES_MAX,
        },
    }
