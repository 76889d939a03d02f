"""Readers: the benchmarks' formats, and users' files with their mistakes."""

import json
from pathlib import Path

import pytest

from caryatid.data.prompts import Role
from caryatid.data.readers import (
    read_harmbench,
    read_harmful_split,
    read_prompt_file,
    read_seed_tasks,
    read_strongreject,
    read_xstest_safe,
    read_xstest_unsafe,
)
from caryatid.errors import DataMissingError, InputError

HARMBENCH = (
    b"Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID\r\n"
    b'"Say ""hi"", please ",standard,illegal,,,one\r\n'
    b'Do it,contextual,illegal,context,"A story,\nwith two lines",two\r\n'
    b"Sing it,copyright,copyright,lyrics,,three\r\n"
)


def user_file(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(path, label="harmful"):
    return read_prompt_file(path, name="pool", role=Role.TRAINING, label=label)


def test_harmbench_keeps_text_context_kind_and_targets():
    targets = {"one": "Sure, hi", "two": ["Sure, a", "", "Here, b"], "three": "Sure, la"}
    one, two, three = read_harmbench("harmbench_test", [HARMBENCH, json.dumps(targets).encode()])
    assert one.text == 'Say "hi", please '
    assert one.context is None
    assert one.targets == ("Sure, hi",)
    assert two.context == "A story,\nwith two lines"
    assert two.user_text == "A story,\nwith two lines\n\n---\n\nDo it"
    assert two.targets == ("Sure, a", "Here, b")
    assert [p.kind for p in (one, two, three)] == ["standard", "contextual", "copyright"]
    assert (two.id, two.category, two.label, two.set_name) == ("two", "illegal", "harmful", "harmbench_test")


def test_strongreject_rows_are_numbered():
    content = b'category,source,forbidden_prompt\nViolence,custom,How?\nViolence,custom,"Why, then?"\n'
    prompts = read_strongreject("strongreject", [content])
    assert [p.id for p in prompts] == ["strongreject_001", "strongreject_002"]
    assert prompts[1].text == "Why, then?"
    assert prompts[1].category == "Violence"


def test_xstest_halves():
    content = (
        b"id,prompt,type,label,focus,note\n1,Kill a process?,homonyms,safe,kill,violence\n"
        b"2,Kill a man?,contrast_homonyms,unsafe,kill,violence\n"
    )
    (safe,) = read_xstest_safe("xstest_safe", [content])
    (unsafe,) = read_xstest_unsafe("xstest_unsafe", [content])
    assert (safe.id, safe.label, safe.kind) == ("xstest_1", "harmless", "homonyms")
    assert (unsafe.id, unsafe.label, unsafe.kind) == ("xstest_2", "harmful", "contrast_homonyms")


def test_split_and_seed_tasks():
    rows = [{"instruction": "Do", "category": None}, {"instruction": "Be", "category": "illegal"}]
    prompts = read_harmful_split("harmful_train", [json.dumps(rows).encode()])
    assert [(p.id, p.category) for p in prompts] == [
        ("harmful_train_1", None),
        ("harmful_train_2", "illegal"),
    ]
    task = {"id": "t", "instruction": "Add", "instances": [{"input": "1\u2028 2", "output": "3"}]}
    (seed,) = read_seed_tasks("self_instruct", [json.dumps(task, ensure_ascii=False).encode() + b"\n"])
    assert (seed.text, seed.answer) == ("Add\n\n1\u2028 2", "3")


@pytest.mark.parametrize("column", ["prompt", "text", "goal", "Behavior"])
def test_user_csv_columns(tmp_path, column):
    path = user_file(tmp_path, "mine.csv", f'\ufeff{column},target\n"Steal, then run",Sure\n\nHide it,\n')
    found = read(path)
    assert [p.text for p in found] == ["Steal, then run", "Hide it"]
    assert [p.id for p in found] == ["mine_0001", "mine_0002"]
    assert [p.targets for p in found] == [("Sure",), ()]
    assert found.role is Role.TRAINING
    assert found.source == str(path)


def test_user_file_in_harmbench_form(tmp_path):
    found = read(user_file(tmp_path, "hb.csv", HARMBENCH))
    assert [p.id for p in found] == ["one", "two", "three"]
    assert found[1].context == "A story,\nwith two lines"
    assert found[1].kind == "contextual"


def test_user_json_lists_and_lines(tmp_path):
    listed = ["Plain text", {"prompt": "With check", "id": 7, "check": {"any": ["4"]}, "targets": ["Sure"]}]
    found = read(user_file(tmp_path, "a.json", json.dumps(listed)), "harmless")
    assert [p.id for p in found] == ["a_0001", "7"]
    assert found[1].check == {"any": ["4"]}
    lines = (
        "\n".join(json.dumps(row, ensure_ascii=False) for row in ("One\u2028line", {"goal": "Two"})) + "\n"
    )
    found = read(user_file(tmp_path, "b.jsonl", lines), "harmless")
    assert [p.text for p in found] == ["One\u2028line", "Two"]


def test_rows_labelled_otherwise_are_left_out(tmp_path):
    path = user_file(tmp_path, "xs.csv", "prompt,label\nKill a process?,safe\nKill a man?,unsafe\n")
    assert [p.text for p in read(path, "harmless")] == ["Kill a process?"]
    assert [p.text for p in read(path, "harmful")] == ["Kill a man?"]


TWO = ["Write a poem", "Name a river, please"]
FILES = {
    "excel semicolons": ("csv", "id;prompt\r\n1;Write a poem\r\n2;Name a river, please\r\n"),
    "excel sep": ("csv", "sep=;\r\nid;prompt\r\n1;Write a poem\r\n2;Name a river, please\r\n"),
    "excel unicode": ("csv", "id\tprompt\r\n1\tWrite a poem\r\n2\tName a river, please\r\n".encode("utf-16")),
    "tabs": ("tsv", "id\tprompt\n1\tWrite a poem\n2\tName a river, please\n"),
    "spaces": ("csv", 'id, prompt\n1, "Write a poem"\n2, "Name a river, please"\n'),
    "empty rows": ("csv", 'id,prompt\n1,Write a poem\n,\n , \n2,"Name a river, please"\n,,\n'),
    "old mac": ("csv", 'id,prompt\r1,Write a poem\r2,"Name a river, please"\r'),
    "marks": ("csv", '\u200bid,prompt\n1,Write a poem\n2,"Name a river, please"\n'),
    "pandas ids": ("json", json.dumps([{"id": 1.0, "prompt": TWO[0]}, {"id": 2.0, "prompt": TWO[1]}])),
    "pandas nan": ("json", '[{"id": 1, "prompt": "Write a poem", "context": NaN, "targets": NaN},'
                   ' {"id": 2, "prompt": "Name a river, please", "category": NaN}]'),
    "pandas columns": ("json", json.dumps({"id": {"0": 1, "1": 2}, "prompt": {"0": TWO[0], "1": TWO[1]}})),
    "columns": ("json", '{"id": [1, 2], "prompt": ["Write a poem", "Name a river, please"]}'),
    "wrapped": ("json", '{"version": 1, "data": [{"id": 1, "prompt": "Write a poem"}, {"id": 2, "prompt": '
                '"Name a river, please"}]}'),
    "pretty lines": ("jsonl", json.dumps({"id": 1, "prompt": TWO[0]}, indent=1) + "\n"
                     + json.dumps({"id": 2, "prompt": TWO[1]}, indent=1)),
    "one line": ("jsonl", '{"id": 1, "prompt": "Write a poem"} {"id": 2, "prompt": "Name a river, please"}'),
    "messages": ("jsonl", '{"id": 1, "messages": [{"role": "user", "content": "Write a poem"}]}\n'
                 '{"id": 2, "turns": ["Name a river, please"], "context": []}\n'),
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_files_as_spreadsheets_and_pandas_write_them(tmp_path, kind):
    suffix, content = FILES[kind]
    found = read(user_file(tmp_path, f"p.{suffix}", content))
    assert [(p.id, p.text) for p in found] == [("1", TWO[0]), ("2", TWO[1])]
    assert {(p.context, p.category, p.targets) for p in found} == {(None, None, ())}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.json", '{"prompt": "Do a"}\n{"prompt": "Do b"}\n'),
        ("rows.jsonl", '[{"prompt": "Do a"}, {"prompt": "Do b"}]'),
        ("rows.ndjson", '{"prompt": "Do a"}\n{"prompt": "Do b"}\n'),
        ("rows.json", '[{"messages": [{"role": "user", "content": [{"type": "text", "text": "Do a"}]}]}, "Do b"]'),
    ],
    ids=["lines named json", "list named lines", "ndjson", "parts"],
)  # fmt: skip
def test_rows_under_another_name_or_in_parts(tmp_path, name, content):
    assert [prompt.text for prompt in read(user_file(tmp_path, name, content))] == ["Do a", "Do b"]


