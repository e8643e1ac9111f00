"""Teachers by data source: who is asked, about what, and what comes of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from kdkit.data import Tensors, TextFiles
from kdkit.data._base import Batch, ImageSpec, TextSpec
from kdkit.errors import ConfigError, InputError
from kdkit.outputs import ModelOutput
from kdkit.tasks import CausalLM, Classification
from kdkit.tasks._base import Task
from kdkit.teachers import RoutedTeacher, Teacher
from kdkit.teachers._routes import shares_of

IMAGES = ImageSpec(4, 1, 2, (0.5,), (0.25,), ("cat", "car", "dog", "bus"))
TEXT = TextSpec(6, 5, 0, 1, sources=("json", "math", "re"))


class Knows(Teacher):
    """Logits that follow from the seed and the sample's index; keeps what it was asked."""

    def __init__(self, task: Task, seed: int, classes: int) -> None:
        self.task, self.seed, self.classes = task, seed, classes
        self.asked: list[list[int]] = []

    def __call__(self, batch: Batch) -> ModelOutput:
        self.asked.append(batch["index"].tolist())
        return ModelOutput(self.logits(batch))

    def logits(self, batch: Batch) -> Tensor:
        labels, _ = self.task.targets(batch)
        assert labels is not None
        shape = (*labels.shape[1:], self.classes)
        rows = [
            3 * torch.randn(shape, generator=torch.Generator().manual_seed(97 * self.seed + index))
            for index in batch["index"].tolist()
        ]
        return torch.stack(rows)

    @property
    def identity(self) -> str:
        return f"{self.seed}"

    def tap(self, layers: object) -> None:
        raise NotImplementedError


def pair(task: Task, classes: int) -> dict[str, Knows]:
    return {"a": Knows(task, 1, classes), "b": Knows(task, 2, classes)}  # type: ignore[dict-item]


def pictures(labels: list[int]) -> Batch:
    count = len(labels)
    return {"image": torch.rand(count, 1, 2, 2), "label": torch.tensor(labels), "index": torch.arange(count)}


def texts() -> Batch:
    """Two rows: one of two documents and padding, one of one."""
    documents = torch.tensor([[1, 1, 2, 2, 0], [1, 1, 1, 1, 1]])
    sources = torch.tensor([[0, 0, 1, 1, -1], [2, 2, 2, 2, 2]])
    ids = torch.randint(0, 6, (2, 5), generator=torch.Generator().manual_seed(0))
    labels = ids.masked_fill(documents == 0, -100)
    index = torch.tensor([4, 5])
    return {"input_ids": ids, "labels": labels, "document_ids": documents, "source": sources, "index": index}


def test_each_image_is_answered_by_the_teacher_of_its_class() -> None:
    task = Classification(IMAGES)
    members = pair(task, 4)
    teacher = RoutedTeacher(members, {"ca*": "a", "*": "b"}, task)
    batch = pictures([0, 2, 1, 3, -100])
    answer = teacher(batch).logits
    a, b = (member.logits(batch) for member in members.values())
    assert torch.equal(answer, torch.where(torch.tensor([1, 0, 1, 0, 0]).bool()[:, None], a, b))
    assert [member.asked for member in members.values()] == [[[0, 2]], [[1, 3, 4]]]


@pytest.mark.parametrize("combine", ["probs", "logits"])
def test_shares_are_by_position_in_packed_rows(combine: str) -> None:
    task = CausalLM(TEXT)
    members = pair(task, 6)
    routes = {"json": "a", "math": {"a": 3, "b": 1}, "re": {"b": 2.0, "a": 0.0}}
    teacher = RoutedTeacher(members, routes, task, combine=combine)  # type: ignore[arg-type]
    batch = texts()
    answer = teacher(batch).logits
    a, b = (member.logits(batch) for member in members.values())
    assert torch.equal(answer[0, 0], a[0, 0]) and torch.equal(answer[1], b[1])
    if combine == "probs":
        expected = 0.75 * a[0, 2].softmax(-1) + 0.25 * b[0, 2].softmax(-1)
    else:
        expected = (0.75 * a[0, 2] + 0.25 * b[0, 2]).softmax(-1)
    torch.testing.assert_close(answer[0, 2].softmax(-1), expected)
    assert torch.equal(answer[0, [1, 3]], torch.zeros(2, 6))  # where the next token is of another document, or none
    assert [member.asked for member in members.values()] == [[[4]], [[4, 5]]]


