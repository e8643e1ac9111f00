"""Fixtures that every test may use."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch


@pytest.fixture(autouse=True)
def own_store(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees or fills the user's store."""
    monkeypatch.setenv("KDKIT_STORE", str(tmp_path_factory.mktemp("store")))


@pytest.fixture(autouse=True, scope="session")
def few_threads() -> None:
    """Tests run in parallel processes: one thread each."""
    torch.set_num_threads(1)
