"""Decisions that the code must keep to, each guarded by a test."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from modmix.base.settings import TRAINING, WITHOUT_EFFECT
from modmix.encoders.table import ENCODERS
from modmix.methods.table import METHODS
from modmix.tasks.table import TASKS

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "platform" / "modmix"
FILES = sorted(PACKAGE.rglob("*.py"))


def name_of(file: Path) -> str:
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(file): file for file in FILES}


@dataclass(frozen=True)
class Import:
    """One import statement, wherever it stands, of one module."""

    file: Path
    line: int
    module: str  # of ours without "modmix."

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line} imports {self.module}"


def imports(file: Path) -> Iterator[Import]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(file, node.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: a relative import"
            assert node.module is not None
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                ours = whole.removeprefix("modmix.") in MODULES and whole.startswith("modmix.")
                yield Import(file, node.lineno, whole if ours else node.module)


IMPORTS = [one for file in FILES for one in imports(file)]


def ours(one: Import) -> str | None:
    """The module of ours that is imported, or None."""
    if one.module == "modmix":
        return ""
    return one.module.removeprefix("modmix.") if one.module.startswith("modmix.") else None


# ---------------------------------------------------------------- layout


@pytest.mark.parametrize("folder", ["platform", "docker", "mlflow_server"])
def test_folders_that_must_not_become_packages(folder: str) -> None:
    """`platform/__init__.py` would shadow the standard library's module, `docker/` the client."""
    assert not (ROOT / folder / "__init__.py").exists()


# Each package imports only what stands before it.
ORDER = (
    "base",
    "ledger",
    "encoders",
    "tasks",
    "methods",
    "training",
    "study",
    "search",
    "execution",
    "tracking",
    "analysis",
    "registry",
    "api",
    "cli",
)


def package(module: str) -> str:
    """The first part of a module's name: its package, or itself where it is in none."""
    return module.partition(".")[0]


def listed(module: str) -> list[str]:
    """The names that a package's docstring lists, in its order."""
    docstring = ast.get_docstring(ast.parse(MODULES[module].read_text(encoding="utf-8"))) or ""
    return re.findall(r"^ {4}(\w+) +\S", docstring, re.M)


def test_the_order_has_every_package() -> None:
    assert sorted({package(name) for name in MODULES} - {"", "__main__", "_version"}) == sorted(
        ORDER
    )
    assert listed("") == list(ORDER)


@pytest.mark.parametrize("name", [name for name in ORDER if name != "api"])
def test_a_package_lists_its_modules(name: str) -> None:
    modules = [module.partition(".")[2] for module in MODULES if package(module) == name]
    assert sorted(listed(name)) == sorted(module for module in modules if module)


def test_packages_import_only_those_above_them() -> None:
    """Imports inside functions count as well: a deferred cycle is still a cycle."""
    order = ["_version", *ORDER, "__main__"]
    wrong = [
        str(one)
        for one in IMPORTS
        if (module := ours(one)) is not None
        and (here := package(name_of(one.file))) not in ("", package(module))
        and (not module or order.index(package(module)) > order.index(here))
    ]
    assert wrong == []


def test_modules_are_imported_where_they_are_defined() -> None:
    """Packages hand nothing on: their `__init__.py` is a docstring."""
    for name in ORDER:
        if (PACKAGE / name).is_dir():
            tree = ast.parse((PACKAGE / name / "__init__.py").read_text(encoding="utf-8"))
            assert [type(node) for node in tree.body] == [ast.Expr], name


def test_no_package_has_a_cycle() -> None:
    needs: dict[str, set[str]] = {name: set() for name in MODULES}
    for one in IMPORTS:
        module = ours(one)
        if module and package(module) == package(name_of(one.file)):
            needs[name_of(one.file)].add(module)
    while ready := [name for name, others in needs.items() if not others & set(needs)]:
        for name in ready:
            del needs[name]
    assert needs == {}


# ---------------------------------------------------------------- dependencies

# Packages, or single modules, that may import it.
PLACES = {
    "ray": tuple(
        f"execution.tune_{name}"
        for name in (
            "callback",
            "cluster",
            "runner",
            "scheduler",
            "search",
            "store",
            "table",
            "trial",
        )
    ),
    "optuna": ("search.proposer", "tracking.optuna_mirror"),
    "sqlalchemy": ("ledger",),
    "mlflow": ("tracking", "registry.models", "registry.pyfunc"),
    "torch.func": ("training.stack",),
    "matplotlib": ("analysis",),
    "pandas": ("analysis", "registry.pyfunc", "api"),
    "scipy": ("analysis", "tracking", "tasks"),
    "sklearn": ("tasks",),
    "torchvision": ("tasks.cifar100",),
    "av": ("tasks.media_read",),
    "PIL": ("tasks.media_read",),
    "pyarrow": ("tasks", "analysis.predictions"),
    "filelock": ("tasks", "tracking.store"),
    "pooch": ("tasks",),
    "requests": ("tasks",),
    "pydantic": ("study.spec",),
    "yaml": ("study.files", "study.scalars", "registry", "cli"),
    "typer": ("cli",),
    "rich": ("cli",),
    "psutil": ("ledger",),
    "safetensors": ("training", "methods"),
    "pickle": ("tasks.restricted_pickle",),
    "joblib": (),
}


