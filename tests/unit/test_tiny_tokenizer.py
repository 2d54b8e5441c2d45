"""The tokenizer shipped for `tiny`: reproducible, one token per word, nothing unknown."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest
from transformers import AddedToken, AutoTokenizer, PreTrainedTokenizerBase

from fusionkit.blocks.datasets.scene_words import all_texts
from fusionkit.data import tiny_tokenizer
from fusionkit.errors import UsageError

SHIPPED = Path(str(resources.files("fusionkit") / "assets" / "tiny_tokenizer"))


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(SHIPPED)


def test_the_shipped_files_are_what_the_script_writes(tmp_path: Path) -> None:
    tiny_tokenizer.main([str(tmp_path)])
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / file).read_bytes() == (SHIPPED / file).read_bytes(), (
            f"{file}: run `python -m fusionkit.data.tiny_tokenizer fusionkit/assets/tiny_tokenizer`"
        )


def test_every_word_of_the_questions_and_answers_is_one_token(tokenizer: PreTrainedTokenizerBase) -> None:
    for text in all_texts():
        words = text.replace("?", " ?").replace(",", " ,").split()
        assert len(tokenizer(text)["input_ids"]) == len(words), text


def test_vocabulary_is_small_and_starts_with_the_specials(tokenizer: PreTrainedTokenizerBase) -> None:
    assert 300 <= len(tokenizer) <= 512
    assert tokenizer.convert_ids_to_tokens([0, 1, 2, 3]) == ["<pad>", "<eos>", "<user>", "<assistant>"]
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<pad>", "<eos>")


@pytest.mark.parametrize("text", ["zebra?", "где кот", "日本 🙂", "a\nb\tc", "  two  spaces", "<not a token>", "100%"])
def test_any_text_survives_the_round_trip(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    ids = tokenizer(text)["input_ids"]
    decoded = tokenizer.decode(ids)
    # The space put before the first piece is taken off again, so one leading space of the text cannot be told from it.
    assert decoded.removeprefix(" ") == text.removeprefix(" ").removeprefix(" ")


def test_case_and_place_in_the_sentence_do_not_change_a_word(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer("Circle")["input_ids"] == tokenizer("circle")["input_ids"]
    assert tokenizer("the RED circle")["input_ids"][-1:] == tokenizer("circle")["input_ids"]


def test_chat_template_has_one_marker_per_role_and_ends_answers(tokenizer: PreTrainedTokenizerBase) -> None:
    question = {"role": "user", "content": "point to the red circle"}
    answer = {"role": "assistant", "content": "3"}
    text = tokenizer.apply_chat_template([question, answer], tokenize=False)
    assert text == "<user>point to the red circle<assistant>3<eos>"
    prompt = tokenizer.apply_chat_template([question], tokenize=False, add_generation_prompt=True)
    assert text.startswith(prompt)
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == 9
    assert ids[: len(tokenizer(prompt)["input_ids"])] == tokenizer(prompt)["input_ids"]


def test_other_roles_are_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(Exception, match="knows the roles user and assistant, got system"):
        tokenizer.apply_chat_template([{"role": "system", "content": "x"}], tokenize=False)


@pytest.mark.parametrize("special", [True, False])
def test_added_coordinate_tokens_stay_whole_and_keep_their_case(special: bool) -> None:
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED)
    new = ["<image>", "<BOX>", "<COORD_0>", "<COORD_10>", "<END_BOX>"]
    # normalized=False: text is lower-cased, these are not.
    assert tokenizer.add_tokens([AddedToken(token, special=special, normalized=False) for token in new]) == len(new)
    text = "circle<BOX><COORD_10><COORD_0><END_BOX>"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids)[1:] == ["<BOX>", "<COORD_10>", "<COORD_0>", "<END_BOX>"]
    assert tokenizer.decode(ids) == text


def test_saves_and_loads_with_its_template(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.chat_template == tokenizer.chat_template
    assert again("point to the red circle")["input_ids"] == tokenizer("point to the red circle")["input_ids"]


def test_usage_is_told() -> None:
    with pytest.raises(UsageError, match=r"usage: python -m fusionkit\.data\.tiny_tokenizer FOLDER"):
        tiny_tokenizer.main([])
