"""A teacher out of a cache: what comes back, how much is lost, and whom it refuses."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kdkit.data import StdlibText, Tensors
from kdkit.data._base import Batch, DataModule
from kdkit.errors import CheckpointError, ConfigError, InputError, NonFiniteError
from kdkit.losses import kl_loss
from kdkit.outputs import ModelOutput, SparseLogits
from kdkit.tasks import CausalLM, Classification
from kdkit.tasks._base import Task
from kdkit.teachers import CachedTeacher, Teacher
from kdkit.teachers._cache_files import Definition, id_dtype, write_manifest
from kdkit.teachers.cache_writer import best_entries, missing_shards, summary, write_shards

CPU = torch.device("cpu")


class Oracle(Teacher):
    """Logits drawn from a generator that the sample's index seeds."""

    identity = "oracle"

    def __init__(self, task: Task, classes: int, scale: float = 3.0) -> None:
        self.task, self.classes, self.scale = task, classes, scale

    def tap(self, layers: object) -> None:
        raise NotImplementedError

    def __call__(self, batch: Batch) -> ModelOutput:
        labels, _ = self.task.targets(batch)
        assert labels is not None
        rows = []
        for index in batch["index"].tolist():
            rng = torch.Generator().manual_seed(index)
            rows.append(self.scale * torch.randn(*labels.shape[1:], self.classes, generator=rng))
        return ModelOutput(torch.stack(rows))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StdlibText]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDKIT_STORE", str(tmp_path_factory.mktemp("store")))
        yield StdlibText(max_bytes=16_000, vocab_size=300, context=65, packing=False)


def images(augment: bool = False) -> Tensors:
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (10, 1, 4, 4), generator=rng, dtype=torch.uint8)
    kept = {"augment": lambda image, random: image} if augment else {}
    return Tensors(pixels, torch.arange(10) % 3, name="made up", **kept)


def write(folder: Path, data: DataModule, task: Task, classes: int, **options: object) -> tuple[Definition, Oracle]:
    oracle = Oracle(task, classes)
    about = {"name": data.name, "fingerprint": data.fingerprint, "settings": {}}
    chosen = {"k": classes, "temperature": 1.0, "dtype": "float32", "precision": "no", "shard_samples": 40} | options
    names = {"identity": "oracle", "name": "oracle", "origin": "made up"}
    definition = Definition(names, about, "train", data.size("train"), classes, **chosen)  # type: ignore[arg-type]
    write_manifest(folder, definition, {})
    fill(folder, definition, oracle, data)
    return definition, oracle


def fill(folder: Path, definition: Definition, oracle: Oracle, data: DataModule) -> list[int]:
    missing, made = missing_shards(folder, definition), []  # type: ignore[var-annotated]
    write_shards(folder, definition, missing, oracle, oracle.task, data, batch_size=2, device=CPU, finished=made.append)
    return made


def shuffled(data: DataModule, size: int = 3, seed: int = 5) -> Batch:
    return next(iter(data.batches("train", size, train=True, seed=seed)))


def test_every_entry_kept_is_the_teacher_itself(text: StdlibText, tmp_path: Path) -> None:
    task = CausalLM(text.spec)
    _, oracle = write(tmp_path, text, task, text.spec.vocab_size)
    batch = shuffled(text, text.size("train"))
    answer, expected = CachedTeacher(task, text, folder=str(tmp_path))(batch), oracle(batch).logits
    _, where = task.targets(batch)
    assert where is not None and where.any() and not where.all()
    torch.testing.assert_close(answer.logits.log_softmax(-1)[where], expected.log_softmax(-1)[where])
    assert answer.logits.isfinite().all()


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_best_entries_and_the_rest(text: StdlibText, tmp_path: Path, dtype: str, temperature: float) -> None:
    task = CausalLM(text.spec)
    _, oracle = write(tmp_path, text, task, 300, k=7, dtype=dtype, temperature=temperature)
    batch = shuffled(text)
    sparse = CachedTeacher(task, text, folder=str(tmp_path))(batch).sparse
    _, where = task.targets(batch)
    assert sparse is not None and where is not None
    law = (oracle(batch).logits / temperature).softmax(-1)[where]
    best = law.topk(7)
    assert torch.equal(sparse.ids[where], best.indices)
    torch.testing.assert_close(
        sparse.log_probs[where].exp(), best.values, rtol=1e-5 if dtype == "float32" else 5e-3, atol=0
    )
    total = sparse.log_probs.exp().sum(-1) + sparse.rest.exp()
    torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-6, atol=0)
    dense = (sparse.dense() / temperature).softmax(-1)[where]
    torch.testing.assert_close(dense.gather(-1, best.indices), sparse.log_probs[where].exp())
    others = torch.ones_like(dense, dtype=torch.bool).scatter(-1, best.indices, False)
    left = (1 - best.values.sum(-1, keepdim=True)) / 293
    torch.testing.assert_close(dense[others].view(-1, 293), left.expand(-1, 293), rtol=2e-2, atol=1e-7)


def test_what_is_lost_is_measured(text: StdlibText, tmp_path: Path) -> None:
    task = CausalLM(text.spec)
    definition, oracle = write(tmp_path, text, task, 300, k=5, dtype="float16")
    teacher = CachedTeacher(task, text, folder=str(tmp_path))
    losses, masses, count = 0.0, 0.0, 0
    for batch in text.batches("train", 8, train=False):
        _, where = task.targets(batch)
        assert where is not None
        full, kept = oracle(batch).logits.double(), teacher(batch).logits.double()
        losses += float(kl_loss(kept, full, mask=where, reduction="sum"))
        masses += float((1 - full.softmax(-1).topk(5).values.sum(-1))[where].sum())
        count += int(where.sum())
    facts = summary(tmp_path, definition)
    assert facts["positions"] == count
    assert facts["kl"] == pytest.approx(losses / count, rel=1e-4)
    assert facts["rest"] == pytest.approx(masses / count, rel=1e-4)
    assert facts["bytes_per_position"] == pytest.approx(5 * (2 + 2) + 2, rel=0.3)