@pytest.mark.parametrize("cell", ['[""Sure"", ""Here""]', "['Sure', 'Here']", "[Sure]"])
def test_a_list_of_targets_in_a_cell(tmp_path, cell):
    found = read(user_file(tmp_path, "rows.csv", f'goal,target\nDo a,"{cell}"\n'))
    assert found[0].targets == (("[Sure]",) if cell == "[Sure]" else ("Sure", "Here"))


def test_the_home_folder_in_a_path(tmp_path, monkeypatch):
    """Shells leave `~` alone after an equals sign, as in --prompts harmbench=~/mine.csv."""
    monkeypatch.setenv("HOME", str(tmp_path))
    user_file(tmp_path, "mine.csv", "prompt\nDo a\n")
    assert len(read(Path("~/mine.csv"))) == 1
    with pytest.raises(DataMissingError, match="cannot be read"):
        read(Path("~nobody-of-this-name/mine.csv"))


def test_a_very_long_cell_is_read(tmp_path):
    long = "word " * 40_000
    assert read(user_file(tmp_path, "p.csv", f'id,prompt\n1,"{long}"\n'))[0].text == long


def test_alpacas_input_is_part_of_the_request(tmp_path):
    rows = [{"instruction": "Translate.", "input": "Guten Tag", "output": "Good day"}]
    rows += [{"instruction": "Name a river.", "input": "", "output": "Rhine"}]
    found = read(user_file(tmp_path, "alpaca.json", json.dumps(rows)), "harmless")
    assert [(p.text, p.answer) for p in found] == [
        ("Translate.\n\nGuten Tag", "Good day"),
        ("Name a river.", "Rhine"),
    ]


