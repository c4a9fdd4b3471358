"""A file that rows of arrays are appended to, each record with digests: what a killed run left half is dropped."""

from __future__ import annotations

import contextlib
import json
import os
import struct
import zlib
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from curvcli.errors import OutputError
from curvcli.journal import unchanging

MAGIC = b"curv"
BEHIND = 4
"""Records that may be waiting to be written: a disk that is slower than the run holds it up."""
_HEAD = struct.Struct("<4sII")  # magic, length of the description, its CRC-32


class _Record(NamedTuple):
    offset: int  # of the values in the file
    size: int
    crc: int
    dtype: str
    shape: list[int]


class Records:
    """Rows of arrays by key, in a file: a `curvcli.journal.Store`.

    A record is a description (keys, shape, dtype, the values' CRC-32), itself with a CRC-32, and the values. Records
    are only appended. All from the first damaged description on are cut off; one whose values are damaged counts as
    absent. What this process appends it does not find itself.

    A thread of its own finds out the digests and writes, while the run goes on: a run that is killed may have the last
    few to compute again.

    Parameters
    ----------
    path
        The file; made if it is not there.

    Raises
    ------
    OSError
        It cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        self._records: list[_Record] = []
        self._places: dict[bytes, deque[tuple[int, int]]] = defaultdict(deque)  # record and row, by key
        self._finished = 0  # records of runs that came to their end
        self._last: tuple[int, Any] = (-1, None)
        self._end = self._left = 0
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="records")
        self._written: deque[Future[None]] = deque()
        for description, end in self._descriptions():
            self._end = end
            if "keys" not in description:
                self._finished = len(self._records)
                continue
            for row, key in enumerate(description.pop("keys")):
                self._places[bytes.fromhex(key)].append((len(self._records), row))
                self._left += 1
            self._records.append(_Record(end - description["size"], **description))
        if os.fstat(self._file).st_size > self._end:  # some file systems wait for the disk where a file was cut
            os.ftruncate(self._file, self._end)

    def take(self, keys: Sequence[bytes], *, finished: bool = False) -> list[Any]:
        """The oldest row under each key that was not taken yet, None where there is none."""
        return [self._taken(key, self._finished if finished else len(self._records)) for key in keys]

    def holds(self, key: bytes) -> bool:
        """Whether an earlier run kept anything under a key that was not taken yet."""
        return bool(self._places.get(key))

    def exhausted(self) -> bool:
        """Whether all rows were taken."""
        return not self._left

    def keep(self, keys: Iterable[bytes], rows: Any) -> None:
        """Append rows as one record, before long.

        Raises
        ------
        OutputError
            One could not be written; what was there before is still there.
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
        """All that is there belongs to runs that came to their end."""
        self._wait(0)
        self._append({"size": 0}, memoryview(b""))

    def close(self) -> None:
        """Nothing more is kept. A process that is killed loses nothing of what it kept.

        The disk is not waited for: what a power cut takes is missed at the next opening, and computed again.
        """
        try:
            self._wait(0)
        finally:
            self._writer.shutdown()
            os.close(self._file)

    def _wait(self, most: int) -> None:
        """Until at most so many records are still to be written."""
        while len(self._written) > most:
            self._written.popleft().result()

    def _append(self, description: dict[str, Any], values: memoryview) -> None:
        text = json.dumps(description).encode()
        try:
            for part in (memoryview(_HEAD.pack(MAGIC, len(text), zlib.crc32(text)) + text), values):
                written = 0
                while written < len(part):
                    written += os.write(self._file, part[written:])
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._end)
            raise OutputError(
                f"{self._path} could not be written: {error.strerror}",
                "make room, and give the same command again: it goes on from what is kept",
            ) from error
        self._end += _HEAD.size + len(text) + len(values)

    def _descriptions(self) -> Iterator[tuple[dict[str, Any], int]]:
        """Every whole record's description, and where the record ends."""
        offset, size = 0, os.fstat(self._file).st_size
        while len(head := os.pread(self._file, _HEAD.size, offset)) == _HEAD.size:
            magic, length, crc = _HEAD.unpack(head)
            if magic != MAGIC or length > size:
                return
            text = os.pread(self._file, length, offset + _HEAD.size)
            if len(text) < length or zlib.crc32(text) != crc:
                return
            description = json.loads(text)
            offset += _HEAD.size + length + description["size"]
            if offset > size:
                return
            yield description, offset

    def _taken(self, key: bytes, below: int) -> Any:
        places = self._places.get(key)
        while places and places[0][0] < below:
            record, row = places.popleft()
            self._left -= 1
            values = self._values(record)
            if values is not None:
                return values[row]
        return None

    def _values(self, index: int) -> Any:
        """The rows of a record, None if they are damaged; those of the last one asked for are held."""
        import numpy as np

        if self._last[0] != index:
            record = self._records[index]
            data = os.pread(self._file, record.size, record.offset)
            whole = len(data) == record.size and zlib.crc32(data) == record.crc
            self._last = index, np.frombuffer(data, record.dtype).reshape(record.shape) if whole else None
        return self._last[1]
