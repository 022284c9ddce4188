"""Scopes of keys as texts: what they mean, and that they mean the same when they are told again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.store.keys import KeyBounds
from gateway.api.organization.scopes import Scopes, parse_scopes, scopes_of
from models.call import Endpoint
from models.errors import InvalidRequest


@pytest.mark.parametrize(
    ("texts", "scopes"),
    [
        pytest.param([], Scopes(), id="none"),
        pytest.param(["api.all"], Scopes(), id="everything by its name"),
        pytest.param(["model.request", "api.model.request"], Scopes(), id="calls by their names"),
        pytest.param(["api.all.read"], Scopes(endpoints=()), id="only reading"),
        pytest.param(
            ["api.all.read", "endpoint:/v1/embeddings"], Scopes(endpoints=("/v1/embeddings",)), id="reading and one"
        ),
        pytest.param(["model:a", "model:b", "model:a"], Scopes(models=("a", "b")), id="two models"),
        pytest.param(["model:/models/x:8b.gguf"], Scopes(models=("/models/x:8b.gguf",)), id="a model with a colon"),
        pytest.param(["network:10.1.2.3"], Scopes(networks=("10.1.2.3/32",)), id="an address is a network"),
        pytest.param(["network:2001:DB8::/32"], Scopes(networks=("2001:db8::/32",)), id="IPv6"),
        pytest.param(["spend:0"], Scopes(spend_cents=0), id="no money"),
    ],
)
def test_parse_scopes(texts: list[str], scopes: Scopes) -> None:
    assert parse_scopes(texts) == scopes


WRONG = ["", ":", "models:a", "model:", "model:../x", "model:a b", "endpoint:/v1/none", "endpoint:embeddings"]
MORE = ["network:10.0.0.1/8", "network:x", "spend:", "spend:1.5", "spend:-1", "spend:9999999999999", "api.all.write"]


@pytest.mark.parametrize("text", [*WRONG, *MORE, "spend:\u0661", "\r\n", "x" * 200])
def test_a_scope_that_is_not_known_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="is no scope of a key here") as refused:
        parse_scopes([text])
    assert refused.value.param == "scopes"
    assert refused.value.message.isprintable()


def test_one_amount_is_enough() -> None:
    with pytest.raises(InvalidRequest, match="not several"):
        parse_scopes(["spend:1", "spend:2"])


MODELS = st.from_regex(r"[A-Za-z0-9/_~@][A-Za-z0-9_:@+~-]{0,20}", fullmatch=True)


@given(
    st.lists(
        st.one_of(
            MODELS.map("model:{}".format),
            st.sampled_from([f"endpoint:{path}" for path in Endpoint]),
            st.ip_addresses().map("network:{}".format),
            st.sampled_from(["api.all", "api.all.read"]),
        ),
        max_size=8,
    ),
    st.none() | st.integers(0, 900_000_000),
)
def test_scopes_that_are_told_mean_the_same(texts: list[str], spend: int | None) -> None:
    scopes = parse_scopes(texts + ([] if spend is None else [f"spend:{spend}"]))
    bounds = KeyBounds(models=scopes.models, endpoints=scopes.endpoints, networks=scopes.networks)
    assert parse_scopes(scopes_of(bounds, scopes.spend_cents)) == scopes


@pytest.mark.parametrize("endpoints", [None, [], ["/v1/embeddings"]])
def test_a_key_that_may_call_no_model_is_told_as_one_that_only_reads(endpoints: list[str] | None) -> None:
    """Without a scope it would look like a key without bounds, and become one when its scopes are put back."""
    told = scopes_of(KeyBounds(models=[], endpoints=endpoints, networks=["10.0.0.0/8"]))
    assert told == ["api.all.read", "network:10.0.0.0/8"]
    assert parse_scopes(told) == Scopes(endpoints=(), networks=("10.0.0.0/8",))
