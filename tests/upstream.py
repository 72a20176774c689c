"""Fetch transformers' own common tests, which its wheel does not carry, for the installed version.

The source distribution on the package index ships `tests/test_modeling_common.py` and the files beside it, but not the
subpackages they import; those get small stand-ins. Everything lands in a cache folder that git ignores; delete it to
fetch again. Run this file to fetch ahead of time; afterwards the tests need no network.
"""

import ast
import importlib
import subprocess
import sys
import tarfile
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import transformers
from filelock import FileLock


VERSION = transformers.__version__
CACHE = Path(__file__).resolve().parents[1] / ".cache" / "transformers-tests"
PACKAGE = "transformers_tests"  # not `tests`, which is this very folder's name
WANTED = ("test_modeling_common", "test_backbone_common", "test_configuration_common", "test_pipeline_mixin")

# The one imported name whose value matters: settings of the base configuration, none of them at its default.
STAND_IN_VALUES = {
    "config_common_kwargs": {
        "architectures": ["SomeModel"],
        "chunk_size_feed_forward": 5,
        "dtype": "float16",
        "id2label": {0: "label"},
        "is_encoder_decoder": True,
        "label2id": {"label": 0},
        "output_hidden_states": True,
        "problem_type": "regression",
        "return_dict": False,
    },
}


class UpstreamTestsUnavailableError(RuntimeError):
    """The package index did not give the source distribution; the message is one line."""


def load(module: str) -> ModuleType:
    """Import one of transformers' common test modules, such as "test_modeling_common", fetching it if need be.

    Raises:
        UpstreamTestsUnavailableError: Nothing is cached and the package index gives no source distribution.
    """
    root = str(fetch())
    if root not in sys.path:
        sys.path.append(root)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Unknown pytest.mark")  # marks of transformers' own pytest settings
        return importlib.import_module(f"{PACKAGE}.{module}")


def fetch() -> Path:
    """Return the folder that holds the installed version's common tests, filling it on the first call.

    Processes that call at once wait for the first one. The folder appears whole or not at all.

    Raises:
        UpstreamTestsUnavailableError: Nothing is cached and the package index gives no source distribution.
    """
    root = CACHE / VERSION
    if root.is_dir():
        return root
    CACHE.mkdir(parents=True, exist_ok=True)
    _write(CACHE / ".gitignore", "*\n")
    with FileLock(CACHE / f"{VERSION}.lock"):
        if not root.is_dir():
            with tempfile.TemporaryDirectory(dir=CACHE, ignore_cleanup_errors=True) as scratch:
                sources = _read_tests(_download(Path(scratch)))
                _write_package(Path(scratch) / "root", sources)
                (Path(scratch) / "root").rename(root)
    return root


def _download(folder: Path) -> Path:
    """Download the source distribution into `folder` with pip, as the user configured it, and return its path."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "transformers"]
    command += ["--dest", str(folder), f"transformers=={VERSION}"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    archives = list(folder.glob("transformers-*.tar.gz"))
    if result.returncode or not archives:
        reasons = [line.strip() for line in result.stderr.splitlines() if line.lstrip().lower().startswith("error:")]
        reason = reasons[-1] if reasons else result.stderr.strip().rpartition("\n")[2] or "no archive"
        raise UpstreamTestsUnavailableError(
            f"transformers {VERSION}'s own tests are not in {CACHE}, and pip could not download them "
            f"(is the package index in reach?): {reason}"
        )
    return archives[0]


def _read_tests(archive: Path) -> dict[str, str]:
    """Return the text of each top-level test module of a source distribution, by module name."""
    with tarfile.open(archive) as tar:
        members = [member for member in tar if Path(member.name).match("transformers-*/tests/*.py")]
        return {Path(member.name).stem: tar.extractfile(member).read().decode("utf-8") for member in members}


def _write_package(root: Path, sources: dict[str, str]) -> None:
    """Write the wanted modules, the modules they import, and a stand-in for each of those that is not there."""
    package = root / PACKAGE
    _write(package / "__init__.py", "")
    # Two files that the modules look up by path: an empty list of tiny models, and a source tree to import from.
    _write(root / "tests" / "utils" / "tiny_model_summary.json", "{}\n")
    _write(root / "src" / "transformers" / "__init__.py", "")

    stand_ins: dict[str, set[str]] = {}
    waiting, written = list(WANTED), set()
    while waiting:
        module = waiting.pop()
        if module in written:
            continue
        written.add(module)
        _write(package / f"{module}.py", sources[module])
        for imported, name in _relative_imports(sources[module]):
            if imported in sources:
                waiting.append(imported)
            else:
                stand_ins.setdefault(imported, set()).add(name)
    for module, names in stand_ins.items():
        _write_stand_in(package, module, sorted(names))


def _relative_imports(source: str) -> Iterator[tuple[str, str]]:
    """Yield (module, name) for each name that a source imports from its own package."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module:
            yield from ((node.module, alias.name) for alias in node.names)


def _write_stand_in(package: Path, module: str, names: list[str]) -> None:
    """Write a module in which each name is an empty class, or its value in `STAND_IN_VALUES`."""
    path = package.joinpath(*module.split(".")).with_suffix(".py")
    lines = [
        f"{name} = {STAND_IN_VALUES[name]!r}" if name in STAND_IN_VALUES else f"class {name}: pass" for name in names
    ]
    _write(path, "\n".join(lines) + "\n")
    if path.parent != package:
        _write(path.parent / "__init__.py", "")


def _write(path: Path, text: str) -> None:
    """Write a text file, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    try:
        print(fetch())
    except UpstreamTestsUnavailableError as error:
        sys.exit(str(error))
