"""`generate`: against a loop over whole sequences, prompts of unequal length, what is drawn, stops, one compilation."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jattn import masks
from jattn.nn import Decoder, DynamicScaling, EncoderDecoder, MultiHeadAttention, Rotary, _generate, generate
from tests.layers import normal, randomised

V, F, H = 11, 8, 2


class Writer(nnx.Module):
    """A language model."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        window = {"mask": masks.causal() & masks.window(2)}
        self.embed = nnx.Embed(V, F, rngs=rngs)
        self.decoder = Decoder(F, H, 3, pattern=(window, {}), rotary_base=1e4, rngs=rngs)

    def cache(self, n, batch):
        return self.decoder.cache(n, batch)

    def decode(self, tokens, cache):
        x, cache = self.decoder.decode(self.embed(tokens), cache)
        return self.embed.attend(x), cache

    def whole(self, tokens):
        return self.embed.attend(self.decoder(self.embed(tokens)))


class Keeper(Writer):
    """One whose caches are of several kinds: a window that slides, and pages."""

    def cache(self, n, batch):
        return self.decoder.cache(n, batch, slack=2, page=4)

    def decode(self, tokens, cache, *, lengths=None):
        x, cache = self.decoder.decode(self.embed(tokens), cache, lengths=lengths)
        return self.embed.attend(x), cache


class Careless(Keeper):
    """One that does not say where prompts end."""

    def decode(self, tokens, cache):
        return super().decode(tokens, cache)


class Fixed(nnx.Module):
    """Makes the same of everything."""

    def __init__(self, logits):
        self.logits = nnx.Variable(jnp.asarray(logits))

    def cache(self, n, batch):
        return jnp.zeros(batch)

    def decode(self, tokens, cache, *, lengths=None):
        del lengths
        return jnp.broadcast_to(self.logits[...], (*tokens.shape, self.logits.size)), cache + 1


PROMPTS, LENGTHS = np.array([[3, 1, 4, 1, 5], [9, 2, 0, 0, 0]]), np.array([5, 2])


def alone(model, prompt, count):
    """The most likely tokens, each from the whole sequence before it, padded to one length so that it compiles once."""
    whole, tokens = nnx.jit(type(model).whole), list(prompt)
    for _ in range(count):
        padded = jnp.array([tokens + [0] * (len(PROMPTS[0]) + count - len(tokens))])
        tokens.append(int(whole(model, padded)[0, len(tokens) - 1].argmax()))
    return tokens[len(prompt) :]


def test_the_most_likely_tokens_of_prompts_of_unequal_length():
    model = randomised(Writer())
    want = [alone(model, prompt[:n], 6) for prompt, n in zip(PROMPTS.tolist(), LENGTHS, strict=True)]
    assert len(set(map(tuple, want))) == 2
    seen: list[Any] = []

    def see(n, tokens):
        assert (type(n), type(tokens)) == (int, np.ndarray)
        seen.append((n, tokens.tolist()))

    got = generate(model, PROMPTS, 6, lengths=LENGTHS, callback=see)
    jax.effects_barrier()
    assert got.tokens.tolist() == want
    assert got.length.tolist() == [6, 6]
    assert seen == [(n, [row[n] for row in want]) for n in range(6)]
    # a stop ends one example, and the loop where it ends all
    stop = want[0][2]
    first = want[0].index(stop)
    until = [row[: row.index(stop) + 1] if stop in row else row for row in want]
    stopped = generate(model, PROMPTS, 6, lengths=LENGTHS, stop=(stop,), fill=7)
    assert stopped.length.tolist() == [len(row) for row in until]
    assert stopped.tokens.tolist() == [row + [7] * (6 - len(row)) for row in until]
    assert first <= 2
    # the most likely is what is drawn where no other may be, and where none is as warm
    alike: list[dict[str, Any]] = [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}]
    for options in alike:
        drawn = generate(model, PROMPTS, 6, lengths=LENGTHS, temperature=5.0, seed=3, **options)
        assert drawn.tokens.tolist() == want, options


