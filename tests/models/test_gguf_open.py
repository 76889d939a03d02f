"""A GGUF file's header is parsed once, and says the same."""

import contextlib
import gc
import threading
import weakref
from pathlib import Path

import gguf
import numpy as np
import pytest

from caryatid.models.gguf_open import open_gguf, parsed_once


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A GGUF file with words, numbers and two tensors."""
    writer = gguf.GGUFWriter(str(tmp_path / "small.gguf"), "llama")
    writer.add_block_count(2)
    writer.add_token_list(["a", "b", "é", ""])
    writer.add_token_scores([0.5, -1.0, 2.0, 0.0])
    writer.add_tensor("one", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.add_tensor("two", np.arange(4, dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "small.gguf"


def test_it_reads_what_the_librarys_own_reader_reads(small: Path) -> None:
    own, plain = gguf.GGUFReader(str(small)), open_gguf(small)
    assert list(plain.fields) == list(own.fields)
    for name, field in own.fields.items():
        assert plain.fields[name].contents() == field.contents()
    for mine, theirs in zip(plain.tensors, own.tensors, strict=True):
        assert (mine.name, mine.tensor_type) == (theirs.name, theirs.tensor_type)
        np.testing.assert_array_equal(mine.data, theirs.data)


def test_one_reader_a_file_within_and_the_librarys_own_after(small: Path) -> None:
    original = gguf.GGUFReader
    with contextlib.suppress(RuntimeError), parsed_once():
        first = gguf.GGUFReader(str(small))
        assert gguf.GGUFReader(small) is first
        raise RuntimeError("inside")
    assert gguf.GGUFReader is original


def test_another_thread_waits_and_the_librarys_own_reader_is_left(small: Path) -> None:
    original, entered, inside = gguf.GGUFReader, threading.Event(), list[bool]()

    def second() -> None:
        entered.set()
        with parsed_once():
            inside.append(first_left.is_set())

    first_left, thread = threading.Event(), threading.Thread(target=second)
    with parsed_once():
        thread.start()
        assert entered.wait(10)
        thread.join(0.2)
        first_left.set()
    thread.join(10)
    assert inside == [True]
    assert gguf.GGUFReader is original


def test_no_reader_outlives_and_a_file_that_was_replaced_is_read_anew(small: Path) -> None:
    with parsed_once():
        first = gguf.GGUFReader(str(small))
        kept, names = weakref.ref(first), [tensor.name for tensor in first.tensors]
    del first
    gc.collect()
    assert kept() is None
    written = small.read_bytes()
    small.write_bytes(written.replace(b"one", b"ONE"))
    with parsed_once():
        assert [tensor.name for tensor in gguf.GGUFReader(str(small)).tensors] == ["ONE", *names[1:]]
