"""The top samples of an index by Spark: a driver and two worker processes, the tables as they lie,
and one function of our own.

usage: spark_top.py INDEX QUERY.json TOP.sql; prints {"seconds": ..., "top": [[sample, score], ...]}
"""

import json
import os
import sys
import time
from pathlib import Path

import pandas
from codes import dot
from pyspark.sql import SparkSession
from pyspark.sql.functions import pandas_udf
from pyspark.sql.types import DoubleType


def main(folder, query, sql):
    products = dot(folder, query)

    @pandas_udf(DoubleType())
    def scores(block: pandas.Series, sketch: pandas.Series) -> pandas.Series:
        return pandas.Series(products(block, sketch))

    folder, sql = Path(folder), Path(sql).read_text()
    os.environ["PYSPARK_PYTHON"] = sys.executable
    spark = (
        SparkSession.builder.master("local-cluster[2,1,1024]")
        .appName("gradroute")
        .config("spark.ui.enabled", "false")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.executor.memory", "1g")
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", "4096")
        .getOrCreate()
    )
    spark.sparkContext.setLogLevel("ERROR")
    # The workers need it, too.
    spark.sparkContext.addPyFile(str(Path(__file__).with_name("codes.py")))
    # The workers have registered when both say so; the driver counts as one more.
    status = spark.sparkContext._jsc.sc().statusTracker()
    deadline = time.monotonic() + 120
    while len(status.getExecutorInfos()) < 3:
        if time.monotonic() > deadline:
            raise RuntimeError("two workers did not come up")
        time.sleep(0.2)

    begun = time.monotonic()
    spark.udf.register("dot", scores)
    tables = spark.read.option("basePath", str(folder)).parquet(str(folder / "block=*"))
    tables.createOrReplaceTempView("influence")
    top = [[int(row["sample"]), row["score"]] for row in spark.sql(sql).collect()]
    seconds = time.monotonic() - begun
    spark.stop()
    print(json.dumps({"seconds": seconds, "top": top}))


if __name__ == "__main__":
    main(*sys.argv[1:])