def test_it_compiles_once_for_lengths_counts_seeds_and_numbers():
    model = Fixed(np.zeros(V))
    written: Any = _generate._written
    compiled = written._cache_size
    generate(model, PROMPTS, 4, temperature=1.0)
    before = compiled()
    rows = [generate(model, PROMPTS, 16, temperature=1.0, seed=seed).tokens for seed in (0, 0, 1)]
    assert (rows[0] == rows[1]).all()
    assert (rows[0] != rows[2]).any()
    generate(model, PROMPTS[:, :3], 9, lengths=np.array([1, 3]), temperature=0.5, top_k=3, top_p=0.5, min_p=0.1, fill=3)
    assert compiled() == before
    assert generate(model, PROMPTS, 3, seed=jax.random.key(5), temperature=1.0).tokens.shape == (2, 3)


WEIGHTS = np.array([0.05, 0.4, 0.3, 0.05, 0.2])
# numbers of the sampling, and the weights with which tokens are drawn
DRAWN: dict[str, tuple[dict[str, Any], np.ndarray]] = {
    "all": ({}, WEIGHTS),
    "warmer": ({"temperature": 2.0}, WEIGHTS**0.5),
    "top_k": ({"top_k": 2}, WEIGHTS * [0, 1, 1, 0, 0]),
    "top_p": ({"top_p": 0.75}, WEIGHTS * [0, 1, 1, 0, 1]),
    "top_p of top_k": ({"top_k": 2, "top_p": 0.5}, WEIGHTS * [0, 1, 0, 0, 0]),
    "min_p": ({"min_p": 0.4}, WEIGHTS * [0, 1, 1, 0, 1]),
}


@pytest.mark.parametrize("name", DRAWN)
def test_tokens_are_drawn_with_their_weights(name):
    given, weights = DRAWN[name]
    options: dict[str, Any] = {"temperature": 1.0, **given}
    n = 512
    tokens = generate(Fixed(np.log(WEIGHTS)), np.zeros((n, 1), int), 16, **options).tokens
    found = np.bincount(np.asarray(tokens).ravel(), minlength=5) / tokens.size
    want = weights / weights.sum()
    assert (found[want == 0] == 0).all()
    assert found == pytest.approx(want, abs=5 * 0.5 / np.sqrt(tokens.size))


@pytest.mark.parametrize("options", [{"top_k": 3}, {"top_p": 0.3}, {"top_k": 5, "top_p": 0.45}], ids=str)
def test_of_equally_likely_tokens_no_more_are_drawn_from(options):
    tokens = generate(Fixed(np.zeros(10)), np.zeros((64, 1), int), 16, temperature=1.0, **options).tokens
    assert len(np.unique(tokens)) == 3


def test_the_first_is_drawn_where_no_other_may_be():
    tokens = generate(Fixed(np.log(WEIGHTS)), PROMPTS, 8, temperature=1.0, top_p=1e-46).tokens
    assert (tokens == 1).all()


def test_what_seeds_and_stops_may_be():
    model = Fixed(np.log(WEIGHTS))
    draw = lambda **options: generate(model, PROMPTS, 16, temperature=1.0, **options).tokens
    want = draw(seed=5)
    for seed in (
        jax.random.key(5),
        jax.random.PRNGKey(5),
        np.asarray(jax.random.PRNGKey(5)),
        np.int64(5),
        jnp.array(5),
        nnx.Variable(jnp.array(5)),
    ):
        np.testing.assert_array_equal(draw(seed=seed), want)
    np.testing.assert_array_equal(draw(seed=5, top_k=2**40), want)
    until = draw(seed=5, stop=(1,))
    assert (until != want).any()
    for stop in (1, {1}, [jnp.array(1)], jnp.array([1])):
        np.testing.assert_array_equal(draw(seed=5, stop=stop), until)


class Sum(nnx.Module):
    """Its cache is none of a layer's: the next token is the sum of all so far."""

    def cache(self, n, batch):
        return jnp.zeros(batch, int)

    def decode(self, tokens, total):
        sums = total[:, None] + jnp.cumsum(tokens + 1, 1)
        return jax.nn.one_hot(sums % 10, 10), sums[:, -1]


class Scaled(Writer):
    """One that is turned by the length of the text, and says nothing of padding."""

    def __init__(self):
        super().__init__()
        rotary = Rotary(100.0, scaling=DynamicScaling(8.0, 4))
        self.decoder = Decoder(F, H, 2, rotary=rotary, rngs=nnx.Rngs(0))


