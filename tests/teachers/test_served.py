"""A teacher behind a real server: the same law as in memory, and one sentence for whatever goes wrong with it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kdkit.data import StdlibText
from kdkit.data._base import Batch
from kdkit.errors import ConfigError, InputError, ServerError
from kdkit.models import hf_causal_lm
from kdkit.outputs import SparseLogits
from kdkit.tasks import CausalLM, Classification
from kdkit.teachers import LiveTeacher, ServedTeacher
from kdkit.teachers._endpoint import _seconds, in_one_line

from .serving import Server

pytestmark = pytest.mark.xdist_group("served")

QUICK = {"timeout": 30.0, "retries": 0, "wait": 0.01}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StdlibText]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDKIT_STORE", str(tmp_path_factory.mktemp("store")))
        yield StdlibText(max_bytes=16_000, vocab_size=300, context=64)


def served(text: StdlibText, server: Server, **options: object) -> ServedTeacher:
    chosen = {"url": server.url, "model": "large", "vocab_size": 300, "k": 8, **QUICK} | options
    return ServedTeacher(CausalLM(text.spec), **chosen)  # type: ignore[arg-type]


def packed(text: StdlibText) -> Batch:
    """Rows of which some hold several documents, and padding, and a prompt that is no target."""
    batch = next(iter(text.batches("train", 4, train=True, seed=1)))
    ids, documents, labels = (batch[name].clone() for name in ("input_ids", "document_ids", "labels"))
    documents[:] = 1
    documents[0, 20:] = 2
    documents[0, 21:] = 3  # a document of one token, of which nothing is predicted
    documents[1, 40:] = 0
    labels[1, 40:] = -100
    labels[2, :30] = -100
    documents[3], labels[3] = 1, -100
    places = torch.cat([torch.arange(20), torch.zeros(1, dtype=torch.long), torch.arange(43)])
    positions = torch.stack([places, *[torch.arange(64)] * 3])
    return {**batch, "input_ids": ids, "document_ids": documents, "labels": labels, "position_ids": positions}


@pytest.mark.parametrize("form", ["prompt_logprobs", "echo"])
def test_it_says_what_the_same_teacher_says_in_memory(text: StdlibText, server: Server, large: Path, form: str) -> None:
    task = CausalLM(text.spec)
    batch = packed(text)
    network = task.wrap(hf_causal_lm(pretrained=str(large)))
    law = LiveTeacher(network, task)(batch).logits.log_softmax(-1)
    answer = served(text, server, form=form)(batch)
    _, where = task.targets(batch)
    assert where is not None and not where[3].any()
    assert isinstance(answer.sparse, SparseLogits) and answer.sparse.ids.shape == (4, 63, 8)
    best = law.topk(8)
    assert torch.equal(answer.sparse.ids[where], best.indices[where])
    torch.testing.assert_close(answer.sparse.log_probs[where], best.values[where], rtol=1e-5, atol=1e-5)
    left = 1 - best.values.exp().sum(-1)
    torch.testing.assert_close(answer.sparse.rest[where].exp(), left[where], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(answer.logits, answer.sparse.dense())
    torch.testing.assert_close(
        answer.sparse.log_probs[~where], torch.full_like(answer.sparse.log_probs[~where], -5.703783)
    )
    assert server.control()["asked"] == 4  # two documents of the first row, one of the second and third, none else


def test_all_entries_serve_any_temperature(text: StdlibText, server: Server) -> None:
    teacher = served(text, server, k=300)
    teacher.dense = False
    answer = teacher(packed(text))
    assert answer.sparse is not None and answer.sparse.complete and answer.logits.isnan().all()
    warm = answer.sparse.at(3.0)
    torch.testing.assert_close(warm.log_probs.exp().sum(-1), torch.ones_like(warm.rest))


SENTENCES = {
    "count": "answers about 19 tokens and was sent 20; it must take prompts of token ids",
    "ids": r"answers about token \d+ where \d+ was sent \(place 19\)",
    "nan": r"gives nan for entry \d+ of token 1 of a prompt, which is no log-probability",
    "null": r"gives None for entry \d+ of token 1",
    "positive": r"gives 0\.5 for entry \d+ of token 1",
    "mass": r"gives entries whose probabilities come to 7\.\d+ for token 1.*--logprobs-mode raw_logprobs",
    "few": r"gives 1 entries for token 1 of a prompt and was asked for 8.*--max-logprobs 8\), or set .*\.k=1",
    "long": r"refuses /completions \(status 400, This model's maximum context length is 128 tokens",
    "vocabulary": r"gives an entry for token 1000000, and the student's vocabulary has 300; both must use one",
    "unauthorised": r"does not let this run in \(status 401, Incorrect API key provided: None \[31m\); name the env",
    "mute": "gives no prompt_logprobs; use a server that does, like vLLM",
    "page": r"answers /completions with something that is no JSON \(<html> \[31mhello</html>\)",
    "slow": r"was asked once and did not answer \(timed out\); start it again, or raise teacher.served.retries",
    "busy": r"was asked once and did not answer \(status 503, loading\)",
    "cut": r"was asked once and did not answer \(IncompleteRead",
    "crowded": r"was asked once and did not answer \(status 429, too many\) and wants to be left alone for 3600 s",
}


@pytest.mark.parametrize("fault", SENTENCES)
def test_a_server_that_lies_or_fails_is_told_in_one_sentence(text: StdlibText, server: Server, fault: str) -> None:
    teacher = served(text, server, timeout=0.3 if fault == "slow" else 30.0, concurrency=1)
    server.control(fault=fault)
    with pytest.raises(ServerError, match=rf"^the server at {server.url} {SENTENCES[fault]}"):
        teacher(packed(text))


@pytest.mark.parametrize(
    ("fault", "sentence"), [("count", "about token 7 where"), ("text", "names tokens by their text")]
)
def test_an_echo_is_held_against_the_prompt_too(text: StdlibText, server: Server, fault: str, sentence: str) -> None:
    teacher = served(text, server, form="echo")
    server.control(fault=fault)
    with pytest.raises(ServerError, match=sentence):
        teacher(packed(text))


def test_without_ids_each_token_must_be_among_the_entries(text: StdlibText, server: Server) -> None:
    teacher = served(text, server)
    server.control(fault="silent")
    assert teacher(packed(text)).sparse is not None


@pytest.mark.parametrize(("fault", "times"), [("busy", 2), ("cut", 1), ("slow", 1)])
def test_what_passes_is_asked_again(text: StdlibText, server: Server, fault: str, times: int) -> None:
    teacher = served(text, server, retries=2, timeout=0.5 if fault == "slow" else 30.0, concurrency=1)
    expected = teacher(packed(text)).logits
    server.control(fault=fault, times=times)
    assert torch.equal(teacher(packed(text)).logits, expected)
    assert server.control()["asked"] == 4 + times


def test_no_more_questions_at_once_than_allowed(text: StdlibText, server: Server) -> None:
    batch = next(iter(text.batches("train", 8, train=False)))
    for allowed in (1, 3):
        server.control(fault="steady")
        served(text, server, concurrency=allowed)(batch)
        assert server.control()["most"] == allowed


def test_the_key_comes_from_the_environment_and_is_never_shown(
    text: StdlibText, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="environment variable 'OUR_KEY', which holds no key; export it"):
        served(text, server, key_variable="OUR_KEY")
    monkeypatch.setenv("OUR_KEY", "sesame")
    teacher = served(text, server, key_variable="OUR_KEY")
    teacher(packed(text))
    assert set(server.control(fault="unauthorised")["keys"]) == {"Bearer sesame"}
    with pytest.raises(
        ServerError, match=r"provided: Bearer \*\*\* .*check the key in the environment variable OUR_KEY"
    ):
        teacher(packed(text))
    server.control(fault="redirected")
    with pytest.raises(ServerError, match=r"redirects to http://elsewhere.invalid/v1/models \(status 307"):
        served(text, server, key_variable="OUR_KEY")
    assert "sesame" not in json.dumps([teacher.identity, teacher.origin])


def test_what_the_server_lacks_is_told_before_the_run(text: StdlibText, server: Server, tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"has no model 'larg'; did you mean 'large'\? \(teacher.served.model\)"):
        served(text, server, model="larg")
    with pytest.raises(
        ServerError, match=r"/models is not there \(status 404, Not Found\); teacher.served.url must be"
    ):
        served(text, server, url=server.url.removesuffix("/v1"))
    long = StdlibText(max_bytes=16_000, vocab_size=300, context=128)
    with pytest.raises(ServerError, match="takes 128 tokens, and a row of the data has 128 and one more is generated"):
        served(long, server)
    with pytest.raises(ServerError, match=r"was asked 2 times and did not answer \(.*refused"):
        served(text, server, url="http://127.0.0.1:9/v1", retries=1)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"url": "localhost:8000"}, "url must be an address like http://localhost:8000/v1, got 'localhost:8000'"),
        ({"url": "http://me:sesame@host/v1"}, "must not hold a name or password"),
        ({"url": "http://host name/v1"}, "url must be an address"),
        ({"form": "ecco"}, "form must be prompt_logprobs or echo, got 'ecco'; did you mean 'echo'?"),
        ({"k": 301}, "k must be at most the 300 entries of the vocabulary, got 301"),
        ({"k": 0}, "k must be a whole number of at least 1, got 0"),
        ({"concurrency": 0}, "concurrency must be a whole number of at least 1, got 0"),
        ({"timeout": 0}, "timeout must be a positive number of seconds, got 0"),
    ],
)
def test_settings_out_of_range(text: StdlibText, server: Server, options: dict, sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        served(text, server, **options)
    assert sentence in str(caught.value) and "sesame" not in str(caught.value)


def test_images_and_features_are_refused(text: StdlibText, server: Server) -> None:
    from kdkit.data import Tensors

    data = Tensors(torch.zeros(4, 1, 4, 4, dtype=torch.uint8), torch.arange(4) % 2, name="made up")
    with pytest.raises(ConfigError, match="teacher=served answers about text"):
        ServedTeacher(Classification(data.spec), url=server.url, model="large", vocab_size=300)
    teacher = served(text, server)
    teacher.tap({})
    with pytest.raises(ConfigError, match=r"features \(penultimate\) are not in the answers of a server"):
        teacher.tap({"penultimate": "penultimate"})
    assert teacher.identity == served(text, server, form="echo").identity != served(text, server, k=9).identity


def test_waits_that_a_server_asks_for() -> None:
    assert _seconds("12") == 12.0 and _seconds(None) == _seconds("soon") == _seconds("-1") == 0.0
    assert _seconds("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert _seconds("Wed, 21 Oct 2095 07:28:00 GMT") > 1e9
    assert in_one_line("a\x1b[31m\n b" + "c" * 999) == "a [31m b" + "c" * 292 + "…"
