"""Makes the tokenizer shipped as `builtin:tiny`: one token per word of the synthetic questions, bytes for the rest.

`python -m fusionkit.data.tiny_tokenizer FOLDER` writes the same files, byte for byte, as the package contains. The
vocabulary is learned from the text of `scene_words.all_texts`: every piece that occurs becomes one token. Text is
lower-cased and every piece starts with a space, so `Circle`, `circle` and `a circle` end in the same token; what is
not in the vocabulary falls back to bytes, so nothing is unknown.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path

from fusionkit.blocks.datasets.scene_words import all_texts
from fusionkit.errors import UsageError

PAD, EOS, USER, ASSISTANT = "<pad>", "<eos>", "<user>", "<assistant>"
SPECIAL_TOKENS = (PAD, EOS, USER, ASSISTANT)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}" + USER + "{{ message['content'] }}"
    "{% elif message['role'] == 'assistant' %}" + ASSISTANT + "{{ message['content'] }}" + EOS + "{% else %}"
    "{{ raise_exception('the tiny tokenizer knows the roles user and assistant, got ' + message['role']) }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}" + ASSISTANT + "{% endif %}"
)

_SETTINGS = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "pad_token": PAD,
    "eos_token": EOS,
    "model_max_length": 2048,
    "padding_side": "right",
    "clean_up_tokenization_spaces": False,
    "chat_template": CHAT_TEMPLATE,
}


def write(folder: Path, texts: Iterable[str] | None = None) -> None:
    """Learn the vocabulary from `texts` (the synthetic dataset's by default) and write the tokenizer to `folder`."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

    normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=True)
    pieces = {
        piece
        for text in (all_texts() if texts is None else texts)
        for piece, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))
    }
    single_bytes = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = sorted(pieces - set(single_bytes))
    vocabulary = {token: number for number, token in enumerate([*SPECIAL_TOKENS, *single_bytes, *words])}

    # No merges: a piece is either a whole word of the vocabulary or its bytes.
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=True)
    (folder / "tokenizer_config.json").write_text(json.dumps(_SETTINGS, indent=2) + "\n", encoding="utf-8")


def main(arguments: list[str]) -> None:
    if len(arguments) != 1:
        raise UsageError("usage: python -m fusionkit.data.tiny_tokenizer FOLDER")
    write(Path(arguments[0]))


if __name__ == "__main__":
    main(sys.argv[1:])
