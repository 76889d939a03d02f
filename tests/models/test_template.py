from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from caryatid.errors import InputError
from caryatid.models.template import ChatFormat
from tiny import BOS, CHATML, END, INST, PAD, tiny_tokenizer

TRIMMING = CHATML.replace("message['content'] +", "(message['content'] | trim) +")
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + CHATML
)
TEMPLATES = {"chatml": CHATML, "inst": INST, "trimming": TRIMMING}
TEXTS = ("How do I write a letter?", "!! ", "a\n\n", "…", "🙂", ' say "yes".', "] [", "[/INST]", "\n")


@cache
def chat_format(name: str) -> ChatFormat:
    return ChatFormat(tiny_tokenizer(template=TEMPLATES[name]))


ENDINGS = st.text(alphabet=st.sampled_from("ab .!?)]/[\n\t\"'`…é中🙂"), max_size=6)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_the_rendered_text_tokenised_once(name: str, text: str) -> None:
    tokenizer = tiny_tokenizer(template=TEMPLATES[name], add_bos=True)
    chat = ChatFormat(tokenizer)
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
    )
    assert chat.text(text) == rendered
    assert tokenizer.decode(chat.ids(text)) == rendered
    assert chat.ids(text) == tokenizer.backend_tokenizer.encode(rendered, add_special_tokens=False).ids
    assert chat.ids_many([text, "b"]) == [chat.ids(text), chat.ids("b")]


def test_bos_is_there_only_as_often_as_the_template_writes_it() -> None:
    bos = tiny_tokenizer().convert_tokens_to_ids(BOS)
    plain = tiny_tokenizer(template=CHATML, add_bos=True)
    assert plain("a")["input_ids"][0] == bos  # the tokenizer would add one
    assert ChatFormat(plain).ids("a").count(bos) == 0
    assert ChatFormat(tiny_tokenizer(template=INST, add_bos=True)).ids("a").count(bos) == 1


def test_post_instruction_tokens_of_two_templates() -> None:
    chat = ChatFormat(tiny_tokenizer())
    assert "".join(chat.post_tokens) == "<|im_end|>\n<|im_start|>assistant\n"
    assert chat.post_tokens[0] == END
    assert chat.n_post == len(chat.post_tokens)
    inst = ChatFormat(tiny_tokenizer(template=INST))
    assert inst.after == " [/INST]"
    assert inst.before == "<s>[INST] "


def test_tokens_that_merge_with_the_users_text_are_not_post_instruction() -> None:
    """A template whose text goes on with punctuation: it merges with punctuation at the end of the user's text."""
    template = "{{ 'user: ' + messages[0]['content'] + '?!! go' }}"
    tokenizer = tiny_tokenizer(template=template)
    merged = [
        text
        for text in ("!", "?", "??", "a", "...", "!!")
        if tokenizer.encode(f"user: {text}?!! go", add_special_tokens=False)
        != tokenizer.encode(f"user: {text}", add_special_tokens=False)
        + tokenizer.encode("?!! go", add_special_tokens=False)
    ]
    assert merged, "the tokenizer merges nothing here, so the test would prove nothing"
    chat = ChatFormat(tokenizer)
    assert "".join(chat.post_tokens) != "?!! go"
    assert "?!! go".endswith("".join(chat.post_tokens))
    for text in (*merged, "plain"):
        assert chat.ids(text)[-chat.n_post :] == chat.post_ids


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=60, deadline=None)
@given(text=ENDINGS)
def test_no_text_changes_the_shared_tokens(name: str, text: str) -> None:
    chat = chat_format(name)
    ids = chat.ids(f"{text}x{text}")
    assert ids[-chat.n_post :] == chat.post_ids
    assert ids[: len(chat.prefix_ids)] == chat.prefix_ids


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=60, deadline=None)
@given(text=ENDINGS)
def test_spans_hold_the_users_text(name: str, text: str) -> None:
    chat = chat_format(name)
    tokenizer = chat.tokenizer
    user = f"{text}word{text}"
    ids, start, end = chat.spans(user)
    assert ids == chat.ids(user)
    held = tokenizer.decode(ids[start:end])
    assert user.strip() in held
    assert len(chat.prefix_ids) <= start < end <= len(ids) - chat.n_post
    # Tight: one token fewer on either side loses a part of the user's text.
    kept = user.strip() if name == "trimming" else user
    for a, b in ((start + 1, end), (start, end - 1)):
        assert kept not in tokenizer.decode(ids[a:b]) or kept in tokenizer.decode(ids[start:end]).replace(
            kept, "", 1
        )


