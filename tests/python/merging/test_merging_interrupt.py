"""Ctrl-C while a merge from file to file is under way."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import weightshare as ws


def test_an_interrupt_waits_for_the_tiles_under_way(tmp_path: Path) -> None:
    """No worker writes once Ctrl-C has come out of the merge, whatever `Thread.join` thinks."""
    ended = []

    def interrupted(models: list[np.ndarray], base: None) -> np.ndarray:
        """Return the first model, after a while."""
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        time.sleep(0.3)
        ended.append(True)
        return models[0]

    ws.save_checkpoint(tmp_path / "a", {"w": np.ones(3, np.float32)})
    recipe = {"merge_method": "interrupted", "models": [{"model": str(tmp_path / "a")}]}
    ws.register_method("interrupted", interrupted)
    try:
        with pytest.raises(KeyboardInterrupt):
            ws.merge_checkpoints(recipe, tmp_path / "out")
        assert ended == [True]
    finally:
        ws.forget_method("interrupted")