def is_inside(module: str, places: Iterable[str]) -> bool:
    """Whether a module is one of these, or in one of these packages."""
    return any(f"{module}.".startswith(f"{place}.") for place in places)


@pytest.mark.parametrize("dependency", PLACES)
def test_a_dependency_stays_where_it_is(dependency: str) -> None:
    wrong = [
        str(one)
        for one in IMPORTS
        if is_inside(one.module, [dependency])
        and not is_inside(name_of(one.file), PLACES[dependency])
    ]
    assert wrong == []


def test_mlflow_is_used_by_its_public_names() -> None:
    """No private names, and no SQL on its tables, whose layout changes with its releases."""
    public = {"", "entities", "exceptions", "models", "pyfunc", "types.schema"}
    files = [file for file in FILES if package(name_of(file)) in ("tracking", "registry")]
    of_mlflow = [one for one in IMPORTS if one.module.partition(".")[0] == "mlflow"]
    assert {one.module.partition(".")[2] for one in of_mlflow} <= public
    wrong = []
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and re.match("_[^_]", node.attr):
                wrong += [ast.unparse(node)] * (ast.unparse(node.value) not in ("self", "os"))
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                wrong += re.findall(r"(?:SELECT|INSERT|UPDATE|DELETE) .+", node.value)
    assert wrong == []


def modules_after(code: str) -> set[str]:
    """What a new process has imported after this code."""
    code += "\nimport sys; print('\\n'.join(sys.modules), file=sys.stderr)"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd="/"
    )
    assert run.returncode == 0, run.stderr
    return set(run.stderr.split())


HEAVY = ("torch", "ray", "mlflow", "pandas", "numpy", "optuna", "sqlalchemy", "matplotlib")


def test_importing_and_asking_for_help_are_light() -> None:
    light = "import modmix; modmix.__version__"
    help_ = (
        "import sys; sys.argv = ['modmix', '--help']\n"
        "from modmix.cli.main import main\n"
        "try: main()\nexcept SystemExit as end: assert not end.code"
    )
    tables = "import modmix.methods.table, modmix.encoders.table, modmix.tasks.table"
    checks = "import modmix.study.tasks_plan"
    packages = ", ".join(f"modmix.{name}" for name in ORDER if name != "api")
    for code in (light, help_, tables, checks, f"import {packages}"):
        assert not modules_after(code) & set(HEAVY), code


CORE = ("base", "encoders", "tasks", "methods", "training")


@pytest.mark.slow
def test_the_training_core_needs_torch_and_numpy_alone() -> None:
    """A worker without the rest can import it all; what else is needed is needed in a call."""
    names = ", ".join(f"modmix.{name}" for name in MODULES if package(name) in CORE)
    blocked = sorted({*PLACES} - {"torch.func", "pickle"})
    code = (
        "import sys\n"
        f"for name in {blocked!r}: sys.modules[name] = None\n"  # importing it fails
        f"import {names}"
    )
    assert {"torch", "numpy"} <= modules_after(code)


def private_names(tree: ast.AST, library: str) -> list[str]:
    """Names with a leading underscore that a module takes from a library, or looks up in it."""
    imported = {library}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == library:
            imported |= {alias.asname or alias.name for alias in node.names}
            path = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            found += [part for part in path if part.startswith("_")]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == library:
                    found += [part for part in alias.name.split(".") if part.startswith("_")]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            root = ast.unparse(node.value).split(".")[0]
            if root in imported and not node.attr.startswith("__"):
                found.append(node.attr)
        elif isinstance(node, ast.keyword) and (node.arg or "").startswith("_"):
            found.append(str(node.arg))  # ray.init(_node_ip_address=…)
    return found


def test_the_private_names_of_a_library_are_found() -> None:
    text = (
        "import ray\nfrom ray import _private\nfrom ray.tune import x as y\n"
        "ray._raylet.A\ny._b\nself._c\nray.init(_d=1)\nimport ray._e\n"
    )
    assert sorted(private_names(ast.parse(text), "ray")) == [
        "_b",
        "_d",
        "_e",
        "_private",
        "_raylet",
    ]


def test_no_private_name_of_ray_is_used() -> None:
    users = {one.file for one in IMPORTS if is_inside(one.module, ["ray"])}
    assert len(users) > 3
    wrong = {
        str(file.relative_to(ROOT)): names
        for file in sorted(users)
        if (names := private_names(ast.parse(file.read_text(encoding="utf-8")), "ray"))
    }
    assert wrong == {}
    texts = [file for file in FILES if re.search(r"\bray\._", file.read_text(encoding="utf-8"))]
    assert texts == []


def test_tasks_do_not_import_torch() -> None:
    wrong = [
        str(one)
        for one in IMPORTS
        if package(name_of(one.file)) == "tasks" and is_inside(one.module, ["torch"])
    ]
    assert wrong == []


MODULE_OF = {"pyyaml": "yaml", "scikit-learn": "sklearn", "pillow": "PIL"}
INDIRECT = {"cmaes"}  # through Optuna


