"""The wheel holds all that a run needs: in an empty folder, without the checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# An editable install puts the checkout on the path; only the folder of the other libraries may stay of it.
RUN = """
import sys
sys.path[:] = [{target!r}, *[p for p in sys.path if not p.startswith({root!r}) or "site-packages" in p]]
import voxtile
assert voxtile.__file__.startswith({target!r}), voxtile.__file__
from voxtile.commands.compose import conf_dir
assert str(conf_dir()).startswith({target!r}), conf_dir()
from voxtile.commands.main import main
raise SystemExit(main())
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "--wheel-dir", folder, ROOT]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    (made,) = folder.glob("*.whl")
    return made


@pytest.mark.slow
def test_the_wheel_holds_every_configuration_and_module(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    for path in (ROOT / "conf").rglob("*.yaml"):
        assert f"voxtile/{path.relative_to(ROOT)}" in held
    for path in (ROOT / "src" / "voxtile").rglob("*"):
        if path.suffix in (".py", ".yaml") or path.name == "py.typed":
            assert str(path.relative_to(ROOT / "src")) in held
    assert not [name for name in held if name.startswith("tests")]


@pytest.mark.slow
def test_the_default_run_trains_from_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    target, empty = tmp_path / "installed", tmp_path / "empty"
    empty.mkdir()
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", target, wheel]
    subprocess.run(install, check=True, capture_output=True, timeout=300)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VOXTILE")} | {"HOME": str(tmp_path)}
    script = RUN.format(target=str(target), root=str(ROOT))
    for words in [["train", "debug=fast"]] * 2:
        done = subprocess.run(
            [sys.executable, "-c", script, *words],
            cwd=empty,
            env=environment,
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Dice" in done.stdout
    assert "nothing was trained" in done.stdout
    (home,) = (path.parent for path in empty.glob("runs/*/recipe.json"))
    command = [sys.executable, "-c", script, "evaluate", f"run={home.relative_to(empty)}"]
    done = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (home / "evaluations" / "val-best" / "summary.json").exists()
