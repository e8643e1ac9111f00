"""Documents out of files and records."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from kdkit.data._documents import Document
from kdkit.data._records import Fields, expand, read_file
from kdkit.errors import DataError, InputError


def parquet(path: Path, columns: dict[str, list[Any]]) -> Path:
    import pyarrow
    from pyarrow import parquet as writer

    writer.write_table(pyarrow.table(columns), path)
    return path


def test_txt(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\n\ntwo größe\n\n \n\n", encoding="utf-8")
    assert read_file(path, Fields()) == [Document("one\n\ntwo größe\n\n \n\n")]
    assert read_file(path, Fields(), "\n\n") == [Document("one"), Document("two größe")]


def test_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one", "n": 1}\n\n{"text": " "}\n{"text": "lone \\ud800"}\n')
    assert read_file(path, Fields()) == [Document("one"), Document("lone ?")]


def test_prompt_and_completion(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"q": "1+1=", "a": "2"}\n{"q": "", "a": "free"}\n')
    fields = Fields(prompt="q", completion="a")
    assert read_file(path, fields) == [Document("2", "1+1="), Document("free")]


def test_parquet(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", {"text": ["one", "two", ""], "n": [1, 2, 3]})
    assert read_file(path, Fields()) == [Document("one"), Document("two")]


def test_expand(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "deep/c.jsonl", "note.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    names = lambda files: [file.name for file in files]  # noqa: E731
    assert names(expand(str(tmp_path))) == ["a.txt", "b.txt", "c.jsonl"]
    assert names(expand(str(tmp_path / "*.txt"))) == ["a.txt", "b.txt"]
    assert names(expand([str(tmp_path / "a.txt"), str(tmp_path / "**" / "*.jsonl")])) == ["a.txt", "c.jsonl"]
    assert names(expand([str(tmp_path / "a.txt"), str(tmp_path)])) == ["a.txt", "b.txt", "c.jsonl"]
    with pytest.raises(DataError, match=r"nothing/\*.txt does not exist, or holds no .txt, .jsonl, .parquet file"):
        expand(str(tmp_path / "nothing" / "*.txt"))
    with pytest.raises(DataError, match=r"note.md must end in one of .txt, .jsonl, .parquet, got '.md'; convert it"):
        expand(str(tmp_path / "note.md"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"a.jsonl, line 2 is not JSON \("),
        ("[1]", r"a.jsonl, line 2 must be a JSON object, got list"),
        ('{"txet": "x"}', r"a.jsonl, line 2 has no field 'text'; did you mean 'txet'"),
        ('{"text": 3}', r"a.jsonl, line 2: field 'text' must be text, got int"),
        ('{"text": null}', r"a.jsonl, line 2: field 'text' must be text, got NoneType"),
    ],
)
def test_bad_lines(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "fine"}) + "\n" + line + "\n")
    with pytest.raises(DataError, match=message):
        read_file(path, Fields())


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a.parquet has no field 'text'; did you mean 'texts'"):
        read_file(parquet(tmp_path / "a.parquet", {"texts": ["x"]}), Fields())
    with pytest.raises(DataError, match=r"b.parquet, row 2: field 'text' must be text, got NoneType"):
        read_file(parquet(tmp_path / "b.parquet", {"text": ["x", None]}), Fields())
    (tmp_path / "c.parquet").write_text("no parquet")
    with pytest.raises(DataError, match=r"c.parquet is not a parquet file \("):
        read_file(tmp_path / "c.parquet", Fields())
    (tmp_path / "d.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(DataError, match=r"d.txt cannot be read \(.*utf-8"):
        read_file(tmp_path / "d.txt", Fields())


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs a user whom files can be closed to")
def test_unreadable_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("x")
    path.chmod(0)
    with pytest.raises(DataError, match=r"a.txt cannot be read \(.*Permission"):
        read_file(path, Fields())


def test_fields_come_in_pairs() -> None:
    with pytest.raises(InputError, match="prompt_field and completion_field go together, got prompt_field='q' and"):
        Fields(prompt="q")
