"""Import of targets, `pkg.mod:attr` and `file.py:attr`: user code, imported only if the user named or trusts it."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curvcli.errors import CurvError, NotFoundError, SpecError
from curvcli.loading.access import is_there, reading
from curvcli.sources import register

ZOO = "curvcli.zoo"


@dataclass(frozen=True)
class Targets:
    """An importer of targets relative to a folder.

    Parameters
    ----------
    base
        The folder of the curv.toml, or the current one, to which `file.py:attr` is relative.
    trusted
        Whether the code that `origin` names may run. The zoo always may.
    origin
        The file that names the targets, for messages.
    named
        The targets that `origin` names; the user named all others. None: it names all.
    carried
        Whether `origin` belongs to a checkpoint. The data that it names must then lie near it.
    """

    base: Path
    trusted: bool
    origin: str
    named: frozenset[str] | None = None
    carried: bool = True

    def load(self, target: str) -> Any:
        """Import the object that a target names.

        Raises
        ------
        SpecError
            The target is malformed, untrusted, or fails to import.
        NotFoundError
            The file of the target does not exist.
        """
        module_name, separator, attribute = target.rpartition(":")
        if not separator or not module_name or not attribute:
            raise SpecError(f"{target!r} is not a target", "write it as package.module:attribute or file.py:attribute")
        allowed = self._is_allowed(target)
        if not allowed and module_name != ZOO:
            raise self._refusal(target)
        loaded = self._attribute(self._module(module_name, target), module_name, attribute, target)
        # What the zoo itself imports (a module, a function of another) is not of the zoo.
        if not allowed and getattr(loaded, "__module__", None) != ZOO:
            raise self._refusal(target)
        return loaded

    def check_path(self, path: str) -> None:
        """Raise an error if a checkpoint's own specification names data far from it, also by symbolic links.

        Raises
        ------
        SpecError
            The path leaves the parent of the specification's folder, and the specification is not trusted.
        """
        if not self.carried or self._is_allowed(path):
            return
        near = Path(os.path.realpath(self.base)).parent
        with reading(path):
            for place in _with_links(self.base / path):
                if not Path(os.path.realpath(place)).is_relative_to(near):
                    raise SpecError(
                        f"{self.origin} names data outside of {near}: {path}",
                        f"a specification beside a checkpoint may only name data near it; read it, then {self._advice}",
                    )

    def _is_allowed(self, name: str) -> bool:
        """Whether the user named a target or path directly, or trusts the file that names it."""
        return self.trusted or (self.named is not None and name not in self.named)

    def _refusal(self, target: str) -> SpecError:
        return SpecError(
            f"{self.origin} names code to run: {target}",
            f"code runs only where you name it or trust the file that does; read both, then {self._advice}",
        )

    @property
    def _advice(self) -> str:
        """Return advice on how to trust the file; a table in a checkpoint's metadata is no file."""
        is_file = Path(self.origin).suffix == ".toml"
        return f"run: curv trust {shlex.quote(self.origin)} (or give --trust)" if is_file else "give --trust"

    def _attribute(self, found: Any, module_name: str, attribute: str, target: str) -> Any:
        """Return the attribute `a.b` of a module."""
        for part in attribute.split("."):
            if not hasattr(found, part):
                names = ", ".join(name for name in dir(found) if not name.startswith("_"))[:200]
                raise SpecError(f"{module_name} has no {part!r} (target {target})", f"it has: {names}")
            found = getattr(found, part)
        return found

    def _module(self, name: str, target: str) -> Any:
        try:
            if name.endswith(".py"):
                return self._file((self.base if self.trusted else Path.cwd()) / name)
            if name == ZOO:  # needs no other folder
                return importlib.import_module(name)
            # A folder that is not trusted must not stand in for an installed package.
            for folder in (str(Path.cwd()), str(self.base)) if self.trusted else (str(Path.cwd()),):
                _add_to_path(folder)
            return importlib.import_module(name)
        except (CurvError, KeyboardInterrupt):
            raise
        except BaseException as error:  # the user's module may raise anything, SystemExit included
            raise SpecError(
                f"target {target} fails to import: {described(error)}",
                _import_advice(error),
            ) from error

    def _file(self, path: Path) -> Any:
        """Import a module from a file, whose folder is added to the path for its own imports."""
        path = path.resolve()
        if not is_there(path, file=True):
            raise NotFoundError(
                f"no file {path.name} in {path.parent}", "give the path of the Python file with the model"
            )
        register(path, "the model's source")
        name = f"curv_target_{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}"
        if name in sys.modules:
            return sys.modules[name]
        _add_to_path(str(path.parent))
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        return module


def _add_to_path(folder: str) -> None:
    """Append a folder to the path; after the libraries, so that a `random.py` in it does not replace a library."""
    if folder not in sys.path:
        sys.path.append(folder)


def _with_links(place: Path) -> Iterator[Path]:
    """Iterate over a path, and every symbolic link inside if it is a folder."""
    yield place
    for folder, folders, names in os.walk(place):
        yield from (Path(folder, name) for name in folders + names if Path(folder, name).is_symlink())


def _import_advice(error: BaseException) -> str:
    """Return advice on a failed import."""
    if isinstance(error, ModuleNotFoundError):
        return f"check the target's name, or install {error.name} in the environment that curv runs in"
    if isinstance(error, SyntaxError):
        return "mend the file at the line named"
    return "run the import by hand, or see --debug"


def described(error: BaseException, limit: int = 300) -> str:
    """Format an exception in one line, as `TypeError: …`."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:limit]}" if text else type(error).__name__