def test_empty_text_has_no_span() -> None:
    for name in ("chatml", "trimming"):
        with pytest.raises(InputError, match="empty"):
            ChatFormat(tiny_tokenizer(template=TEMPLATES[name])).spans("" if name == "chatml" else "  ")


def test_system_message_default_none_and_explicitly_empty() -> None:
    tokenizer = tiny_tokenizer()
    assert "You are a tiny model" in ChatFormat(tokenizer).text("a")
    empty = ChatFormat(tokenizer, system="").text("a")
    assert empty.startswith("<|im_start|>system\n<|im_end|>\n")
    assert "tiny model" not in empty
    assert "Be brief" in ChatFormat(tokenizer, system="Be brief").text("a")


def test_answers_carry_the_end_of_turn() -> None:
    tokenizer = tiny_tokenizer()
    chat = ChatFormat(tokenizer)
    end = tokenizer.convert_tokens_to_ids(END)
    assert chat.end_of_turn_ids == (end,)
    assert chat.stop_ids == {end}
    assert tokenizer.decode(chat.answer_ids("Sorry, no.")) == f"Sorry, no.{END}"
    assert tokenizer.decode(chat.answer_ids("Sorry, no.", end_of_turn=False)) == "Sorry, no."
    inst = ChatFormat(tiny_tokenizer(template=INST))
    assert (
        tokenizer.decode(inst.answer_ids("Sure")) == f" Sure{END}"
    )  # the template's own space before an answer
    full = tokenizer.apply_chat_template(
        [{"role": "user", "content": "q"}, {"role": "assistant", "content": "Sorry"}], tokenize=False
    )
    assert full.startswith(tokenizer.decode(chat.ids("q") + chat.answer_ids("Sorry")))


def test_a_turn_may_end_in_several_tokens_or_in_none_of_its_own() -> None:
    several = CHATML.replace("message['content'] + '<|im_end|>\n'", "message['content'] + '\n<|im_end|>\n'")
    tokenizer = tiny_tokenizer(template=several)
    chat = ChatFormat(tokenizer)
    assert tokenizer.decode(list(chat.end_of_turn_ids)) == f"\n{END}"
    assert chat.stop_ids == {tokenizer.eos_token_id}  # a newline must not end an answer
    plain = ChatFormat(
        tiny_tokenizer(
            template="{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
        )
    )
    assert plain.end_of_turn_ids == (tokenizer.eos_token_id,)


def test_a_turn_ending_in_a_token_that_is_not_eos_stops_at_both() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = PAD
    chat = ChatFormat(tokenizer)
    assert chat.stop_ids == {tokenizer.convert_tokens_to_ids(END), tokenizer.convert_tokens_to_ids(PAD)}


def test_todays_date_does_not_enter_a_prompt() -> None:
    dated = (
        "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
        "{{ date_string }} " + CHATML
    )
    assert ChatFormat(tiny_tokenizer(template=dated)).text("a").startswith("26 Jul 2024 ")


@pytest.mark.parametrize(
    ("template", "system", "message"),
    [
        (None, None, "no chat template.*chat_template.jinja"),
        ("{{ 'hello' }}", None, "0 times"),
        ("{{ messages[0]['content'] + messages[0]['content'] }}", None, "2 times"),
        (NO_SYSTEM, "Be brief", "System role not supported.*Leave the system message out"),
    ],
)
def test_unusable_templates_are_refused(template: str | None, system: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ChatFormat(tiny_tokenizer(template=template), system=system)


def test_a_template_that_rewrites_a_text_is_noticed() -> None:
    chat = ChatFormat(
        tiny_tokenizer(
            template=CHATML.replace("message['content'] +", "message['content'].replace('cat', 'dog') +")
        )
    )
    with pytest.raises(InputError, match="rewrites"):
        chat.spans("a cat")


LLAMA2 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)


