"""The one function that a question needs and SQL has not."""

import json
from pathlib import Path

import numpy


def dot(folder, query):
    """dot(blocks, sketches) of the index in a folder and a file of one query: the inner products of codes, as
    they lie in the tables, with the query's parts of their blocks; arrays of the same length."""
    index = json.loads((Path(folder) / "index.json").read_text())
    query = json.loads(Path(query).read_text())["draws"][0]["sketch"]
    dtype = {"f16": "<f2", "int8": "i1"}[index["precision"]]
    query = numpy.asarray(query, dtype=numpy.float32).reshape(-1, index["sketch_len"])
    query = query.astype(numpy.float64)

    def products(blocks, sketches):
        blocks = numpy.asarray(blocks)
        codes = numpy.frombuffer(b"".join(sketches), dtype=dtype).reshape(len(blocks), -1)
        scores = numpy.empty(len(blocks))
        for block in numpy.unique(blocks):
            rows = blocks == block
            scores[rows] = codes[rows].astype(numpy.float64) @ query[block]
        return scores

    return products
