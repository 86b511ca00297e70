"""Every check refuses in one line: where, what was expected, what came."""

import math

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from fairjax.core import require

SMALL = {"w": jnp.zeros((8, 3)), "b": jnp.zeros(3, jnp.int32)}


def refusal(check, *args, **more) -> str:
    """The message with which a check refuses; one line."""
    with pytest.raises(require.InputError) as caught:
        check(*args, **more)
    text = str(caught.value)
    assert text.splitlines() == [text]
    return text


def accepts(check, *args, **more) -> bool:
    try:
        check(*args, **more)
    except require.InputError:
        return False
    return True


def compare(got, like):
    require.same_structure("model", require.describe(got), require.describe(like))


@pytest.mark.parametrize(
    ("check", "args", "message"),
    [
        (require.fail, ("a.b", "a dog", "cat"), "a.b: expected a dog; got 'cat'"),
        (
            require.one_of,
            ("model.name", "mpl", ["mlp", "cnn"]),
            "model.name: expected one of mlp, cnn; got 'mpl'. Did you mean \"mlp\"?",
        ),
        (require.in_range, ("q", -1, 0), "q: expected a finite number >= 0; got -1"),
        (require.in_range, ("q", "1"), "q: expected a number; got '1'"),
        (require.in_range, ("q", 2j), "q: expected a number; got 2j"),
        (require.positive, ("lr", 0.0), "lr: expected a finite number > 0; got 0.0"),
        (require.count, ("K", 1.5), "K: expected a whole number above 0; got 1.5"),
        (
            require.non_decreasing,
            ("budget", (0.5, 0.25)),
            "budget: expected values that do not decrease (tier 0 is the smallest); "
            "got (0.5, 0.25)",
        ),
        (
            compare,
            (SMALL | {"w": jnp.zeros((8, 4))}, SMALL),
            "model['w']: expected float32[8, 3]; got float32[8, 4]",
        ),
        (
            require.finite,
            ("delta", {"w": jnp.asarray([0.0, jnp.nan])}),
            "delta['w']: expected finite numbers; got 'NaN or infinity'",
        ),
    ],
)
def test_messages_say_where_what_and_what_came(check, args, message):
    assert refusal(check, *args) == message


def test_an_array_is_refused_in_one_line_too():
    assert refusal(require.positive, "lr", np.zeros((3, 3))).startswith("lr: expected")
    assert refusal(require.fail, "a", "b", jnp.zeros(100)).endswith("dtype=float32)")


def test_a_value_of_any_length_is_cut_in_the_middle():
    text = refusal(require.fail, "a", "b", "x" * 10**6)
    assert text.startswith("a: expected b; got 'xxx")
    assert text.endswith("xxx'")
    assert len(text) < 250


def test_an_input_error_is_a_value_error():
    with pytest.raises(ValueError, match="a: expected"):
        require.fail("a", "b", "c")


# -------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("heterfl", '. Did you mean "heterofl"?'),
        ("fedagv", '. Did you mean "fedavg"?'),
        ("zzz", ""),
    ],
)
def test_the_nearest_name_is_offered_if_one_is_near(name, hint):
    assert require.suggestion(name, ["fedavg", "heterofl", "depthfl"]) == hint


def test_a_value_that_is_no_text_has_no_near_name():
    text = refusal(require.one_of, "data.augment", 1, ["crop", "flip"])
    assert text == "data.augment: expected one of crop, flip; got 1"


def test_of_many_names_the_first_and_the_nearest_are_said():
    text = refusal(require.one_of, "x", "column_77", [f"column{i}" for i in range(999)])
    assert text.endswith("column39, ..; got 'column_77'. Did you mean \"column77\"?")


def test_a_valid_name_is_returned():
    assert require.one_of("x", "cnn", ["mlp", "cnn"]) == "cnn"
    # A generator is read once for the test and again for the message.
    assert 'Did you mean "cnn"' in refusal(
        require.one_of, "x", "cnnn", (name for name in ["mlp", "cnn"])
    )


# ------------------------------------------------------------------------------ numbers


@given(
    st.floats(-2, 2) | st.sampled_from([-1, 0, 1, 1.0, math.nan, math.inf, -math.inf]),
    st.sampled_from([-math.inf, -1, 0]),
    st.sampled_from([0, 1, math.inf]),
    st.booleans(),
    st.booleans(),
)
def test_in_range_is_the_interval(value, low, high, open_low, open_high):
    inside = (low < value if open_low else low <= value) and (
        value < high if open_high else value <= high
    )
    bounds = (low, high)
    assert accepts(
        require.in_range, "x", value, *bounds, open_low=open_low, open_high=open_high
    ) == (inside and math.isfinite(value))


@pytest.mark.parametrize(
    ("bounds", "opened", "text"),
    [
        ((0, 1), {}, "in [0, 1]"),
        ((0, 1), {"open_low": True}, "in (0, 1]"),
        ((0, 0.5), {"open_high": True}, "in [0, 0.5)"),
        ((0, 1), {"open_low": True, "open_high": True}, "in (0, 1)"),
        ((2,), {}, ">= 2"),
        ((2,), {"open_low": True}, "> 2"),
        ((-math.inf, -3), {}, "<= -3"),
        ((-math.inf, -3), {"open_high": True}, "< -3"),
    ],
)
def test_the_message_writes_the_interval(bounds, opened, text):
    message = refusal(require.in_range, "x", math.nan, *bounds, **opened)
    assert message == f"x: expected a finite number {text}; got nan"


