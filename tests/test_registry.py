"""Names to objects, and what is said when a name is wrong."""

from __future__ import annotations

import pytest

from coterie.errors import OptionError
from coterie.registry import Registry


def policies() -> Registry[type]:
    registry: Registry[type] = Registry("cache policy")
    for name in ("lru", "lfu", "belady"):
        registry.register(name)(type(name, (), {}))
    return registry


def test_what_is_filed_is_found() -> None:
    registry: Registry[type] = Registry("cache policy")

    @registry.register("mine")
    class Mine:
        pass

    assert Mine.__name__ == "Mine"
    assert registry.get("mine") is Mine
    assert "mine" in registry
    assert "yours" not in registry


def test_names_come_sorted() -> None:
    assert list(policies()) == ["belady", "lfu", "lru"]


def test_a_near_miss_is_suggested() -> None:
    with pytest.raises(OptionError) as error:
        policies().get("beladdy")
    assert str(error.value) == (
        "There is no cache policy 'beladdy'. Did you mean 'belady'? There are: belady, lfu, lru."
    )


def test_a_far_miss_is_not() -> None:
    with pytest.raises(OptionError, match=r"^There is no cache policy 'xyz'\. There are: belady, lfu, lru\.$"):
        policies().get("xyz")


def test_a_name_is_taken_once() -> None:
    with pytest.raises(AssertionError, match="twice"):
        policies().register("lru")
