"""Writing and reading a 2 GB checkpoint, beside safetensors.numpy and what the system itself does."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from material import DTYPES, cached_fraction, installed
from report import Case, Context
from timing import Contestant, perform, race
from worker import Ready

_PATTERN = 1 << 20


def shapes(small: bool) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Tensors of a language model: three layers, embedding in bfloat16, head and norms in float32."""
    shrink = 4 if small else 1
    width, inner, words = 4096 // shrink, 11008 // shrink, 32000 // shrink
    found = {"model.embed_tokens.weight": ("bfloat16", (words, width))}
    for layer in range(3):
        stem = f"model.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            found[f"{stem}.self_attn.{name}.weight"] = ("bfloat16", (width, width))
        for name in ("gate_proj", "up_proj"):
            found[f"{stem}.mlp.{name}.weight"] = ("bfloat16", (inner, width))
        found[f"{stem}.mlp.down_proj.weight"] = ("bfloat16", (width, inner))
        for name in ("input_layernorm", "post_attention_layernorm"):
            found[f"{stem}.{name}.weight"] = ("float32", (width,))
    found["lm_head.weight"] = ("float32", (words, width))
    return found


def tensors(small: bool) -> dict[str, Any]:
    """The tensors, of bytes that repeat in memory but not from one tensor to the next."""
    made = {}
    for k, (name, (dtype, shape)) in enumerate(shapes(small).items()):
        array = np.empty(shape, DTYPES[dtype])
        flat = array.reshape(-1).view(np.uint8)
        pattern = np.random.default_rng(k).integers(0, 256, _PATTERN, np.uint8)
        whole = len(flat) // _PATTERN * _PATTERN
        flat[:whole].reshape(-1, _PATTERN)[...] = pattern
        flat[whole:] = pattern[: len(flat) - whole]
        made[name] = array
    return made


def difference(found: Any, small: bool) -> float:
    """0.0 if a mapping of arrays has every byte of `tensors`, else 1.0."""
    expected = tensors(small)
    same = set(found) == set(expected) and all(
        found[name].dtype == array.dtype
        and np.array_equal(found[name].view(np.uint8), array.view(np.uint8))
        for name, array in expected.items()
    )
    return 0.0 if same else 1.0


def source(path: str, small: bool) -> Ready:
    """Write the checkpoint that is read and copied; no contestant."""
    import weightshare as ws

    ws.save_checkpoint(path, tensors(small))
    return Ready(lambda: None, facts=lambda: {"bytes": os.path.getsize(path)})


def cache_state(path: str) -> Ready:
    """Say how much of a file is in the page cache; no contestant."""
    return Ready(lambda: None, facts=lambda: {"cached": cached_fraction(path)})


def read_ours(path: str, small: bool) -> Ready:
    """Every tensor by `open_checkpoint`."""
    import weightshare as ws

    def read() -> dict[str, Any]:
        with ws.open_checkpoint(path) as checkpoint:
            return {name: checkpoint[name] for name in checkpoint}

    return _reader(read, small)


def read_peer(path: str, small: bool) -> Ready:
    """Every tensor by `safetensors.numpy.load_file`."""
    from safetensors.numpy import load_file

    return _reader(lambda: load_file(path), small)


def _reader(read: Any, small: bool) -> Ready:
    held: dict[str, Any] = {}

    def run() -> None:
        held["tensors"] = read()
        # a page of a mapped file is only read when it is touched
        held["sum"] = sum(int(_bytes(a)[::4096].sum()) for a in held["tensors"].values())

    def facts() -> dict[str, Any]:
        return {"error": difference(held["tensors"], small)}

    return Ready(run, held.clear, facts)


def _bytes(array: Any) -> Any:
    return array.reshape(-1).view(np.uint8)


def read_system(path: str, kind: str) -> Ready:
    """The same bytes by the system's own reads."""
    command = {
        "dd": ["dd", f"if={path}", "of=/dev/null", "bs=1M", "status=none"],
        "cp": ["cp", path, "/dev/null"],
    }[kind]
    return Ready(lambda: subprocess.run(command, check=True), facts=lambda: {"no_limit": True})


def write_ours(path: str, small: bool) -> Ready:
    """`save_checkpoint`, which brings the file and its folder to the disk before it returns."""
    from safetensors.numpy import load_file

    import weightshare as ws

    data = tensors(small)
    return _writer(lambda: ws.save_checkpoint(path, data), path, lambda: load_file(path), small)