def test_dependencies_say_which_file_needs_them() -> None:
    """Each line of pyproject.toml ends with files that are there, one of which imports it."""
    text = (ROOT / "pyproject.toml").read_text()
    block = text[text.index("dependencies = [") : text.index("[project.optional-dependencies]")]
    lines = re.findall(r'^ +"([\w-]+)[^"]*", +# (.+)$', block, re.M)
    assert len(lines) == block.count('",')
    for package, comment in lines:
        files = [PACKAGE / word for word in re.findall(r"[\w/]+(?:\.py|/)", comment)]
        assert all(file.exists() for file in files), package
        module = MODULE_OF.get(package, package)
        users = [one.file for one in IMPORTS if one.module.partition(".")[0] == module]
        named = [u for u in users if any(u == file or file in u.parents for file in files)]
        assert named or package in INDIRECT, f"{package} is used by {users}"


# ---------------------------------------------------------------- texts


def tracked() -> list[Path]:
    listing = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listing.returncode != 0:
        pytest.skip("not a git checkout")
    return [path for name in listing.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def test_no_address_of_a_package_index_is_written_down() -> None:
    """Where packages come from is the machine's own setting."""
    words = (
        "pypi" + ".org",
        "pythonhosted" + ".org",
        "download.pytorch" + ".org",
        "index" + "-url",
    )
    wrong = []
    for path in tracked():
        content = path.read_bytes()
        wrong += [f"{path.relative_to(ROOT)}: {w}" for w in words if w.encode() in content]
    assert wrong == []


def test_python_3_10_can_read_it() -> None:
    newer = {"tomllib", "StrEnum", "Self", "ExceptionGroup", "assert_never", "override", "batched"}
    for file in FILES:
        tree = ast.parse(file.read_text(encoding="utf-8"), feature_version=(3, 10))
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        names |= {one.module for one in IMPORTS if one.file == file}
        names |= {
            alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("modmix")
            for alias in node.names
        }
        assert not names & newer, file
        assert "datetime.UTC" not in file.read_text(encoding="utf-8")


# ---------------------------------------------------------------- tables


def classes(file: Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.ClassDef)}


@pytest.mark.parametrize(
    ("shelf", "paths"),
    [
        ("methods", [entry.path for entry in METHODS.values()]),
        ("encoders", [entry.path for entry in ENCODERS.values()]),
        ("tasks", [entry.path for entry in TASKS.values()]),
    ],
)
def test_tables_name_classes_that_are_there(shelf: str, paths: list[str]) -> None:
    for path in paths:
        module, _, name = path.partition(":")
        assert module.startswith(f"modmix.{shelf}.")
        assert name in classes(MODULES[module.removeprefix("modmix.")])


def subclasses(shelf: str, *bases: str) -> set[str]:
    """Public classes of a shelf that derive from one of these, directly or through each other."""
    trees = [ast.parse(f.read_text(encoding="utf-8")) for f in (PACKAGE / shelf).glob("*.py")]
    defined = {
        node.name: {ast.unparse(base).rpartition(".")[2] for base in node.bases}
        for tree in trees
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    }
    found, before = set(bases), set[str]()
    while found != before:
        before = set(found)
        found |= {name for name, parents in defined.items() if parents & found}
    return {name for name in found - set(bases) if not name.startswith("_")}


def test_every_method_and_task_is_in_its_table() -> None:
    bases = {"Multiplicative", "Joint", "Balanced", "OwnHeads"}  # of several methods each
    assert subclasses("methods", "Method") - bases == {
        entry.path.partition(":")[2] for entry in METHODS.values()
    }
    bases = {"MediaTask", "ClipTask", "TextImageTask"}
    assert subclasses("tasks", "Task") - bases == {e.path.partition(":")[2] for e in TASKS.values()}


def test_names_in_a_method_s_block_mean_one_thing() -> None:
    """A block holds the method's own names and the training settings side by side."""
    for method, entry in METHODS.items():
        names = [h.name for h in entry.hyperparameters]
        assert len(set(names)) == len(names), method
        assert not set(names) & set(TRAINING), method
        assert not [name for name in names if "." in name], method
    for encoder in ENCODERS.values():
        assert "name" not in {h.name for h in encoder.hyperparameters}
    for task in TASKS.values():
        assert "name" not in {option.name for option in task.options}
    assert set(TRAINING) >= WITHOUT_EFFECT


def test_defaults_pass_their_own_checks() -> None:
    of_methods = [h for entry in METHODS.values() for h in entry.hyperparameters]
    of_encoders = [h for entry in ENCODERS.values() for h in entry.hyperparameters]
    for hyperparameter in (*of_methods, *of_encoders, *TRAINING.values()):
        problem = hyperparameter.problem(hyperparameter.default)
        assert problem is None, f"{hyperparameter.name}: {problem}"
        assert not hyperparameter.doc.endswith("."), hyperparameter.name
    for task in TASKS.values():
        for option in task.options:
            assert option.required or option.problem(option.default) is None, option.name
        for name, value in task.training.items():
            assert TRAINING[name].problem(value) is None, name
