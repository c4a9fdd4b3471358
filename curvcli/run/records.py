"""An append-only file of rows of arrays with a digest of each record; incomplete records are dropped."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import struct
import zlib
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter

from curvcli.errors import DataError, OutputError
from curvcli.journal import unchanging
from curvcli.schema.state import FinishedRecord, RowsRecord

MAGIC = b"curv"
BEHIND = 4
"""Maximum number of records waiting to be written; beyond it the run waits for the disk."""
_HEAD = struct.Struct("<4sII")  # magic, length of the description, its CRC-32


_DESCRIPTION: TypeAdapter[RowsRecord | FinishedRecord] = TypeAdapter(RowsRecord | FinishedRecord)


def open_regular(path: Path, flags: int) -> int:
    """Open a regular file of a state folder; links are not followed, and a FIFO does not block.

    Raises
    ------
    DataError
        It is a link, no regular file, or also has a name elsewhere.
    OSError
        It cannot be opened.
    """
    hint = "give another --state folder, or remove this one to start again"
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise DataError(f"{path} is not a regular file", hint) from error
        raise
    state = os.fstat(descriptor)
    if not stat.S_ISREG(state.st_mode) or state.st_nlink > 1:
        os.close(descriptor)
        reason = "also has a name elsewhere" if stat.S_ISREG(state.st_mode) else "is not a regular file"
        raise DataError(f"{path} {reason}", hint)
    return descriptor


class _Record(NamedTuple):
    offset: int  # of the values in the file
    size: int
    crc: int
    dtype: str
    shape: list[int]


class Records:
    """A `curvcli.journal.Store` in a file: rows of arrays by key.

    A record is a description (keys, shape, dtype, CRC-32 of the values) with a CRC-32 of its own, and the values.
    Records are only appended. The file is truncated at the first damaged description. A record with damaged values
    counts as absent. Records that this process appends are for later processes alone.

    A background thread computes the digests and writes. A run that is killed may lose the last few records.

    Parameters
    ----------
    path
        The file, which is created if missing.

    Raises
    ------
    OSError
        It cannot be opened.
    DataError
        It is no regular file, or a description is whole and makes no sense. The file stays as it is.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = open_regular(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        self._records: list[_Record] = []
        self._places: dict[bytes, deque[tuple[int, int]]] = defaultdict(deque)  # record and row, by key
        self._finished = 0  # records of runs that came to their end
        self._last: tuple[int, Any] = (-1, None)
        self._end = self._left = 0
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="records")
        self._written: deque[Future[None]] = deque()
        try:
            self._read()
        except BaseException:
            self._writer.shutdown()
            os.close(self._file)
            raise

    def _read(self) -> None:
        """Find the complete records, and truncate the file after them."""
        for record, end in self._descriptions():
            self._end = end
            if isinstance(record, FinishedRecord):
                self._finished = len(self._records)
                continue
            for row, key in enumerate(record.keys):
                self._places[bytes.fromhex(key)].append((len(self._records), row))
                self._left += 1
            self._records.append(_Record(end - record.size, record.size, record.crc, record.dtype, record.shape))
        if os.fstat(self._file).st_size > self._end:  # some file systems wait for the disk where a file was cut
            os.ftruncate(self._file, self._end)

    def take(self, keys: Sequence[bytes], *, finished: bool = False) -> list[Any]:
        """Return the oldest row under each key that has not been taken, None where there is none."""
        return [self._oldest(key, self._finished if finished else len(self._records)) for key in keys]

    def holds(self, key: bytes) -> bool:
        """Whether an earlier run stored a row under this key that has not been taken."""
        return bool(self._places.get(key))

    def exhausted(self) -> bool:
        """Whether all rows have been taken."""
        return not self._left

    def keep(self, keys: Iterable[bytes], rows: Any) -> None:
        """Append rows as one record, in the background.

        Raises
        ------
        OutputError
            A record could not be written; the earlier ones remain.
        """
        import numpy as np

        self._wait(BEHIND)
        rows = unchanging(np.ascontiguousarray(rows))
        self._written.append(self._writer.submit(self._keep, keys, rows))

    def _keep(self, keys: Iterable[bytes], rows: Any) -> None:
        import numpy as np

        values = rows.reshape(-1).view(np.uint8).data
        self._append(
            {
                "keys": [key.hex() for key in keys], "size": len(values), "crc": zlib.crc32(values),
                "dtype": rows.dtype.str, "shape": rows.shape,
            },
            values,
        )  # fmt: skip

    def finish(self) -> None:
        """Mark all records as those of finished runs."""
        self._wait(0)
        self._append({"size": 0}, memoryview(b""))

    def close(self) -> None:
        """Finish writing and close the file.

        The data are not synchronised to the disk: records lost in a power cut are computed again.
        """
        try:
            self._wait(0)
        finally:
            self._writer.shutdown()
            os.close(self._file)

    def _wait(self, most: int) -> None:
        """Wait until at most so many records are still to be written."""
        while len(self._written) > most:
            self._written.popleft().result()

    def _append(self, description: dict[str, Any], values: memoryview) -> None:
        text = json.dumps(description).encode()
        try:
            for part in (memoryview(_HEAD.pack(MAGIC, len(text), zlib.crc32(text)) + text), values):
                count = 0
                while count < len(part):
                    count += os.write(self._file, part[count:])
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._end)
            raise OutputError(
                f"{self._path} could not be written: {error.strerror}",
                "free some space, and run the same command again: it continues from the stored values",
            ) from error
        self._end += _HEAD.size + len(text) + len(values)

    def _descriptions(self) -> Iterator[tuple[RowsRecord | FinishedRecord, int]]:
        """Iterate over the descriptions of complete records and the offsets where the records end."""
        offset, size = 0, os.fstat(self._file).st_size
        while len(head := os.pread(self._file, _HEAD.size, offset)) == _HEAD.size:
            magic, length, crc = _HEAD.unpack(head)
            if magic != MAGIC or length > size:
                return
            text = os.pread(self._file, length, offset + _HEAD.size)
            if len(text) < length or zlib.crc32(text) != crc:
                return
            try:
                record = _DESCRIPTION.validate_json(text)
            except ValueError as error:  # pydantic's errors are ValueErrors
                raise DataError(
                    f"{self._path} is damaged: a record at byte {offset} is not one that curv wrote",
                    "give another --state folder, or remove this one to start again",
                ) from error
            offset += _HEAD.size + length + record.size
            if offset > size:
                return
            yield record, offset

    def _oldest(self, key: bytes, below: int) -> Any:
        places = self._places.get(key)
        while places and places[0][0] < below:
            record, row = places.popleft()
            self._left -= 1
            values = self._values(record)
            if values is not None:
                return values[row]
        return None

    def _values(self, index: int) -> Any:
        """Return the rows of a record, None if they are damaged; the last one read is cached."""
        import numpy as np

        if self._last[0] != index:
            record = self._records[index]
            data = os.pread(self._file, record.size, record.offset)
            intact = len(data) == record.size and zlib.crc32(data) == record.crc
            self._last = index, np.frombuffer(data, record.dtype).reshape(record.shape) if intact else None
        return self._last[1]
