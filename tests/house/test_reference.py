"""The reference is what the code says: every route, setting, error code and metric, and none that is not there."""

from __future__ import annotations

import pytest

from tests.house import reference


@pytest.mark.parametrize("name", ["errors.md", "metrics.md", "routes.md", "settings.md"])
def test_a_page_is_up_to_date(name: str) -> None:
    written = (reference.PAGES / name).read_text(encoding="utf-8")
    assert written == reference.pages()[name], "the code has changed: run `make docs`"


def test_every_error_code_has_a_meaning() -> None:
    assert reference.error_codes() == set(reference.MEANINGS)


def test_every_metric_says_what_it_is() -> None:
    assert len([metric for metric in reference.metrics() if metric.documentation]) > 15
