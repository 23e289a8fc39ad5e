"""What an import loads, which part may import which, and what a wheel holds."""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import CONSOLE_SCRIPTS, ROOT, SETUP

import enet_deploy
from enet_deploy.bundled import NAMES

HUB = "enet_deploy"
SPOKES = {"export", "calibration", "benchmarks"}  # folders of the checkout, installed as enet_deploy.export and so on
RUBBISH = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "demo", "runs", "node_modules")
NOT_INSTALLED = f"{HUB}.benchmarks.studies"
HEAVY = ["torch", "onnx", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "pycuda", "cuda", "safetensors", "PIL"]
HEAVY += ["ray", "pyarrow", "fsspec", "tritonclient"]

PACKAGES = SETUP["options"]["packages"].split()


def python(code: str, path: Path = ROOT) -> str:
    """What a fresh interpreter prints that looks for the package in `path` first."""
    environment = os.environ | {"PYTHONPATH": str(path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd="/", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_loads_no_backend() -> None:
    code = f"""
import sys
import enet_deploy
from enet_deploy.runners import ort_runner, torch_runner
ort_runner.OrtRunner("a.onnx"), torch_runner.TorchRunner("a.safetensors")  # making a runner is cheap
print(*[name for name in {HEAVY} if name in sys.modules])"""
    assert python(code) == ""


@pytest.mark.slow
def test_training_needs_torch_numpy_opencv_and_safetensors_alone(scenes: Path, tmp_path: Path) -> None:
    code = f"""
import sys
for name in ["onnx", "onnxscript", "onnxruntime", "openvino", "tqdm", "matplotlib", "rich", "psutil", "sklearn"]:
    sys.modules[name] = None  # importing it fails
from enet_deploy.commands import train
options = "--size 48x64 --crop 32x32 --batch 4 --epochs 1 --aux 0.4 --lovasz 1 --lovasz-from 0"
print(train.main([{str(scenes)!r}, "--out", {str(tmp_path)!r}, *options.split()]))"""
    assert python(code) == "0"


def test_exported_graph_runs_without_torch(exported: Path) -> None:
    pytest.importorskip("onnxruntime")
    code = f"""
import sys
for name in ["torch", "onnx", "safetensors", "tqdm"]:
    sys.modules[name] = None  # importing it fails
import numpy as np
import enet_deploy
with enet_deploy.open_runner({str(exported)!r}) as runner:
    print(runner.segment(np.zeros((60, 80, 3), np.uint8)).shape)"""
    assert python(code) == "(60, 80)"


def test_public_names() -> None:
    public = [n for n, v in vars(enet_deploy).items() if not n.startswith("_") and not inspect.ismodule(v)]
    assert enet_deploy.__all__ == sorted(public, key=lambda name: (not name.isupper(), name))  # constants first


def sources() -> Iterator[tuple[Path, str]]:
    """Every source file and the name that it is imported by."""
    for folder in (HUB, *sorted(SPOKES)):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield path, ".".join(parts if folder == HUB else (HUB, *parts)).removesuffix(".__init__")


def imports(path: Path, module: str) -> Iterator[str]:
    """Absolute names of all that a file imports, at its top or anywhere else."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package.rsplit(".", node.level - 1)[0] if node.level else ""
            base = ".".join(filter(None, (start, node.module)))
            yield from (f"{base}.{alias.name}" for alias in node.names)


def spoke_of(module: str) -> str | None:
    """The spoke that a module lies in, also by its folder's bare name; None for the hub and for libraries."""
    parts = module.removeprefix(f"{HUB}.").split(".")
    return parts[0] if parts[0] in SPOKES else None


MAY_IMPORT: dict[str | None, set[str | None]] = {
    None: {None},  # the hub
    "export": {None, "export"},
    "calibration": {None, "export", "calibration"},
    "benchmarks": {None, "export", "benchmarks"},
}


def test_imports_run_one_way() -> None:
    """The hub reaches no spoke; calibration and benchmarks reach export, and nobody reaches them."""
    wrong = [
        f"{path.relative_to(ROOT)} imports {target}"
        for path, module in sources()
        for target in imports(path, module)
        if spoke_of(target) not in MAY_IMPORT[spoke_of(module)]
    ]
    assert wrong == []


def test_the_hub_names_no_spoke_in_a_command_either() -> None:
    """`python -m enet_deploy.export.cli` in a subprocess would be an import that the test above does not see."""
    names = [f"{HUB}.{spoke}" for spoke in SPOKES]
    hub = [path for path, module in sources() if spoke_of(module) is None]
    strings = [
        (path.name, node.value)
        for path in hub
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    assert [(file, text) for file, text in strings if any(name in text for name in names)] == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Imports inside functions count too: they hide a circle, and do not undo it."""
    assert circular(dict(imported_modules())) == {}


def test_no_packages_import_each_other_in_a_circle() -> None:
    """The root does not count: it gives out names of its packages, and its version is read by them."""
    graph: dict[str, set[str]] = {}
    for module, targets in imported_modules():
        graph.setdefault(package_of(module), set()).update(map(package_of, targets))
    del graph[HUB]
    assert circular({package: targets - {package} for package, targets in graph.items()}) == {}


def package_of(module: str) -> str:
    """A package or module directly below the root."""
    return ".".join(module.split(".")[:2])


def imported_modules() -> Iterator[tuple[str, set[str]]]:
    """Each module, and the project's other modules that it imports."""
    modules = {module for _, module in sources()}
    for path, module in sources():
        targets = {target if target in modules else target.rpartition(".")[0] for target in imports(path, module)}
        yield module, (targets & modules) - {module}


def circular(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """The part of a graph that is left without what is in no circle and leads to none."""
    while leaves := {name for name, targets in graph.items() if not targets & graph.keys()}:
        graph = {name: targets for name, targets in graph.items() if name not in leaves}
    return graph


def test_that_check_sees_every_form_of_import(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    for line, target in {
        "import enet_deploy.export.cli": "enet_deploy.export.cli",
        "from enet_deploy import export": "enet_deploy.export",
        "from enet_deploy.export import to_onnx": "enet_deploy.export.to_onnx",
        "from .. import export": "enet_deploy.export",
        "from ..export.cli import main": "enet_deploy.export.cli.main",
        "def f():\n    import export": "export",
    }.items():
        file.write_text(line)
        assert list(imports(file, "enet_deploy.runners.a")) == [target]
        assert spoke_of(target) == "export"
    assert spoke_of("enet_deploy.data") is spoke_of("torch.export") is None


def test_setup_cfg_lists_every_package() -> None:
    packages = {module for path, module in sources() if path.name == "__init__.py"}
    assert sorted(PACKAGES) == sorted(packages - {NOT_INSTALLED})


def test_every_requirement_of_a_developer_is_pinned() -> None:
    def wanted(texts: str) -> Iterator[str]:
        for name, extras in re.findall(r"(?m)^([\w.-]+)(?:\[([\w,]+)\])?", texts):
            for extra in extras.split(",") if name == "enet-deploy" else ():
                yield from wanted(SETUP["options.extras_require"][extra].strip())
            if name != "enet-deploy":
                yield name

    pinned = {re.split("==", line)[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    texts = SETUP["options"]["install_requires"] + SETUP["options.extras_require"]["dev"]
    required = {re.sub("[-_.]+", "-", name).lower() for name in wanted(texts.strip())}
    assert "pillow-heif" in required
    assert required <= {re.sub("[-_.]+", "-", name).lower() for name in pinned}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked wheel of a copy of the checkout (building leaves files in the folder it builds from)."""
    setuptools = pytest.importorskip("setuptools", minversion="77")
    root = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, root / "checkout", symlinks=True, ignore=RUBBISH)
    command = [sys.executable, "-m", "pip", "wheel", str(root / "checkout"), "--wheel-dir", str(root), "--quiet"]
    command += ["--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"setuptools {setuptools.__version__}: {done.stderr}"
    (built,) = root.glob("*.whl")
    zipfile.ZipFile(built).extractall(root / "unpacked")
    return root / "unpacked"


@pytest.mark.slow
def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    info = f"enet_deploy-{enet_deploy.__version__}.dist-info"
    assert sorted(path.name for path in wheel.iterdir()) == [
        "enet_console.py",
        "enet_deploy",
        info,
    ]  # no tests, no bare export/
    shipped = {path.relative_to(wheel).as_posix() for path in (wheel / HUB).rglob("*") if path.is_file()}
    modules = {path.relative_to(ROOT).as_posix() for path, name in sources() if not name.startswith(NOT_INSTALLED)}
    modules = {name if name.startswith(f"{HUB}/") else f"{HUB}/{name}" for name in modules}
    assert {name for name in shipped if name.endswith(".py")} == modules
    data = {"py.typed", "data/sample.jpg", "weights/enet-camvid.json"}
    data |= {f"weights/{name}{end}" for name in NAMES for end in (".safetensors", "-fp32.onnx")}
    data |= {f"export/page/{name}" for name in ("page.html.j2", "page.css", "page.js", "worker.js")}
    assert {f"{HUB}/{name}" for name in data} <= shipped
    assert (wheel / info / "licenses" / "LICENSE").is_file()


@pytest.mark.slow
def test_wheel_runs(wheel: Path) -> None:
    code = "import enet_deploy as e; print(e.__file__, e.BUNDLED_WEIGHTS.is_file(), e.__version__)"
    assert python(code, wheel) == f"{wheel}/enet_deploy/__init__.py True {enet_deploy.__version__}"


@pytest.mark.slow
def test_wheel_finds_the_record_of_its_weights_and_renders_it_without_torch(wheel: Path, tmp_path: Path) -> None:
    code = f"""
import sys
for name in {HEAVY}:
    sys.modules[name] = None  # importing it fails
from enet_deploy.calibration import cli
print(cli.__file__)
sys.exit(cli.main(["--trt-cache", {str(tmp_path / "enet.cache")!r}]))"""
    assert python(code, wheel).startswith(f"{wheel}/enet_deploy/calibration/cli.py")
    assert (tmp_path / "enet.cache").read_text().startswith("TRT-10")


@pytest.mark.slow
def test_console_scripts(wheel: Path) -> None:
    (info,) = wheel.glob("*.dist-info")
    scripts = importlib.metadata.PathDistribution(info).entry_points.select(group="console_scripts")
    assert {script.name: script.value for script in scripts} == CONSOLE_SCRIPTS
    assert {
        "enet-train",
        "enet-eval",
        "enet-export",
        "enet-calibrate",
        "enet-bench",
        "enet-data",
    } <= CONSOLE_SCRIPTS.keys()
    for script in scripts:
        code = f"import sys; from {script.module} import {script.attr} as main; sys.argv[1:] = ['--help']; main()"
        assert f"usage: {script.name}" in python(code, wheel)


@pytest.mark.slow
@pytest.mark.parametrize("editable", [True, False])
def test_script_beside_a_clone_named_like_the_package(wheel: Path, tmp_path: Path, editable: bool) -> None:
    """Python puts the script's folder first; the clone's folder in it is a namespace package of the same name."""
    clone, site = tmp_path / HUB, tmp_path / "site"
    shutil.copytree(ROOT, clone, symlinks=True, ignore=RUBBISH)
    if editable:
        site.mkdir()
        code = "import sys; from setuptools.build_meta import build_editable; build_editable(sys.argv[1])"
        done = subprocess.run([sys.executable, "-c", code, str(site)], cwd=clone, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        zipfile.ZipFile(next(site.glob("*.whl"))).extractall(site)
    else:
        shutil.copytree(wheel, site)
    code = f"import site, sys; sys.path.insert(0, {str(tmp_path)!r}); site.addsitedir({str(site)!r})\n"
    code += f"sys.path.append({sysconfig.get_path('purelib')!r})\n"  # with -S no .pth in it is read
    code += "from enet_deploy import open_runner; from enet_deploy.export import cli; print(cli.__file__)"
    done = subprocess.run([sys.executable, "-IS", "-c", code], cwd="/", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{clone if editable else site}/enet_deploy/export/cli.py"
