"""The console of operator and towns, in a browser."""

import pytest

from tests.browsers import Visitor, assert_accessible

pytestmark = pytest.mark.browser


def test_the_operator_sees_the_towns(visitor: Visitor) -> None:
    page = visitor.open(visitor.demo.person("operator"))
    page.goto("/console/operator")
    assert page.get_by_role("link", name="見本町").is_visible()
    assert page.get_by_text("内容は表示されません").is_visible()
    assert_accessible(page)