def test_teachers_of_nothing_here_are_not_run() -> None:
    task = CausalLM(TEXT)
    members = pair(task, 6)
    teacher = RoutedTeacher(members, {"re": "a", "*": "b"}, task)
    batch = {name: value[1:] for name, value in texts().items()}
    teacher(batch)
    assert [member.asked for member in members.values()] == [[[5]], []]
    nothing = {**batch, "labels": torch.full_like(batch["labels"], -100)}
    assert torch.equal(teacher(nothing).logits, torch.zeros(1, 4, 6))


def test_extremes_and_banned_classes() -> None:
    task = Classification(IMAGES)
    members = pair(task, 4)
    members["a"].logits = lambda batch: torch.tensor([[1e4, -1e4, 0.0, -torch.inf]])  # type: ignore[method-assign]
    members["b"].logits = lambda batch: torch.tensor([[-1e4, 1e4, 0.0, -torch.inf]])  # type: ignore[method-assign]
    answer = RoutedTeacher(members, {"*": {"a": 1, "b": 1}}, task)(pictures([0])).logits
    torch.testing.assert_close(answer.softmax(-1), torch.tensor([[0.5, 0.5, 0.0, 0.0]]))


def test_shares_without_sources_weigh_teachers() -> None:
    shares = shares_of({"*": {"a": 3.0, "b": 1.0}}, ["a", "b"], ())
    assert shares.tolist() == [[0.75, 0.25]]
    assert shares_of({"x": "b", "*": "a"}, ["a", "b"], ("x", "y")).tolist() == [[0, 1], [1, 0], [1, 0]]


@pytest.mark.parametrize(
    ("routes", "sentence"),
    [
        ({"json": "a", "re": "b"}, "source 'math' of the data has no route; add one to teacher.routed.routes, or '*'"),
        ({"json": "a", "jsn": "b", "*": "a"}, "routes['jsn'] fits no source that is left; did you mean 'json'?"),
        ({"*": "a", "json": "b"}, "routes['json'] fits no source that is left"),
        ({"*": "c"}, "routes['*'] leads to 'c', which is no teacher; choose from a, b"),
        ({"*": {"a": -1, "b": 2}}, "routes['*'].a must be a number of at least 0, got -1"),
        ({"*": {"a": 0, "b": 0}}, "routes['*'] gives no teacher a share above 0"),
        ({"*": 3}, "routes['*'] must be the name of a teacher, or teacher: share, got 3"),
        ({}, "routes must name at least one source and its teacher, got {}"),
        ({"*": "a"}, "teachers.b serves no source"),
    ],
)
def test_routes_that_lead_nowhere(routes: dict, sentence: str) -> None:
    task = CausalLM(TEXT)
    with pytest.raises(ConfigError) as caught:
        RoutedTeacher(pair(task, 6), routes, task)
    assert sentence in str(caught.value)


def test_what_has_no_source_is_refused_with_the_setting_that_gives_it() -> None:
    task = Classification(IMAGES)
    members = pair(task, 4)
    teacher = RoutedTeacher(members, {"ca*": "a", "[db]*": "b"}, task)
    with pytest.raises(
        InputError, match=r"1 positions of this batch have no source.*add '\*' to teacher.routed.routes"
    ):
        teacher(pictures([0, -100]))
    plain = CausalLM(TextSpec(6, 5, 0, 1))
    with pytest.raises(ConfigError, match=r"names a source, and the data tell none apart; set data.source"):
        RoutedTeacher(pair(plain, 6), {"json": "a", "*": "b"}, plain)
    members["b"].classes = 5
    with pytest.raises(ConfigError, match=r"equally many classes, got 4 and 5 \(teacher.routed.teachers.b\)"):
        teacher(pictures([0, 2]))
    teacher.tap({})
    with pytest.raises(ConfigError, match=r"features \(nd\) can not be taken from teachers by source"):
        teacher.tap({"nd": "penultimate"})
    with pytest.raises(ConfigError, match=r"combine must be 'probs' or 'logits', got 'prob'; did you mean 'probs'"):
        RoutedTeacher(pair(task, 4), {"*": {"a": 1, "b": 1}}, task, combine="prob")  # type: ignore[arg-type]


