"""Arguments by the names that other libraries have for them: the error says ours."""

import inspect

import jax
import pytest

import jattn
from jattn import masks
from jattn._call import hints
from tests.bad_input import K, Q, V, attend, call, check_named

BAD = {
    "is_causal": (attend(is_causal=True), TypeError, ["is_causal", "mask=jattn.masks.causal()"]),
    "scale": (attend(scale=0.1), TypeError, ["scale", "jattn.scores.dot(scale)"]),
    "num_heads": (attend(num_heads=4), TypeError, ["num_heads", "[b, t, h, d]"]),
    "mask in place": (lambda: jattn.attention(Q, K, V, masks.causal()), TypeError, ["4 arguments", "mask="]),  # pyright: ignore[reportCallIssue]  # wrong on purpose
    "weights and lse": (call(jattn.weights, Q, K, V, return_lse=True), TypeError, ["weights", "return_lse"]),
    "weights by a backend": (call(jattn.weights, Q, K, V, implementation="nonsense"), TypeError, ["weights", "implementation"]),
    "sample by a backend": (call(jattn.sample, jax.random.key(0), Q, K, V, blocks=(4, 4)), TypeError, ["sample", "blocks"]),
    "sample of what is not": (call(jattn.sample, jax.random.key(0), Q, K, V, maks=1), TypeError,
                              ["maks", "there are score, mask, mods, bias, precision, positions, pages, scales"]),
    "explain of another": (call(jattn.explain, Q, K, V, is_causal=True), TypeError, ["explain", "masks.causal()"]),
    "unknown option": (call(jattn.weights, Q, K, V, masks=None), TypeError, ["masks", "jattn.attention"]),
}  # fmt: skip


@pytest.mark.smoke
@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    check_named(BAD[name])


def test_answers_by_our_words_are_answers_by_the_names_of_others():
    answers = hints.by_name(causal="a mask", mask="mask=")
    assert answers == {"is_causal": "a mask", "causal": "a mask", "attn_mask": "mask=", "attention_mask": "mask="}
    with pytest.raises(KeyError, match="masks"):
        hints.by_name(masks="a word of nobody's")


def test_names_of_others_are_no_arguments_of_ours():
    """One that was would never be answered, since a call with it is right."""
    ours = inspect.signature(jattn.attention).parameters
    others = [x for names in hints.NAMES.values() for x in names]
    assert not set(ours) & set(others)
    assert len(others) == len(set(others))


def test_what_is_known_by_no_other_name_comes_with_a_list():
    assert hints.unexpected("f", ["sm_scale"], ["mask"]) == (
        "f takes no sm_scale: sm_scale is score=jattn.scores.dot(scale) (see jattn.attention)"
    )
    assert hints.unexpected("f", ["colour"], ["mask", "bias"]) == (
        "f takes no colour; there are mask, bias (see jattn.attention)"
    )
    both = hints.unexpected("f", ["colour", "sm_scale"], ["mask"])
    assert "sm_scale is" in both and "there are mask" in both


def test_a_function_that_is_hinted_is_the_same_where_arguments_are_right():
    @hints.hinted
    def ratio(x, y=2, *, by=1):
        """The ratio."""
        return x / y / by

    assert (ratio(6), ratio(6, 3), ratio(x=6, by=3)) == (3, 2, 1)
    assert ratio.__name__ == "ratio" and ratio.__doc__ == "The ratio."
    with pytest.raises(TypeError, match=r"ratio takes x, y in place and all else by name, got 3 arguments"):
        ratio(6, 3, 1)  # pyright: ignore[reportCallIssue]  # wrong on purpose
    with pytest.raises(TypeError, match=r"ratio takes no dropout_p: dropout_p is dropout="):
        ratio(6, dropout_p=0.1)  # pyright: ignore[reportCallIssue]  # wrong on purpose
