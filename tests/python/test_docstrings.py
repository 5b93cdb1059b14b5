"""Every example in a docstring runs and prints what it says."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import weightshare


def modules():
    for module in pkgutil.walk_packages(weightshare.__path__, "weightshare."):
        if not module.name.endswith((".native", ".cpu_probe")):
            yield module.name


@pytest.mark.parametrize("name", list(modules()))
def test_the_examples_of_a_module_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert failed == 0