def prefixing_tokenizer() -> PreTrainedTokenizerFast:
    """As Llama 2's: a text that does not begin with a control token gets a space in front when tokenised."""
    raw = Tokenizer(
        models.Unigram([("<unk>", 0.0), ("▁", -2.0), ("▁▁", -1.0), *((c, -3.0) for c in CHARACTERS)], 0)
    )
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    raw.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ("<s>", "</s>")])
    found = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    found.chat_template = LLAMA2
    return found


CHARACTERS = sorted(
    set("[INST]/[/INST] Hello there QxZuserTextZxQ QxZanswerTextZxQ !") | set(map(chr, range(33, 127)))
)


@pytest.mark.parametrize("answer", ["Hello", "Hello there", "Hi!"])
def test_an_answers_end_is_tokenised_as_in_the_whole_conversation(answer: str) -> None:
    tokenizer = prefixing_tokenizer()
    chat = ChatFormat(tokenizer)
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": answer}]
    whole = tokenizer(tokenizer.apply_chat_template(turns, tokenize=False), add_special_tokens=False)[
        "input_ids"
    ]
    assert chat.ids("Hi") + chat.answer_ids(answer) == whole
    space, end = (tokenizer.convert_tokens_to_ids(token) for token in ("▁", "</s>"))
    assert chat.end_of_turn_ids == (space, end)
    # On its own the same end gets one space too many.
    assert tokenizer(" </s>", add_special_tokens=False)["input_ids"] != [space, end]
    assert chat.ids("Hi") + chat.answer_ids(answer, end_of_turn=False) == whole[:-2]


PARTS = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ':' }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ '<image>' }}{% endif %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] + ' ' }}{% endfor %}"
    "{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant:' }}{% endif %}"
)
STRICT = "{% if messages[0]['content'] is string %}{{ raise_exception('no parts') }}{% endif %}" + PARTS


@pytest.mark.parametrize("template", [PARTS, STRICT], ids=["silent", "strict"])
def test_a_template_that_takes_messages_in_parts(template: str) -> None:
    """LLaVA's, Idefics' and SmolVLM's: plain text in its place is passed over without a word, or refused."""
    chat = ChatFormat(tiny_tokenizer(template=template), "Be short.")
    assert (
        chat.text("Hi")
        == "<|im_start|>system:Be short. <|im_end|><|im_start|>user:Hi <|im_end|><|im_start|>assistant:"
    )
    assert chat.tokenizer.decode(chat.answer_ids("Yes")) == "Yes <|im_end|>"
    assert chat.end_of_turn_ids[-1:] == (chat.tokenizer.eos_token_id,)
    start = "<|im_start|>system:Be short. <|im_end|><|im_start|>user:"
    assert chat.text("Hi") == f"{start}Hi <|im_end|><|im_start|>assistant:"
    assert chat.tokenizer.decode(chat.answer_ids("Yes")) == "Yes <|im_end|>"
    assert chat.end_of_turn_ids[-1:] == (chat.tokenizer.eos_token_id,)


def test_a_template_that_leaves_the_system_message_out_is_refused() -> None:
    template = CHATML.replace(
        "{{ '<|im_start|>' + m", "{% if message['role'] != 'system' %}{{ '<|im_start|>' + m"
    )
    template = template.replace("<|im_end|>\n' }}{% endfor", "<|im_end|>\n' }}{% endif %}{% endfor")
    assert ChatFormat(tiny_tokenizer(template=template), "").text("Hi") == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    with pytest.raises(InputError, match="leaves the system message out"):
        ChatFormat(tiny_tokenizer(template=template), "Be short.")