NOT_NUMBERS = ["1", True, False, np.True_, None, (1,), [1.0], np.ones(1), {}]


@pytest.mark.parametrize("check", [require.in_range, require.positive, require.count])
@pytest.mark.parametrize("value", NOT_NUMBERS, ids=repr)
def test_what_is_no_number_is_refused(check, value):
    assert refusal(check, "x", value).startswith("x: expected a ")


@pytest.mark.parametrize("value", [1, 0.5, np.float32(0.5), jnp.asarray(2.0)], ids=repr)
def test_a_number_is_returned_as_it_is(value):
    assert require.in_range("x", value) is value
    assert require.positive("x", value) is value


@pytest.mark.parametrize("value", [0, -1, -0.0, math.nan, math.inf, jnp.asarray(0.0)])
def test_positive_is_above_zero_and_finite(value):
    assert not accepts(require.positive, "x", value)


def test_a_traced_value_has_no_number_yet():
    @jax.jit
    def double(value):
        return 2 * require.positive("x", require.in_range("x", value, 0, 1))

    assert double(-5.0) == -10


@pytest.mark.parametrize("value", [0, -3, 2.0, math.nan, math.inf])
def test_a_count_is_a_whole_number_above_zero(value):
    assert not accepts(require.count, "x", value)
    assert require.count("x", 1) == 1


@given(st.lists(st.sampled_from([0.1, 0.25, 0.5, 1.0]), max_size=4).map(tuple))
def test_non_decreasing_is_sorted(values):
    assert accepts(require.non_decreasing, "x", values) == (
        values == (*sorted(values),)
    )
    assert require.non_decreasing("x", (0.5, 0.5, 1)) == (0.5, 0.5, 1)


# -------------------------------------------------------------------------------- trees


def test_describe_reads_arrays_and_shapes_alike():
    shapes = jax.eval_shape(lambda: SMALL)
    expected = {"['b']": "int32[3]", "['w']": "float32[8, 3]"}
    assert require.describe(SMALL) == require.describe(shapes) == expected
    assert require.describe([1.0, "a"]) == {"[0]": "float", "[1]": "str"}


@pytest.mark.parametrize(
    ("got", "message"),
    [
        ({"w": SMALL["w"]}, "model['b']: expected int32[3]; got nothing"),
        (SMALL | {"z": 1}, "model['z']: expected nothing; got int"),
        (
            {"b": jnp.zeros(3), "w": jnp.zeros(1)},
            "model['b']: expected int32[3]; got float32[3]",
        ),
    ],
)
def test_same_structure_names_the_first_leaf_that_differs(got, message):
    assert refusal(compare, got, SMALL) == message
    compare(SMALL, SMALL)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_finite_names_the_leaf_that_is_not(dtype, bad):
    good = {"key": jax.random.key(0), "n": jnp.arange(3), "w": jnp.ones(2, dtype)}
    require.finite("state", good)
    broken = good | {"w": jnp.asarray([1, bad], dtype)}
    assert refusal(require.finite, "state", broken).startswith("state['w']: ")


# --------------------------------------------------------------------------------- JSON


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("{", dict, "f: expected JSON; got Expecting"),
        ("", list, "f: expected JSON; got Expecting value"),
        ("[" * 100_000, list, "f: expected JSON; got maximum recursion"),
        ("1" * 5000, dict, "f: expected JSON; got Exceeds the limit"),
        ("[1]", dict, "f: expected a JSON object; got 'list'"),
        ("null", list, "f: expected a JSON list; got 'NoneType'"),
    ],
    ids=["cut", "empty", "deep", "long", "list", "null"],
)
def test_what_is_no_json_of_its_kind_is_refused(text, kind, words):
    assert refusal(require.parse_json, "f", text, kind).startswith(words)


def test_what_json_does_not_have_is_unknown():
    text = '{"a": NaN, "b": [-Infinity, 1.5]}'
    assert require.parse_json("f", text, dict) == {"a": None, "b": [None, 1.5]}


def test_rows_are_whole_lines_that_name_their_round():
    text = '{"round": 1, "x": 2}\n{"round": 2}\n{"round": 3'
    assert require.parse_log("f", text) == [{"round": 1, "x": 2}, {"round": 2}]
    assert require.parse_log("f", "") == []


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"round": 2', "f:2: expected JSON"),
        ("3", "f:2: expected a JSON object; got 'int'"),
        ("{}", 'f:2: expected a whole number as "round"; got None'),
        ('{"round": "2"}', "f:2: expected a whole number as \"round\"; got '2'"),
    ],
)
def test_a_broken_row_is_named_by_its_line(line, words):
    text = f'{{"round": 1}}\n{line}\n{{"round": 3}}\n'
    assert refusal(require.parse_log, "f", text).startswith(words)
