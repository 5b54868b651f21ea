"""Any config survives JSON or is refused in one sentence, whoever wrote the JSON."""

import dataclasses
import json
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.autoencoder_cfg import Stage1Cfg
from configs.checks import ConfigError
from configs.cli import differences, from_dict, to_dict
from configs.diffusion_cfg import Stage2Cfg
from configs.generate_cfg import GenerateCfg

KINDS: list[Any] = [Stage1Cfg, Stage2Cfg]
every_kind = pytest.mark.parametrize("cls", KINDS, ids=lambda cls: cls.__name__)
texts = st.text(max_size=8) | st.sampled_from(["auto", "none", " ", "../x", "\ud800"])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "width", "x"]), inner),
    max_leaves=4,
)


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Values of a type, valid or not."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return st.one_of([values(member) for member in args])
    if origin is Literal:
        return st.sampled_from(args)
    if origin is tuple:
        return st.lists(values(args[0]), max_size=4).map(tuple)
    if dataclasses.is_dataclass(hint):
        return changed(hint)
    return {
        int: st.sampled_from([0, 1, 2, 3, 4, 8, 32, 64, 128]) | st.integers(), float: st.floats(0, 1) | st.floats(),
        bool: st.booleans(), str: texts, type(None): st.none(),
    }[hint]  # fmt: skip


def one_sentence(error: ConfigError) -> None:
    assert "\n" not in str(error)


@st.composite
def changed(draw: st.DrawFn, cls: Any) -> Any:
    """A config that differs from the defaults in a few fields; the default itself where such a one is refused."""
    hints = typing.get_type_hints(cls)
    fields = [field.name for field in dataclasses.fields(cls)]
    names = draw(st.lists(st.sampled_from(fields), max_size=3, unique=True)) if fields else []
    given_values = {name: draw(values(hints[name])) for name in names}
    try:
        return cls(**given_values)
    except ConfigError as error:
        one_sentence(error)
        return cls()


def places(plain: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of nested dictionaries and lists."""
    for key, value in plain.items() if isinstance(plain, dict) else enumerate(plain):
        yield plain, key
        if isinstance(value, (dict, list)):
            yield from places(value)


@every_kind
@given(st.data())
@settings(max_examples=150, deadline=None)
def test_any_config_survives_json(cls: Any, data: st.DataObject) -> None:
    cfg = data.draw(changed(cls))
    back = from_dict(cls, json.loads(json.dumps(to_dict(cfg))))
    assert back == cfg
    assert differences(cfg, back) == []


@every_kind
@given(st.data())
@settings(max_examples=300, deadline=None)
def test_any_json_in_any_place_of_a_config_is_read_or_refused(cls: Any, data: st.DataObject) -> None:
    plain = json.loads(json.dumps(to_dict(data.draw(changed(cls)))))
    container, key = data.draw(st.sampled_from(list(places(plain))))
    if data.draw(st.booleans()) and isinstance(container, dict):
        del container[key]
    else:
        container[key] = data.draw(json_values)
    try:
        cfg = from_dict(cls, plain)
    except ConfigError as error:
        one_sentence(error)
    else:
        assert from_dict(cls, json.loads(json.dumps(to_dict(cfg)))) == cfg


@pytest.mark.parametrize(("cls", "field", "value", "said"), [
    (Stage2Cfg, "ema", {"type": "EMACfg", "decay": "0.9"}, r"EMACfg\.decay is '0\.9', but it must be float"),
    (Stage1Cfg, "ema", True, r"Stage1Cfg\.ema is True, but it must be float"),
    (Stage1Cfg, "data", 5, r"Stage1Cfg\.data is 5, but it must be DataCfg"),
    (Stage2Cfg, "init", None, r"Stage2Cfg\.init is None, but it must be str"),
    (Stage2Cfg, "sampler", {"type": ["x"]}, r"a config of type \['x'\] is unknown here"),
    (GenerateCfg, "steps", [1, "4"], r"GenerateCfg\.steps is \(1, '4'\), but it must be tuple\[int, \.\.\.\]"),
])  # fmt: skip
def test_a_value_of_another_type_is_named(cls: Any, field: str, value: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        from_dict(cls, {"prompt": ["x"], field: value} if cls is GenerateCfg else to_dict(cls()) | {field: value})
