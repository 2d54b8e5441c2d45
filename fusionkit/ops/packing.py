"""Several samples in one row of text: who sees whom, and where each token stands on its own path.

A row holds samples one after the other. A sample is a shared beginning (its pictures) and then its questions with their
answers, each of which goes on from the beginning as if it followed at once: a tree of depth two, written flat.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fusionkit.errors import UsageError

PADDING = -1


class Packed(NamedTuple):
    """Of every token, the number of its sample in its row, and of its question; PADDING for padding.

    Shapes: sample_BT counts from 0 without gaps; turn_BT is 0 for what a sample's questions share, which stands before
    them, and counts from 1 for the questions' own tokens.
    """

    sample_BT: Tensor
    turn_BT: Tensor

    @classmethod
    def of(cls, packed_BT2: Tensor) -> Packed:
        """From the two numbers in one tensor, as a batch carries them."""
        sample_BT, turn_BT = packed_BT2.unbind(-1)
        return cls(sample_BT, turn_BT)

    def positions(self) -> Tensor:
        """The position of each token on its path, from 0: positions_BT."""
        place_T = self._places()
        on_path_BT = torch.where(self.turn_BT > 0, self._shared_length(), 0)
        return place_T - self._turn_starts() + on_path_BT

    def previous(self) -> Tensor:
        """Where the token before each one on its path stands in the row; -1 for the first: previous_BT."""
        place_T, starts_BT = self._places(), self._turn_starts()
        joint_BT = self._sample_starts() + self._shared_length() - 1
        has_joint_BT = (self.turn_BT > 0) & (self._shared_length() > 0)
        before_BT = torch.where(has_joint_BT, joint_BT, -1)
        return torch.where(place_T == starts_BT, before_BT, place_T - 1)

    def ends(self) -> Tensor:
        """The place in the row after the last token of each token's sample: ends_BT."""
        lasts_BT = self._changes().roll(-1, dims=1)  # the first of a row begins one, so its last token ends one
        return self.sample_BT.shape[1] - _starts(lasts_BT.flip(1)).flip(1)

    def allowed(self) -> Tensor:
        """Which keys a query sees: its own sample's, before it, shared or of its own question. [B, 1, T, T], bool."""
        place_T = self._places()
        causal_TT = place_T[None, :] <= place_T[:, None]
        same_BTT = self.sample_BT[:, :, None] == self.sample_BT[:, None, :]
        own_BTT = self.turn_BT[:, :, None] == self.turn_BT[:, None, :]
        return (causal_TT & same_BTT & (own_BTT | (self.turn_BT[:, None, :] == 0)))[:, None]

    def mask(self, config: Any, dtype: torch.dtype) -> Tensor:
        """`allowed`, as the attention that the decoder's config names takes it.

        Raises UsageError for one that takes no mask of pairs.
        """
        allowed = self.allowed()
        kind = config._attn_implementation
        if kind == "sdpa":
            return allowed
        if kind == "eager":
            return torch.zeros_like(allowed, dtype=dtype).masked_fill_(~allowed, torch.finfo(dtype).min)
        raise UsageError(f"language_model: packed rows need the attention sdpa or eager, this decoder has {kind!r}")

    def _places(self) -> Tensor:
        return torch.arange(self.sample_BT.shape[1], device=self.sample_BT.device)

    def _changes(self) -> Tensor:
        """Where a sample begins; the first token of a row always does."""
        return _differs(self.sample_BT)

    def _sample_starts(self) -> Tensor:
        return _starts(self._changes())

    def _turn_starts(self) -> Tensor:
        return _starts(self._changes() | _differs(self.turn_BT))

    def _shared_length(self) -> Tensor:
        """How many shared tokens of its own sample stand up to each token."""
        shared_BT = (self.turn_BT == 0).long()
        count_BT = shared_BT.cumsum(1)
        before_BT = (count_BT - shared_BT).gather(1, self._sample_starts())
        return count_BT - before_BT


def _differs(value_BT: Tensor) -> Tensor:
    """Where a value is another than before; True at the start of a row."""
    first_B1 = torch.ones_like(value_BT[:, :1], dtype=torch.bool)
    return torch.cat((first_B1, value_BT[:, 1:] != value_BT[:, :-1]), dim=1)


def _starts(begins_BT: Tensor) -> Tensor:
    """The newest place at which something began, for each place."""
    place_T = torch.arange(begins_BT.shape[1], device=begins_BT.device)
    starts_BT: Tensor = torch.where(begins_BT, place_T, 0).cummax(1).values
    return starts_BT
