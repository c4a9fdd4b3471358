"""The view of `curv doctor`."""

from __future__ import annotations

from rich.text import Text

from curvcli.cli.format import Part, table
from curvcli.schema.doctor import DoctorRecord


def view(record: DoctorRecord, width: int, unicode: bool) -> list[Part]:
    """Return the record, problems first."""
    count = len(record.problems)
    headline = f"{count} problem{'s' * (count != 1)} found" if count else "Nothing wrong was found"
    parts: list[Part] = [Text(headline, style="bold red" if count else "bold")]
    parts += [Text(f"* {problem}") for problem in record.problems]
    installed = ", ".join(f"{name} {version}" for name, version in record.packages.items() if version is not None)
    missing = ", ".join(name for name, version in record.packages.items() if version is None)
    cache, speed = record.cache, record.speed
    rows = [
        ("curv", f"{record.curv}, Python {record.python}, {record.platform}"),
        ("packages", installed),
        *([("not installed", missing)] if missing else []),
        ("devices", f"{', '.join(record.devices)}; {record.threads} threads"),
        ("memory", f"{record.memory.available / 1e9:.1f} GB free, curv takes {record.memory.limit / 1e9:.1f} at most"),
        ("cache", f"{cache.path}: {cache.bytes / 1e6:.0f} MB in {cache.files} files" if cache else "none"),
        ("speed", f"{1e3 * speed.product_seconds:.2f} ms a Hessian product of an MLP 64-128-128-10 on 1,797 examples, "
                  f"{speed.matrix_gflops:.0f} GFLOP/s of matrix products"),
    ]  # fmt: skip
    return [*parts, Text(""), table(rows)]
