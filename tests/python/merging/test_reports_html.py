"""What notebooks show of plans, reports, comparisons and checkpoints: escaped, short, and never a script."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightshare as ws
from weightshare.merging.integrity import verify_checkpoint

# Every character that HTML escapes, in names as long as they may be, in more tensors than are shown.
HOSTILE = [f"<script>alert('{i}')</script>&\"" + "\"<'" * 300 for i in range(150)]
TAGS = ("<script", "<img", "<b>x")


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Everything that shows itself in a notebook, made of models with hostile names and folders."""
    folder = tmp_path_factory.mktemp("m")
    paths = [folder / f"<img src=x onerror=y>{'<b>x' * 40}{j}" for j in range(2)]
    for j, path in enumerate(paths):
        tensors = {name: np.full((1,) * 9, j + 1.0, np.float32) for name in HOSTILE}
        ws.save_checkpoint(path, tensors, metadata={"<b>x": "<script>"})
    models = [{"model": str(path), "parameters": {"weight": 1}} for path in paths]
    plan = ws.plan_merge({"merge_method": "linear", "models": models})
    out = Path(folder / "<script>out")
    report = ws.merge_checkpoints(plan, out)
    verified = verify_checkpoint(out)
    (out / "model.safetensors").write_bytes(b"x" * 100)
    return {
        "Checkpoint": ws.open_checkpoint(paths[0]),
        "MergePlan": plan,
        "MergeReport": report,
        "Comparison": ws.compare_checkpoints(*paths),
        "sound VerifyReport": verified,
        "damaged VerifyReport": verify_checkpoint(out),
    }


NAMES = ["Checkpoint", "MergePlan", "MergeReport", "Comparison"]
NAMES += ["sound VerifyReport", "damaged VerifyReport"]


@pytest.mark.parametrize("name", NAMES)
def test_html_is_escaped_and_below_fifty_kilobytes(shown: dict[str, Any], name: str) -> None:
    html = shown[name]._repr_html_()
    assert not [tag for tag in TAGS if tag in html]
    assert "&lt;" in html
    assert len(html.encode()) < 50_000
    assert html.count("<table>") == html.count("</table>") == 1


@pytest.mark.parametrize("name", NAMES)
def test_text_is_at_most_twenty_lines(shown: dict[str, Any], name: str) -> None:
    assert 1 <= len(repr(shown[name]).splitlines()) <= 20


def test_html_without_anything_hostile_shows_names_and_shapes(tmp_path: Path) -> None:
    ws.save_checkpoint(tmp_path / "a", {"layers.0.weight": np.ones((3, 5), np.float32)})
    with ws.open_checkpoint(tmp_path / "a") as checkpoint:
        html = checkpoint._repr_html_()
    assert "layers.0.weight" in html
    assert "[3, 5]" in html
