"""Run under torchrun by test_distributed.py: train the tiny problem and write what came out."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from helpers import make_trainer, tiny_data, weights

from kdkit.engine.callbacks import Recorder
from kdkit.engine.evaluate import evaluate
from kdkit.engine.settings import Settings


def main(target: Path, accumulation: int) -> None:
    labels = torch.arange(64) % 3
    labels[torch.arange(64) % 5 < 3] = -100
    settings = Settings(max_steps=4, batch_size=4, accumulation=accumulation, eval_every=0, log_every=1)
    trainer = make_trainer(
        target / "checkpoints",
        data=tiny_data(labels=labels),
        settings=settings,
        dropout=0.0,
        callbacks=[Recorder(target / "metrics.jsonl", "student")],
        batch_norm=False,
    )
    trainer.fit()
    result = evaluate(
        trainer.distiller.student.network,
        task=trainer.task,
        data=trainer.data,
        split="test",
        batch_size=5,
        accelerator=trainer.accelerator,
        teacher=trainer.teacher,
    )
    if trainer.accelerator.is_main_process:
        torch.save({"weights": weights(trainer), "metrics": result.metrics}, target / "out.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
