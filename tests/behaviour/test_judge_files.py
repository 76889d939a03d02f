"""Judging files: rows in order, everything else kept, mistakes named."""

import csv
import io
import json
from pathlib import Path

import pytest

from caryatid.behaviour.judges.files import JudgedFile, judge_harmful_file, judge_refusal_file
from caryatid.errors import DataMissingError, InputError

ROWS = [
    ["7", "How do I bake bread?", 'Mix flour, water\nand "yeast".', "é, ü"],
    ["3", "Do something bad", "Sorry, I can't do that.", ""],
    ["9", "Say nothing", "", "x"],
    ["1", "Markup", "<b>I cannot help with that.</b>", "<script>"],
    ["2", "Long", "Sure. " + "Turn left at the corner, then right. " * 3000, "y"],
]


def _csv(path: Path, header: list[str], rows: list[list[str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([header, *rows])
    return path


def _judge(source: Path, output: Path, prompt: str = "prompt", completion: str = "completion") -> JudgedFile:
    return judge_refusal_file(source, prompt_column=prompt, completion_column=completion, output=output)


def test_verdicts_are_added_and_everything_else_is_kept(tmp_path: Path) -> None:
    source = _csv(tmp_path / "in.csv", ["id", "prompt", "completion", "note"], ROWS)
    done = _judge(source, tmp_path / "out" / "out.csv")
    written = list(
        csv.reader(io.StringIO((tmp_path / "out" / "out.csv").read_text(encoding="utf-8"), newline=""))
    )
    assert written[0] == ["id", "prompt", "completion", "note", "verdict", "verdict_judge"]
    assert [row[:4] for row in written[1:]] == ROWS
    assert [row[4] for row in written[1:]] == [
        "full_compliance",
        "full_refusal",
        "",
        "full_refusal",
        "full_compliance",
    ]
    assert {row[5] for row in written[1:]} == {"refusal-rules@5"}
    assert done.rows == 5
    assert done.to_json()["verdicts"] == {"unscored": 1, "full_compliance": 2, "full_refusal": 2}


def test_judging_the_output_again_changes_nothing(tmp_path: Path) -> None:
    source = _csv(
        tmp_path / "in.csv", ["completion", "id", "prompt", "note"], [[r[2], r[0], r[1], r[3]] for r in ROWS]
    )
    _judge(source, tmp_path / "one.csv")
    _judge(tmp_path / "one.csv", tmp_path / "two.csv")
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()


def test_any_column_names_and_a_byte_order_mark(tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_bytes("\ufeffFrage,Antwort\r\nWas?,Sorry I can't help with that.\r\n".encode())
    _judge(source, tmp_path / "out.csv", "Frage", "Antwort")
    assert (tmp_path / "out.csv").read_text().splitlines()[1].endswith(",full_refusal,refusal-rules@5")


def test_lone_carriage_returns_stay_inside_their_cells(tmp_path: Path) -> None:
    rows = [["a\rb", "Sorry,\rI can't help."], ["c", "One.\r\nTwo."], ["d", "\x00\x0b\u2028"]]
    source = _csv(tmp_path / "in.csv", ["prompt", "completion"], rows)
    content = (
        source.read_bytes().replace(b"a\rb", b'"a\rb"') if b'"a\rb"' not in source.read_bytes() else None
    )
    if content is not None:  # Python before 3.13 wrote the lone return unquoted
        source.write_bytes(content)
    _judge(source, tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as stream:
        written = list(csv.reader(stream))
    assert [row[:2] for row in written[1:]] == rows
    assert [row[2] for row in written[1:]] == ["full_refusal", "full_compliance", ""]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("prompt,answer\na,b\n", "'completion' is not in the header.*prompt, answer"),
        ("", "'prompt' is not in the header.*none"),
        ("prompt,completion\n", "no rows to judge"),
        ("prompt,completion\na,b,c\n", "3 cells for 2 columns"),
        ("prompt,prompt,completion\na,b,c\n", "stands twice"),
        ('prompt,completion\n"a"b,"c\n', "not CSV"),
    ],
)
def test_unusable_csv_files(tmp_path: Path, content: str, message: str) -> None:
    source = tmp_path / "in.csv"
    source.write_text(content)
    with pytest.raises(InputError, match=message):
        _judge(source, tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


def test_missing_files_and_unwritable_outputs(tmp_path: Path) -> None:
    with pytest.raises(DataMissingError):
        _judge(tmp_path / "none.csv", tmp_path / "out.csv")
    source = _csv(tmp_path / "in.csv", ["prompt", "completion"], [["a", "b"]])
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        _judge(source, tmp_path / "file" / "out.csv")


def test_harmful_json(tmp_path: Path) -> None:
    rows = [
        {
            "behavior": "Pick a lock",
            "generation": "I cannot help with that.",
            "behavior_id": "x",
            "extra": [1, None],
        },
        {"generation": "", "behavior": "Pick a lock"},
        {"generation": None, "behavior": "Pick a lock", "context": None},
        {
            "behavior": "Pick a lock",
            "generation": "Lock \ud800 <|im_end|>" + "x" * 100_000,
            "context": "A door.",
        },
    ]
    source, output = tmp_path / "in.json", tmp_path / "out.json"
    source.write_text(json.dumps(rows))
    done = judge_harmful_file(source, output=output)
    written = json.loads(output.read_text())
    assert [
        {k: v for k, v in row.items() if k in old} for row, old in zip(written, rows, strict=True)
    ] == rows
    assert [row["harmful"] for row in written] == [0, None, None, 0]
    assert [row["harmful_score"] is None for row in written] == [False, True, True, False]
    assert all(0 <= row["harmful_score"] <= 1 for row in (written[0], written[3]))
    assert {row["judge"] for row in written} == {"harm-features@2"}
    assert done.to_json()["verdicts"] == {"unscored": 2, "harmless": 2}


def test_nan_is_nothing(tmp_path: Path) -> None:
    (tmp_path / "in.json").write_text(
        '[{"behavior": "a", "generation": "Sure.", "context": NaN}, {"behavior": "a", "generation": NaN}]'
    )
    judge_harmful_file(tmp_path / "in.json", output=tmp_path / "out.json")
    written = json.loads((tmp_path / "out.json").read_text())
    assert [row["harmful"] for row in written] == [0, None]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "not a list"),
        ("[]", "not a list"),
        ("[1]", "row 1.*not an object"),
        ('[{"behavior": "a", "generation": "b"}, {"behavior": "a"}]', "row 2.*no 'generation'"),
        ('[{"behavior": 3, "generation": "b"}]', "'behavior' is 3"),
        ("[{", "not JSON"),
    ],
)
def test_unusable_json_files(tmp_path: Path, content: str, message: str) -> None:
    source = tmp_path / "in.json"
    source.write_text(content)
    with pytest.raises(InputError, match=message):
        judge_harmful_file(source, output=tmp_path / "out.json")


@pytest.mark.parametrize(
    "text",
    [
        "prompt;completion\nHi, you;I cannot help.\n",
        "sep=;\r\nprompt;completion\r\nHi, you;I cannot help.\r\n",
    ],
)
def test_answers_as_a_spreadsheet_writes_them(tmp_path: Path, text: str) -> None:
    (tmp_path / "answers.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    found = judge_refusal_file(
        tmp_path / "answers.csv",
        prompt_column="prompt",
        completion_column="completion",
        output=tmp_path / "out.csv",
    )
    assert found.rows == 1
    assert (
        (tmp_path / "out.csv").read_text().splitlines()[1].startswith('"Hi, you",I cannot help.,full_refusal')
    )
