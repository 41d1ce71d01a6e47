"""The shipped catalogue says what is known and what is not; an operator's own file is checked as strictly."""

from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import SecretStr, ValidationError

from gateway.server.configuration import with_own_keys
from gateway.server.probing import BODIES
from gateway.server.providers.base import TOOL_TOKENS, Operation
from gateway.server.providers.catalogue import CatalogueEntry, CatalogueError, Checked, load_catalogue
from gateway.server.providers.factory import compile_all, known_names
from gateway.server.settings import ProviderSettings
from tenants.context import Zone

TODAY = date(2026, 11, 27)
FACTS = ("retention_days", "abuse_monitoring_days", "trains_on_input", "ismap", "lgwan_asp", "subprocessors")


def settings(**values: Any) -> ProviderSettings:
    """As if nothing else stood in the environment."""
    fields = {name: field.default for name, field in ProviderSettings.model_fields.items()}
    return ProviderSettings.model_construct(**(fields | values))


def own(tmp_path: Path, *entries: dict[str, Any]) -> Path:
    path = tmp_path / f"catalogue-{len(list(tmp_path.iterdir()))}.yaml"
    path.write_text(yaml.safe_dump({"deployments": list(entries)}, allow_unicode=True), "utf-8")
    return path


def entry(**changes: Any) -> dict[str, Any]:
    fact = {"value": 0, "checked": TODAY, "source": "契約書 第5条"}
    values: dict[str, Any] = {
        "id": "town/llm", "aliases": ["onprem"], "vendor": "町", "wire": "openai_wire", "model": "llm",
        "base_url": "http://10.0.0.5:8000/v1", "zone": "onprem", "isolated": True, "owner": "town", "country": "JP",
        "operator": "町", "operations": ["chat/completions"], "max_input_tokens": 8192, "max_output_tokens": 1024,
        "price": {"currency": "JPY", "input_u_per_mtok": 0, "output_u_per_mtok": 0, "source": "自前", "checked": TODAY},
        "contract_expires_on": None, "retires_on": None, "successor": "", "verified": "実測した",
        **dict.fromkeys(FACTS, fact),
    }  # fmt: skip
    return values | changes


# ── The shipped one ──────────────────────────────────────────────────────────────────────────────────────────────


def test_vendors_that_were_promised_are_there() -> None:
    vendors = {e.id.split("/")[0] for e in load_catalogue()}
    assert {"openai", "azure", "anthropic", "gemini", "onprem", "plamo", "sakura", "demo"} <= vendors


@pytest.mark.parametrize("shipped", load_catalogue(), ids=lambda e: e.id)
def test_each_fact_is_sourced_or_open(shipped: CatalogueEntry) -> None:
    for name in FACTS:
        fact: Checked = getattr(shipped, name)
        if fact.unconfirmed:
            assert fact.value is None
            assert fact.note
        else:
            assert fact.value is not None
            assert fact.source
            assert fact.checked is not None and fact.checked <= TODAY
    assert shipped.verified


@pytest.mark.parametrize("shipped", load_catalogue(), ids=lambda e: e.id)
def test_nothing_is_on_without_a_key(shipped: CatalogueEntry) -> None:
    assert shipped.needs or shipped.wire == "demo"
    assert {d.provider for d in compile_all(settings(), production=False, today=TODAY)} == {"demo"}
    assert compile_all(settings(), production=True, today=TODAY) == ()


def test_a_key_turns_its_vendor_on_and_no_other() -> None:
    found = compile_all(settings(openai_api_key=SecretStr("k")), production=True, today=TODAY)
    assert {d.vendor for d in found} == {"OpenAI"}
    assert all(d.zone is Zone.OVERSEAS and d.price is not None for d in found)
    assert all(d.api_key == "k" for d in found)
    assert "api_key" not in repr(found[0])


def test_the_sample_leaves_real_models_their_names() -> None:
    found = compile_all(settings(openai_api_key=SecretStr("k")), production=False, today=TODAY)
    named = {d.alias: d.provider for d in found}
    assert named["standard"] == named["fast"] == "openai_wire"
    assert named["onprem"] == named["sample"] == "demo"


def test_a_model_ends_on_its_day() -> None:
    azure = settings(azure_openai_api_key=SecretStr("k"), azure_openai_endpoint="https://a.example")
    retires = next(e for e in load_catalogue() if e.id == "azure/gpt-5.6-terra").retires_on
    assert retires is not None
    assert compile_all(azure, production=True, today=TODAY)
    assert compile_all(azure, production=True, today=retires) == ()


