"""What `train.packing` saves: the same batches with rows padded apart and packed, forward and backward.

    OMP_NUM_THREADS=1 python benchmarks/packing.py --out benchmarks/results/cpu/packing.json

Three mixtures of 16 samples a batch: text of log-normal length, the same with every fourth sample showing a picture, and
pictures with six short questions each. Padded rows run as training runs them: questions about one picture share it
where every sample has as many image tokens. `filled` is the share of positions that hold a token; seconds are CPU
seconds of this process (the machine may be shared), alternating, the order swapped every round, and `again` is the
padded pass against itself: the noise.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import fusionkit
from fusionkit.bench.machine import facts
from fusionkit.blocks.objectives.answer_tokens import AnswerTokens
from fusionkit.blocks.objectives.specs import AnswerTokensConfig
from fusionkit.data.packing import Packing
from fusionkit.geometry import Size
from fusionkit.model.processing import FusionProcessor
from fusionkit.plugin import BlockSite
from fusionkit.sample import Provenance, Sample, Turn
from fusionkit.train.stage_model import StageModel

SEQUENCE, BATCH = 1024, 16
DECODER = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "vocab_size": 512,
    "max_position_embeddings": SEQUENCE,
    "pad_token_id": 0,
}
MIXTURES = ("text", "text_and_pictures", "six_questions")


def text(draw: random.Random) -> Turn:
    """A question and an answer of so many words: half have fewer than 40, one in twenty more than 200."""
    words = min(900, max(2, round(draw.lognormvariate(3.7, 1.0))))
    return Turn("count red", (" ".join(["red"] * words),))


def picture(colour: str) -> Image.Image:
    return Image.new("RGB", (48, 48), colour)


def samples(mixture: str, draw: random.Random) -> list[Sample]:
    made = []
    for number in range(BATCH):
        shown = mixture == "six_questions" or (mixture == "text_and_pictures" and number % 4 == 0)
        if mixture == "six_questions":
            turns = tuple(Turn("count red", (" ".join(["red"] * draw.randint(1, 8)),)) for _ in range(6))
        else:
            turns = (text(draw),)
        opened = partial(picture, draw.choice(("red", "blue"))) if shown else None
        made.append(Sample(opened, Size(48, 48) if shown else None, turns, Provenance(mixture, number)))
    return made


def measure(mixture: str, rounds: int) -> dict[str, Any]:
    """Shares and seconds of one mixture, a new batch every round."""
    torch.manual_seed(0)
    recipe = fusionkit.load_recipe("builtin:tiny").canonical()
    decoder = {"type": "causal", "tokenizer": "builtin:tiny", "config": DECODER}
    recipe |= {"sequence_length": SEQUENCE, "language_model": decoder, "train": None}
    recipe["fusion"]["project"]["width"] = DECODER["hidden_size"]
    model = fusionkit.build(recipe).train()
    processor = FusionProcessor.from_plan(model.plan)
    stage = StageModel(model, {"answers": AnswerTokens(AnswerTokensConfig(), BlockSite())})
    packing = Packing.of(processor)
    counts = {"padded": [0, 0], "packed": [0, 0]}
    seconds: dict[str, list[float]] = {"padded": [], "again": [], "packed": []}
    worst = 0.0
    for number in range(rounds + 1):
        padded = processor.batch(samples(mixture, random.Random(f"{mixture}/{number}")))
        batches = {"padded": padded, "again": padded, "packed": packing(padded)}
        losses = {}
        for name in list(batches)[:: 1 if number % 2 else -1]:
            model.zero_grad()
            start = time.process_time()
            loss = stage(batches[name])["answers.tokens"]
            loss.backward()
            seconds[name].append(time.process_time() - start)
            losses[name] = float(loss.detach())
        worst = max(worst, abs(losses["packed"] / losses["padded"] - 1))
        for name, count in counts.items():
            mask_BT = batches[name]["attention_mask"]
            count[0] += int(mask_BT.sum())
            count[1] += mask_BT.numel()
    ratios = {name: [a / b for a, b in zip(seconds[name][1:], seconds["padded"][1:], strict=True)] for name in seconds}
    return {
        "mixture": mixture,
        "filled": {name: round(tokens / positions, 4) for name, (tokens, positions) in counts.items()},
        "positions": {name: positions for name, (_, positions) in counts.items()},
        "seconds_per_batch": {name: round(statistics.median(values[1:]), 3) for name, values in seconds.items()},
        "ratio_to_padded": {
            name: {
                "median": round(statistics.median(values), 3),
                "range": [round(min(values), 3), round(max(values), 3)],
            }
            for name, values in ratios.items()
            if name != "padded"
        },
        "largest_difference_of_loss": worst,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measure(mixture, arguments.rounds) for mixture in MIXTURES]
    result = {"made": datetime.now(UTC).date().isoformat(), "machine": facts("cpu"), "decoder": DECODER, "rows": rows}
    for row in rows:
        print(json.dumps(row))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
