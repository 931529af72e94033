"""Where in a mesh a call lies, and what each device does of it: by arithmetic on shapes, without devices."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jattn import masks
from jattn._call import targets
from jattn._call.problem import reduce
from jattn._derivatives.partitioning import Placement, PrimitiveCall, Roles, _with_heads_picked
from jattn.backends.blockwise import BLOCKWISE
from jattn.backends.contract import Spec
from jattn.masks import Blocks, Function
from tests.problems import problem

B, T, S, D = 4, 8, 8, 2
SIZES = {"x": 2, "y": 4}


def _call(h=8, g=4, batch=(B, B), axes=("bth", "bsg", "bsg"), outputs=("bth",), mapped=(), lead=(), sums=False):
    """A call of queries, keys and values, of which the batch lengths are `batch`, after mapped axes of lengths `lead`."""
    x = tuple(jax.ShapeDtypeStruct((1, n, heads, D), "float32") for n, heads in ((T, h), (S, g), (S, g)))
    spec = Spec(BLOCKWISE, reduce(problem(x, {})).signature, np.dtype("float32"), None, None, targets.current(), mapped)
    shapes = [(*lead, batch[0], T, h, D), *[(*lead, batch[1], S, g, D)] * 2]
    results = [jax.ShapeDtypeStruct(shapes[0 if x == "bth" else 1], "float32") for x in outputs]
    return PrimitiveCall(lambda *args, spec: args, spec, Roles(axes, outputs, sums), shapes, results)


@pytest.mark.parametrize(
    ("batch", "heads", "reason"),
    [
        ((), (), None),
        (("y",), (), None),
        (("x", "y"), (), "b = 4 does not divide by the 8 devices along 'x' and 'y'"),
        ((), ("x",), None),
        ((), ("y",), None),
        ((), ("x", "y"), None),  # two devices for each key head
        (("x",), ("y",), None),
    ],
)
def test_a_call_lies_where_its_lengths_divide(batch, heads, reason):
    assert _call().misfit(SIZES, Placement((batch,), heads)) == reason


def test_heads_that_do_not_divide_are_named():
    reason = _call(h=6, g=3).misfit(SIZES, Placement(((),), ("x",)))
    assert reason is None or "h = 6, g = 3" in reason
    assert "h = 6, g = 2 do not divide by the 4 devices along 'y'" in str(
        _call(h=6, g=2).misfit(SIZES, Placement(((),), ("y",)))
    )
    assert "h = 12, g = 6" in str(_call(h=12, g=6).misfit(SIZES, Placement(((),), ("y",))))


def test_axes_that_do_not_divide_are_left_out_the_last_first():
    call = _call()
    assert call.fitted(SIZES, Placement((("x", "y"),), ())) == Placement((("x",),), ())
    assert call.fitted(SIZES, Placement((("y", "x"),), ("x", "y"))) == Placement((("y",),), ("x", "y"))
    assert _call(h=3, g=3).fitted(SIZES, Placement(((),), ("x",))) == Placement(((),), ())


@pytest.mark.parametrize(
    ("specs", "batch", "heads"),
    [
        ([P(), P(), P()], (), ()),
        ([P("x"), P(), P()], ("x",), ()),
        ([P(), P(("x", "y")), P()], ("x", "y"), ()),
        ([P(None, None, "x"), P("y"), P()], ("y",), ("x",)),
        ([P(), P(), P(None, None, "x")], (), ("x",)),
        ([P("x"), P(None, None, "x"), P()], ("x",), ()),  # of one kind alone
        ([P(None, "x"), P(), P()], (), ()),  # a sequence, which is gathered
    ],
)
def test_each_axis_lies_as_in_the_first_array_that_is_split_along_it(specs, batch, heads):
    assert _call().read(specs) == Placement((batch,), heads)


def test_an_array_that_all_share_does_not_say_where_the_batch_lies():
    call = _call(batch=(1, B))
    assert call.lengths == (B,)
    assert call.read([P("x"), P("y"), P()]).batch == (("y",),)


def test_sequences_are_told():
    call = _call()
    assert call.sequence([P(None, "x"), P(), P()]) == ("x",)
    assert call.sequence([P("x"), P("x", ("y",)), P()]) == ("y",)
    assert call.sequence([P("x"), P(), P()]) == ()


def test_arrays_lie_as_far_as_they_have_the_axes():
    call, there = _call(batch=(B, 1)), Placement((("x",),), ("y",))
    assert call.specs(SIZES, there, call.roles.inputs, call.shapes) == (
        P("x", None, "y"),
        P(None, None, "y"),
        P(None, None, "y"),
    )
    few = _call(g=1)
    assert not few.splits_keys(SIZES, ("y",)) and call.splits_keys(SIZES, ("y",))
    assert few.specs(SIZES, there, ["bsg", "h", ""], [few.shapes[1], (8,), ()]) == (P("x", None, None), P("y"), P())


def test_mapped_axes_lie_in_front():
    call = _call(mapped=(("x",),), lead=(2,))
    assert call.lengths == (2, B)
    there = call.read([P("x", "y"), P(), P()])
    assert there == Placement((("x",), ("y",)), ())
    assert call.specs(SIZES, there, ["bth"], call.shapes[:1]) == (P("x", "y", None, None),)


def test_heads_of_a_device_are_picked_at_run_time():
    """Of what knows them while it is traced: a layout of each head, and a function of the head."""
    x = tuple(jax.ShapeDtypeStruct((1, 8, 2, 4), "float32") for _ in range(3))
    mask = masks.blocks(np.ones((2, 2, 2), bool), 4) & masks.function(lambda b, h, i, j: j <= i + h)
    spec = Spec(
        BLOCKWISE, reduce(problem(x, {"mask": mask})).signature, np.dtype("float32"), None, None, targets.current()
    )
    terms = lambda spec: spec.terms(range(len(spec.signature.axes)))
    before, after = terms(spec).mask, terms(_with_heads_picked(spec)).mask
    assert isinstance(before.left, Blocks) and not before.left.picked and after.left.picked
    assert isinstance(before.right, Function) and before.right.heads == (0, 1) and after.right.heads is None
    assert _with_heads_picked(spec).axes == spec.axes