# ── A server of one's own ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("url", "given", "zone"),
    [
        ("http://127.0.0.1:11434/v1", "", Zone.ONPREM),
        ("http://localhost:8000/v1", "", Zone.ONPREM),
        ("http://[::1]:8000/v1", "", Zone.ONPREM),
        ("http://10.0.0.5:8000/v1", "", Zone.OVERSEAS),
        ("https://127.0.0.1.example.com/v1", "", Zone.OVERSEAS),
        ("https://localhost.example.com/v1", "", Zone.OVERSEAS),
        ("http://10.0.0.5:8000/v1", "onprem", Zone.ONPREM),
        ("https://llm.example.jp/v1", "domestic", Zone.DOMESTIC),
        ("http://127.0.0.1:8000/v1", "overseas", Zone.OVERSEAS),
    ],
)
def test_zone_of_a_base_url(url: str, given: str, zone: Zone) -> None:
    found = compile_all(
        settings(
            kumiai_openai_compatible_base_url=url,
            kumiai_openai_compatible_zone=given,
            kumiai_openai_compatible_model="llm",
        ),
        production=True,
        today=TODAY,
    )
    assert {d.zone for d in found} == {zone}
    assert ("onprem" in {d.alias for d in found}) == (zone is Zone.ONPREM)
    assert {(d.price.input_u_per_mtok, d.price.output_u_per_mtok) for d in found if d.price} == {(0, 0)}


@pytest.mark.parametrize(
    ("zone", "given", "country"),
    [
        ("onprem", "", "JP"), ("domestic", "", ""), ("overseas", "", ""),
        ("onprem", "US", "US"), ("domestic", "US", "US"), ("domestic", "JP", "JP"), ("overseas", "FR", "FR"),
    ],
)  # fmt: skip
def test_whose_server_in_the_country_it_is_has_to_be_said(zone: str, given: str, country: str) -> None:
    found = compile_all(
        settings(
            kumiai_openai_compatible_base_url="https://llm.example.jp/v1",
            kumiai_openai_compatible_zone=zone,
            kumiai_openai_compatible_country=given,
            kumiai_openai_compatible_model="llm",
        ),
        production=True,
        today=TODAY,
    )
    assert {d.country for d in found} == {country}


def test_a_country_is_two_letters() -> None:
    with pytest.raises(ValidationError, match="kumiai_openai_compatible_country"):
        ProviderSettings(kumiai_openai_compatible_country="Japan")


def test_several_models_of_one_server() -> None:
    found = compile_all(
        settings(
            kumiai_openai_compatible_base_url="http://127.0.0.1:1/v1",
            kumiai_openai_compatible_model="large, small",
            kumiai_openai_compatible_embedding_model="e5",
        ),
        production=True,
        today=TODAY,
    )
    named = {d.alias: d.upstream_model for d in found}
    assert named == {
        "fast": "large", "standard": "large", "onprem": "large", "large": "large", "small": "small",
        "embedding": "e5", "e5": "e5",
    }  # fmt: skip


@pytest.mark.parametrize(("zone", "probe"), [("onprem", "answer"), ("domestic", ""), ("overseas", "")])
def test_only_ones_own_server_is_asked_whether_it_is_well_again(zone: str, probe: str) -> None:
    found = compile_all(
        settings(
            kumiai_openai_compatible_base_url="http://10.0.0.5:8000/v1",
            kumiai_openai_compatible_zone=zone,
            kumiai_openai_compatible_model="llm",
            kumiai_openai_compatible_embedding_model="e5",
            kumiai_openai_compatible_image_model="painter",
            kumiai_openai_compatible_transcription_model="ear",
        ),
        production=True,
        today=TODAY,
    )
    probed = {d.upstream_model: d.probe for d in found}
    assert probed == {"llm": probe, "e5": probe, "painter": "", "ear": ""}
    assert all(o in BODIES for d in found if d.probe for o in d.operations)


# ── An operator's own file ───────────────────────────────────────────────────────────────────────────────────────


def test_own_entries_come_first_and_replace_the_shipped(tmp_path: Path) -> None:
    path = own(
        tmp_path, entry(), entry(id="openai/gpt-5.6-terra", aliases=["standard"], zone="domestic", isolated=False)
    )
    found = load_catalogue(path)
    assert [e.id for e in found[:2]] == ["town/llm", "openai/gpt-5.6-terra"]
    assert [e.zone for e in found if e.id == "openai/gpt-5.6-terra"] == [Zone.DOMESTIC]
    assert len(found) == len(load_catalogue()) + 1
    compiled = compile_all(settings(kumiai_catalogue_file=path), production=True, today=TODAY)
    assert [(d.id, d.isolated, d.owner) for d in compiled if d.alias == "onprem"] == [("town/llm", True, "town")]


