"""What the Ray engine says where it cannot begin."""

import sys

import pytest

from gatito.data.engine import ray_engine
from gatito.errors import UserError


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'gatito\[ray\]'"), ray_engine(1):
        pass
