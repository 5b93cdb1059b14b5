"""The compiled core: levels, threads, forks, signals, and what its boundary refuses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import ml_dtypes
import numpy as np
import pytest

import weightshare as ws
from weightshare import _core
from weightshare._core import mixing, threads
from weightshare.errors import ArgumentError, ElementError, ShapeError

RUNNABLE = _core.cpu_probe.levels()


def run(code, **environment):
    """Run Python in a process of its own; a signal that kills it is always a failure."""
    result = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode >= 0, result.stderr
    return result


def test_the_best_level_that_runs_here_is_chosen():
    code = "from weightshare import _core; print(_core.level)"
    clean = {k: v for k, v in os.environ.items() if k != "WEIGHTSHARE_ISA"}
    result = subprocess.run(
        [sys.executable, "-c", code], env=clean, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == RUNNABLE[0]


@pytest.mark.parametrize("level", RUNNABLE)
def test_every_level_gives_the_same_bits(level):
    """Promise (a) of the design: mixing and Gram sums are the same bytes at every level."""
    code = """
import hashlib, numpy as np, ml_dtypes, weightshare as ws
rng = np.random.default_rng(5)
digest = hashlib.sha256()
for dtype in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64):
    w = (rng.standard_normal((5, 3001)) * 10.0 ** rng.integers(-6, 6, (5, 3001))).astype(dtype)
    a = rng.standard_normal((3, 5))
    with np.errstate(all="ignore"):
        digest.update(ws.mix(w, a).tobytes())
        digest.update(ws.transfer(w[0], w[1], 0.3, base=w[2]).tobytes())
    w[np.isinf(w.astype(np.float64))] = 1
    for metric in ("cosine", "row_cosine", "sign"):
        digest.update(ws.similarity(w, metric, center=True).tobytes())
        digest.update(ws.similarity(w, metric).tobytes())
    digest.update(ws.distance(w).tobytes())
    step = ws.SGD(0.1, momentum=0.9, nesterov=True)
    step.step(w, np.ones_like(w))
    step.step(w, np.ones_like(w))
    digest.update(w.tobytes())
print(digest.hexdigest())
"""
    reference = run(code, WEIGHTSHARE_ISA=RUNNABLE[-1], OMP_NUM_THREADS="1")
    other = run(code, WEIGHTSHARE_ISA=level, OMP_NUM_THREADS="2")
    assert reference.returncode == other.returncode == 0, reference.stderr + other.stderr
    assert len(other.stdout.strip()) == 64
    assert other.stdout == reference.stdout


def test_an_unknown_level_is_an_error_that_lists_the_known():
    result = run("import weightshare._core", WEIGHTSHARE_ISA="avx9000")
    assert result.returncode != 0
    assert "WEIGHTSHARE_ISA" in result.stderr
    assert RUNNABLE[0] in result.stderr


def test_a_forked_child_of_a_parent_that_used_threads_does_not_hang():
    code = """
import os, signal, warnings, numpy as np, weightshare as ws
warnings.simplefilter("ignore")
w = np.ones((2, 2_000_000), np.float32)
ws.mix(w, [0.5, 0.5], threads=2)
pid = os.fork()
if pid == 0:
    signal.alarm(20)
    ok = bool((ws.mix(w, [0.5, 0.5], threads=2) == 1).all())
    os._exit(0 if ok else 1)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    assert run(code).stdout.strip() == "0"


def test_a_child_of_a_parent_in_which_torch_used_threads_does_not_hang():
    pytest.importorskip("torch")
    code = """
import os, signal, warnings, torch, numpy as np, weightshare as ws
warnings.simplefilter("ignore")
torch.set_num_threads(2)
(torch.ones(1 << 22) + 1).sum()
w = np.ones((2, 2_000_000), np.float32)
pid = os.fork()
if pid == 0:
    signal.alarm(20)
    os._exit(0 if bool((ws.mix(w, [0.5, 0.5], threads=2) == 1).all()) else 1)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    assert run(code).stdout.strip() == "0"


def test_ctrl_c_ends_a_long_call_within_a_second():
    code = """
