"""A server that runs for all tests of this folder, with the model behind it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kdkit.models import hf_causal_lm

from .serving import Server


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Llama whose laws are far from uniform."""
    place = tmp_path_factory.mktemp("large")
    torch.manual_seed(3)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = hf_causal_lm(model_type="llama", vocab_size=300, max_position_embeddings=128, **sizes)
    with torch.no_grad():
        model.lm_head.weight.mul_(30)
    model.save_pretrained(place)
    return place


@pytest.fixture(scope="session")
def started(large: Path) -> Iterator[Server]:
    server = Server(large)
    yield server
    server.stop()


@pytest.fixture
def server(started: Server) -> Server:
    """The server, without faults and idle."""
    while started.control()["now"]:  # a question that nobody waits for any more
        time.sleep(0.05)
    return started