def test_what_is_for_own_keys_only_is_there_for_who_has_one(tmp_path: Path) -> None:
    path = own(tmp_path, entry(id="azure/of-a-town", aliases=["sample"], own_keys_only=True), entry(aliases=["onprem"]))
    found = compile_all(settings(kumiai_catalogue_file=path), production=False, today=TODAY)

    def names(keys: dict[str, str | None]) -> list[tuple[str, str | None, bool]]:
        left = with_own_keys(found, keys)
        return [(d.id, d.api_key, d.is_own_key) for d in left if d.alias in ("sample", "onprem")]

    shared = ("town/llm", None, False)
    assert names({}) == [shared, ("demo/sample", None, False)]
    assert names({"azure": "k"}) == [("azure/of-a-town", "k", True), shared]
    assert names({"azure": "k", "azure/of-a-town": "nearer"})[0] == ("azure/of-a-town", "nearer", True)
    # A key that does not open is no reason to do without it.
    assert names({"azure": "k", "azure/of-a-town": None, "town": None}) == [("demo/sample", None, False)]


@pytest.mark.parametrize("may_go_on", [False, True])
def test_behind_a_key_that_does_not_open_the_region_s_is_used_only_where_the_town_said_so(
    tmp_path: Path, may_go_on: bool
) -> None:
    mine, shared = entry(id="azure/of-a-town", own_keys_only=True), entry(id="other/llm")
    found = compile_all(settings(kumiai_catalogue_file=own(tmp_path, mine, shared)), production=True, today=TODAY)
    left = with_own_keys(found, {"azure": None}, shared_after_own=may_go_on)
    assert [d.id for d in left if d.alias == "onprem"] == (["other/llm"] if may_go_on else [])


FREE = {"currency": "JPY", "input_u_per_mtok": 0, "output_u_per_mtok": 0, "source": "自営", "checked": "2026-11-27"}


@pytest.mark.parametrize(
    "declared",
    [
        {"probe": "answer", "price": FREE | {"output_u_per_mtok": 1}},
        {"probe": "answer", "price": None},
        {"probe": "answer", "price": FREE, "zone": "domestic", "isolated": False},
        {"probe": "models", "own_keys_only": True},
        {"probe": "models", "wire": "litellm"},
        {"probe": "ping"},
    ],
)
def test_a_probe_that_somebody_would_pay_for_is_refused(tmp_path: Path, declared: dict[str, object]) -> None:
    assert load_catalogue(own(tmp_path, entry(probe="answer", price=FREE)))[0].probe == "answer"
    with pytest.raises(CatalogueError, match="probe"):
        load_catalogue(own(tmp_path, entry(**declared)))


@pytest.mark.parametrize(
    "declared",
    [
        {"price": FREE | {"input_u_per_mtok": 1}},
        {"price": None},
        {"zone": "domestic", "isolated": False},
        {"operations": ["chat/completions"]},
        {"wire": "litellm", "operations": ["embeddings"]},
        {"own_keys_only": True},
    ],
    ids=str,
)
def test_only_what_is_free_and_does_nothing_is_asked_for_twice(tmp_path: Path, declared: dict[str, object]) -> None:
    vectors = {"operations": ["embeddings", "rerank"], "price": FREE, "hedge": True}
    for hedge in (True, False):
        file = own(tmp_path, entry(**vectors | {"hedge": hedge}))
        [allowed] = compile_all(settings(kumiai_catalogue_file=file), production=True, today=TODAY)
        assert allowed.hedge is hedge
    with pytest.raises(CatalogueError, match="hedge"):
        load_catalogue(own(tmp_path, entry(**vectors | declared)))


def test_key_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret\n")
    path = own(tmp_path, entry(key_file=str(tmp_path / "key")))
    assert compile_all(settings(kumiai_catalogue_file=path), production=True, today=TODAY)[0].api_key == "secret"
    missing = own(tmp_path, entry(key_file=str(tmp_path / "none")))
    with pytest.raises(CatalogueError, match="key file"):
        compile_all(settings(kumiai_catalogue_file=missing), production=True, today=TODAY)


