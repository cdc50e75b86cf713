"""What the records of a run's log hold: a table of the fields of each kind of record.

Further fields of a record are ignored. Logs of older versions lack the fields that the
table marks as optional.
"""

import math
import reprlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

_MOST = 2**53  # up to this number a float holds every whole number


class Holds(NamedTuple):
    """What a value must be, in words and as a test; of an object, also its fields."""

    words: str
    test: Callable[[Any], bool]
    fields: Mapping[str, "Holds"] = {}
    others: "Holds | None" = None  # what all fields hold that `fields` does not name
    optional: bool = False


def _whole(low: int) -> Holds:
    words = f"a whole number from {low} to 2^53"
    return Holds(words, lambda x: type(x) is int and low <= x <= _MOST)


def _number(low: float, high: float, words: str) -> Holds:
    # NaN is in no range, and true is no number.
    return Holds(words, lambda x: type(x) in (int, float) and low <= x <= high)


def _or_null(what: Holds) -> Holds:
    return what._replace(
        words=f"{what.words}, or null", test=lambda x: x is None or what.test(x)
    )


def _list(words: str, each: Holds) -> Holds:
    return Holds(words, lambda x: isinstance(x, list) and all(map(each.test, x)))


def _object(others: Holds | None = None, /, **fields: Holds) -> Holds:
    return Holds("an object", lambda x: isinstance(x, dict), fields, others)


def _optional(what: Holds) -> Holds:
    return what._replace(optional=True)


_COUNT, _SIZE = _whole(0), _whole(1)
_AMOUNT = _number(0, _MOST, "a number from 0 to 2^53")
_LENGTH = _number(math.ulp(0), _MOST, "a number above 0, at most 2^53")
_SPEED = _number(1e-9, _MOST, "a number from 1e-9 to 2^53")
_SHARE = _number(0, 1, "a number from 0 to 1")
_VALUE = _or_null(_number(-1e300, 1e300, "a number from -1e300 to 1e300"))  # null: NaN
_NORM = _or_null(_number(0, 1e300, "a number from 0 to 1e300"))
_TEXT = Holds("a text", lambda x: isinstance(x, str))
_TEXTS = _list("a list of texts", _TEXT)
_FLAG = Holds("true or false", lambda x: isinstance(x, bool))
_VERSIONS = _optional(_object(_TEXT))


def _is_setting(x: Any) -> bool:
    finite = type(x) in (int, float) and abs(x) <= 1.7e308
    return x is None or isinstance(x, str | bool) or finite


_ONE = Holds("a setting", _is_setting)
_SETTING = Holds(
    "a text, a finite number, true, false, null, or a list of these",
    lambda x: _is_setting(x) or _list("", _ONE).test(x),
)
# In whichever section they are. A run's number of epochs is never 0.
_SETTINGS = {
    "network": _TEXT,
    "algorithm": _TEXT,
    "batch_size": _SIZE,
    "epochs": _LENGTH,
}


def _section(*required: str) -> Holds:
    fields = {k: v if k in required else _optional(v) for k, v in _SETTINGS.items()}
    found = _object(_SETTING, **fields)
    return found if required else _optional(found)


_LAYER = _object(param_norm=_NORM, grad_norm=_NORM, trust_ratio=_NORM, local_rate=_NORM)
_LAYERS = Holds(
    "an object with a layer", lambda x: isinstance(x, dict) and bool(x), {}, _LAYER
)
_SCORES = {
    "loss": _VALUE,
    "accuracy": _SHARE,
    "top5_accuracy": _optional(_SHARE),
    "count": _COUNT,
    "seconds": _AMOUNT,
}
#: The fields of each kind of record. `step` is the number of an update, from 0, in the
#: kinds step, not_finite and layers; in the others it is the number of updates done.
KINDS = {
    "config": _object(
        recipe=_optional(_or_null(_TEXT)),
        dry_run=_optional(_FLAG),
        compile_for=_optional(_or_null(_TEXT)),
        data=_section(),
        model=_section("network"),
        optimizer=_section("algorithm"),
        batching=_section("batch_size"),
        run=_section(),
        cluster=_section(),
        plan=_optional(_object(_COUNT, processes=_SIZE, devices=_SIZE)),
        versions=_VERSIONS,
        platform=_optional(_TEXT),
        images=_optional(_SIZE),
    ),
    "resume": _object(
        step=_COUNT,
        versions=_VERSIONS,
        saved_by=_VERSIONS,
        settings=_section(),
        changes=_optional(_TEXTS),
        damaged=_optional(_TEXTS),
    ),
    "data": _object(step=_COUNT, notes=_TEXTS),
    "step": _object(
        step=_COUNT,
        epoch=_AMOUNT,
        learning_rate=_VALUE,
        loss=_VALUE,
        accuracy=_or_null(_SHARE),
        noise=_optional(_VALUE),
        signal=_optional(_VALUE),
        noise_scale=_optional(_VALUE),
    ),
    "not_finite": _object(step=_COUNT, where=_TEXT),
    "layers": _object(step=_COUNT, layers=_LAYERS),
    "speed": _object(
        step=_COUNT,
        images_per_second=_SPEED,
        images_per_second_per_device=_SPEED,
        data_wait=_SHARE,
    ),
    "epoch": _object(epoch=_AMOUNT, step=_COUNT, split=_TEXT, **_SCORES),
    "broken": _object(step=_COUNT, path=_TEXT, reason=_TEXT),
    "stopped": _object(step=_COUNT),
    "result": _object(updates=_COUNT, diverged=_FLAG, **_SCORES),
}
_RECORD = _object(kind=Holds(f"one of {', '.join(KINDS)}", lambda x: x in list(KINDS)))


def check_record(record: Any) -> None:
    """Raises ValueError if a record of a log is not as the table says.

    The message continues "line N": "has FIELD = VALUE, which must be …".
    """
    _check("", record, _RECORD)
    kind = record["kind"]
    _check(kind, record, KINDS[kind])
    if kind == "speed":
        each, most = "images_per_second_per_device", record["images_per_second"]
        words = f"at most images_per_second, {most:g}"
        _check(f"{kind}.{each}", record[each], _number(0, most, words))


def _check(name: str, value: Any, what: Holds) -> None:
    if not what.test(value):
        shown = "null" if value is None else reprlib.repr(value)
        given = f"{name} = {shown}" if name else shown
        raise ValueError(f"has {given}, which must be {what.words}")
    for key, inner in what.fields.items():
        path = f"{name}.{key}" if name else key
        if key in value:
            _check(path, value[key], inner)
        elif not inner.optional:
            raise ValueError(f"has no {path}, which must be {inner.words}")
    if what.others:
        for key in value:
            if key not in what.fields:
                _check(f"{name}.{key[:100]}", value[key], what.others)
