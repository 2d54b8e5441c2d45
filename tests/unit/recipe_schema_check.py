"""The part of JSON Schema that ours uses, written plainly, so that the schema is tested and not only printed."""

from __future__ import annotations

import re
from typing import Any

IGNORED = {"$schema", "$defs", "title", "description", "default", "examples", "discriminator", "format", "then", "else"}
KINDS: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


class Schema:
    """A schema whose `takes` says whether a value fits; an unknown keyword is an error, never ignored."""

    def __init__(self, root: dict[str, Any]) -> None:
        self.root = root

    def takes(self, value: Any) -> bool:
        return self._fits(value, self.root)

    def _fits(self, value: Any, schema: Any) -> bool:
        if schema is True or schema is False:
            return schema is True
        return all(
            self._holds(value, keyword, given, schema) for keyword, given in schema.items() if keyword not in IGNORED
        )

    def _holds(self, value: Any, keyword: str, given: Any, schema: dict[str, Any]) -> bool:
        match keyword:
            case "$ref":
                return self._fits(value, self._resolve(given))
            case "if":
                return self._fits(value, schema["then" if self._fits(value, given) else "else"])
            case "anyOf":
                return any(self._fits(value, choice) for choice in given)
            case "oneOf":
                return sum(self._fits(value, choice) for choice in given) == 1
            case "allOf":
                return all(self._fits(value, choice) for choice in given)
            case "type":
                kinds = KINDS[given]
                return isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
            case "const":
                return bool(value == given)
            case "enum":
                return value in given
        if isinstance(value, dict):
            return self._holds_object(value, keyword, given, schema)
        if isinstance(value, list):
            return self._holds_array(value, keyword, given)
        if isinstance(value, str):
            return self._holds_string(value, keyword, given)
        if isinstance(value, int | float):
            return self._holds_number(value, keyword, given)
        return True

    def _resolve(self, reference: str) -> Any:
        return self.root["$defs"][reference.removeprefix("#/$defs/")]

    def _holds_object(self, value: dict[str, Any], keyword: str, given: Any, schema: dict[str, Any]) -> bool:
        match keyword:
            case "properties":
                return all(self._fits(value[key], part) for key, part in given.items() if key in value)
            case "additionalProperties":
                known = schema.get("properties", {})
                return all(self._fits(part, given) for key, part in value.items() if key not in known)
            case "required":
                return all(key in value for key in given)
            case "minProperties":
                return len(value) >= given
            case "maxProperties":
                return len(value) <= given
            case "propertyNames":
                return all(self._fits(key, given) for key in value)
        return self._is_of_another_kind(keyword)

    def _holds_array(self, value: list[Any], keyword: str, given: Any) -> bool:
        match keyword:
            case "items":
                return all(self._fits(item, given) for item in value)
            case "prefixItems":
                return all(self._fits(item, part) for item, part in zip(value, given, strict=False))
            case "minItems":
                return len(value) >= given
            case "maxItems":
                return len(value) <= given
        return self._is_of_another_kind(keyword)

    def _holds_string(self, value: str, keyword: str, given: Any) -> bool:
        match keyword:
            case "pattern":
                return re.search(given, value) is not None
            case "minLength":
                return len(value) >= given
            case "maxLength":
                return len(value) <= given
        return self._is_of_another_kind(keyword)

    def _holds_number(self, value: float, keyword: str, given: Any) -> bool:
        match keyword:
            case "minimum":
                return bool(value >= given)
            case "maximum":
                return bool(value <= given)
            case "exclusiveMinimum":
                return bool(value > given)
            case "exclusiveMaximum":
                return bool(value < given)
            case "multipleOf":
                return value % given == 0
        return self._is_of_another_kind(keyword)

    def _is_of_another_kind(self, keyword: str) -> bool:
        known = (
            "properties additionalProperties required minProperties maxProperties propertyNames items prefixItems minItems "
            "maxItems pattern minLength maxLength minimum maximum exclusiveMinimum exclusiveMaximum multipleOf"
        )
        assert keyword in known.split(), f"this checker does not know '{keyword}'"
        return True
