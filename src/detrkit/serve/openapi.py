"""Requests and answers of the server in the terms of OpenAPI, for `/openapi.json`."""

from typing import Any

_JSON = "application/json"
_NUMBER, _INTEGER, _TEXT, _FLAG = ({"type": kind} for kind in ("number", "integer", "string", "boolean"))
_BINARY = {"type": "string", "format": "binary"}


def _object(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"type": "object", "properties": {**required, **(optional or {})}, "required": list(required)}


def _array(items: dict[str, Any], **limits: int) -> dict[str, Any]:
    return {"type": "array", "items": items, **limits}


def _answer(description: str, schema: dict[str, Any], media_type: str = _JSON, **more: Any) -> dict[str, Any]:
    return {"description": description, "content": {media_type: {"schema": schema}}, **more}


_ERROR = _object({"error": {"type": "string", "description": "one sentence: what was found and what to do"}})
_SCORE = {"type": "number", "minimum": 0, "maximum": 1}
_MASK = _object({"size": _array(_INTEGER, minItems=2, maxItems=2), "counts": _TEXT})
_DETECTION = _object(
    {
        "name": _TEXT,
        "category_id": _INTEGER,
        "score": _SCORE,
        "box": {**_array(_NUMBER, minItems=4, maxItems=4), "description": "left, top, right, bottom in pixels"},
    },
    {"mask": {**_MASK, "description": "compressed run lengths of COCO"}},
)
_SEGMENT = _object(
    {"id": _INTEGER, "name": _TEXT, "category_id": _INTEGER, "is_thing": _FLAG, "score": _SCORE, "area": _INTEGER}
)
_DETECTIONS = _object(
    {"image": _TEXT, "width": _INTEGER, "height": _INTEGER, "objects": _array(_DETECTION)},
    {"segments": _array(_SEGMENT)},
)
_HEALTH = _object(
    {
        "status": {"type": "string", "enum": ["ready", "not ready"]},
        "model": _TEXT,
        "devices": _array(_TEXT),
        "queue": _INTEGER,
        "in_flight": _INTEGER,
        "decoders": {"type": "object"},
        "explains": _FLAG,
        "version": _TEXT,
    }
)

_REFUSALS: dict[int | str, dict[str, Any]] = {
    400: _answer("The request has no image, another query, a wrong threshold or a wrong Host header.", _ERROR),
    403: _answer("A page of another origin sent the request.", _ERROR),
    429: _answer("The address has too many connections or requests in progress.", _ERROR),
    503: _answer("The server is busy or shutting down; try again in a moment.", _ERROR),
}
_IMAGE_REFUSALS: dict[int | str, dict[str, Any]] = {
    **_REFUSALS,
    408: _answer("The image did not arrive in time.", _ERROR),
    413: _answer("The upload is too large.", _ERROR),
    415: _answer("The body is no image of a format that is read, or has another Content-Encoding or charset.", _ERROR),
    422: _answer("The image cannot be read.", _ERROR),
    500: _answer("The model failed.", _ERROR),
    504: _answer("The answer took too long.", _ERROR),
}

# body of a request with an image
IMAGE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": {**_object({"image": _BINARY}), "additionalProperties": False}},
            "image/*": {"schema": _BINARY},
        },
    }
}
PREDICT_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: _answer("The objects in the image, best first.", _DETECTIONS),
    **_IMAGE_REFUSALS,
}
EXPLAIN_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: _answer(
        "The page's document as JSON, and a binary block.",
        _BINARY,
        "application/octet-stream",
        headers={"X-Document-Bytes": {"description": "length of the JSON", "required": True, "schema": _INTEGER}},
    ),
    501: _answer("An exported model cannot be explained.", _ERROR),
    **_IMAGE_REFUSALS,
}
HEALTH_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: _answer("Images are answered.", _HEALTH),
    **_REFUSALS,
    503: _answer("Images are not answered, or the server is busy.", {"anyOf": [_HEALTH, _ERROR]}),
}
METRICS_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: _answer("Metrics in Prometheus' text format.", _TEXT, "text/plain"),
    **_REFUSALS,
}