class Placed(Writer):
    """One whose table of positions is shorter than what prompts are filled up to."""

    def __init__(self):
        super().__init__()
        self.places = nnx.Embed(12, F, rngs=nnx.Rngs(1))

    def decode(self, tokens, cache):
        places = self.places(cache.rest[0].past.positions(tokens.shape[1]))
        x, cache = self.decoder.decode(self.embed(tokens) + places, cache)
        return self.embed.attend(x), cache

    def whole(self, tokens):
        return self.embed.attend(self.decoder(self.embed(tokens) + self.places(jnp.arange(tokens.shape[1]))))


def test_a_model_that_is_not_told_lengths_reads_prompts_as_they_are():
    assert generate(Sum(), PROMPTS[:1], 3).tokens.tolist() == [[9, 9, 9]]
    want, prompt = [], list(PROMPTS[0])
    placed, scaled = randomised(Placed()), randomised(Scaled())
    got = [generate(model, PROMPTS[:1], 6).tokens[0].tolist() for model in (placed, scaled)]
    assert got[0] == alone(placed, PROMPTS[0].tolist(), 6)
    for _ in range(6):  # what is turned by the length of the text cannot be padded
        want.append(int(scaled.whole(jnp.array([prompt]))[0, -1].argmax()))
        prompt.append(want[-1])
    cached = generate(scaled, PROMPTS[:1], 6, cache=scaled.cache(10, 1)).tokens[0].tolist()
    assert got[1] == cached
    assert got[1][0] == want[0]  # later ones were turned before as for a shorter text


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (Careless(), "a cache that slides must know where padded prompts end: let the model's decode"),
        (Sum(), "a cache that is none of a layer's must know where padded prompts end"),
        (Scaled(), "an embedding that scales by the length of the text must know where padded prompts end"),
    ],
    ids=["slides", "own", "scaled"],
)
def test_padding_that_cannot_be_taken_back(model, why):
    with pytest.raises(ValueError, match=why):
        generate(model, PROMPTS, 3, lengths=LENGTHS)
    assert generate(model, PROMPTS, 3, lengths=np.array([5, 5])).tokens.shape == (2, 3)