def test_identity_depends_on_teachers_and_routes() -> None:
    task = CausalLM(TEXT)
    routes = [{"json": "a", "*": "b"}, {"json": "b", "*": "a"}, {"*": {"a": 1, "b": 2}}]
    assert len({RoutedTeacher(pair(task, 6), route, task).identity for route in routes}) == 3
    again = RoutedTeacher(pair(task, 6), routes[0], task).identity
    assert again == RoutedTeacher(pair(task, 6), routes[0], task).identity


def test_files_say_where_each_token_is_from(tmp_path: Path) -> None:
    for place in ("code", "prose"):
        (tmp_path / place).mkdir()
        for number in range(6):
            (tmp_path / place / f"{number}.txt").write_text(f"{place} {number} " * 9)
    options = {"vocab_size": 300, "context": 32, "val_share": 0.2, "test_share": 0.2}
    plain = TextFiles(str(tmp_path), **options)  # type: ignore[arg-type]
    for _ in range(2):  # made, and out of the store
        data = TextFiles(str(tmp_path), source="folder", **options)  # type: ignore[arg-type]
        assert data.spec.sources == ("code", "prose") and plain.spec.sources == ()
    assert data.fingerprint != plain.fingerprint and data.size("train") == plain.size("train")
    batch = next(iter(data.batches("train", data.size("train"), train=False)))
    mixed = 0
    for ids, documents, sources in zip(batch["input_ids"], batch["document_ids"], batch["source"], strict=True):
        assert torch.equal(sources == -1, documents == 0)
        for number in range(1, int(documents.max()) + 1):
            here = documents == number
            text = data.spec.tokenizer.decode(ids[here], skip_special_tokens=True)
            (source,) = set(sources[here].tolist())
            other = data.spec.sources[1 - source]
            assert other not in text
        mixed += len(set(sources.tolist()) - {-1}) > 1
    assert mixed  # packed rows hold documents of both
    with pytest.raises(InputError, match="source must be file, folder, field or null, got 'folders'; did you mean"):
        TextFiles(str(tmp_path), source="folders")
    with pytest.raises(InputError, match="source=field needs records"):
        TextFiles(str(tmp_path), source="field", **options)  # type: ignore[arg-type]


def test_records_say_where_they_are_from(tmp_path: Path) -> None:
    lines = [f'{{"text": "text {number} and more of it", "from": "{"xy"[number % 2]}"}}' for number in range(12)]
    (tmp_path / "all.jsonl").write_text("\n".join(lines))
    options = {"vocab_size": 300, "context": 16, "val_share": 0.2, "test_share": 0.2}
    data = TextFiles(str(tmp_path), source="field", source_field="from", **options)  # type: ignore[arg-type]
    assert data.spec.sources == ("x", "y")


def test_a_set_of_images_routes_by_its_class_names() -> None:
    data = Tensors(torch.zeros(6, 1, 4, 4, dtype=torch.uint8), torch.arange(6) % 3, name="made up")
    task = Classification(data.spec)
    assert data.spec.class_names
    names = data.spec.class_names
    members = pair(task, 3)
    RoutedTeacher(members, {names[0]: "a", "*": "b"}, task)(next(iter(data.batches("train", 6, train=False))))
    assert [member.asked for member in members.values()] == [[[0, 3]], [[1, 2, 4, 5]]]
