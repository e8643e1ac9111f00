"""What a training step of a language model takes with the logits of the batch and without: time and memory.

One optimizer step (cross-entropy and KL on a frozen teacher, Llama networks of random weights) with kdkit's task,
teacher, objective and fused heads, as ``task.fused_head=true`` has it, and with logits, each in a process of its own
and asked in turn. Memory is the peak beyond what the process held before its first step, so optimizer state, gradients
and activations are in it.

    python -m benchmarks.perf.language_step [--vocabulary 32000] [--batch 8] [--context 257] [--rounds 5] [--threads 2]
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch


def _stepper(fused: bool, vocabulary: int, batch: int, context: int) -> Callable[[], float]:
    from kdkit.data._base import TextSpec
    from kdkit.engine.distiller import Distiller, Learner
    from kdkit.losses import CELoss, KLLoss
    from kdkit.models import hf_causal_lm
    from kdkit.objective import Objective
    from kdkit.tasks import CausalLM
    from kdkit.teachers import LiveTeacher

    torch.manual_seed(0)
    task = CausalLM(TextSpec(vocab_size=vocabulary, context=context, pad_token_id=0, eos_token_id=1))
    size: dict[str, Any] = {
        "model_type": "llama",
        "num_hidden_layers": 2,
        "vocab_size": vocabulary,
        "max_position_embeddings": context,
    }
    student, teacher = (
        task.wrap(
            hf_causal_lm(**size, hidden_size=width, intermediate_size=2 * width, num_attention_heads=4), name=name
        )
        for width, name in ((128, "student"), (256, "teacher"))
    )
    ids = torch.randint(2, vocabulary, (batch, context))
    rows = {
        "input_ids": ids,
        "labels": ids,
        "document_ids": torch.ones_like(ids),
        "position_ids": torch.arange(context).expand_as(ids),
    }
    if fused:
        for network in (student, teacher):
            network.fuse(task.inputs(network, task.example(rows)))
    objective = Objective({"ce": CELoss(), "kl": KLLoss()}, {"ce": 1.0, "kl": 1.0})
    distiller = Distiller(task, {"student": Learner(student, objective)})
    guide = LiveTeacher(teacher, task)
    optimizer = torch.optim.AdamW(distiller.parameters(), lr=1e-3)

    def step() -> float:
        begin = time.perf_counter()
        total, _ = distiller(rows, guide(rows), None, 0.0)
        total.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - begin

    return step


def _serve(fused: bool, connection: Connection, threads: int, options: dict[str, int]) -> None:
    torch.set_num_threads(threads)
    step = _stepper(fused, **options)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step()
    connection.send((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
    while connection.recv():
        connection.send(step())


def main() -> None:
    """Ask both in turn and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option, default in (("vocabulary", 32000), ("batch", 8), ("context", 257), ("rounds", 5), ("threads", 2)):
        parser.add_argument(f"--{option}", type=int, default=default)
    options = parser.parse_args()
    size = {"vocabulary": options.vocabulary, "batch": options.batch, "context": options.context}
    spawning = multiprocessing.get_context("spawn")
    pipes, memory = {}, {}
    for fused in (True, False):
        here, there = spawning.Pipe()
        spawning.Process(target=_serve, args=(fused, there, options.threads, size), daemon=True).start()
        pipes[fused], memory[fused] = here, here.recv()
    seconds: dict[bool, list[float]] = {fused: [] for fused in pipes}
    for _ in range(options.rounds):
        for fused, pipe in pipes.items():
            pipe.send(True)
            seconds[fused].append(pipe.recv())
    for pipe in pipes.values():
        pipe.send(False)
    logits = 4 * options.batch * (options.context - 1) * options.vocabulary / 2**20
    print(f"one step of {options.batch} x {options.context - 1} tokens, {options.vocabulary:,} words", end="; ")
    print(f"the logits of one network are {logits:,.0f} MiB")
    for fused, name in ((True, "hidden states and heads"), (False, "logits")):
        print(f"{name:24} {statistics.median(seconds[fused]):7.3f} s  {memory[fused]:9,.0f} MiB")
    ratios = [dense / own for own, dense in zip(seconds[True], seconds[False], strict=True)]
    print(f"{'logits / without':24} {statistics.median(ratios):7.2f}    {memory[False] / max(memory[True], 1):9.2f}")


if __name__ == "__main__":
    main()
