"""What every language model must do: have the described size, take embeddings, be a transformers decoder."""

from __future__ import annotations

from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from fusionkit.ops.packing import Packed
from fusionkit.plugin import BlockSite, LanguageModelInfo
from fusionkit.testing import fakes
from fusionkit.testing.flops import count_flops
from fusionkit.testing.subjects import Subject, require

TOKENS = 24


class LanguageModelSubject(Subject):
    """A decoder with a few more embedding rows than it came with."""

    @cached_property
    def info(self) -> LanguageModelInfo:
        assert self.spec.describe is not None  # BlockSpec refuses language models without it
        info = self.spec.describe(self.config)
        require(isinstance(info, LanguageModelInfo), f"describe() returned a {type(info).__name__}")
        assert isinstance(info, LanguageModelInfo)
        return info

    @cached_property
    def rows(self) -> int:
        """The rows planned when more tokens are added than there is room for."""
        return self.info.embedding_rows(self.info.vocab_size - self.info.tokenizer_size + 10)

    def build(self, device: str = "cpu") -> Any:
        site = BlockSite(address="language_model", info=self.info, rows=self.rows)
        with torch.random.fork_rng(), torch.device(device):
            torch.manual_seed(0)
            return self.make(site).eval()

    @cached_property
    def model(self) -> Any:
        return self.build()

    def logits(self, embeds_BTE: Tensor, model: Any = None) -> Tensor:
        with torch.no_grad():
            found: Tensor = (model or self.model)(inputs_embeds=embeds_BTE).logits
        return found


def check_parameter_count(subject: LanguageModelSubject) -> None:
    """The described number of parameters is exact, tied embeddings counted once."""
    found = sum(parameter.numel() for parameter in subject.build("meta").parameters())
    planned = subject.info.count_params(subject.rows)
    require(found == planned, f"described {planned} parameters with {subject.rows} rows, built {found}")


def check_rows_and_width(subject: LanguageModelSubject) -> None:
    """The embedding has the planned rows and the described width, and is tied as described."""
    embedding, head = subject.model.get_input_embeddings(), subject.model.get_output_embeddings()
    shape = (subject.rows, subject.info.width)
    require(tuple(embedding.weight.shape) == shape, f"embedding {tuple(embedding.weight.shape)}, planned {shape}")
    tied = head.weight is embedding.weight
    require(tied == subject.info.tied, f"described as tied: {subject.info.tied}, built tied: {tied}")
    require(
        subject.rows % 64 == 0 or subject.rows == subject.info.vocab_size, f"{subject.rows} rows are no multiple of 64"
    )


def check_flops(subject: LanguageModelSubject) -> None:
    """The described FLOPs of a sequence are counted ones within 1 %, the head applied to the last token only."""
    embeds = fakes.random((1, TOKENS, subject.info.width))
    found = count_flops(partial(subject.model, inputs_embeds=embeds, logits_to_keep=1))
    planned = subject.info.count_flops(TOKENS)
    # The head is described with the rows the decoder came with, here it has a few more.
    found -= 2 * subject.info.width * (subject.rows - subject.info.vocab_size)
    require(abs(found - planned) <= 0.01 * planned, f"described {planned} FLOPs for {TOKENS} tokens, counted {found}")


def check_takes_embeddings(subject: LanguageModelSubject) -> None:
    """inputs_embeds of looked-up tokens give the logits of the tokens themselves, one row each."""
    ids = torch.randint(0, subject.info.tokenizer_size, (2, TOKENS), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = subject.model(input_ids=ids).logits
        embeds = subject.model.get_input_embeddings()(ids)
    found = subject.logits(embeds)
    require(tuple(found.shape) == (2, TOKENS, subject.rows), f"logits {tuple(found.shape)}")
    require(torch.allclose(found, expected, atol=1e-5), "embeddings and token ids give different logits")


def check_is_causal(subject: LanguageModelSubject) -> None:
    """A later token changes no earlier logits."""
    embeds = fakes.random((1, TOKENS, subject.info.width))
    changed = embeds.clone()
    changed[:, TOKENS // 2 :] += 1
    before, after = subject.logits(embeds), subject.logits(changed)
    gap = (before - after)[:, : TOKENS // 2].abs().max().item()
    require(gap <= 1e-5, f"later tokens change earlier logits by {gap:.1e}")
    require(not torch.equal(before[:, -1], after[:, -1]), "changed tokens change nothing")


def check_state_is_declared(subject: LanguageModelSubject) -> None:
    """Where attention is masked apart nothing goes from one half of a row to the other, unless `state` says what does."""
    half = TOKENS // 2
    halves_BT = (torch.arange(TOKENS) >= half).long()[None]
    rows = Packed(halves_BT, torch.zeros_like(halves_BT))
    embeds = fakes.random((1, TOKENS, subject.info.width))
    changed = embeds.clone()
    changed[:, :half] += 1
    mask, positions = rows.mask(subject.model.config, embeds.dtype), rows.positions()
    with torch.no_grad():
        before, after = (
            subject.model(inputs_embeds=x_BTE, attention_mask=mask, position_ids=positions, use_cache=False).logits
            for x_BTE in (embeds, changed)
        )
    carried = not torch.equal(before[:, half:], after[:, half:])
    said = subject.info.state
    require(
        not carried or bool(said), "something besides attention goes from token to token, and `state` names nothing"
    )
    require(carried or not said, f"state says {said!r}, but nothing goes from token to token besides attention")


def check_builds_without_storage(subject: LanguageModelSubject) -> None:
    """Built on meta, given storage and loaded, it computes the same: no garbage in buffers."""
    model = subject.build("meta")
    model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.fill_(torch.nan)
    model.load_state_dict(subject.model.state_dict())
    model.tie_weights()
    embeds = fakes.random((1, TOKENS, subject.info.width))
    found, expected = subject.logits(embeds, model), subject.logits(embeds)
    require(torch.equal(found, expected), "a decoder built on meta and loaded gives other logits")


LANGUAGE_MODEL_CHECKS = (
    check_parameter_count,
    check_rows_and_width,
    check_flops,
    check_takes_embeddings,
    check_is_causal,
    check_state_is_declared,
    check_builds_without_storage,
)