def test_a_cache_of_ones_own():
    """It knows what else the model reads, which stays whole where prompts are short."""

    class Translator(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.embed, self.both = nnx.Embed(V, F, rngs=rngs), EncoderDecoder(F, H, 1, rngs=rngs)

        def decode(self, tokens, cache):
            x, cache = self.both.decode(self.embed(tokens), cache)
            return self.embed.attend(x), cache

        def whole(self, tokens):
            return self.embed.attend(self.both(source[: len(tokens)], self.embed(tokens)))

    model, source = randomised(Translator()), normal((1, 6, F)).repeat(2, 0)
    want = [alone(model, prompt[:n], 4) for prompt, n in zip(PROMPTS.tolist(), LENGTHS, strict=True)]
    got = generate(model, PROMPTS, 4, lengths=LENGTHS, cache=model.both.cache(9, source))
    assert got.tokens.tolist() == want


@pytest.mark.parametrize(
    ("error", "arguments", "options", "message"),
    [
        (TypeError, (np.zeros(3, int), 1), {}, r"prompt must be tokens \[b, t\], integers, got int\d+\[3\]"),
        (TypeError, (np.zeros((2, 3)), 1), {}, r"prompt must be tokens \[b, t\], integers, got float"),
        (ValueError, (np.zeros((2, 0), int), 1), {}, "prompt must have a token to start from"),
        (ValueError, (PROMPTS, 0), {}, "count must be at least 1, got 0"),
        (ValueError, (PROMPTS, 1), {"lengths": [1]}, r"integers with the batch axes \[2\]"),
        (ValueError, (PROMPTS, 1), {"lengths": [0, 1]}, rf"lengths must be from 1 to {PROMPTS.shape[1]}, got \[0, 1\]"),
        (
            ValueError,
            (PROMPTS, 1),
            {"lengths": [1, 99]},
            rf"lengths must be from 1 to {PROMPTS.shape[1]}, got \[1, 99\]",
        ),
        (
            ValueError,
            (PROMPTS, 1),
            {"temperature": -1.0},
            "temperature must be one number >= 0, for all examples, got -1",
        ),
        (ValueError, (PROMPTS, 1), {"temperature": jnp.array(np.nan)}, "temperature must be one number >= 0.* got nan"),
        (
            ValueError,
            (PROMPTS, 1),
            {"temperature": jnp.array([0.0, 1.0])},
            "one number >= 0, for all examples, got Arr",
        ),
        (TypeError, (PROMPTS, 1), {"seed": 1.5}, "seed must be an int, or one key of jax.random, got 1.5"),
        (TypeError, (PROMPTS, 1), {"seed": jax.random.split(jax.random.key(0))}, "or one key of jax.random, got Array"),
        (TypeError, (PROMPTS, 1), {"stop": [3.7]}, r"stop must be an int or integers \[k\], of 32 bits, got \[3.7\]"),
        (TypeError, (PROMPTS, 1), {"stop": "xy"}, "stop must be an int or integers"),
        (TypeError, (PROMPTS, 1), {"stop": np.array([2**40])}, "stop must be an int or integers .* of 32 bits"),
        (TypeError, (PROMPTS, 1), {"fill": -(2**40)}, "fill must be an int or integers .* of 32 bits"),
        (TypeError, (PROMPTS, 1), {"fill": 3.7}, r"fill must be an int or integers \[k\], of 32 bits, got 3.7"),
        (TypeError, (PROMPTS, 1), {"fill": [1, 2]}, r"fill must be one int, got \[1, 2\]"),
        (TypeError, (PROMPTS, 1), {"top_k": 2.0}, "top_k must be an int, got 2.0"),
        (ValueError, (PROMPTS, 1), {"top_k": 0}, "top_k must be at least 1, got 0"),
        (ValueError, (PROMPTS, 1), {"top_p": 0.0}, r"top_p must be a number in \(0, 1\], got 0.0"),
        (ValueError, (PROMPTS, 1), {"min_p": 1.5}, r"min_p must be a number in \[0, 1\], got 1.5"),
    ],
)
def test_errors(error, arguments, options, message):
    with pytest.raises(error, match=message):
        generate(Fixed(np.zeros(V)), *arguments, **options)


def test_a_model_may_hold_what_cannot_be_hashed():
    class Configured(Writer):
        def __init__(self):
            super().__init__()
            self.config = {"width": F, "windows": [2]}

    model, plain = Configured(), Writer()
    for count in (3, 2):
        np.testing.assert_array_equal(generate(model, PROMPTS, count).tokens, generate(plain, PROMPTS, count).tokens)


def test_what_a_model_holds_in_containers_may_change():
    class Muted(Fixed):
        def __init__(self):
            super().__init__(np.arange(float(V)))
            self.config = {"muted": [V - 1], "room": (set(),)}

        def cache(self, n, batch):
            return jnp.zeros((batch, len(self.config["room"][0])))

        def decode(self, tokens, cache, *, lengths=None):
            logits, _ = super().decode(tokens, cache)
            return logits.at[..., jnp.array(self.config["muted"])].set(-jnp.inf), cache

    model = Muted()
    written: Any = _generate._written
    drawn = lambda: generate(model, PROMPTS, 2).tokens.tolist()
    assert drawn() == [[V - 2] * 2] * 2
    model.config["muted"].append(V - 2)
    assert drawn() == [[V - 3] * 2] * 2
    before = written._cache_size()
    model.config = {"muted": [V - 1, V - 2], "room": (set(),)}  # another, with the same in it
    assert drawn() == [[V - 3] * 2] * 2
    assert written._cache_size() == before
    model.config["room"][0].add(0)
    drawn()
    assert written._cache_size() == before + 1


def test_a_callback_inside_of_vmap():
    prompts, model = np.stack([PROMPTS] * 3), Fixed(np.arange(float(V)))
    several = lambda **options: jax.vmap(lambda x: generate(model, x, 2, **options).tokens)(prompts)
    assert several().shape == (3, 2, 2)
    keys = jax.random.split(jax.random.key(0), 3)
    each = lambda key: generate(model, PROMPTS, 2, seed=key, temperature=1.0, callback=print)
    for call in (lambda: several(callback=print), lambda: jax.vmap(each)(keys)):
        with pytest.raises(ValueError, match="callback is called with the tokens of one batch .* jax.vmap maps over 3"):
            call()


def test_a_cache_without_room():
    """What the loop cannot raise is raised before it."""
    model = randomised(Keeper())
    chunk = lambda **kinds: model.decoder.cache(12, 2, **kinds)
    want = generate(model, PROMPTS, 8, lengths=LENGTHS).tokens
    for kinds in ({}, {"page": 4}, {"page": 4, "pages": 6}):
        np.testing.assert_array_equal(generate(model, PROMPTS, 8, lengths=LENGTHS, cache=chunk(**kinds)).tokens, want)
        with pytest.raises(ValueError, match="room for 13 positions more, for prompts of up to 5 tokens .* n = 12 "):
            generate(model, PROMPTS, 9, lengths=LENGTHS, cache=chunk(**kinds))
    # what counts is the example that needs most, beside what the cache has already
    _, begun = model.decode(jnp.asarray(PROMPTS), chunk(), lengths=jnp.array([1, 4]))
    assert generate(model, PROMPTS, 7, lengths=LENGTHS, cache=begun).tokens.shape == (2, 7)
    with pytest.raises(ValueError, match="n = 12 positions and holds 4: 12 more do not fit"):
        generate(model, PROMPTS, 8, lengths=LENGTHS, cache=begun)
    with pytest.raises(ValueError, match="5 free pages of 5, and 12 more positions need 6"):
        generate(model, PROMPTS, 8, lengths=LENGTHS, cache=chunk(page=4, pages=5))
    # where nobody can know, nothing is said
    assert jax.jit(lambda cache: generate(model, PROMPTS, 9, cache=cache))(chunk()).tokens.shape == (2, 9)


@pytest.mark.parametrize(("room", "kinds"), [(6, {}), (12, {"page": 4, "pages": 3})], ids=["rows", "pages"])
def test_a_cache_of_the_models_own_without_room(room, kinds):
    class Short(Keeper):
        def cache(self, n, batch):
            return self.decoder.cache(room, batch, **kinds)

    model = randomised(Short())
    assert generate(model, PROMPTS, 2, lengths=LENGTHS).tokens.shape == (2, 2)
    with pytest.raises(ValueError, match=r"the cache\(\d+, 2\) of the model must have room for 1. positions more"):
        generate(model, PROMPTS, 9, lengths=LENGTHS)


def test_what_a_model_must_have():
    with pytest.raises(TypeError, match="got Linear without decode and cache"):
        generate(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), PROMPTS, 2)  # pyright: ignore[reportArgumentType]  # wrong on purpose
    with pytest.raises(TypeError, match="callback must be a function of n and tokens"):
        generate(Keeper(), PROMPTS, 2, callback=3)  # pyright: ignore[reportArgumentType]  # wrong on purpose