def write_peer(path: str, small: bool, sync: bool) -> Ready:
    """`safetensors.numpy.save_file`, with an fsync or without."""
    from safetensors.numpy import save_file

    import weightshare as ws

    data = tensors(small)

    def write() -> None:
        save_file(data, path)
        if sync:
            _fsync(path)

    return _writer(write, path, lambda: ws.open_checkpoint(path), small)


def write_copy(path: str, origin: str, sync: bool) -> Ready:
    """`cp`, with an fsync or without."""

    def write() -> None:
        subprocess.run(["cp", origin, path], check=True)
        if sync:
            _fsync(path)

    return Ready(write, lambda: _clear(path), lambda: _finished(path))


def _writer(write: Any, path: str, reread: Any, small: bool) -> Ready:
    def facts() -> dict[str, Any]:
        return {"error": difference(reread(), small), **_finished(path)}

    return Ready(write, lambda: _clear(path), facts)


def _finished(path: str) -> dict[str, Any]:
    _clear(path)
    return {"no_limit": True}


def _clear(path: str) -> None:
    """Every run writes a new file on a quiet disk: nothing is left to write back."""
    Path(path).unlink(missing_ok=True)
    os.sync()


def _fsync(path: str) -> None:
    number = os.open(path, os.O_RDONLY)
    os.fsync(number)
    os.close(number)


def _read_case(context: Context, path: str, nbytes: int) -> Case:
    told: dict[str, Any] = {"path": path, "small": context.small}
    contestants = [Contestant("ws.open_checkpoint", "bench_checkpoint:read_ours", told)]
    if installed("safetensors"):
        peer = Contestant("safetensors load_file", "bench_checkpoint:read_peer", told)
        contestants.append(peer)
    contestants += [
        Contestant(name, "bench_checkpoint:read_system", {"path": path, "kind": name[:2]})
        for name in ("dd of=/dev/null bs=1M", "cp to /dev/null")
    ]
    before = perform("bench_checkpoint:cache_state", {"path": path})["cached"]
    found = race(contestants, threads=context.threads, repeats=context.repeats())
    after = perform("bench_checkpoint:cache_state", {"path": path})["cached"]
    case = Case("read", f"read a checkpoint of {nbytes / 1e9:.2f} GB into new arrays", found)
    # each byte is read from the page cache and written to an array
    case.nbytes, case.limit, case.most_error = 2 * nbytes, context.bandwidth, 0.0
    case.notes = [
        f"page cache warm: {before:.0%} of the file resident before, {after:.0%} after",
        "bytes: each read from the cache and written once; error: 0 if every byte is the same",
    ]
    return case


def _write_case(context: Context, path: str, nbytes: int) -> Case:
    def told(name: str) -> dict[str, Any]:
        return {"path": os.path.join(context.folder, name), "small": context.small}

    room = "bench_checkpoint"
    contestants = [Contestant("ws.save_checkpoint", f"{room}:write_ours", told("ours.safetensors"))]
    for sync in (True, False):
        suffix = " + fsync" if sync else ", no fsync"
        if installed("safetensors"):
            arguments = {**told(f"peer{sync:d}.safetensors"), "sync": sync}
            contestants.append(
                Contestant(f"safetensors save_file{suffix}", f"{room}:write_peer", arguments)
            )
        target = told(f"copy{sync:d}.safetensors")["path"]
        arguments = {"path": target, "origin": path, "sync": sync}
        contestants.append(Contestant(f"cp{suffix}", f"{room}:write_copy", arguments))
    found = race(contestants, threads=context.threads, repeats=min(3, context.repeats()))
    title = f"write a checkpoint of {nbytes / 1e9:.2f} GB to a new file; ours/it by least runs"
    case = Case("write", title, found, by_least=True, most_error=0.0)
    case.nbytes = nbytes
    case.notes = [
        "ours reserves the space, fsyncs file and folder, and renames; there is no form without",
        "read back by the other library, every byte compared; the kernel's writeback threads",
        "count among the other processes",
    ]
    return case


def run(context: Context) -> list[Case]:
    """Reading first, while the file that was just written is in the page cache."""
    path = os.path.join(context.folder, "source.safetensors")
    nbytes = perform("bench_checkpoint:source", {"path": path, "small": context.small})["bytes"]
    os.sync()
    cases = [_read_case(context, path, nbytes), _write_case(context, path, nbytes)]
    os.unlink(path)
    return cases
