"""FusionVLM: a recipe as a transformers model.

Shapes: B rows of text, T tokens, E language-model width, C crops, N fused tokens per crop, V visual tokens placed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self, TypedDict, cast

import torch
from torch import Tensor, nn
from transformers import GenerationMixin

from fusionkit.architectures import asking_libraries
from fusionkit.errors import ShapeError, UsageError
from fusionkit.model.configuration import FusionConfig
from fusionkit.model.layer_state import STATE, LayerState, watch_blocks
from fusionkit.model.output import FusionOutput
from fusionkit.model.parts import build_parts
from fusionkit.model.runtime import Runtime
from fusionkit.model.saved import SavedModel, tell_few_bits
from fusionkit.model.tower import Stream, run_fusion
from fusionkit.model.vision import VisionRunner, most_crops
from fusionkit.ops.attention import use_attention_backend
from fusionkit.ops.finite import require_finite
from fusionkit.ops.layer_norm_sum import use_layer_norm_sum
from fusionkit.ops.packing import Packed
from fusionkit.ops.placement import Placement
from fusionkit.ops.precision import full_precision_names, tables_kept
from fusionkit.ops.tokens import Tokens
from fusionkit.plugin import LayerInjectorConfig
from fusionkit.recipe import load_recipe
from fusionkit.recipe.lock import unlock
from fusionkit.recipe.plan import plan as plan_recipe

PIXELS = "pixel_values_"
COVERAGE = "coverage_"
VISION = (PIXELS, COVERAGE)
"""How the inputs of a stream are named: its pixels, and the share of each token's cell that shows the picture."""
IMAGE = "image"
"""What the tokens that stand in the text are called among encoded pictures; other injectors' go by their address."""


