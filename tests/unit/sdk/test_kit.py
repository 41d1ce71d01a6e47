"""The components pages are made of, as HTML."""

from apps.sdk.ui.render import create_environment


def render(template: str, **facts: object) -> str:
    environment = create_environment({})
    return environment.from_string("{% import 'ui/kit.html' as kit with context %}" + template).render(**facts)


def test_a_field_carries_its_attributes_as_attributes() -> None:
    html = render("{{ kit.field('login', '職員番号', attributes={'autocomplete': 'username', 'autofocus': ''}) }}")
    assert ' autocomplete="username" autofocus="">' in html


def test_an_attribute_cannot_be_left_by_what_was_typed() -> None:
    html = render("{{ kit.field('q', '語', typed, attributes={'title': typed}) }}", typed='"><script>')
    assert "<script>" not in html