import numpy as np, sys, time, weightshare as ws
w = np.ones((2, 4_000_000), np.float32)
A = np.random.default_rng(0).standard_normal((2, 2))
print("ready", flush=True)
models = [w[0]] * 60
try:
    for _ in range(10000):
        ws.similarity(models, threads=2)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "ready"
        time.sleep(0.5)
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.stdout.read().strip() == "interrupted"
        assert time.monotonic() - start < 5


def test_the_gil_is_free_during_a_call():
    """A Python thread gets on while another thread is inside the core."""
    models = [np.ones(2_000_000, np.float32)] * 40
    ticks, done = [], threading.Event()

    def count():
        while not done.is_set():
            ticks.append(time.monotonic())
            time.sleep(0.001)

    counter = threading.Thread(target=count)
    counter.start()
    start = time.monotonic()
    ws.similarity(models, threads=1)
    stop = time.monotonic()
    done.set()
    counter.join()
    assert sum(start < tick < stop for tick in ticks) >= 3


def test_two_python_threads_may_use_the_core_at_once():
    w = np.random.default_rng(0).standard_normal((4, 300_000)).astype(np.float32)
    a = np.random.default_rng(1).standard_normal((4, 4))
    expected = ws.mix(w, a)
    results = [None] * 4

    def work(k):
        results[k] = ws.mix(w, a, threads=2)

    workers = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for result in results:
        np.testing.assert_array_equal(result, expected)


def test_threads_come_from_the_argument_the_environment_or_the_machine(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3,2")
    assert threads.resolve_threads(None) == 3
    assert threads.resolve_threads(7) == 7
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert threads.resolve_threads(None) == threads.available_cores()
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert 1 <= threads.resolve_threads(None) <= (os.cpu_count() or 1)


def f32(*shape):
    return np.ones(shape, np.float32)


@pytest.mark.parametrize(
    ("out", "w", "a", "error", "words"),
    [
        (
            [f32(3)],
            [np.ones(3, np.int32)],
            np.ones((1, 1)),
            ElementError,
            r"w\[0\]: expected a native .*int32",
        ),
        (
            [f32(3)],
            [np.ones(3, ">f4")],
            np.ones((1, 1)),
            ElementError,
            r"w\[0\]: expected a native",
        ),
        (
            [f32(3)],
            [np.ones(3, np.float64)],
            np.ones((1, 1), np.float32),
            ElementError,
            "a: expected float64",
        ),
        (
            [f32(4)[::2]],
            [f32(2)],
            np.ones((1, 1)),
            ShapeError,
            r"out\[0\]: array is not C-contiguous",
        ),
        ([f32(3)], [f32(2)], np.ones((1, 1)), ShapeError, "same number of elements"),
        ([f32(3)], [f32(3)], np.ones((1, 2)), ShapeError, "a: expected 1 elements, got 2"),
        ([f32(3)], [], np.ones((1, 0)), ShapeError, "at least one input"),
        (
            [np.broadcast_to(np.float32(1), (3,))],
            [f32(3)],
            np.ones((1, 1)),
            (ShapeError, ArgumentError),
            "out",
        ),
    ],
)
def test_the_boundary_of_the_core_checks_by_itself(out, w, a, error, words):
    with pytest.raises(error, match=words):
        mixing.mix(out, w, a)


def test_bfloat16_of_another_package_version_is_known_by_its_name():
    out = np.zeros(2, ml_dtypes.bfloat16)
    mixing.mix([out], [np.ones(2, ml_dtypes.bfloat16)], np.array([[3.0]]))
    np.testing.assert_array_equal(out.astype(float), 3.0)


def test_not_a_number_is_one_after_import_and_denormals_survive():
    """Guards against fast-math flags, which would change both for the whole process."""
    code = "import weightshare._core, numpy as np; x = np.float32(1e-40); print(np.isnan(np.nan), x * 1 > 0)"
    assert run(code).stdout.split() == ["True", "True"]
    tiny = np.full((1, 100), 1e-40, np.float32)
    np.testing.assert_array_equal(ws.mix(tiny, [1.0]), tiny[0])


def test_show_versions_names_what_a_bug_report_needs(capsys):
    ws.show_versions()
    printed = capsys.readouterr().out
    for word in ("weightshare", "instruction set", "threads", "compiler", "numpy", "OpenMP"):
        assert word in printed