def test_a_cache_that_slides_has_room_for_ever():
    layer = Keeper()
    layer.decoder = Decoder(F, H, 2, mask=masks.causal() & masks.window(2), rotary_base=1e4, rngs=nnx.Rngs(0))
    model = randomised(layer)
    got = generate(model, PROMPTS, 20, lengths=LENGTHS, cache=model.decoder.cache(100, 2, slack=2))
    np.testing.assert_array_equal(got.tokens, generate(model, PROMPTS, 20, lengths=LENGTHS).tokens)


def test_a_cache_that_is_read_alone_needs_no_room():
    """One that was read, or shortened after that, stands beside the model's own in a pytree as it likes."""

    class Reader(Writer):
        def __init__(self):
            super().__init__()
            self.attend = MultiHeadAttention(F, H, rngs=nnx.Rngs(1))

        def decode(self, tokens, cache):
            read, cache = cache
            x, cache = self.decoder.decode(self.embed(tokens), cache)
            return self.embed.attend(x + self.attend(x, read)), (read, cache)

    model = randomised(Reader())
    read = model.attend.read(normal((2, 4, F)))
    for memory in (read, read._replace(length=jnp.array([2, 3]))):
        assert generate(model, PROMPTS, 3, cache=(memory, model.decoder.cache(7, 2))).tokens.shape == (2, 3)
        with pytest.raises(ValueError, match="n = 7 positions and holds 0"):
            generate(model, PROMPTS, 4, cache=(memory, model.decoder.cache(7, 2)))


@pytest.mark.parametrize("make", [Writer, Keeper])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_cache_of_another_batch(make, batch):
    model = make()
    with pytest.raises(ValueError, match=f"cache must be of as many examples as prompts, 2, got {batch}"):
        generate(model, PROMPTS, 3, cache=model.cache(16, batch))


def test_caches_that_slide_and_caches_in_pages():
    model, kept = randomised(Writer()), randomised(Keeper())
    want = generate(model, PROMPTS, 6, lengths=LENGTHS)
    np.testing.assert_array_equal(generate(kept, PROMPTS, 6, lengths=LENGTHS).tokens, want.tokens)
