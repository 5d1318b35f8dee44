"The project holds together: library equals notebooks, notebooks are clean, imports go down, the wheel is whole, imports are light."
import ast, json, os, re, shutil, subprocess, sys, zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
NOTEBOOKS = sorted(p for p in (ROOT/"nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
LIBRARY = [p for p in NOTEBOOKS if re.match(r"\d\d", p.name)]
# what may be imported anywhere but only inside functions of the modules that are about it
HEAVY = {"torch", "transformers", "trl", "peft", "datasets", "accelerate", "altair", "vl_convert", "sklearn", "scipy", "lightgbm", "xlogit", "pandera", "ray", "pysr", "ot", "matplotlib"}


def cells(path, kind="code"):
    return [c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == kind]


def source(cell):
    return "".join(cell["source"])


def module_of(path):
    found = re.search(r"#\|\s*default_exp\s+(\S+)", "\n".join(source(c) for c in cells(path)))
    return found and found[1]


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    "A copy of the tree, its library deleted, exported and cleaned afresh."
    copy = tmp_path_factory.mktemp("export")
    for name in ("nbs", "malles", "pyproject.toml", "settings.ini"):
        src = ROOT/name
        if src.is_dir(): shutil.copytree(src, copy/name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "weights"))
        else: shutil.copy(src, copy/name)
    for p in (copy/"malles").glob("*.py"):
        if p.name != "__init__.py": p.unlink()
    env = dict(os.environ, PATH=f"{BIN}{os.pathsep}{os.environ['PATH']}")
    for command in ("nbdev-export", "nbdev-clean"):
        done = subprocess.run([BIN/command], cwd=copy, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return copy


def test_library_is_what_the_notebooks_export(exported):
    here, there = ({p.name: p.read_text() for p in sorted((d/"malles").glob("*.py"))} for d in (ROOT, exported))
    assert sorted(here) == sorted(there), "a module without a notebook, or a notebook without its module: run nbdev-export"
    stale = [n for n in here if here[n] != there[n]]
    assert not stale, f"{stale} differ from their notebooks: run nbdev-export"


def test_notebooks_are_clean(exported):
    dirty = [p.name for p in NOTEBOOKS if json.loads(p.read_text()) != json.loads((exported/p.relative_to(ROOT)).read_text())]
    assert not dirty, f"{dirty}: run nbdev-clean"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_says_what_it_is_and_leaks_nothing(path):
    first = source(cells(path, "markdown")[0]).splitlines()
    assert first[0].startswith("# "), f"{path.name}: the first cell starts with a title"
    assert any(line.startswith("> ") for line in first), f"{path.name}: the title is followed by a '> ' line"
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert "widgets" not in notebook["metadata"], f"{path.name}: saved widget state"
    for cell in cells(path):
        for output in cell["outputs"]:
            assert output.get("name") != "stderr", f"{path.name}: stderr in an output"
            assert output["output_type"] != "error", f"{path.name}: an error in an output"
            assert not re.search(r"/(root|home|tmp|work)/\w", json.dumps(output)), f"{path.name}: a path of some machine in an output"


def test_imports_go_down_only():
    order = {module_of(p): p.name for p in LIBRARY}
    for path in LIBRARY:
        for cell in cells(path):
            if "#| export" not in source(cell): continue
            tree = ast.parse(re.sub(r"^[%!].*$", "", source(cell), flags=re.M))
            for node in tree.body:  # top level only: late imports inside functions are the caller's business
                if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("malles."):
                    other = node.module.split(".")[1]
                    assert other in order, f"{path.name} imports malles.{other}, which no notebook exports"
                    assert order[other] < path.name, f"{path.name} imports {other}, which comes later ({order[other]})"


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    "The wheel, built from what git would ship."
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("malles", "data_samples", "setup.py", "settings.ini", "pyproject.toml", "README.md", "LICENSE"):
        src = ROOT/name
        if src.is_dir(): shutil.copytree(src, copy/name, ignore=shutil.ignore_patterns("__pycache__"))
        elif src.exists(): shutil.copy(src, copy/name)
    done = subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", out, copy], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(next(out.glob("*.whl")))


def test_wheel_is_whole(wheel):
    held = set(wheel.namelist())
    for p in (ROOT/"malles").rglob("*"):
        if p.is_file() and "__pycache__" not in p.parts: assert str(p.relative_to(ROOT)) in held, f"the wheel lacks {p.relative_to(ROOT)}"
    samples = [p for p in (ROOT/"data_samples").rglob("*") if p.is_file()]
    assert samples and all(any(n.endswith(str(p.relative_to(ROOT))) for n in held) for p in samples), "the wheel lacks data_samples"
    assert any(n.endswith("model.safetensors") for n in held), "the wheel lacks the weights"
    metadata = wheel.read(next(n for n in held if n.endswith("METADATA"))).decode()
    assert "Requires-Dist: torch" in metadata and "Requires-Python: >=3.11" in metadata


def test_only_safetensors_are_shipped():
    assert not [p for p in (ROOT/"malles").rglob("*") if p.suffix in {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}]


MODULES = ["", *sorted(m for m in map(module_of, LIBRARY) if m and m != "__init__")]
ALONE = f"""
import importlib, json, os, sys
import numpy, pandas                                        # what all of them need; each module then in a process of its own
for name in sys.argv[1:]:
    if not (child := os.fork()):
        importlib.import_module(name)
        print(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}} & {HEAVY!r})), flush=True)
        os._exit(0)
    if os.waitpid(child, 0)[1]: sys.exit(name)
"""


def test_imports_are_light():
    "Importing a module loads no heavy library, except a room that is about one, and then none of the others."
    done = subprocess.run([sys.executable, "-c", ALONE, *(f"malles.{m}" if m else "malles" for m in MODULES)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    for module, line in zip(MODULES, done.stdout.splitlines(), strict=True):
        loaded, number = set(json.loads(line)), next((p.name for p in LIBRARY if module_of(p) == module), "00")
        if number < "10" or module in ("", "cli", "bench", "evaluation", "report", "receipts", "contenders"): assert not loaded, f"importing malles.{module} loads {loaded}"
        assert not loaded & ({"ray", "pysr", "ot", "altair"} | ({"trl"} if module != "trainer" else set())), f"importing malles.{module} loads {loaded}"


def test_no_evaluation_of_outside_data():
    for path in LIBRARY:
        for cell in cells(path):
            if "#| export" not in source(cell): continue
            for node in ast.walk(ast.parse(source(cell))):
                name = getattr(node.func, "id", getattr(node.func, "attr", "")) if isinstance(node, ast.Call) else ""
                owner = getattr(getattr(node.func, "value", None), "id", "") if isinstance(node, ast.Call) else ""
                assert not (name in {"eval", "exec"} and owner in {"", "builtins"}), f"{path.name}: {name}()"
                assert not (owner in {"pickle", "dill", "joblib"} and name in {"load", "loads"}), f"{path.name}: unpickling"
                for k in getattr(node, "keywords", []):
                    assert not (k.arg in {"trust_remote_code", "allow_pickle"} and getattr(k.value, "value", None) is True), f"{path.name}: {k.arg}=True"


def test_no_path_of_a_machine():
    files = subprocess.run(["git", "ls-files", "*.py", "*.md", "*.ini", "*.toml", "Makefile", "*.json"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    for f in files:
        if not (ROOT/f).exists(): continue  # deleted, not yet committed
        text = (ROOT/f).read_text(encoding="utf-8")
        if Path(f).name != "test_gates.py": assert not re.search(r"/(root|home|work)/[A-Za-z]", text), f"{f} holds a path of some machine"
