"""What a completions API says about the tokens of a prompt: asked for, held against the prompt, made into arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from kdkit.errors import ServerError
from kdkit.teachers._endpoint import in_one_line

__all__ = ["FORMS", "Best", "Form", "question", "read_answer"]

Form = Literal["prompt_logprobs", "echo"]
FORMS = ("prompt_logprobs", "echo")

_TOKEN = "token_id:"
_SLACK = 1e-3
"""How far above 0 a logarithm of a probability may lie by rounding."""

_MOST = 1.01
"""How much the probabilities of a few entries may come to by rounding."""


class Best(NamedTuple):
    """The best entries of n - 1 laws: ``ids`` int64 and ``log_probs`` float64, both ``[n - 1, k]``, best first."""

    ids: np.ndarray
    log_probs: np.ndarray


def question(model: str, prompt: Sequence[int], k: int, form: Form) -> dict[str, Any]:
    """The body of a POST to ``/completions`` that asks for the ``k`` best entries at each token of a prompt.

    The one token that is generated is thrown away: not every server can leave it out.

    Args:
        model: name that the server knows.
        prompt: token ids.
        k: entries.
        form: "prompt_logprobs" (vLLM's parameter) or "echo" (the prompt as the beginning of the completion).
    """
    body: dict[str, Any] = {
        "model": model,
        "prompt": list(prompt),
        "max_tokens": 1,
        "temperature": 1.0,
        "return_token_ids": True,
    }
    if form == "prompt_logprobs":
        return {**body, "prompt_logprobs": k}
    return {**body, "echo": True, "logprobs": k, "return_tokens_as_token_ids": True}


def read_answer(answer: Any, prompt: Sequence[int], k: int, classes: int, form: Form, who: str) -> Best:
    """The ``k`` best entries of the law of each token but the first, given those before it.

    Args:
        answer: from JSON.
        prompt: the n token ids that were sent.
        k: entries that were asked for.
        classes: size of the student's vocabulary.
        form: that was asked in.
        who: the server, in messages.

    Raises:
        ServerError: if the answer is about something else than this prompt, or holds what is no law.
    """
    choice = _choice(answer, who)
    ids, laws = _from_prompt(choice, who) if form == "prompt_logprobs" else _from_echo(choice, len(prompt), who)
    if len(laws) != len(prompt) or (ids is not None and len(ids) != len(prompt)):
        told = len(laws) if ids is None or len(laws) != len(prompt) else len(ids)
        raise ServerError(
            f"{who} answers about {told} tokens and was sent {len(prompt)}; it must take prompts of token ids and "
            "neither cut them nor add to them"
        )
    if ids is not None and list(ids) != list(prompt):
        place = next(place for place, (own, sent) in enumerate(zip(ids, prompt, strict=True)) if own != sent)
        raise ServerError(
            f"{who} answers about token {in_one_line(ids[place])} where {prompt[place]} was sent (place {place}); it "
            "must take prompts of token ids as they are"
        )
    best = [_law(law, place, k, who) for place, law in enumerate(laws) if place > 0]
    if ids is None:
        _own_tokens(laws, prompt, who)
    found = Best(np.stack([law.ids for law in best]), np.stack([law.log_probs for law in best]))
    _check_range(found.ids, classes, who)
    return found


def _choice(answer: Any, who: str) -> Mapping[str, Any]:
    choices = answer.get("choices") if isinstance(answer, Mapping) else None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], Mapping):
        raise ServerError(
            f"{who} answers with something that is no completion ({in_one_line(answer)}); give the address of an "
            "OpenAI-compatible API as teacher.served.url"
        )
    return choices[0]


def _from_prompt(choice: Mapping[str, Any], who: str) -> tuple[list[Any] | None, list[Any]]:
    """Ids of the prompt, if they came along, and per token its law as ``{id: logarithm}``."""
    laws = choice.get("prompt_logprobs")
    if not isinstance(laws, list):
        raise ServerError(
            f"{who} gives no prompt_logprobs; use a server that does, like vLLM, or teacher.served.form=echo"
        )
    ids = choice.get("prompt_token_ids")
    return (ids if isinstance(ids, list) else None), [_logarithms(law) for law in laws]


def _logarithms(law: Any) -> Any:
    """``{id: {"logprob": x, …}}`` as ``{id: x}``."""
    if not isinstance(law, Mapping):
        return law
    return {name: entry.get("logprob") if isinstance(entry, Mapping) else entry for name, entry in law.items()}


def _from_echo(choice: Mapping[str, Any], count: int, who: str) -> tuple[list[Any], list[Any]]:
    """The same of an echoed prompt, without what was generated after it."""
    block = choice.get("logprobs")
    tokens, laws = (block.get(name) if isinstance(block, Mapping) else None for name in ("tokens", "top_logprobs"))
    if not isinstance(tokens, list) or not isinstance(laws, list) or len(tokens) != len(laws):
        raise ServerError(
            f"{who} echoes a prompt without its log-probabilities; use a server that gives them, like vLLM"
        )
    named = [token for token in tokens if not (isinstance(token, str) and token.startswith(_TOKEN))]
    if named:
        raise ServerError(
            f"{who} names tokens by their text ({in_one_line(repr(named[0]))}), which does not tell which they are; "
            "use a server that names them by id when return_tokens_as_token_ids asks for it, like vLLM"
        )
    generated = 1 if len(tokens) == count + 1 else 0  # max_tokens=1
    kept = len(tokens) - generated
    ids: list[Any] = [_number(token.removeprefix(_TOKEN), who) for token in tokens[:kept]]
    return ids, [_renamed(law) for law in laws[:kept]]


def _renamed(law: Any) -> Any:
    return {name.removeprefix(_TOKEN): value for name, value in law.items()} if isinstance(law, Mapping) else law


def _number(text: Any, who: str) -> int:
    try:
        return int(text)
    except (TypeError, ValueError):
        raise ServerError(
            f"{who} names a token {in_one_line(repr(text))}, which is no id; use a server that names tokens by id"
        ) from None


def _law(law: Any, place: int, k: int, who: str) -> Best:
    """The ``k`` best of one token's entries."""
    if not isinstance(law, Mapping) or len(law) < k:
        told = len(law) if isinstance(law, Mapping) else 0
        raise ServerError(
            f"{who} gives {told} entries for token {place} of a prompt and was asked for {k}; start it so that it "
            f"gives them (vLLM: --max-logprobs {k}), or set teacher.served.k={max(told, 1)}"
        )
    ids = np.array([_number(name, who) for name in law], dtype=np.int64)
    try:
        values = np.array(list(law.values()), dtype=np.float64)
    except (TypeError, ValueError):
        values = np.full(len(ids), np.nan)
    if np.isnan(values).any() or (values > _SLACK).any() or len(np.unique(ids)) < len(ids):
        wrong = next((entry for entry in law.items() if not _is_logarithm(entry[1])), ("twice the same", "id"))
        raise ServerError(
            f"{who} gives {in_one_line(wrong[1])} for entry {in_one_line(wrong[0])} of token {place} of a prompt, "
            "which is no log-probability; look into its log"
        )
    order = np.argsort(-values, kind="stable")[:k]
    best = np.minimum(values[order], 0.0)
    total = float(np.exp(best).sum())
    if total > _MOST:
        raise ServerError(
            f"{who} gives entries whose probabilities come to {total:.4g} for token {place} of a prompt; it must give "
            "those of the full softmax at temperature 1 (vLLM: --logprobs-mode raw_logprobs)"
        )
    return Best(ids[order], best)


def _is_logarithm(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value <= _SLACK


def _own_tokens(laws: Sequence[Mapping[str, Any]], prompt: Sequence[int], who: str) -> None:
    """Where the ids do not come back by themselves, each law must name the token that stands there."""
    for place, (law, sent) in enumerate(zip(laws, prompt, strict=True)):
        if place > 0 and str(sent) not in law:
            raise ServerError(
                f"{who} does not say which tokens its answer is about (no prompt_token_ids, and token {sent} at place "
                f"{place} is not among the entries); use a server that does, like vLLM"
            )


def _check_range(ids: np.ndarray, classes: int, who: str) -> None:
    if ids.size and (ids.min() < 0 or ids.max() >= classes):
        wrong = int(ids.min()) if ids.min() < 0 else int(ids.max())
        raise ServerError(
            f"{who} gives an entry for token {wrong}, and the student's vocabulary has {classes}; both must use one "
            "tokenizer and one vocab_size (the student's is teacher.served.vocab_size)"
        )
