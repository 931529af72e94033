"""What a query or a key has to say of a relative position: the papers' formulas, and what reaches no gradient."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from jattn import masks, mods, scores
from jattn.backends.pallas import fit
from tests.mods.formulas import SIZES, I, J, agree, plain
from tests.problems import problem


def _deberta(q, k, v, c2p, p2c):
    """He et al. 2021, equation 4: q.k + q.c2p[delta(i, j)] + k.p2c[delta(j, i)], delta(i, j) = i - j + 4 within the table."""
    scale = (3 * q.shape[-1]) ** -0.5
    keys = jnp.repeat(k, q.shape[2] // k.shape[2], axis=2)
    said = mods.relative_content(scale * q, c2p, lambda r: jnp.clip(4 - r, 0, 8))
    heard = mods.relative_content(scale * keys, p2c, lambda r: jnp.clip(4 + r, 0, 8), of="key")
    return {"mods": (said, heard), "score": scores.dot(scale)}


def _deberta_plain(q, k, score, c2p, p2c):
    delta = np.clip(I - J + 4, 0, 8)
    said = jnp.einsum("bthd,tshd->bhts", q, c2p[delta][:, :, None].repeat(4, 2))
    heard = jnp.einsum("bshd,htsd->bhts", k, p2c[:, np.clip(J - I + 4, 0, 8)])
    return (score + said + heard) * (3 * q.shape[-1]) ** -0.5


def _transformer_xl(q, k, v, r, u, w):
    """Dai et al. 2019, section 3.3: (q + u).k + (q + w).r[i - j], with an entry for every relative position."""
    moved = scores.dot(1.0)
    of_keys = jnp.einsum("hd,bshd->bhs", u, jnp.repeat(k, 2, axis=2))
    return {
        "score": moved,
        "mods": (mods.bias(of_keys, "bhs"), mods.relative_content(q + w, r, lambda r: SIZES.t - 1 - r + SIZES.s)),
    }


def _transformer_xl_plain(q, k, score, r, u, w):
    return jnp.einsum("bthd,bshd->bhts", q + u, k) + jnp.einsum(
        "bthd,htsd->bhts", q + w, r[:, SIZES.t - 1 + SIZES.s + I - J]
    )


def _sam(q, k, v, ys, xs):
    """Li et al. 2022, of patches in rows of 4: q.ys[y(i) - y(j)] + q.xs[x(i) - x(j)]."""
    y, x = (np.arange(SIZES.t) // 4)[:, None] - np.arange(5), (np.arange(SIZES.t) % 4)[:, None] - np.arange(4)
    said = (jattn.operand(jnp.einsum("bthd,tnd->bhtn", q, z), "bht") for z in (ys[y + 4], xs[x + 3]))
    look_up = lambda content, n: jnp.take(content[:, 0], n[0], axis=1, mode="clip")
    return {
        "mods": mods.function(lambda s, i, j, y, x: s + look_up(y, j // 4) + look_up(x, j % 4), *said),
        "score": scores.dot(1.0),
    }


def _sam_plain(q, k, score, ys, xs):
    of = lambda table, at: jnp.einsum("bthd,tsd->bhts", q, table[at])
    return score + of(ys, I // 4 - J // 4 + 4) + of(xs, I % 4 - J % 4 + 3)


CONTENT = {
    "deberta": (_deberta, _deberta_plain, lambda x: (x.normal("", 9, x.d), x.normal("h", 9, x.d))),
    "transformer-xl": (
        _transformer_xl,
        _transformer_xl_plain,
        lambda x: (x.normal("h", 40, x.d), x.normal("hd"), x.normal("hd")),
    ),
    "sam": (_sam, _sam_plain, lambda x: (x.normal("", 9, x.d), x.normal("", 7, x.d))),
}


@pytest.mark.parametrize("blocks", [(4, 5), (1, 3), (13, 17)])
@pytest.mark.parametrize("name", CONTENT)
def test_scores_of_relative_positions_by_content(draw, name, blocks):
    options, change, learned = CONTENT[name]
    arrays = *draw.inputs(), *(0.3 * x for x in learned(draw))

    def got(q, k, v, *more):
        return jattn.attention(
            q, k, v, **options(q, k, v, *more), mask=masks.window(9, 5), implementation="blockwise", blocks=blocks
        )

    def wanted(q, k, v, *more):
        keys = jnp.repeat(k, 2, axis=2)
        return plain(q, k, v, lambda score: change(q, keys, score, *more), (I - J <= 9) & (J - I <= 5), scale=1.0)

    agree(got, wanted, arrays)


def test_why_kernels_refuse_content(draw):
    said = mods.relative_content(draw.normal("bth", 3), draw.normal("", 5, 3))
    reason = fit.unfit_terms(problem(draw.inputs(), {"mods": said}), lambda x: None, lambda x, tiles: None)
    assert reason == "has no kernel for mods.relative_content, a product of its own for each tile"


@pytest.mark.parametrize("of", ["query", "key"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_content_of_rows_that_see_nothing_reaches_no_gradient_of_the_table(bad, of):
    q, k, v = (jax.random.normal(jax.random.key(n), (1, 8, 2, 4)) for n in range(3))
    table, seen = jax.random.normal(jax.random.key(3), (2, 15, 4)), masks.lengths(jnp.array([5]), jnp.array([5]))

    def slope(rest):
        content = (q if of == "query" else k).at[:, 5:].set(rest)
        attend = lambda x: jattn.attention(q, k, v, mods=mods.relative_content(content, x, of=of), mask=seen)
        return jax.grad(lambda x: jnp.sum(attend(x) ** 2))(table)

    np.testing.assert_array_equal(slope(bad), slope(0.0))