class FusionVLM(SavedModel, GenerationMixin):
    """A multi-encoder vision-language model built from a recipe.

    The module tree follows the recipe's addresses: `streams.NAME.encoder`, `streams.NAME.steps.STEP`,
    `fusion.STEP`, `injectors.NAME`, `language_model`.

    Example: `model = fusionkit.build(fusionkit.load_recipe("builtin:tiny"))`
    """

    config_class = FusionConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ["image", "text"]  # noqa: RUF012  (as transformers declares it)
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    supports_gradient_checkpointing = True
    _no_split_modules = ["Stream"]  # noqa: RUF012  (its encoder is read through methods that device hooks do not see)
    _tied_weights_keys: dict[str, str] = {}  # noqa: RUF012  (the decoder says what it ties; PEFT looks here first)

    def __init__(
        self, config: FusionConfig, *, pretrained: bool = False, decoder_dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(config)
        if config.lock is None:
            raise UsageError("FusionConfig has no lock; build models with fusionkit.build(recipe) or from_pretrained")
        with asking_libraries():
            self.plan = plan_recipe(load_recipe(unlock(config.lock)))
        parts = build_parts(self.plan, pretrained=pretrained, decoder_dtype=decoder_dtype)
        self.streams = nn.ModuleDict(
            {
                name: Stream(self.plan.streams[name], stream.encoder, stream.steps)
                for name, stream in parts.streams.items()
            }
        )
        self.fusion = nn.ModuleDict(parts.fusion)
        self.injectors = nn.ModuleDict(parts.injectors)
        self.language_model = parts.language_model
        if parts.language_model is not None:
            decoder: Any = parts.language_model
            config.text_config = decoder.config
            config.tie_word_embeddings = decoder.config.tie_word_embeddings
            self.generation_config = decoder.generation_config
            watch_blocks(decoder, self.layer_injectors().values())
            tell_few_bits(self)
        self._vision = VisionRunner(Runtime(), most_crops(self.plan))
        # As `to(torch.bfloat16)` leaves them, so does loading in bf16.
        self._keep_in_fp32_modules_strict = full_precision_names(self)
        self.post_init()  # type: ignore[no-untyped-call]

    @property
    def runtime(self) -> Runtime:
        """How the vision side is executed; assign another `Runtime` to change it."""
        return self._vision.runtime

    @runtime.setter
    def runtime(self, runtime: Runtime) -> None:
        vision = VisionRunner(runtime, most_crops(self.plan))
        use_layer_norm_sum(nn.Identity(), runtime.layer_norm_sum)  # refused before anything is changed
        use_attention_backend(self.streams, runtime.attention)
        use_attention_backend(self.fusion, runtime.attention)
        use_layer_norm_sum(self.streams, runtime.layer_norm_sum)
        self._vision = vision

    def train(self, mode: bool = True) -> Self:
        if mode:
            self._vision.drop()  # captures hold memory, and training changes what they were made of
        super().train(mode)
        return self

    # The blocks and the language model initialise themselves; transformers' blanket normal init must not touch them.
    def init_weights(self) -> None:
        self.tie_weights()

    def _init_weights(self, module: nn.Module) -> None:
        pass

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        with tables_kept(self):
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def get_input_embeddings(self) -> nn.Module:
        return cast(nn.Module, self._decoder().get_input_embeddings())

    def set_input_embeddings(self, value: nn.Module) -> None:
        self._decoder().set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module | None:
        return None if self.language_model is None else self._decoder().get_output_embeddings()

    def _decoder(self) -> Any:
        if self.language_model is None:
            raise UsageError("this recipe has no language_model; only encode_streams, fuse and get_image_features work")
        return self.language_model

    # ------------------------------------------------------------------------------------------------- vision
    def encode_streams(
        self,
        pixels: Mapping[str, Tensor],
        names: Sequence[str] | None = None,
        coverage: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tokens]:
        """Run streams: name -> pixels_CCHW (normalised for that stream) gives name -> Tokens of C crops.

        `coverage`: name -> [C, N], the share of each token's cell that shows the picture; 1 where none is given.
        From a batch: `encode_streams(**vision_inputs(batch))`.
        """
        wanted = list(self.streams) if names is None else list(names)
        missing = [name for name in wanted if name not in pixels]
        if missing:
            raise ShapeError(
                f"no pixels for stream {', '.join(missing)}: pass {', '.join(PIXELS + m for m in missing)}"
            )
        return self._vision.encode(self.streams, {name: pixels[name] for name in wanted}, coverage or {})

    def fuse(self, streams: Mapping[str, Tokens]) -> Tokens:
        """Run the fusion graph: stream tokens -> x_CNE, ready to stand in the text."""
        return self.fuse_all(streams)[IMAGE]

    def fuse_all(self, streams: Mapping[str, Tokens]) -> dict[str, Tokens]:
        """Everything the injectors read, as `mm_encoder_outputs` takes it: `image`, and `injectors.NAME` for those inside the decoder."""
        return self._vision.fuse(self.fusion, self._fuse_all, streams)

    def _fuse_all(self, streams: Mapping[str, Tokens]) -> dict[str, Tokens]:
        named = run_fusion(self.plan, self.fusion, streams, self.runtime)
        inside = self.layer_injectors()
        sources = {node.address: node.sources["input"] for node in self.plan.injectors if node.address in inside}
        return {IMAGE: named[self.plan.visual_source], **{key: named[source] for key, source in sources.items()}}

    def layer_injectors(self) -> dict[str, nn.Module]:
        """The injectors that act inside the decoder, by address."""
        nodes = (node for node in self.plan.injectors if isinstance(node.config, LayerInjectorConfig))
        return {node.address: self.injectors[node.name] for node in nodes}

    def get_image_features(self, **pixel_values: Tensor) -> Tokens:
        """Pixels of all streams (`pixel_values_NAME`, and `coverage_NAME` if the processor gave it) -> fused tokens x_CNE."""
        return self.fuse(self.encode_streams(**vision_inputs(pixel_values)))

    # --------------------------------------------------------------------------------------------------- text
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        visual_index: Tensor | None = None,
        mm_encoder_outputs: Mapping[str, Tokens] | None = None,
        layer_state: LayerState | None = None,
        packed: Tensor | None = None,
        **kwargs: Any,
    ) -> FusionOutput:
        """Next-token logits, and the loss when labels are given.

        `visual_index` [V]: for each image-token position of `input_ids`, row-major, the row of the fused tokens
        flattened to [C*N, E] that goes there; so rows can share one encoded picture. In order if not given.
        `mm_encoder_outputs`: `{"image": get_image_features(...)}`, or all of `fuse_all(...)`, instead of pixels.
        `layer_state`: what `prepare_layers` gave, for steps of a generation after the first.
        `packed` [B, T, 2]: which sample of its row a token belongs to, and which question of it (see `Packed`); samples
        and questions then do not see each other. For training: without a cache.

        Raises ShapeError when the number of image tokens and of visual tokens differ.
        """
        pictures = vision_inputs(kwargs)
        streams, encoded = None, dict(mm_encoder_outputs or {})
        if pictures["pixels"] and IMAGE not in encoded:
            streams = self.encode_streams(**pictures)
            encoded = self.fuse_all(streams)
        visual = encoded.get(IMAGE)
        rows = None if packed is None else Packed.of(packed)
        if inputs_embeds is None:
            if input_ids is None:
                raise UsageError("forward needs input_ids or inputs_embeds")
            inputs_embeds = self.embed(input_ids, visual, visual_index, rows)
            layer_state = layer_state or self.prepare_layers(input_ids, encoded, visual_index, rows)
        if layer_state is not None:
            first = 0 if past_key_values is None else int(past_key_values.get_seq_length())
            layer_state = layer_state.at(len(inputs_embeds), first)
            kwargs[STATE] = layer_state
        output = self._decoder()(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask if rows is None else rows.mask(self._decoder().config, inputs_embeds.dtype),
            position_ids=position_ids if rows is None else rows.positions(),
            past_key_values=past_key_values,
            labels=labels,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            **{name: value for name, value in kwargs.items() if not name.startswith(VISION) and name != "crop_counts"},
        )
        if layer_state is not None:
            layer_state.require_reached()
        if self.runtime.check_finite:
            require_finite(_of_real_tokens(output.logits, attention_mask), "language_model: logits", self._decoder())
        return FusionOutput(
            loss=output.loss,
            logits=output.logits,
            past_key_values=output.past_key_values,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
            streams=streams,
            visual=visual,
        )

    def embed(
        self,
        input_ids_BT: Tensor,
        visual: Tokens | None,
        visual_index_V: Tensor | None = None,
        packed: Packed | None = None,
    ) -> Tensor:
        """Text embeddings with the fused tokens injected at the image tokens: embeds_BTE."""
        table: Any = self.get_input_embeddings()
        looks_back = getattr(table, "context", 0) > 0  # and would look into the sample before
        before = (packed.previous(),) if packed is not None and looks_back else ()
        embeds_BTE: Tensor = table(input_ids_BT, *before)
        mask_BT = input_ids_BT == self.config.image_token_id
        placed = int(mask_BT.sum())
        if visual is None:
            if placed:
                raise ShapeError(f"the text has {placed} image tokens but no picture was given; pass pixel values")
            return embeds_BTE
        visual_VE = visual.x_BND.flatten(0, 1)
        if visual_index_V is not None:
            visual_VE = visual_VE[visual_index_V]
        if placed != len(visual_VE):
            raise ShapeError(
                f"the text has {placed} image tokens, the pictures give {len(visual_VE)} visual tokens; "
                "prepare text and pictures with the model's own processor"
            )
        inside = self.layer_injectors()
        for node in self.plan.injectors:
            if node.address not in inside:
                embeds_BTE = self.injectors[node.name](embeds_BTE, visual_VE.to(embeds_BTE.dtype), mask_BT)
                if self.runtime.check_finite:
                    require_finite(embeds_BTE, node.address, self.injectors[node.name])
        return embeds_BTE

    def prepare_layers(
        self,
        input_ids_BT: Tensor,
        encoded: Mapping[str, Tokens],
        visual_index_V: Tensor | None = None,
        packed: Packed | None = None,
    ) -> LayerState | None:
        """What the injectors inside the decoder carry for these rows; None when there are none, or no pictures.

        Raises UsageError when `encoded` (see `fuse_all`) lacks what one of them reads.
        """
        injectors: dict[str, Any] = self.layer_injectors()
        if not injectors or IMAGE not in encoded:
            return None
        if missing := [name for name in injectors if name not in encoded]:
            raise UsageError(f"mm_encoder_outputs has no {', '.join(missing)}: pass all that fuse_all() gives")
        tokens, vectors = encoded[IMAGE].x_BND.shape[1], encoded[IMAGE].x_BND.flatten(0, 1)
        index_V = torch.arange(len(vectors), device=vectors.device) if visual_index_V is None else visual_index_V
        placement = Placement.of(input_ids_BT == self.config.image_token_id, index_V, tokens, packed)
        return LayerState(injectors, {name: each.prepare(encoded[name], placement) for name, each in injectors.items()})

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, *args: Any, inputs_embeds: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """As in transformers; an embedding that looks back (`context`) is given the ids it looks at."""
        parent: Any = super()
        prepared: dict[str, Any] = parent.prepare_inputs_for_generation(
            input_ids, *args, inputs_embeds=inputs_embeds, **kwargs
        )
        embedding: Any = self.get_input_embeddings()
        context = getattr(embedding, "context", 0)
        if context and prepared.get("inputs_embeds") is None:
            new = prepared["input_ids"].shape[1]
            prepared["inputs_embeds"] = embedding(input_ids[:, -(new + context) :])[:, -new:]
            prepared["input_ids"] = None
        return prepared

    @torch.no_grad()
    def generate(self, inputs: Tensor | None = None, **kwargs: Any) -> Any:  # type: ignore[override]
        """`GenerationMixin.generate`; pictures are encoded once, before beams or samples are expanded."""
        input_ids = inputs if inputs is not None else kwargs.pop("input_ids", None)
        pictures = vision_inputs(kwargs)
        encoded = dict(kwargs.pop("mm_encoder_outputs", None) or {})
        index = kwargs.pop("visual_index", None)
        kwargs = {
            name: value for name, value in kwargs.items() if not name.startswith(VISION) and name != "crop_counts"
        }
        if input_ids is not None and kwargs.get("inputs_embeds") is None and (pictures["pixels"] or encoded):
            encoded = encoded or self.fuse_all(self.encode_streams(**pictures))
            kwargs["inputs_embeds"] = self.embed(input_ids, encoded.get(IMAGE), index)
            kwargs["layer_state"] = self.prepare_layers(input_ids, encoded, index)
        parent: Any = super()
        return parent.generate(input_ids, **kwargs)


def _of_real_tokens(logits_BTV: Tensor, attention_mask: Tensor | None) -> Tensor:
    """The logits but those of padding, which may be anything; the mask may also cover tokens of earlier steps."""
    if attention_mask is None or attention_mask.ndim != 2:
        return logits_BTV
    return logits_BTV[attention_mask[:, -logits_BTV.shape[1] :].bool()]


class VisionInputs(TypedDict):
    """Arguments of `encode_streams`, by stream."""

    pixels: dict[str, Tensor]
    coverage: dict[str, Tensor]


def vision_inputs(batch: Mapping[str, Any]) -> VisionInputs:
    """What `encode_streams` takes, from a batch with `pixel_values_NAME` and `coverage_NAME`."""
    return {"pixels": _named(batch, PIXELS), "coverage": _named(batch, COVERAGE)}


def _named(batch: Mapping[str, Any], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in batch.items()
        if name.startswith(prefix) and value is not None
    }
