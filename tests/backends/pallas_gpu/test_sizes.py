"""Tile sizes: what fits each chip's shared memory, and what a caller asks for."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jattn_kernels import tables
from jattn_kernels.chips import GPUS, KIB

from jattn import gates, masks, mods, operand
from jattn._call import targets
from jattn._call.problem import reduce
from jattn._call.targets import Target
from jattn.backends.contract import Spec
from jattn.backends.pallas_gpu import PALLAS_GPU
from jattn.backends.pallas_gpu.sizes import tile_sizes
from tests.cases import Sizes, make
from tests.evaluate import as_function
from tests.problems import problem

NEW = jax.__version_info__ >= (0, 11)


def _sizes(
    target: Any, kernel: Any, d: int, e: int = 0, blocks: Any = None, entries: Any = None, **options: Any
) -> Any:
    q, v = ((2, 512, 4, n) for n in (d, e or d))
    of = jax.ShapeDtypeStruct
    signature = []

    def arrays(given):
        *found, static = reduce(given)
        signature.append(static)
        return found

    given = problem((of(q, jnp.bfloat16), of(q, jnp.bfloat16), of(v, jnp.bfloat16)), options)
    _, k, v, operands = jax.eval_shape(arrays, given)
    target = targets.named(target) if isinstance(target, str) else target
    spec = Spec(PALLAS_GPU, signature[0], jnp.dtype(jnp.bfloat16), None, blocks, target)
    return tile_sizes(spec, k, v, operands, kernel, entries)


BIAS: Any = {"bias": jnp.zeros((1, 4, 512, 512))}


@pytest.mark.parametrize("d", [16, 64, 128, 192, 256])
@pytest.mark.parametrize("kernel", ["forward", "queries", "keys"])
@pytest.mark.parametrize("name", ["a100", "l4", "h100"])
def test_tiles_fit_in_shared_memory(name, kernel, d):
    for options in ({}, BIAS):
        sizes, _ = _sizes(name, kernel, d, **options)
        resident = sizes.rows * d * (1 if kernel == "forward" else 2) * 2
        passing = sizes.steps * sizes.columns * (2 * d * 2 + (sizes.rows * 4 if options else 0))
        assert resident + passing + 2 * KIB <= GPUS[name].granted


@pytest.mark.parametrize("d", [16, 128, 256])
@pytest.mark.parametrize("name", ["a100", "l4", "h100", "b200"])
def test_tiles_of_pairs_fit_in_shared_memory(name, d):
    relative: Any = {"mods": mods.relative(jnp.zeros((4, 32)))}
    for options, of_pairs, of_sums in ((BIAS, 4, 0), (relative, 0, 4)):
        sizes, _ = _sizes(name, "pairs", d, **options)
        rows = sizes.steps * (sizes.rows + sizes.columns) * 2 * d * 2
        pairs = sizes.rows * sizes.columns * (sizes.steps * of_pairs + of_sums)
        assert rows + pairs + 2 * KIB <= GPUS[name].granted


@pytest.mark.parametrize(
    ("target", "kernel", "d", "wanted"),
    [
        ("a100", "forward", 128, (64, 64, 2)), ("l4", "forward", 128, (64, 32, 2)), ("a100", "forward", 256, (64, 32, 2)),
        ("a100", "queries", 128, (64, 32, 2)), ("a100", "keys", 64, (64, 64, 2)), ("l4", "keys", 256, (64, 16, 2)),
        (Target("gpu", None, False, (8, 6)), "forward", 128, (64, 32, 2)),  # an RTX 30, which is not in the table
        ("h100", "forward", 128, (128, 128, 2)),
    ],
)  # fmt: skip
def test_two_blocks_of_ampere_share_a_multiprocessor_where_they_can(target, kernel, d, wanted):
    sizes, source = _sizes(target, kernel, d)
    assert (sizes.rows, sizes.columns, sizes.steps) == wanted
    assert source == "the largest that fit"


@pytest.mark.parametrize(("d", "columns"), [(64, 128), (128, 128), (256, 64)])
def test_a_bias_of_all_pairs_takes_no_columns_of_a_forward_pass_on_hopper(d, columns):
    bias: Any = {"bias": jnp.zeros((1, 4, 512, 512), jnp.bfloat16)}
    assert _sizes("h100", "forward", d, **bias)[0].columns == _sizes("h100", "forward", d)[0].columns == columns
    others: list[Any] = [{"dropout": gates.dropout(0.1, 1)}, {"mods": mods.alibi(jnp.ones(4))}]
    for other in others:  # words of dropout, and slopes where heads are folded, lie along tiles as well
        assert _sizes("h100", "forward", d, **bias, **other)[0].columns == min(columns, 8192 // d)


def test_functions_of_users_leave_registers_for_half_of_the_columns_on_ampere():
    options: Any = {"mods": mods.function(lambda score, i, j: jnp.tanh(score))}
    columns = {kernel: _sizes("a100", kernel, 64, **options)[0].columns for kernel in ("forward", "queries", "keys")}
    assert columns == {"forward": 64, "queries": 32, "keys": 32}


def test_gates_of_blackwell_have_fewer_columns():
    gated: Any = {"dropout": gates.dropout(0.1, 0)}
    assert [_sizes("b200", "forward", 128, **x)[0].columns for x in ({}, gated)] == [128, 64]


def test_where_nothing_else_fits_one_tile_is_there_at_a_time():
    assert _sizes("l4", "keys", 256, **BIAS)[0].steps == 1


def test_tiles_as_asked_for():
    sizes, source = _sizes("a100", "forward", 64, blocks=(64, 32))
    assert (sizes.rows, sizes.columns, source) == (64, 32, "as asked for")


@pytest.mark.parametrize(
    ("name", "rows", "blocks"),
    [
        ("a100", "64", (128, 64)),
        ("h100", "128", (32, 64)),
        ("h100", "128", (64, 64)),
        ("h100", "128", (128, 48)),
        ("h100", "128", (128, 256)),
        ("b200", "128 or 256", (64, 64)),
    ],
)
def test_tiles_that_no_kernel_has_are_named(name, rows, blocks):
    wanted = (
        rf"^blocks must be \({rows} query rows, 16 or 32 or 64 or 128 key rows\) .*got \({blocks[0]}, {blocks[1]}\)"
    )
    with pytest.raises(ValueError, match=wanted):
        _sizes(name, "forward", 64, blocks=blocks)


def test_numbers_of_pairs_are_counted_as_kernels_hold_them():
    """Booleans take 16 bits, small integers 32."""
    seen, ids = jnp.ones((1, 4, 512, 512), bool), jnp.zeros((512, 512), jnp.int8)
    dense = masks.function(lambda i, j, x: x == 0, operand(ids, "ts"))
    for mask, bytes_of_one in ((seen, 2), (dense, 4)):
        sizes, _ = _sizes("h100", "forward", 128, mask=mask)
        of_column = sizes.steps * (512 + sizes.rows * bytes_of_one)
        room = GPUS["h100"].granted - 2 * KIB - sizes.rows * 256
        assert sizes.columns * of_column <= room < 2 * sizes.columns * of_column


def _entry(mask: str, t: int, steps: int, **changes: Any) -> tables.Entry:
    sizes = {"rows": 128, "columns": 64, "steps": steps, "piece": 64, "height": 64}
    return tables.Entry(
        **{
            **dict(chip="h100", d=128, t=t, mask=mask, direction="forward", sizes=sizes, milliseconds=1.0, pairs=1),
            **changes,
        }
    )


def test_what_was_the_fastest_on_the_chip_is_taken():
    """For the nearest mask and length, of calls that such entries say something of."""
    entries = [_entry("full", 512, 2), _entry("causal", 16384, 3), _entry("causal", 1024, 4)]
    steps = lambda target="h100", d=128, **options: _sizes(target, "forward", d, entries=entries, **options)[0].steps
    assert steps(mask=masks.causal()) == 4
    assert _sizes("h100", "forward", 128, entries=entries[:2])[1] == "tuned for h100, forward, full, d 128, t 512"
    found, source = _sizes(
        "h100", "forward", 128, entries=entries[:2], mask=masks.causal() & masks.segments(jnp.zeros((2, 512), int))
    )
    assert found.steps == 3 and "causal" in source
    plain = _sizes("h100", "forward", 128)
    others: list[Any] = [{"mods": mods.softcap(3.0)}, {"dropout": gates.dropout(0.1, 1)}, BIAS]
    for other in others:
        assert "tuned" not in _sizes("h100", "forward", 128, entries=entries, **other)[1]
    assert _sizes("h200", "forward", 128, entries=entries) == plain
    assert "tuned" not in _sizes("h100", "forward", 64, entries=entries)[1]
    assert _sizes("h100", "forward", 128, entries=[_entry("full", 512, 9)]) == plain  # more than shared memory holds
    assert _sizes("h100", "forward", 128, blocks=(128, 64), entries=entries)[1] == "as asked for"


def test_many_operands_of_pairs_get_small_tiles():
    biases = tuple(mods.bias(jnp.zeros((512, 512)), "ts") for _ in range(6))
    sizes, _ = _sizes("h100", "queries", 128, mods=biases)
    assert (sizes.rows, sizes.columns, sizes.steps) == (128, 16, 2)


@pytest.mark.gpu
@pytest.mark.skipif(not NEW, reason="jax 0.11 or newer, Python 3.12")
@pytest.mark.parametrize("chip", ["a100", "h100", "b200"])
@pytest.mark.parametrize("name", ["bias-every-axes", "everything", "relative"])
def test_copies_begin_at_multiples_of_128_bytes(monkeypatch, chip, name):
    """The accelerator of copies takes no other place in shared memory, which neither the simulator nor a compiler
    minds: tiles of 16 columns had vectors 64 bytes apart, which a GPU called a misaligned address."""
    from jax.experimental.pallas import mosaic_gpu as plgpu

    found: list[tuple[tuple[int, ...], Any]] = []
    memory = plgpu.SMEM  # pyright: ignore[reportAttributeAccessIssue]

    def recorded(shape: tuple[int, ...], dtype: Any, **more: Any) -> Any:
        if not more.get("transforms"):  # tiles are whole blocks of 8 rows
            found.append((shape, jnp.dtype(dtype)))
        return memory(shape, dtype, **more)

    monkeypatch.setattr(plgpu, "SMEM", recorded)
    monkeypatch.setenv("JATTN_INTERPRET", chip)
    inputs = make(name, jnp.bfloat16, Sizes(b=2, t=391, s=457, h=4, g=2, d=128, e=128))
    fn, arrays, _ = as_function(inputs, implementation="pallas_gpu")
    jax.eval_shape(lambda *x: jax.vjp(fn, *x)[1](jax.tree.map(jnp.zeros_like, jax.eval_shape(fn, *x))), *arrays)
    # A tile of more rows than there are steps is no row of stretches: it is whole wherever it goes.
    several = [(shape, dtype) for shape, dtype in found if math.prod(shape[:-1]) > 1 and shape[-2] <= 8]
    assert len(several) > 5
    assert not [x for x in several if x[0][-1] * x[1].itemsize % 128]
