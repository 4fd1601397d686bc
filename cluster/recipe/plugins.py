"""Plug-ins: a user's own modules, imported wherever their recipe is read, and the fingerprints of their source.

A plug-in is a module's dotted name, a `.py` file, or the folder of a package. What it defines registers itself: a term,
a tracker and a stopping rule by their class, a network by `timm.register_model`, an optimiser by timm's
`default_registry`, a kind of images by `pipelines.data.kinds.register`. Code comes from what a user typed or a recipe
names; nothing here is called with a name from a checkpoint or a cache.

Not here: networks that a recipe names as `package.module:function` (`kdcore.named_models`), which need no plug-in.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import logging
import sys
import sysconfig
import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from pydantic import PydanticUserError

from cluster.parcel import Parcel, place_in
from kdcore.configs import PLUGINS
from kdcore.errors import Refused, raised_at, typed_line
from kdcore.named_models import BUILDER_MODULES, module_of

if TYPE_CHECKING:
    from cluster.recipe.config import RunConfig  # it imports torch, which reading a recipe's text does not need

# {top-level name: SHA-256 of the source, as it was when this process imported it}
_FINGERPRINTS: dict[str, str] = {}

# pydantic's names for a field of a class that is written without its type
_WITHOUT_TYPE = ("model-field-overridden", "model-field-missing-annotation")


def import_plugins(plugins: Iterable[str]) -> None:
    """Import plug-ins, in their order; one that this process has imported already is left as it is."""
    for plugin in plugins:
        with _refusing_overwriting():
            name = _import_file(plugin) if PLUGINS.path_in(plugin) else _import_module(plugin, plugin)
        BUILDER_MODULES.add(name.partition(".")[0])
        fingerprint(name)


def _import_module(name: str, plugin: str) -> str:
    with _naming(plugin):
        importlib.import_module(name)
    return name


def _import_file(plugin: str) -> str:
    """Import a file, or a folder with `__init__.py`, under its own name; return the name."""
    path = Path(plugin).expanduser().absolute()
    is_package = path.is_dir()
    source = path / "__init__.py" if is_package else path
    name = path.name if is_package else path.stem
    if not source.is_file() or source.suffix != ".py":
        raise Refused(
            f"plugins: {path} is neither a Python file nor a folder with __init__.py; name one, by a path that is "
            "absolute or from the working directory, or an installed module, such as my_package.distil"
        )
    if not name.isidentifier():
        raise Refused(f"plugins: {plugin}: {name!r} is not a module name; rename it, such as {_as_identifier(name)}")
    if (known := _found(name)) is not None:
        if not (Path(known).is_file() and source.samefile(known)):  # which may be spelled otherwise, as with ..
            raise Refused(f"plugins: {plugin} would take the place of the module {name!r} ({known}); rename it")
        if name in sys.modules:
            return name
    spec = importlib.util.spec_from_file_location(
        name, source, submodule_search_locations=[str(path)] if is_package else None
    )
    assert spec is not None, "a file that ends in .py"
    assert spec.loader is not None, "likewise"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with _naming(plugin):
            spec.loader.exec_module(module)
    except Refused:
        del sys.modules[name]
        raise
    return name


def _as_identifier(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in f"my_{name}")


def _found(name: str) -> str | None:
    """Return where the module of a top-level name lies, whether it is imported or would be; None for no such module."""
    if name in sys.modules:
        return getattr(sys.modules[name], "__file__", None) or "built in"
    spec = importlib.util.find_spec(name)
    return None if spec is None else spec.origin or "a folder of modules"


@contextmanager
def _naming(plugin: str) -> Iterator[None]:
    """Refuse, by the plug-in's name, whatever its import raises."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or not f"{plugin}.".startswith(f"{error.name}."):
            raise Refused(f"plug-in {plugin} imports {error.name!r}, which is not installed; install it") from error
        raise Refused(
            f"plugins: there is no module {plugin!r}; give its whole dotted name, a file (./my_losses.py), or put its "
            "folder onto PYTHONPATH"
        ) from error
    except Refused as error:
        raise Refused(f"plug-in {plugin}: {error}") from error
    except (Exception, SystemExit) as error:
        said, remedy = typed_line(error), "correct it, or leave it out"
        if isinstance(error, PydanticUserError) and error.code in _WITHOUT_TYPE:
            said = error.message.partition(". ")[0]
            remedy = 'write every field with its type, such as term: Literal["my_loss"] = "my_loss"'
        raise Refused(f"plug-in {plugin} does not import ({said}{_place(plugin, error)}); {remedy}") from error


def _place(plugin: str, error: BaseException) -> str:
    """Return the last line of a plug-in that an error of its import came through, or of what it imports: ' at ...'."""
    if isinstance(error, SyntaxError):
        return f" at {error.filename or plugin}:{error.lineno}"
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return raised_at({_name_of(plugin).partition(".")[0]}, error) or f" at {frame.filename}:{frame.lineno}"