def test_images_and_banned_classes(tmp_path: Path) -> None:
    data = images()
    task = Classification(data.spec)
    _, oracle = write(tmp_path, data, task, 3, k=2)
    batch = shuffled(data)
    answer = CachedTeacher(task, data, folder=str(tmp_path))(batch)
    torch.testing.assert_close(answer.logits.softmax(-1), oracle(batch).logits.softmax(-1))  # one of three is the rest
    stored, lost = best_entries(torch.tensor([[1.0, -math.inf, 0.0]]), 2, 1.0, torch.float16)
    assert stored["rest"].item() == -math.inf
    assert lost.isfinite().all() and lost.max() < 1e-6


def test_logits_that_nobody_reads_take_no_memory(tmp_path: Path) -> None:
    data = images()
    task = Classification(data.spec)
    write(tmp_path, data, task, 3, k=2)
    teacher = CachedTeacher(task, data, folder=str(tmp_path))
    teacher.dense = False
    logits = teacher(shuffled(data)).logits
    assert logits.shape == (3, 3) and logits.isnan().all() and logits.untyped_storage().nbytes() == 4


@pytest.mark.parametrize(("classes", "dtype"), [(256, torch.uint8), (257, torch.uint16), (65_537, torch.int32)])
def test_ids_fit(classes: int, dtype: torch.dtype) -> None:
    assert id_dtype(classes) == dtype
    logits = torch.zeros(1, classes)
    logits[0, -1] = 1.0
    assert best_entries(logits, 1, 1.0, torch.float16)[0]["ids"].long().item() == classes - 1


def test_a_torn_shard_is_refused_and_replaced(text: StdlibText, tmp_path: Path) -> None:
    task = CausalLM(text.spec)
    definition, oracle = write(tmp_path, text, task, 300, k=5)
    file = tmp_path / "shard-000001" / "tensors.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-7])
    with pytest.raises(InputError, match=r"lacks shard 1 of .* cut off; repeat the `kdkit cache` command"):
        CachedTeacher(task, text, folder=str(tmp_path))
    assert fill(tmp_path, definition, oracle, text) == [1]
    file.write_bytes(whole[:-7] + bytes(7))
    teacher = CachedTeacher(task, text, folder=str(tmp_path))
    batch = next(iter(text.batches("train", 4, train=False, start=10)))
    with pytest.raises(CheckpointError, match="does not match its checksum"):
        teacher(batch)
    assert fill(tmp_path, definition, oracle, text) == [1]
    assert file.read_bytes() == whole
    CachedTeacher(task, text, folder=str(tmp_path))(batch)


def test_other_samples_are_refused(text: StdlibText, tmp_path: Path) -> None:
    task = CausalLM(text.spec)
    write(tmp_path, text, task, 300, k=5)
    teacher = CachedTeacher(task, text, folder=str(tmp_path))
    assert not teacher.live
    with pytest.raises(InputError, match="a cached teacher answers the train split alone"):
        teacher(next(iter(text.batches("test", 1, train=False))))
    with pytest.raises(ConfigError, match=r"features \(penultimate\) are not in a cache"):
        teacher.tap({"penultimate": "penultimate"})


def test_other_data_are_refused_by_what_differs(tmp_path: Path) -> None:
    data = images()
    write(tmp_path, data, Classification(data.spec), 3)
    other = Tensors(torch.zeros(10, 1, 4, 4, dtype=torch.uint8), torch.arange(10) % 3, name="made up")
    with pytest.raises(ConfigError, match=r"something else \(data.size: None there, 4 here\)"):
        CachedTeacher(Classification(other.spec), other, folder=str(tmp_path), settings={"size": 4})
    with pytest.raises(ConfigError, match=r"data\.fingerprint"):
        CachedTeacher(Classification(other.spec), other, folder=str(tmp_path))
    drawn = images(augment=True)
    with pytest.raises(ConfigError, match=r"draws its training samples anew each time.*set data\.augment=false"):
        CachedTeacher(Classification(drawn.spec), drawn, folder=str(tmp_path))
    with pytest.raises(InputError, match="holds no cache of a teacher"):
        CachedTeacher(Classification(data.spec), data, folder=str(tmp_path / "nowhere"))


def test_a_teacher_that_answers_nan_stops_the_cache(tmp_path: Path) -> None:
    data = images()
    task = Classification(data.spec)
    definition, oracle = write(tmp_path, data, task, 3)
    oracle.scale = math.nan
    with pytest.raises(NonFiniteError, match="answers NaN or infinities to samples"):
        write_shards(tmp_path, definition, [0], oracle, task, data, batch_size=2, device=CPU, finished=print)


def test_dense_without_a_rest() -> None:
    sparse = SparseLogits(torch.tensor([[2, 0]]), torch.tensor([[0.75, 0.25]]).log(), torch.tensor([-math.inf]), 4)
    torch.testing.assert_close(sparse.dense().softmax(-1), torch.tensor([[0.25, 0.0, 0.75, 0.0]]))
    assert not sparse.complete
    whole = SparseLogits(torch.tensor([[1, 0]]), torch.tensor([[0.75, 0.25]]).log(), torch.tensor([-math.inf]), 2, 2.0)
    assert whole.complete
    law: Tensor = (whole.dense() / 2.0).softmax(-1)
    torch.testing.assert_close(law, torch.tensor([[0.25, 0.75]]))
