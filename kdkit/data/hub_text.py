"""Any text set that the ``datasets`` library can load."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdkit.data._base import Split
from kdkit.data._documents import Corpus, Document, check_shares, content_key
from kdkit.data._records import Fields
from kdkit.data._text_rows import TextRows
from kdkit.data.text_files import split_documents
from kdkit.errors import DataError, InputError, did_you_mean

__all__ = ["HubText"]

_USUAL = {"train": ("train",), "val": ("validation", "valid", "val", "dev"), "test": ("test",)}


class HubText(TextRows):
    """Documents out of ``datasets.load_dataset``: a hub name, a local folder, or a format such as ``"json"``.

    Args:
        dataset: first argument of ``load_dataset``.
        config: its second argument, for sets that come in several.
        revision: commit, branch or tag on the hub.
        data_files: passed on, for formats (``"json"``, ``"text"``, ...) and folders.
        splits: from ``train``, ``val``, ``test`` to the set's own splits, slices such as ``"train[:1%]"`` included;
            ``None`` takes those with the usual names. A missing ``val`` or ``test`` is drawn from ``train`` by the
            hash of each document.
        val_share: share of the training documents that validate when there is no such split; 0 for none.
        test_share: likewise for ``test``.
        text_field: field that holds the text.
        prompt_field: field with a prompt, which is read but not learnt; goes with ``completion_field``.
        completion_field: field with the answer to the prompt; replaces ``text_field``.
        source_field: field that says where a document is from, for teachers by source; ``None`` for nothing.
        tokenizer: a folder, a hub name or a fast tokenizer; ``None`` trains a byte-level BPE on the training split.
        vocab_size: entries of the trained tokenizer.
        context: tokens per row.
        packing: whether documents share rows.
        teacher_tokenizer: of a teacher whose tokenizer is another: a folder, a hub name or a fast tokenizer, or
            ``{"kind": "unigram" or "bpe", "vocab_size": ...}`` to train one; ``None`` where both share one.

    Raises:
        DataError: when the set cannot be loaded, or splits or fields are missing.
        InputError: when an option is out of range.
    """

    def __init__(
        self,
        dataset: str,
        config: str | None = None,
        *,
        revision: str | None = None,
        data_files: Any = None,
        splits: Mapping[str, str] | None = None,
        val_share: float = 0.05,
        test_share: float = 0.05,
        text_field: str = "text",
        prompt_field: str | None = None,
        completion_field: str | None = None,
        source_field: str | None = None,
        tokenizer: Any = None,
        vocab_size: int = 4096,
        context: int = 256,
        packing: bool = True,
        teacher_tokenizer: Any = None,
    ) -> None:
        check_shares(val_share, test_share)
        fields = Fields(text_field, prompt_field, completion_field, source_field)
        loaded = _load(dataset, splits, {"name": config, "revision": revision, "data_files": _plain(data_files)})
        read = {split: _read(part, fields, f"HubText: {dataset} {split}") for split, part in loaded.items()}
        documents = split_documents(read, val_share, test_share, "HubText")
        super().__init__(
            Corpus(content_key(documents), lambda: documents),
            name=dataset.rstrip("/").split("/")[-1],
            tokenizer=tokenizer,
            vocab_size=vocab_size,
            context=context,
            packing=packing,
            sourced=source_field is not None,
            teacher_tokenizer=teacher_tokenizer,
        )


def _plain(value: Any) -> Any:
    """Mappings and lists as ``dict`` and ``list``, whatever the config library made of them."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if hasattr(value, "__iter__") and not isinstance(value, str) else value


def _load(dataset: str, splits: Mapping[str, str] | None, options: dict[str, Any]) -> dict[Split, Any]:
    import datasets

    for split in splits or ():
        if split not in _USUAL:
            raise InputError(f"HubText: splits has an unknown key {split!r}{did_you_mean(str(split), _USUAL)}")
    if splits is not None and "train" not in splits:
        raise InputError(f"HubText: splits must name train, got {', '.join(splits) or 'nothing'}")
    try:
        wanted = None if splits is None else list(splits.values())
        loaded = datasets.load_dataset(dataset, split=wanted, **options)
    except Exception as error:  # the library raises errors of many kinds, its own and those of its dependencies
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise DataError(
            f"HubText: dataset {dataset!r} cannot be loaded ({reason}); check the name, config and splits, "
            "or give a local folder"
        ) from None
    if splits is not None:
        return dict(zip(splits, loaded))  # type: ignore[return-value]
    found: dict[Any, Any] = {}
    for split, names in _USUAL.items():
        present = [name for name in names if name in loaded]
        if present:
            found[split] = loaded[present[0]]
    if "train" not in found:
        raise DataError(
            f"HubText: {dataset!r} has the splits {', '.join(loaded)}, none called train; map it in splits="
        )
    return found


def _read(part: Any, fields: Fields, where: str) -> list[Document]:
    for name in fields.names:
        if name not in part.column_names:
            raise DataError(f"{where} has no field {name!r}{did_you_mean(name, part.column_names)}")
    part = part.select_columns(fields.names)
    documents = [fields.document(record, f"{where}, row {number}") for number, record in enumerate(part, start=1)]
    return [document for document in documents if document.text.strip()]
