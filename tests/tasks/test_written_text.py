"""Texts that networks write while they are trained: prompts, rows, draws and what counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kdkit.data._base import Batch, ImageSpec, TextSpec
from kdkit.errors import ConfigError, InputError
from kdkit.models import hf_causal_lm
from kdkit.models._language import LanguageNetwork
from kdkit.outputs import IGNORE_INDEX
from kdkit.schedules import Linear
from kdkit.tasks import CausalLM, Classification, WrittenText
from kdkit.tasks._generate import Sampling, complete, ends_of

PAD, EOS, VOCAB, CONTEXT = 0, 1, 24, 16
TASK = CausalLM(TextSpec(vocab_size=VOCAB, context=CONTEXT, pad_token_id=PAD, eos_token_id=EOS))
GREEDY = Sampling(temperature=0)


def language_model(seed: int = 0, dropout: float = 0.0) -> LanguageNetwork:
    torch.manual_seed(seed)
    module = hf_causal_lm(
        model_type="llama",
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        attention_dropout=dropout,
        initializer_range=0.5,
    )
    return TASK.wrap(module, name="student")


def batch() -> Batch:
    """Two texts in a row; an instruction of 4 tokens with its answer; a document that fills its row."""
    ids = torch.arange(3 * CONTEXT).view(3, CONTEXT) % (VOCAB - 2) + 2
    documents = torch.ones_like(ids)
    documents[0, 10:] = 2
    ids[0, 9] = EOS
    documents[1, 12:] = 0
    labels = ids.masked_fill(documents == 0, IGNORE_INDEX)
    labels[1, :4] = IGNORE_INDEX
    places = torch.arange(CONTEXT).expand_as(ids)
    bytes_ = torch.ones_like(ids)
    return {
        "input_ids": ids,
        "labels": labels,
        "document_ids": documents,
        "position_ids": places,
        "num_bytes": bytes_,
        "index": torch.arange(3),
    }


def written(student: LanguageNetwork, teacher: LanguageNetwork | None = None, rank: int = 0, **options: Any) -> Batch:
    chosen = {"share": 1.0, "prompt_tokens": 6} | options
    strategy = WrittenText(TASK, **chosen)
    strategy.check(student, teacher)
    return strategy(batch(), student, teacher, key=(0, 7, 0), rank=rank, progress=0.5)


def test_prompts_of_different_length_are_continued_as_alone() -> None:
    network = language_model()
    prompts = [torch.tensor([2, 3, 4, 5, 6]), torch.tensor([7]), torch.tensor([8, 9, 10])]
    options: dict[str, Any] = {"max_new_tokens": 6, "pad_token_id": PAD, "ends": [EOS], "seed": 0}
    together = complete(network, prompts, GREEDY, **options)
    for prompt, text in zip(prompts, together, strict=True):
        ids = prompt
        for token in text.tolist():
            places = torch.arange(len(ids))[None]
            logits = network.module(input_ids=ids[None], position_ids=places).logits[0, -1]
            assert int(logits.argmax()) == token
            ids = torch.cat([ids, torch.tensor([token])])
        assert len(text) == 6 or text[-1] == EOS


def test_every_end_ends_a_text() -> None:
    network = language_model()
    network.module.generation_config.eos_token_id = [5, 9]
    assert ends_of(network, EOS) == [EOS, 5, 9]
    free = complete(
        network, [torch.tensor([2, 3])], GREEDY, max_new_tokens=6, pad_token_id=PAD, ends=[VOCAB - 1], seed=0
    )
    second = int(free[0][1])
    cut = complete(network, [torch.tensor([2, 3])], GREEDY, max_new_tokens=6, pad_token_id=PAD, ends=[second], seed=0)
    stop = free[0].tolist().index(second)
    assert cut[0].tolist() == free[0].tolist()[: stop + 1]


def test_writing_leaves_no_trace() -> None:
    network = language_model(dropout=0.9).train()
    own = network.module.generation_config
    own.repetition_penalty = 1e9  # a pretrained network's habit: it is not what is asked for
    state = torch.get_rng_state()
    options: dict[str, Any] = {"max_new_tokens": 8, "pad_token_id": PAD, "ends": [EOS]}
    prompts = [torch.tensor([2, 3, 4])]
    first, second = (complete(network, prompts, Sampling(), seed=3, **options)[0] for _ in range(2))
    other = [complete(network, prompts, Sampling(), seed=seed, **options)[0] for seed in range(10, 14)]
    assert torch.equal(first, second)  # dropout of 0.9 would show
    assert any(not torch.equal(first, text) for text in other)
    assert torch.equal(state, torch.get_rng_state())
    assert network.training and network.module.training and network.module.generation_config is own
    assert not first.requires_grad
    network.module.generation_config.repetition_penalty = 1.0
    assert torch.equal(first, complete(network, prompts, Sampling(), seed=3, **options)[0])


def test_the_rows_that_the_student_wrote() -> None:
    student = language_model()
    new, old = written(student), batch()
    lengths = [6, 4, 6]  # the first text's first tokens, the instruction, the first tokens
    labels, mask = TASK.targets(new)
    assert labels is not None and mask is not None
    assert (labels == IGNORE_INDEX).all()  # nothing confirms the student's own words
    for row, length in enumerate(lengths):
        assert torch.equal(new["input_ids"][row, :length], old["input_ids"][row, :length])
        end = int(new["document_ids"][row].sum())
        assert length < end <= CONTEXT
        assert mask[row].tolist() == [length - 1 <= place < end - 1 for place in range(CONTEXT - 1)]
        assert (new["input_ids"][row, end:] == PAD).all() and not new["position_ids"][row, end:].any()
        assert new["position_ids"][row, :end].tolist() == list(range(end))
        text = new["input_ids"][row, length:end].tolist()
        assert EOS not in text[:-1]
        assert text[-1] == EOS or end - length == CONTEXT - max(lengths)
    counts = TASK.counts(new)
    assert counts["labelled"] == 0 and counts["positions"] == mask.sum()
    assert student.module(input_ids=new["input_ids"]).logits.shape == (3, CONTEXT, VOCAB)


def test_a_long_prompt_leaves_room_to_the_others() -> None:
    long = batch()
    long["labels"][2, :14] = IGNORE_INDEX
    strategy = WrittenText(TASK, share=1.0, prompt_tokens=6, temperature=0)
    new = strategy(long, language_model(), None, key=(0, 0, 0), rank=0, progress=0.0)
    apart = written(language_model(), temperature=0)
    assert torch.equal(new["input_ids"][:2], apart["input_ids"][:2])
    assert torch.equal(new["input_ids"][2, :14], long["input_ids"][2, :14]) and new["counts"][2].sum() <= 2


def test_an_adapter_gets_its_generation_settings_back() -> None:
    peft = pytest.importorskip("peft")
    inner = language_model().module
    inner.generation_config.eos_token_id = [3, 7]
    adapted = peft.get_peft_model(inner, peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    frozen = next(part for part in adapted.modules() if isinstance(part, torch.nn.Embedding)).eval()
    network = LanguageNetwork(adapted).train()
    frozen.eval()
    complete(network, [torch.tensor([2, 3])], GREEDY, max_new_tokens=2, pad_token_id=PAD, ends=[EOS], seed=0)
    assert inner.generation_config.eos_token_id == [3, 7]
    assert network.training and not frozen.training


def test_the_teacher_s_words_are_labels() -> None:
    student, teacher = language_model(0), language_model(1)
    new = written(student, teacher, writer="teacher", temperature=0)
    labels, mask = TASK.targets(new)
    assert labels is not None and mask is not None
    assert torch.equal(labels[mask], new["input_ids"][:, 1:][mask])
    expected = written(teacher, temperature=0)
    assert torch.equal(new["input_ids"], expected["input_ids"])
    assert not torch.equal(new["input_ids"], written(student, temperature=0)["input_ids"])


def test_a_prompt_ends_before_its_document_does() -> None:
    new = written(language_model(), prompt_tokens=15)
    assert torch.equal(new["input_ids"][0, :9], batch()["input_ids"][0, :9])
    assert int(new["counts"][0].int().argmax()) == 9  # not the end of the text, after which nothing is left to write
    assert int(new["counts"][2].int().argmax()) == CONTEXT - 1


def test_all_ranks_replace_the_same_batches_and_write_their_own() -> None:
    student, replaced = language_model(), []
    for rank in (0, 1):
        strategy = WrittenText(TASK, share=0.5, max_new_tokens=4, prompt_tokens=6)
        choices, texts = [], []
        for step in range(24):
            out = strategy(batch(), student, None, key=(0, step, 0), rank=rank, progress=0.0)
            choices.append("counts" in out)
            texts.append(out["input_ids"])
        replaced.append((choices, texts))
        assert strategy.record()["written"] == sum(choices) / 24
        assert strategy.record() == {"written": 0.0, "written_tokens": 0.0}
    (first, own), (second, others) = replaced
    assert first == second and 4 < sum(first) < 20
    differ = [not torch.equal(a, b) for a, b, chosen in zip(own, others, first, strict=True) if chosen]
    assert any(differ)


def test_the_share_may_change() -> None:
    strategy, student = WrittenText(TASK, share=Linear(0.0, 1.0), max_new_tokens=1, prompt_tokens=6), language_model()

    def count(progress: float) -> int:
        calls = [strategy(batch(), student, None, key=(0, k, 0), rank=0, progress=progress) for k in range(10)]
        return sum("counts" in out for out in calls)

    assert count(0.0) == 0 and count(1.0) == 10


def test_no_prompt_reaches_into_the_last_place() -> None:
    prompts = WrittenText(TASK, prompt_tokens=15)._prompts(batch())
    assert max(map(len, prompts)) < CONTEXT


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"writer": "studnet"}, "strategy.writer must be student or teacher, got 'studnet'; did you mean 'student'"),
        ({"share": 1.2}, r"strategy.share must lie in \[0, 1\], got 1.2"),
        ({"prompt_tokens": 0}, "strategy.prompt_tokens must be a whole number of at least 1, got 0"),
        ({"max_new_tokens": 1.5}, "strategy.max_new_tokens must be a whole number of at least 1, got 1.5"),
        ({"temperature": -1.0}, "strategy.temperature must be 0, or a number from 0.01 to 100, got -1.0"),
        ({"temperature": float("inf")}, "strategy.temperature must be 0, or a number from 0.01 to 100, got inf"),
        ({"prompt_tokens": 16}, "strategy.prompt_tokens must be less than data.context=16, got 16"),
        ({"top_p": 0.0}, "strategy.top_p must lie above 0 and be at most 1"),
        ({"top_k": -1}, "strategy.top_k must be a whole number of at least 0"),
    ],
)
def test_wrong_options(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        WrittenText(TASK, **{"prompt_tokens": 6, **options})


def test_wrong_company() -> None:
    with pytest.raises(ConfigError, match="task classification has none"):
        WrittenText(Classification(ImageSpec(3, 1, 8, (0.5,), (0.25,))))
    with pytest.raises(ConfigError, match="needs one teacher in memory"):
        WrittenText(TASK, writer="teacher", prompt_tokens=6).check(language_model(), None)

    class Silent(torch.nn.Module):
        def forward(self, **inputs: Tensor) -> Tensor:
            return inputs["input_ids"]

    with pytest.raises(ConfigError, match=r"cannot write texts: Silent has no generate\(\)"):
        WrittenText(TASK, prompt_tokens=6).check(LanguageNetwork(Silent()), None)