def test_jailbreakbench_and_the_old_xstest(tmp_path):
    jbb = "Index,Goal,Target,Behavior,Category\n0,Write an article,Sure,Defamation,Harassment\n"
    (found,) = read(user_file(tmp_path, "jbb.csv", jbb))
    assert (found.text, found.targets, found.category) == ("Write an article", ("Sure",), "Harassment")
    old = (
        "id_v1,id_v2,type,prompt,focus,note\nv1-1,v2-1,homonyms,Kill a process?,kill,violence\n"
        ",v2-2,contrast_homonyms,Kill a man?,kill,\n"
    )
    path = user_file(tmp_path, "old.csv", old)
    assert [(p.id, p.text) for p in read(path, "harmless")] == [("v2-1", "Kill a process?")]
    assert [(p.id, p.text) for p in read(path, "harmful")] == [("v2-2", "Kill a man?")]


@pytest.mark.parametrize(
    ("labels", "shown"),
    [
        (("0", "1"), "'0', '1'"),
        (("safe", "dangerous"), "'dangerous'"),
        (("safe", ""), "nothing"),
        (("True", "False"), "'false', 'true'"),
    ],
)
@pytest.mark.parametrize("label", ["harmful", "harmless"])
def test_labels_that_are_not_understood_are_refused(tmp_path, labels, shown, label):
    path = user_file(tmp_path, "p.csv", "prompt,label\n" + "".join(f"Do {x}!,{x}\n" for x in labels))
    with pytest.raises(InputError, match=f"labels are not understood: {shown}.*safe, harmless"):
        read(path, label)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.csv",
            "prompt,behavior\n,Steal\nName a river,Rob\n",
            r"a\.csv:3: columns prompt and behavior could both",
        ),
        (
            "a.csv",
            "prompt,system\nSteal,Be evil\n",
            r"a\.csv:2: column 'system' holds text that would not be sent",
        ),
        ("a.json", '[{"prompt": "Hi", "input": "more"}]', "column 'input' holds text"),
        (
            "a.json",
            '[{"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]}]',
            r"conversation of 2 turns \(system, user\)",
        ),
        ("a.json", '[{"prompt": ["a", "b"]}]', "conversation of 2 turns"),
        ("a.csv", "prompt,id,prompt\nx,1,y\n", "'prompt' stands twice"),
        ("a.csv", b"prompt\nWrite a \x93poem\x94\n", "not UTF-8.*CSV UTF-8"),
        (
            "a.csv",
            "id;prompt\n1;one;two\n",
            r"a\.csv:2: more cells than columns. Quote cells with semicolons",
        ),
        ("a.csv", "request\nSteal\n", r"a\.csv:2: no prompt in this row"),
        ("a.csv", "prompt\n", "no prompts for pool"),
        ("a.csv", 'prompt,id\na,b\n"c",d,e\n', r"a\.csv:3: more cells than columns"),
        ("a.csv", b"prompt\n\xff\xfe\n", "not UTF-8"),
        ("a.csv", "prompt,id\nx,1\ny,1\n", "ids used twice: 1"),
        ("a.json", '[{"prompt": "a"},\n {"prompt" "b"}]', r"a\.json:2:\d+: not JSON"),
        ("a.json", '{"prompt": "a"}', "must be a JSON list"),
        ("a.json", "[3]", "item 1: neither a string nor an object"),
        ("a.json", "[]", "no prompts for pool"),
        ("a.json", '[{"prompt": "a", "targets": 3}]', "targets must be text"),
        ("a.json", '[{"prompt": "a", "category": ["x"]}]', "category must be text"),
        ("a.json", '[{"prompt": "a", "check": {"every": ["x"]}}]', "is not understood"),
        ("a.json", '[{"prompt": "a", "check": {"any": "x"}}]', "check.any must be a list"),
        ("a.json", '[{"prompt": "a", "check": {"regex": "("}}]', "check.regex"),
        ("a.jsonl", '{"prompt": "a"}\n\n{"prompt": }\n', r"a\.jsonl:3:\d+: not JSON"),
        ("a.txt", "Steal", "unknown kind of file"),
    ],
)
def test_mistakes_in_users_files_name_the_place(tmp_path, name, content, message):
    with pytest.raises(InputError, match=message) as caught:
        read(user_file(tmp_path, name, content))
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_half_a_surrogate_pair_is_refused_before_a_tokenizer_meets_it(tmp_path):
    with pytest.raises(InputError, match=r"p.jsonl:2: half a surrogate pair"):
        read(user_file(tmp_path, "p.jsonl", '"fine \\ud83d\\ude00"\n{"text": "broken \\ud83d"}\n'))
    assert read(user_file(tmp_path, "q.jsonl", '"fine \\ud83d\\ude00"\n'))[0].text == "fine \U0001f600"


def test_an_open_quote_does_not_swallow_the_rest(tmp_path):
    with pytest.raises(InputError, match="not CSV"):
        read(user_file(tmp_path, "p.csv", 'prompt\n"open\nnext\n'))


def test_missing_user_file(tmp_path):
    with pytest.raises(DataMissingError, match="No such file") as caught:
        read(tmp_path / "none.csv")
    assert caught.value.exit_code == 3
