"""The top samples of an index by DataFusion in this process, the tables as they lie.

usage: datafusion_top.py INDEX QUERY.json TOP.sql; prints {"seconds": ..., "top": [[sample, score], ...]}
"""

import json
import sys
import time
from pathlib import Path

import pyarrow
from codes import dot
from datafusion import SessionContext, udf


def main(folder, query, sql):
    products = dot(folder, query)

    def scores(blocks, sketches):
        return pyarrow.array(products(blocks, sketches.to_pylist()))

    begun = time.monotonic()
    context = SessionContext()
    block = pyarrow.int64()
    context.register_listing_table("influence", folder, table_partition_cols=[("block", block)])
    [sketch] = [field.type for field in context.table("influence").schema() if field.name == "sketch"]
    context.register_udf(udf(scores, [block, sketch], pyarrow.float64(), "immutable", "dot"))
    rows = context.sql(Path(sql).read_text()).to_pylist()
    top = [[row["sample"], row["score"]] for row in rows]
    print(json.dumps({"seconds": time.monotonic() - begun, "top": top}))


if __name__ == "__main__":
    main(*sys.argv[1:])
