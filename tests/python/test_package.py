"""What a wheel must hold and what an import may cost: each test names the fault it catches."""

from __future__ import annotations

import importlib.metadata
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import weightshare as ws

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("scipy", "sklearn", "matplotlib", "dask", "yaml", "click", "torch", "tqdm", "pandas")


def modules_after(code):
    before = "import sys, numpy; before = set(sys.modules)"
    script = f"{before}\n{code}\nprint(*sorted(set(sys.modules) - before))"
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return result.stdout.split()


def test_import_loads_nothing_heavy_and_little_of_ours():
    """A slow import: import weightshare may bring in no other package, and no room before its use."""
    loaded = modules_after("import weightshare")
    assert [m for m in loaded if m.startswith("weightshare")] == ["weightshare"]
    assert len(loaded) <= 10, loaded


def test_first_use_of_sharing_still_loads_nothing_heavy():
    loaded = modules_after(
        "import weightshare as ws; ws.mix([[1.0], [2.0]], [0.5, 0.5]); ws.GD, ws.open_checkpoint"
    )
    assert not [m for m in loaded if m.partition(".")[0] in HEAVY]


def test_every_public_name_can_be_had():
    """A lazy name that points at a room that lacks it."""
    for name in ws.__all__:
        assert getattr(ws, name) is not None
    assert set(ws.__all__) <= set(dir(ws))
    with pytest.raises(AttributeError, match="no_such_name"):
        getattr(ws, "no_such_name")  # noqa: B009


def test_the_version_is_the_one_that_was_installed():
    assert importlib.metadata.version("weightshare") == ws.__version__


def test_nothing_of_the_core_is_in_a_pickle():
    fit = ws.merge_and_update([[1.0], [2.0]], lambda w: 0 * w, [[0.5, 0.5]] * 2, step=0.1)
    for value in (ws.SGD(0.1, momentum=0.5), ws.SGDR(0.1, 4), ws.mixing.diagnose([[1.0]]), fit):
        data = pickle.dumps(value)
        assert b"weightshare._core" not in data
        assert type(pickle.loads(data)) is type(value)


@pytest.mark.slow
@pytest.mark.skipif(
    "WEIGHTSHARE_WHEEL" not in os.environ, reason="WEIGHTSHARE_WHEEL names no wheel to look into"
)
def test_the_wheel_holds_what_it_should_and_no_more():
    """Test binaries, sources or headers in a wheel, a missing stub, data file or level; over 3 MB."""
    wheel = Path(os.environ["WEIGHTSHARE_WHEEL"])
    assert wheel.stat().st_size < 3_000_000
    names = set(zipfile.ZipFile(wheel).namelist())
    inside = {n for n in names if ".dist-info/" not in n}
    assert all(n.startswith("weightshare/") for n in inside), inside
    expected = {
        f"weightshare/{p.relative_to(ROOT / 'python/weightshare').as_posix()}"
        for p in (ROOT / "python/weightshare").rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    }
    compiled = {n for n in inside if n.endswith(".so")}
    assert inside - compiled == expected
    stems = sorted(n.partition(".")[0] for n in compiled)
    assert stems == [
        "weightshare/_core/cpu_probe",
        "weightshare/_core/v2/native",
        "weightshare/_core/v3/native",
    ]
