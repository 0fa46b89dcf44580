"""Parquet tables of a dataset, by way of pyarrow."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

_ROWS = 256  # that are read at a time


class TableWriter:
    """A table that grows; what is added at one time becomes a row group, which can be read alone.

    Args:
        file: to write.
        schema: of pyarrow.
    """

    def __init__(self, file: Path, schema: Any) -> None:
        _, parquet = import_pyarrow()
        file.parent.mkdir(parents=True, exist_ok=True)
        self._schema = schema
        self._writer = parquet.ParquetWriter(str(file), schema, compression="snappy", use_dictionary=True)
        self.bytes = 0

    def add(self, columns: Mapping[str, Any]) -> None:
        """Appends rows: arrays, or lists of Python's values. Columns that are not in the schema are left out."""
        pyarrow, _ = import_pyarrow()
        arrays = [_array(columns[field.name], field.type) for field in self._schema]
        self._writer.write_table(pyarrow.Table.from_arrays(arrays, schema=self._schema))
        self.bytes += sum(array.nbytes for array in arrays)

    def close(self) -> None:
        """Ends the table; it cannot be read before."""
        self._writer.close()


def schema(features: Mapping[str, Any]) -> Any:
    """Columns of the rows of a dataset; pictures as LeRobot's image type holds them, videos not at all."""
    pyarrow, _ = import_pyarrow()
    fields, hub = [], {}
    for name, feature in features.items():
        if feature["dtype"] == "image":
            kind = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
            hub[name] = {"_type": "Image"}
        elif feature["dtype"] != "video":
            shape = feature["shape"] if feature["shape"] != [1] else []
            kind, hub[name] = _kind(feature["dtype"]), {"dtype": feature["dtype"], "_type": "Value"}
            if len(shape) == 1:
                kind = pyarrow.list_(kind, shape[0])
                hub[name] = {"feature": hub[name], "length": shape[0], "_type": "Sequence"}
            elif shape:
                for _ in shape:
                    kind = pyarrow.list_(kind)
                hub[name] = {"shape": shape, "dtype": feature["dtype"], "_type": f"Array{len(shape)}D"}
        else:
            continue
        fields.append(pyarrow.field(name, kind))
    told = {b"huggingface": json.dumps({"info": {"features": hub}}).encode()}
    return pyarrow.schema(fields, metadata=told)


def schema_of_episodes(row: Mapping[str, Any]) -> Any:
    """Columns of the table of episodes, from the values of one; the place of the row itself comes last."""
    pyarrow, _ = import_pyarrow()
    places = [("meta/episodes/chunk_index", pyarrow.int64()), ("meta/episodes/file_index", pyarrow.int64())]
    return pyarrow.schema([*((key, pyarrow.array([value]).type) for key, value in row.items()), *places])


def write_tasks(file: Path, tasks: Sequence[str]) -> None:
    """The table of tasks: their numbers, with their words as pandas's index, which LeRobot reads them by."""
    pyarrow, parquet = import_pyarrow()
    text = {"pandas_type": "unicode", "numpy_type": "object", "metadata": None}
    told = {
        "index_columns": ["task"],
        "column_indexes": [{"name": None, "field_name": None, **text, "metadata": {"encoding": "UTF-8"}}],
        "columns": [
            {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64",
             "metadata": None},
            {"name": "task", "field_name": "task", **text},
        ],
        "creator": {"library": "pyarrow", "version": pyarrow.__version__},
        "pandas_version": "2.2.0",
    }  # fmt: skip
    columns = {"task_index": pyarrow.array(range(len(tasks)), pyarrow.int64()), "task": pyarrow.array(tasks)}
    table = pyarrow.table(columns).replace_schema_metadata({b"pandas": json.dumps(told).encode()})
    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, str(file))


def read_rows(file: Path, columns: Sequence[str], rows: int = _ROWS) -> Iterator[dict[str, Any]]:
    """The rows of a table, a few at a time, as columns of pyarrow.

    Raises:
        ValueError: if the file is damaged, or a column is missing.
    """
    pyarrow, parquet = import_pyarrow()
    try:
        with parquet.ParquetFile(str(file)) as table:
            missing = sorted(set(columns) - set(table.schema_arrow.names))
            if missing:
                raise ValueError(f"it has no columns {missing}; it has {sorted(table.schema_arrow.names)}")
            for batch in table.iter_batches(rows, columns=list(columns)):
                yield {name: batch.column(name) for name in columns}
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error


def column_names(file: Path) -> list[str]:
    """Names of a table's columns.

    Raises:
        ValueError: if the file is damaged.
    """
    pyarrow, parquet = import_pyarrow()
    try:
        return list(parquet.read_schema(str(file)).names)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error


def numbers(column: Any, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """A column of numbers or of lists of them as an array ``(rows, *shape)``.

    Raises:
        ValueError: if rows are missing, or have another size.
        TypeError: if it holds something else.
    """
    pyarrow, _ = import_pyarrow()
    rows = len(column)
    while True:
        if column.null_count:
            raise ValueError("values are missing")
        if isinstance(column, pyarrow.ExtensionArray):
            column = column.storage
        elif hasattr(column, "flatten") and not pyarrow.types.is_struct(column.type):
            column = column.flatten()
        else:
            break
    kind = column.type
    if not (
        pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind) or pyarrow.types.is_boolean(kind)
    ):
        raise TypeError(f"expected numbers, got {kind}")
    values = column.to_numpy(zero_copy_only=False).astype(dtype)
    if values.size != rows * int(np.prod(shape, dtype=np.int64)):
        raise ValueError(f"expected {rows} rows of shape {shape}, got {values.size} values")
    return values.reshape(rows, *shape)


def _array(values: Any, kind: Any) -> Any:
    pyarrow, _ = import_pyarrow()
    if pyarrow.types.is_struct(kind):
        return pyarrow.array([{"bytes": data, "path": None} for data in values], kind)
    if not isinstance(values, np.ndarray):
        return pyarrow.array(values, kind)
    if not pyarrow.types.is_nested(kind):
        return pyarrow.array(values.reshape(len(values)), kind)
    if pyarrow.types.is_fixed_size_list(kind):
        flat = pyarrow.array(np.ascontiguousarray(values).ravel(), kind.value_type)
        return pyarrow.FixedSizeListArray.from_arrays(flat, type=kind)
    return pyarrow.array(values.tolist(), kind)


def _kind(dtype: str) -> Any:
    pyarrow, _ = import_pyarrow()
    return pyarrow.from_numpy_dtype(np.dtype(dtype))


def import_pyarrow() -> tuple[Any, Any]:
    """pyarrow and its reader of parquet files.

    Raises:
        ImportError: with the extra that brings it, if it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError('pyarrow is not installed; pip install "jepa-rl[lerobot]"') from error
    return pyarrow, pyarrow.parquet
