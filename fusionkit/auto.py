"""`import fusionkit.auto` makes transformers' AutoClasses know fusionkit models.

Example: `AutoModelForImageTextToText.from_pretrained(folder)` and `AutoProcessor.from_pretrained(folder)`.
"""

from __future__ import annotations

from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from fusionkit.model.configuration import FusionConfig
from fusionkit.model.modeling import FusionVLM
from fusionkit.model.processing import FusionProcessor

AutoConfig.register(FusionConfig.model_type, FusionConfig, exist_ok=True)
AutoModelForImageTextToText.register(FusionConfig, FusionVLM, exist_ok=True)
AutoProcessor.register(FusionConfig, FusionProcessor, exist_ok=True)
