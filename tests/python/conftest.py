"""What every test run says about itself, and the profiles of Hypothesis."""

from __future__ import annotations

import os

import hypothesis
import pytest

hypothesis.settings.register_profile("ci", max_examples=50, deadline=None, derandomize=True)
hypothesis.settings.register_profile("nightly", max_examples=2000, deadline=None)
hypothesis.settings.load_profile("nightly" if os.environ.get("WEIGHTSHARE_NIGHTLY") else "ci")


def pytest_report_header() -> list[str]:
    from weightshare._core.versions import versions

    return [f"{name}: {value}" for name, value in versions().items()]


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request: pytest.FixtureRequest) -> int:
    return int(request.param)