@contextmanager
def _refusing_overwriting() -> Iterator[None]:
    """Refuse a name that a plug-in registers with timm a second time, of which timm only warns."""

    def refuse(record: logging.LogRecord) -> bool:
        if "already registered" in record.getMessage():
            raise Refused(f"{record.getMessage().partition(',')[0]}; give it a name of its own")
        return True

    logger = logging.getLogger("timm.optim._optim_factory")
    logger.addFilter(refuse)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Overwriting .* in registry")
            yield
    finally:
        logger.removeFilter(refuse)


def fingerprint(name: str) -> str:
    """Return the SHA-256 of an imported module's source: of its whole package, as it was at the first call."""
    top = name.partition(".")[0]
    if top not in _FINGERPRINTS:
        digest = hashlib.sha256()
        for label, path in source_files(sys.modules[top]):
            digest.update(f"{label} {path.stat().st_size}\n".encode() + path.read_bytes())
        _FINGERPRINTS[top] = digest.hexdigest()
    return _FINGERPRINTS[top]


def fingerprint_of_module(name: str) -> str:
    """Import a module that a recipe names, and return the fingerprint of its source."""
    return fingerprint(_import_module(name, name))


def source_files(module: ModuleType) -> list[tuple[str, Path]]:
    """Return (name within the package, path) of every Python file of a package; a single file counts as one."""
    folders = [Path(folder) for folder in getattr(module, "__path__", ())]
    if folders:
        found = [(path.relative_to(folder).as_posix(), path) for folder in folders for path in folder.rglob("*.py")]
        return sorted(found)
    file = getattr(module, "__file__", None)
    return [("__init__.py", Path(file))] if file else []  # as the package that a job makes of it


def modules_of(config: RunConfig) -> dict[str, ModuleType]:
    """Import all code that a recipe names, plug-ins and networks; return {top-level name: module}."""
    import_plugins(config.plugins)
    names = [_name_of(plugin) for plugin in config.plugins]
    for model in (config.student, *config.all_teachers):
        if (name := module_of(model.model)) is not None:
            names.append(_import_module(name, name))
    return {top: sys.modules[top] for top in sorted({name.partition(".")[0] for name in names})}


def _name_of(plugin: str) -> str:
    """Return a plug-in's dotted name."""
    return Path(plugin).stem if PLUGINS.path_in(plugin) else plugin


def fingerprints_of(config: RunConfig) -> dict[str, str]:
    """Return {top-level name: SHA-256 of the source} of all code that a recipe names; empty for most recipes."""
    return {name: fingerprint(name) for name in modules_of(config)}


def refuse_other_code(config: RunConfig, theirs: Mapping[str, str]) -> None:
    """Refuse a node whose plug-ins are not those of the driver. theirs: the driver's `fingerprints_of`."""
    ours = fingerprints_of(config)
    for name in sorted(ours.keys() & theirs.keys()):
        if ours[name] != theirs[name]:
            raise Refused(
                f"the plug-in {name} at {location(sys.modules[name])} is not that of the driver (source "
                f"{ours[name][:12]}... here, {theirs[name][:12]}... there); make it the same on every node"
            )


def location(module: ModuleType) -> str:
    """Return the file of a module, or the folder of a package."""
    folders = list(getattr(module, "__path__", ()))
    return str(folders[0]) if folders else str(getattr(module, "__file__", "built in"))


def to_ship(config: RunConfig, parcel: Parcel) -> list[str]:
    """Return the files and folders of code that a job has to bring besides its parcel.

    That is what a path names, which a job imports by its name alone, and of the rest what is neither installed nor a
    module at the root of the parcel's tree that the parcel holds whole.
    """
    installed = [Path(sysconfig.get_path(kind)) for kind in ("purelib", "platlib", "stdlib")]
    named = {_name_of(plugin) for plugin in config.plugins if PLUGINS.path_in(plugin)}
    found = []
    for name, module in modules_of(config).items():
        place = Path(location(module))
        is_sent = place_in(parcel.tree, place) == place.name and all(
            place_in(parcel.tree, path) in parcel.files for _, path in source_files(module)
        )
        if name in named or not (is_sent or any(place.is_relative_to(known) for known in installed)):
            found.append(str(place))
    return found


def by_name(plugins: Iterable[str]) -> list[str]:
    """Return plug-ins by their names in a job, where shipped ones are found as modules."""
    return [_name_of(plugin) for plugin in plugins]


def describe_code(config: RunConfig) -> list[str]:
    """Return a line for each module of a recipe's own code: its name, where it lies, its fingerprint."""
    return [
        f"imports {name} from {location(module)} (source {fingerprint(name)})"
        for name, module in modules_of(config).items()
    ]
