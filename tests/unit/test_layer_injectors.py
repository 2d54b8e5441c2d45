"""deepstack and gated_cross_attention: alone against their equations, and inside a decoder."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from model_recipe import picture, recipe, sample
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import fusionkit
from fusionkit import registry
from fusionkit.errors import BuildError, PlanError, RecipeValidationError, ShapeError, UsageError
from fusionkit.geometry import Grid, TokenSpec
from fusionkit.model.layer_state import STATE, watch_blocks
from fusionkit.model.modeling import FusionVLM
from fusionkit.model.processing import FusionProcessor
from fusionkit.model.shared_prefix import forward_shared
from fusionkit.ops.placement import Placement
from fusionkit.ops.tokens import Tokens
from fusionkit.plugin import BlockSite
from fusionkit.sample import Turn

GATED = {"type": "gated_cross_attention", "input": "pool", "layers": [1, 2], "heads": 2, "gate_init": 0.8}
DEEP = {"type": "deepstack", "layers": [1], "when": "after"}
TENSORS = ("input_ids", "attention_mask", "labels", "visual_index", "pixel_values_")


def injector(name: str, spec: TokenSpec, width: int, **options: Any) -> Any:
    block = registry.spec("injectors", name)
    config = block.config.model_validate(options | {"layers": tuple(options["layers"])})
    plan = block.plan(config, {"input": spec}, width)
    return registry.factory(block)(config, BlockSite(address="injectors.x", inputs={"input": spec}, plan=plan))


def test_placement_names_the_crops_of_each_row_and_where_they_begin() -> None:
    image_BT = torch.tensor([[0, 1, 1, 0, 1, 1, 0], [0, 0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0]], dtype=torch.bool)
    placed = Placement.of(image_BT, torch.tensor([4, 5, 1, 0, 2, 3]), 2)
    assert placed.crops_BC.tolist() == [[0, 2], [1, -1], [-1, -1]]
    assert placed.starts_BC.tolist() == [[4, 1], [2, 7], [7, 7]]
    with pytest.raises(ShapeError, match="6 <image> positions for 5 visual vectors"):
        Placement.of(image_BT, torch.arange(5), 2)


def test_gated_cross_attention_is_its_equation() -> None:
    """Row by row and token by token, in float64: a token sees the crops whose first image token is not after it."""
    torch.manual_seed(0)
    spec, width, heads = TokenSpec(Grid(1, 3), 6), 8, 2
    block = injector("gated_cross_attention", spec, width, layers=[2], heads=heads, gate_init=0.6).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.5)
    x_CMD, hidden_BTE = torch.randn(3, 3, 6).double(), torch.randn(2, 9, width).double()
    # Two image tokens per crop in the text, three in the memory: what is read need not be what stands there.
    image_BT = torch.zeros(2, 9, dtype=torch.bool)
    image_BT[0, [1, 2, 5, 6]] = image_BT[1, [3, 4]] = True
    placed = Placement.of(image_BT, torch.tensor([2, 3, 4, 5, 0, 1]), 2)
    shown = {0: [(1, 1), (2, 5)], 1: [(0, 3)]}
    part = block.blocks["2"]
    expected = hidden_BTE.clone()
    for row in range(2):
        for t in range(9):
            crops = [x_CMD[crop] for crop, start in shown[row] if start <= t]
            if image_BT[row, t] or not crops:
                continue
            memory = block.norm_memory(torch.cat(crops))
            q = part.query(part.norm(hidden_BTE[row, t])).view(heads, -1)
            k, v = part.key(memory).view(len(memory), heads, -1), part.value(memory).view(len(memory), heads, -1)
            weights = torch.softmax(torch.einsum("hk,mhk->hm", q, k) / q.shape[-1] ** 0.5, dim=-1)
            update = part.output(torch.einsum("hm,mhk->hk", weights, v).flatten())
            expected[row, t] += torch.tanh(part.gate[0]) * update
    state = block.prepare(Tokens(x_CMD, spec.grid), placed)
    torch.testing.assert_close(block(hidden_BTE, state, 2), expected, rtol=0, atol=1e-12)
    assert not torch.equal(expected[0, 7:], hidden_BTE[0, 7:])
    assert torch.equal(expected[1, :3], hidden_BTE[1, :3])


@pytest.mark.parametrize("options", [{"heads": 2}, {"heads": 4, "kv_heads": 2, "head_width": 3}])
def test_the_plan_of_gated_cross_attention_is_exact(options: dict[str, int]) -> None:
    spec, width = TokenSpec(Grid(2, 3), 10), 8
    block = injector("gated_cross_attention", spec, width, layers=[1, 3], **options)
    planner = registry.spec("injectors", "gated_cross_attention")
    plan = planner.plan(planner.config(layers=(1, 3), **options), {"input": spec}, width)
    assert plan.params == sum(parameter.numel() for parameter in block.parameters())
    placed = Placement.of(torch.tensor([[True, False]]), torch.tensor([0]), 1)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        state = block.prepare(Tokens(torch.randn(1, 6, 10), spec.grid), placed)
        for layer in block.layers:
            block(torch.randn(1, 1, width), state, layer, 1)
    assert counter.get_total_flops() == plan.flops


# ------------------------------------------------------------------------------------------- in a decoder
def small(**injectors: Any) -> dict[str, Any]:
    return recipe(injectors={"visual": {"type": "replace"}, **injectors})


def build(**injectors: Any) -> tuple[FusionVLM, FusionProcessor]:
    torch.manual_seed(0)
    model = fusionkit.build(small(**injectors)).eval()
    return model, FusionProcessor.from_plan(model.plan)


@pytest.fixture(scope="module")
def parts() -> tuple[FusionVLM, FusionProcessor]:
    return build(deep=DEEP, look=GATED)


def tensors(batch: dict[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in batch.items() if name.startswith(TENSORS)}


def asked(processor: FusionProcessor, *seeds: int) -> dict[str, Tensor]:
    texts = ["count red", "how many blue squares are there?", "box the red circle"][: len(seeds)]
    return processor(images=[picture(seed) for seed in seeds], text=[processor.prompt(text) for text in texts])


def without(model: FusionVLM, *names: str) -> FusionVLM:
    """A copy whose named injectors do nothing."""
    twin = copy.deepcopy(model)
    for name in names:
        nothing = twin.injectors[name]
        nothing.forward = lambda hidden_BTE, *_: hidden_BTE
    return twin


def test_the_plan_holds_for_the_built_model(parts) -> None:
    model, _ = parts
    for node in model.plan.nodes:
        assert sum(p.numel() for p in model.get_submodule(node.address).parameters()) == node.params, node.address
    assert [node.sources["input"] for node in model.plan.injectors] == ["project", "project", "pool"]


def test_deepstack_adds_at_the_image_tokens_after_its_block() -> None:
    model, processor = build(deep=DEEP)
    inputs = asked(processor, 1, 2)
    plain = without(model, "deep")(**inputs, output_hidden_states=True).hidden_states
    found = model(**inputs, output_hidden_states=True).hidden_states
    visual = model.get_image_features(**{k: v for k, v in inputs.items() if k.startswith("pixel_values_")})
    mask_BT = inputs["input_ids"] == model.config.image_token_id
    expected = plain[1].masked_scatter(
        mask_BT[..., None], plain[1][mask_BT] + visual.x_BND.flatten(0, 1)[inputs["visual_index"]]
    )
    torch.testing.assert_close(found[1], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["deep", "look"])
def test_each_of_them_changes_the_answer_and_gates_at_zero_do_not(parts, name: str) -> None:
    model, processor = parts
    inputs = asked(processor, 1)
    assert not torch.equal(model(**inputs).logits, without(model, name)(**inputs).logits)
    twin = copy.deepcopy(model)
    for key, parameter in twin.injectors["look"].named_parameters():
        if key.endswith("gate"):
            nn.init.zeros_(parameter)
    assert torch.equal(twin(**inputs).logits, without(model, "look")(**inputs).logits)


def test_training_reaches_every_parameter_of_them(parts) -> None:
    model, processor = parts
    twin = copy.deepcopy(model).train()
    batch = tensors(processor.batch([sample(1), sample(2)]))
    plain = twin(**batch)
    plain.loss.backward()
    for name, parameter in twin.injectors.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    shared = forward_shared(twin, {name: value for name, value in batch.items() if name != "labels"})
    torch.testing.assert_close(shared.logits, plain.logits, rtol=0, atol=2e-6)


def test_gradient_checkpointing_changes_nothing(parts) -> None:
    model, processor = parts
    batch = tensors(processor.batch([sample(1)]))
    gradients = []
    for checkpointing in (False, True):
        twin = copy.deepcopy(model).train()
        if checkpointing:
            twin.language_model.activation_checkpointing_enable({"use_reentrant": False})
        twin(**batch, use_cache=False).loss.backward()
        gradients.append([parameter.grad for parameter in twin.injectors.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=1e-6)


def test_generation_with_a_cache_is_generation_without(parts) -> None:
    model, processor = parts
    inputs = asked(processor, 1, 2)
    cached, whole = (
        model.generate(**inputs, max_new_tokens=6, min_new_tokens=6, do_sample=False, use_cache=use_cache)
        for use_cache in (True, False)
    )
    assert torch.equal(cached, whole)


def test_steps_with_a_cache_give_the_logits_of_one_pass(parts) -> None:
    """Prefill, then token by token: the state begins where the cache ends."""
    model, processor = parts
    inputs = asked(processor, 3)
    ids_BT, embedding = inputs["input_ids"], model.get_input_embeddings()
    text_BT = torch.cat((ids_BT, torch.tensor([[7, 9, 11]])), dim=1)
    mask_BT = torch.ones_like(text_BT)
    with torch.no_grad():
        encoded = model.fuse_all(
            model.encode_streams(
                {
                    name.removeprefix("pixel_values_"): x
                    for name, x in inputs.items()
                    if name.startswith("pixel_values_")
                }
            )
        )
        whole = model(text_BT, mask_BT, mm_encoder_outputs=encoded, visual_index=inputs["visual_index"]).logits
        state = model.prepare_layers(ids_BT, encoded, inputs["visual_index"])
        embeds_BTE = model.embed(text_BT, encoded["image"], inputs["visual_index"])
        step = model(inputs_embeds=embeds_BTE[:, :4], use_cache=True, layer_state=state)
        found = [step.logits]
        for a, b in ((4, ids_BT.shape[1]), *((t, t + 1) for t in range(ids_BT.shape[1], text_BT.shape[1]))):
            step = model(
                inputs_embeds=embeds_BTE[:, a:b],
                past_key_values=step.past_key_values,
                use_cache=True,
                layer_state=state,
            )
            found.append(step.logits)
    assert embedding is model.get_input_embeddings()
    torch.testing.assert_close(torch.cat(found, dim=1), whole, rtol=0, atol=2e-6)


def test_beams_and_samples_see_their_own_picture(parts) -> None:
    model, processor = parts
    inputs = asked(processor, 1, 2)
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "num_beams": 3, "do_sample": False}
    together = model.generate(**inputs, **options)
    prompt = inputs["input_ids"].shape[1]
    for row, seed in enumerate((1, 2)):
        texts = ["count red", "how many blue squares are there?"]
        alone = processor(images=[picture(seed)], text=[processor.prompt(texts[row])])
        found = model.generate(**alone, **options)
        assert torch.equal(found[0, alone["input_ids"].shape[1] :], together[row, prompt:])
    many = model.generate(**inputs, **options, num_return_sequences=2)
    assert torch.equal(many[::2], together)


def test_rows_share_pictures_and_text_alone_has_none(parts) -> None:
    model, processor = parts
    together = model(**tensors(processor.batch([sample(1), sample(2)]))).logits
    alone = model(**tensors(processor.batch([sample(2)]))).logits
    torch.testing.assert_close(together[2:, : alone.shape[1]], alone, rtol=0, atol=2e-6)
    text = processor(text=[processor.prompt("hello", pictures=0)])
    assert torch.equal(model(**text).logits, without(model, "deep", "look")(**text).logits)
    assert model.generate(**text, max_new_tokens=2, do_sample=False).shape[0] == 1


def test_what_comes_later_changes_nothing_before_it(parts) -> None:
    """The second picture of a prompt is not seen by text that stands before it."""
    model, processor = parts
    prompts = [processor.prompt("which is red?", pictures=2)]
    one, other = (processor(images=[picture(1), picture(seed)], text=prompts) for seed in (2, 3))
    start = (one["input_ids"][0] == model.config.image_token_id).nonzero()[model.plan.visual.tokens, 0]
    first, second = model(**one).logits, model(**other).logits
    torch.testing.assert_close(first[:, :start], second[:, :start], rtol=0, atol=2e-6)
    assert (first[:, start:] - second[:, start:]).abs().max() > 1e-4


def test_kept_pictures_need_what_the_injectors_read(parts) -> None:
    model, processor = parts
    inputs = asked(processor, 1)
    pixels = {name: inputs.pop(name) for name in list(inputs) if name.startswith("pixel_values_")}
    with pytest.raises(UsageError, match=r"mm_encoder_outputs has no injectors\.deep, injectors\.look"):
        model(**inputs, mm_encoder_outputs={"image": model.get_image_features(**pixels)})


def test_copies_and_saved_models_use_their_own_injectors(parts, tmp_path) -> None:
    from fusionkit.model.checkpoint import load_checkpoint, save_checkpoint

    model, processor = parts
    inputs = asked(processor, 1)
    expected = model(**inputs).logits
    twin = copy.deepcopy(model)
    for parameter in twin.injectors.parameters():
        nn.init.ones_(parameter)
    assert torch.equal(model(**inputs).logits, expected)
    assert not torch.equal(twin(**inputs).logits, expected)
    again, _ = load_checkpoint(save_checkpoint(tmp_path / "run", model, processor))
    assert torch.equal(again.eval()(**inputs).logits, expected)


def test_no_state_stays_behind(parts) -> None:
    model, processor = parts
    before = set(vars(model)) | {f"{n}.{key}" for n, m in model.named_modules() for key in vars(m)}
    model.generate(**asked(processor, 1), max_new_tokens=2, do_sample=False)
    assert set(vars(model)) | {f"{n}.{key}" for n, m in model.named_modules() for key in vars(m)} == before


def test_a_decoder_that_drops_keyword_arguments_is_found_out(parts) -> None:
    model, processor = parts
    twin = copy.deepcopy(model)
    inner = twin.language_model.forward
    twin.language_model.forward = lambda **kwargs: inner(**{k: v for k, v in kwargs.items() if k != STATE})
    with pytest.raises(
        BuildError, match=r"keyword arguments do not reach its blocks \[1, 1, 2\].*injectors\.look need"
    ):
        twin(**asked(processor, 1))
    with pytest.raises(BuildError, match=r"get_decoder\(\)\.layers"):
        watch_blocks(nn.Linear(2, 2), model.layer_injectors().values())


def test_an_answer_to_a_question_sees_the_picture(parts) -> None:
    from fusionkit.model.answer import answer

    model, processor = parts
    samples = [sample(1, Turn("count red", ())), sample(2, Turn("box the blue square", ()))]
    together = [found.text for _, _, found in answer(model, processor, samples, max_new_tokens=6)]
    alone = [found.text for one in samples for _, _, found in answer(model, processor, [one], max_new_tokens=6)]
    assert together == alone


@pytest.mark.parametrize(
    ("injectors", "message"),
    [
        ({"deep": DEEP}, "injectors: none of them writes the <image> tokens .*type: replace"),
        (
            {"visual": {"type": "replace"}, "deep": DEEP | {"layers": [2, 3]}},
            r"injectors\.deep\.layers: block 3 is outside the language model, which has blocks 1 to 2 \(use at most 2\)",
        ),
        (
            {"visual": {"type": "replace"}, "deep": DEEP | {"input": "pool"}},
            r"injectors\.deep\.input: visual tokens have width 16, the language model 24",
        ),
        (
            {"visual": {"type": "replace"}, "look": GATED | {"heads": 5}},
            r"injectors\.look\.heads: 5 heads do not divide the language model's width 24",
        ),
        (
            {"visual": {"type": "replace"}, "look": GATED | {"kv_heads": 3}},
            r"injectors\.look\.kv_heads: 3 kv_heads do not divide 2 heads",
        ),
        ({"visual": {"type": "replace"}, "look": GATED | {"input": "nowhere"}}, "unknown source `nowhere`"),
        (
            {"a": {"type": "replace"}, "b": {"type": "add"}, "deep": DEEP},
            r"injectors\.b: `a` already writes at the <image> tokens",
        ),
    ],
)
def test_what_cannot_be_is_told_when_planning(injectors: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        fusionkit.plan(fusionkit.load_recipe(recipe(injectors=injectors)))


def test_deepstack_needs_the_grid_that_is_in_the_text() -> None:
    block = registry.spec("injectors", "deepstack")
    inputs = {"input": TokenSpec(Grid(4, 4), 8), "visual": TokenSpec(Grid(2, 2), 8)}
    with pytest.raises(ShapeError, match="adds 4x4 tokens of width 8 at the places of 2x2 tokens of width 8"):
        block.plan(block.config(layers=(1,)), inputs, 8)


def test_layers_rise() -> None:
    with pytest.raises(RecipeValidationError, match=r"must rise, each block once, got \[2, 1\]; use \[1, 2\]"):
        fusionkit.load_recipe(small(deep=DEEP | {"layers": [2, 1]}))


def test_a_stream_may_be_read_by_an_injector_alone() -> None:
    """The spatial stream as memory, never fused: it counts as read, and the graph shows where it goes."""
    from fusionkit.recipe.graph import graph_of

    changed = small(look=GATED | {"input": "spatial"})
    changed["fusion"] = {"project": {"type": "mlp", "input": "semantic", "hidden": 32}}
    changed["sequence_length"] = 256
    planned = fusionkit.plan(fusionkit.load_recipe(changed))
    edges = {(edge.source, edge.target) for edge in graph_of(planned).edges}
    assert ("streams.spatial.steps.widen", "injectors.look") in edges
    assert ("injectors.look", "language_model") in edges
    assert ("injectors.visual", "language_model") in edges