def test_a_tokenizer_is_read_before_it_is_needed(tmp_path: Path) -> None:
    by_name = own(tmp_path, entry(tokenizer="o200k_base"))
    assert (
        compile_all(settings(kumiai_catalogue_file=by_name), production=True, today=TODAY)[0].tokenizer == "o200k_base"
    )
    missing = own(tmp_path, entry(tokenizer=str(tmp_path / "tokenizer.json")))
    with pytest.raises(CatalogueError, match=r"town/llm: tokenizer: .*tokenizer\.json"):
        compile_all(settings(kumiai_catalogue_file=missing), production=True, today=TODAY)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"zone": "moon"}, "zone"),
        ({"isolated": True, "zone": "domestic"}, "isolated"),
        ({"own_keys_only": True, "key_from": "TOWN_KEY"}, "own keys"),
        ({"own_keys_only": True, "key_file": "/run/secrets/key"}, "own keys"),
        ({"country": "Japan"}, "country"),
        ({"aliases": []}, "aliases"),
        ({"model": ""}, "model"),
        ({"base_url": ""}, "base_url"),
        ({"price": {"currency": "EUR"}}, "price"),
        ({"price": {"currency": "JPY", "input_u_per_mtok": -1}}, "price"),
        ({"wire": "telex"}, "wire"),
        ({"capabilities": ["telepathy"]}, "capabilities"),
        ({"operations": []}, "operations"),
        ({"max_input_tokens": 0}, "max_input_tokens"),
        ({"verified": ""}, "verified"),
        ({"tokenizer": "o300k_base"}, "tokenizer"),
        ({"template_tokens": -1}, "template_tokens"),
        ({"tool_tokens": {"value": -1, "checked": TODAY, "source": "x"}}, "tool_tokens"),
        ({"tool_tokens": {"value": "346", "checked": TODAY, "source": "x"}}, "tool_tokens"),
        ({"ismap": {"value": "登録"}}, "ismap"),
        ({"ismap": {"unconfirmed": True}}, "ismap"),
        ({"ismap": {"unconfirmed": True, "value": "登録", "note": "たぶん"}}, "ismap"),
        ({"retires_on": "いつか"}, "retires_on"),
        ({"successor": "nobody"}, "successor"),
        ({"unheard_of": 1}, "unheard_of"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, change: dict[str, Any], place: str) -> None:
    assert load_catalogue(own(tmp_path, entry()))
    with pytest.raises(CatalogueError) as refused:
        load_catalogue(own(tmp_path, entry(**change)))
    assert "town/llm" in str(refused.value)
    assert place in str(refused.value)


@pytest.mark.parametrize(
    "missing", ["retires_on", "contract_expires_on", "successor", "subprocessors", "price", "owner"]
)
def test_a_field_left_out_is_named(tmp_path: Path, missing: str) -> None:
    values = entry()
    del values[missing]
    with pytest.raises(CatalogueError, match=missing):
        load_catalogue(own(tmp_path, values))


def test_an_id_may_stand_once(tmp_path: Path) -> None:
    with pytest.raises(CatalogueError, match="twice"):
        load_catalogue(own(tmp_path, entry(), entry()))


@pytest.mark.parametrize("text", ["", "deployments: 3", "[1", "a: b"])
def test_what_is_no_catalogue(tmp_path: Path, text: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(CatalogueError):
        load_catalogue(path)


def test_whatever_a_deployment_can_do_it_can_be_asked_whether_it_is_well() -> None:
    # What transcribes or draws is asked for the list of its models: neither does it for nothing.
    assert BODIES.keys() == set(Operation) - {Operation.TRANSCRIPTIONS, Operation.IMAGES}


@pytest.mark.parametrize("production", [True, False])
def test_every_name_that_is_on_is_known_with_the_other_names_of_its_models(production: bool) -> None:
    given = settings(
        kumiai_openai_compatible_base_url="http://127.0.0.1:1/v1", kumiai_openai_compatible_model="gemma,llm-jp",
        kumiai_openai_compatible_embedding_model="e5", openai_api_key=SecretStr("x"),
    )  # fmt: skip
    known = known_names(given, production=production)
    models: dict[str, set[str]] = {}
    for deployment in compile_all(given, production=production):
        models.setdefault(deployment.id, set()).add(deployment.alias)
    assert models["compatible/gemma"] == {"fast", "standard", "onprem", "gemma"}
    for aliases in models.values():
        for alias in aliases:
            assert aliases - {alias} <= known[alias]
    assert "llm-jp" not in known["gemma"]
    # Also what no key is there for; the sample is no model of a production.
    assert "claude-sonnet-5-5" in known["standard"]
    assert ("sample" in known) is not production


def test_tokens_of_a_vendor_s_words_on_tools_are_presumed_until_confirmed(tmp_path: Path) -> None:
    known = {"value": 346, "checked": TODAY, "source": "example.jp/tools"}
    path = own(tmp_path, entry(), entry(id="town/known", aliases=["known"], tool_tokens=known))
    found = compile_all(settings(kumiai_catalogue_file=path), production=True, today=TODAY)
    assert {d.id: d.tool_tokens for d in found} == {"town/llm": TOOL_TOKENS, "town/known": 346}
