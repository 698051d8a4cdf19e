"""Finds where a GPU would be waited for, without one: meta tensors stand for those on the card."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def _devices(values: object) -> set[str]:
    return {each.device.type for each in tree_leaves(values) if isinstance(each, torch.Tensor)}


class _Waits(TorchDispatchMode):
    """Notes copies to or from meta tensors that are waited for, and indexing by tensors that must be copied first.

    Reading a meta tensor's values raises by itself.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def note(self, what: str) -> None:
        frames = [frame for frame in traceback.extract_stack() if "/src/voxtile/" in frame.filename]
        self.found += [f"{what}: {frame.filename}:{frame.lineno}" for frame in frames[-1:]]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        name, given = func._schema.name, _devices((args, kwargs))
        at_once = kwargs.get("non_blocking") or (name == "aten::copy_" and args[2:3] == (True,))
        crosses = given | _devices(made) > {"meta"}
        if (name in ("aten::_to_copy", "aten::copy_") and crosses and not at_once) or (
            "index" in name and "cpu" in given and crosses
        ):
            self.note(name)
        return made


@contextmanager
def nothing_waited_for() -> Iterator[None]:
    """Refuses, at the end, what would have waited for a GPU in which meta tensors lie."""
    waits, plain = _Waits(), torch.tensor

    def tensor(*args, **options):
        if torch.device(options.get("device") or "cpu").type == "meta":  # of values on the CPU: a copy that is waited for
            waits.note("torch.tensor")
        return plain(*args, **options)

    with pytest.MonkeyPatch.context() as patch, waits:
        patch.setattr(torch, "tensor", tensor)
        yield
    assert not waits.found, waits.found
