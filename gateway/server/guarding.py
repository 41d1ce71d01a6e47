"""The guard in a call's path: looks at every text of a request before a deployment is chosen."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from http import HTTPStatus
from typing import Final, TypeVar, TypeVarTuple

import anyio.to_thread
from anyio import CapacityLimiter

from gateway.contracts import WORDLESS, BadRequest, ModelRequest
from gateway.guard.answers import AnswerRules, AnswerWatch, Asked
from gateway.guard.decision import Verdict, decide, wants_names
from gateway.guard.findings import Finding, Kind
from gateway.guard.inspection import inspect, inspect_long, is_dense, is_plain
from gateway.guard.masking import MASKABLE, Restorer, mask, slipped
from gateway.guard.misread import find_misread_numbers
from gateway.guard.sensitive import may_be_sensitive
from gateway.guard.texts import BETWEEN, texts_of
from gateway.server import metering
from gateway.server.authentication import Caller
from gateway.server.edge import header_values
from gateway.server.http import AsgiScope
from gateway.server.providers.base import Deployment
from gateway.server.routing import NotSupported, ZoneRefused
from observability import metrics
from observability.problems import Problem
from tenants.context import DataClass, Zone
from tenants.policy import Policy

# A look at this much takes a millisecond or two; more goes to a thread, lest other streams wait for it.
_AT_ONCE: Final = 4_000


# The interpreter runs one of them at a time anyway, and each that looks for names keeps a reader of words of its own.
_THREADS: Final = CapacityLimiter(4)

T = TypeVar("T")
Values = TypeVarTuple("Values")


async def read_aside(look: Callable[[*Values], T], *values: *Values) -> T:
    """Runs a look that takes long in one of a few threads."""
    return await anyio.to_thread.run_sync(look, *values, limiter=_THREADS)


class MyNumberFound(Problem):
    """The law allows マイナンバー in named duties only, and asking a model is none of them."""

    type = "urn:problem:gateway:my-number-found"
    status = HTTPStatus.FORBIDDEN
    title = "マイナンバーが含まれているので、送りませんでした"

    @property
    def may_be_retried(self) -> bool:
        return False


class NgWordFound(Problem):
    type = "urn:problem:gateway:ng-word-found"
    status = HTTPStatus.FORBIDDEN
    title = "町がAIに送らないと決めた言葉が含まれています"

    @property
    def may_be_retried(self) -> bool:
        return False


class PersonalDataFound(Problem):
    """The class that was declared might go there, what was found may not."""

    type = "urn:problem:gateway:personal-data-found"
    status = HTTPStatus.FORBIDDEN
    title = "送り先で扱えない情報が見つかったので、送りませんでした"

    @property
    def may_be_retried(self) -> bool:
        return False


class NumberMisheard(Problem):
    """A long number was heard, and no check digit can clear what a listener may have got wrong."""

    type = "urn:problem:gateway:number-misheard"
    status = HTTPStatus.FORBIDDEN
    title = "音声に長い番号があり、聞き取りが確かでないので、送りませんでした"

    @property
    def may_be_retried(self) -> bool:
        return False


class MaskingOff(Problem):
    type = "urn:problem:gateway:masking-not-allowed"
    status = HTTPStatus.FORBIDDEN
    title = "この団体では、伏せて送ることができません"

    @property
    def may_be_retried(self) -> bool:
        return False


class MaskingFailed(Problem):
    """Something that was to be masked is still there, in another writing."""

    type = "urn:problem:gateway:masking-failed"
    status = HTTPStatus.FORBIDDEN
    title = "伏せきれないところがあるので、送りませんでした"

    @property
    def may_be_retried(self) -> bool:
        return False


def is_mask_asked(scope: AsgiScope) -> bool:
    """`Kumiai-Mask: 1`. Any other value than 0 and 1 is refused rather than guessed at."""
    given = set(header_values(scope, b"kumiai-mask"))
    if not given <= {b"0", b"1"} or len(given) > 1:
        raise BadRequest("Kumiai-Mask は 0 か 1 にしてください。", param="Kumiai-Mask")
    return b"1" in given


def kept_in_house(policy: Policy, scope: AsgiScope) -> Policy:
    """The town's rules for a recording, narrowed to the house where its caller asks so (`Kumiai-Sound-Zone: onprem`).

    For no route, retry or fallback is any other zone allowed then. Any other value is refused rather than guessed at.
    """
    given = set(header_values(scope, b"kumiai-sound-zone"))
    if not given <= {b"onprem"}:
        raise BadRequest("Kumiai-Sound-Zone は onprem にしてください。", param="Kumiai-Sound-Zone")
    if not given:
        return policy
    zones = {data_class: allowed & {Zone.ONPREM} for data_class, allowed in policy.zones.items()}
    return policy.model_copy(update={"zones": zones})


def listen(request: ModelRequest, caller: Caller, policy: Policy, scope: AsgiScope) -> None:
    """Tells the request what is looked for in its answer; numbers have nothing to read.

    `Kumiai-Answer-Guard: withhold` asks for the strict way; an app that residents use always gets it.
    """
    given = set(header_values(scope, b"kumiai-answer-guard"))
    if not given <= {b"warn", b"withhold"} or len(given) > 1:
        raise BadRequest("Kumiai-Answer-Guard は warn か withhold にしてください。", param="Kumiai-Answer-Guard")
    if request.operation in WORDLESS:
        return
    guard = policy.guard
    is_strict = caller.faces_residents or b"withhold" in given
    request.answer_rules = AnswerRules(
        "withhold" if is_strict else "warn",
        ng_words=guard.ng_words,
        wordings=guard.wordings,
        public=guard.public,
        names=Asked(request.body) if is_strict or wants_names(guard) else None,
    )


def watch(request: ModelRequest) -> AnswerWatch | None:
    """Reads the answer to a request while it passes."""
    rules = request.answer_rules
    return None if rules is None else AnswerWatch(rules, choices=metering.choices(request))


async def read_event(watch: AnswerWatch, event: bytes) -> bytes:
    """A piece of an answer as it may go on; one of an unusual size, or with names to look for, is read aside."""
    is_short = len(event) <= _AT_ONCE and not watch.takes_long
    return watch.event(event) if is_short else await read_aside(watch.event, event)


async def read_answer(watch: AnswerWatch, body: bytes) -> bytes:
    """A whole answer as it may go on."""
    is_short = len(body) <= _AT_ONCE and not watch.takes_long
    return watch.body(body) if is_short else await read_aside(watch.body, body)


def told(watch: AnswerWatch) -> None:
    """Counts what was found in an answer."""
    for kind, number in watch.counts.items():
        metrics.GUARD_FINDINGS.labels(kind.value, "answer-withheld" if watch.has_withheld else "answer").inc(number)


async def look(
    policy: Policy,
    request: ModelRequest,
    declared: DataClass,
    *,
    asked: Collection[Deployment] = (),
    mask_first: bool = False,
) -> tuple[Verdict, ModelRequest]:
    """Finds what is in a request and weighs it; the request comes back masked if that was asked for.

    asked: all that answer to the model's name; what is public and stays in the house does not wait for names.
    Raises `MyNumberFound`, `NgWordFound`, `NumberMisheard`, `MaskingOff` or `MaskingFailed`; then nothing is sent.
    """
    guard = policy.guard
    if mask_first and request.recording is not None:
        raise BadRequest("音声の中は伏せられません。Kumiai-Mask を付けずに送ってください。", param="Kumiai-Mask")
    if mask_first and not guard.masking:
        raise MaskingOff("Kumiai-Mask を付けずに送るか、町の管理者に相談してください。")
    names = mask_first or wants_names(guard) or (guard.names and not _is_public_at_home(declared, asked))
    verdict = decide(guard, declared, await _find(policy, request, names=names))
    if verdict.banned is Kind.MY_NUMBER:
        count(verdict, "block")
        raise MyNumberFound("12桁の番号を消してから、もう一度送ってください。どの場所でも、AIには送れません。")
    if verdict.banned is not None:
        count(verdict, "block")
        raise NgWordFound("その言葉を消すか言い換えてください。分からないときは、町の管理者に聞いてください。")
    if request.is_misheard:
        raise NumberMisheard(
            "番号を話しているところを除くか、文字にして送ってください。マイナンバーは、どこにも送れません。"
        )
    return await masked(policy, request, verdict) if mask_first else (verdict, request)


def _is_public_at_home(declared: DataClass, asked: Collection[Deployment]) -> bool:
    return declared is DataClass.C1 and all(deployment.zone is Zone.ONPREM for deployment in asked)


async def masked(policy: Policy, request: ModelRequest, verdict: Verdict) -> tuple[Verdict, ModelRequest]:
    """The request with placeholders, weighed again by what is left in it. Raises `MaskingFailed`."""
    found = await read_aside(lambda: mask(request.body, public=policy.guard.public))
    label = await read_aside(slipped, found.body, found.originals)
    if label is not None:
        count(verdict, "block")
        raise MaskingFailed(
            f"⟦{label}⟧にしたはずのものが、別の書き方で残っています。その部分を消してから送ってください。"
        )
    # A ranked question is read once for each document.
    times = request.input_items if request.operation == "rerank" else 1
    covered = replace(
        request,
        body=found.body,
        input_bytes=request.input_bytes + times * found.grown_bytes,
        restorer=Restorer(found.originals),
    )
    left = decide(policy.guard, verdict.declared, await _find(policy, covered, names=False))
    # A restored answer goes to whoever wrote the question; what the model sees is what weighs.
    return replace(left, counts=verdict.counts, is_masked=bool(found.originals)), covered


async def _find(policy: Policy, request: ModelRequest, *, names: bool) -> tuple[Finding, ...]:
    text = BETWEEN.join((*texts_of(request.body), *request.read_texts))
    guard = policy.guard
    # A name is written in Japanese.
    names = names and not text.isascii()

    def whole() -> tuple[Finding, ...]:
        # A name beside an illness weighs more than either: there names are looked for, whatever the town says of names.
        wanted = names or may_be_sensitive(text)
        return inspect_long(text, ng_words=guard.ng_words, public=guard.public, names=wanted)

    is_short = len(text) <= _AT_ONCE and not names and not may_be_sensitive(text)
    if is_short and not guard.ng_words and is_plain(text):
        found: tuple[Finding, ...] = ()
    elif is_short and not is_dense(text):
        found = inspect(text, ng_words=guard.ng_words, public=guard.public, names=False)
    else:
        found = await read_aside(whole)
    if request.read_texts and all(f.kind is not Kind.MY_NUMBER for f in found):
        return (*found, *(f for seen in request.read_texts for f in find_misread_numbers(seen)))
    return found


def rerouted(
    policy: Policy, request: ModelRequest, verdict: Verdict, deployments: Mapping[str, tuple[Deployment, ...]]
) -> ModelRequest | None:
    """The request for the town's model for personal data, where the town wants it so and there is one."""
    alias = policy.guard.reroute_to
    if verdict.remedy != "reroute" or verdict.data_class is verdict.declared:
        return None
    if alias == request.model or alias not in deployments:
        return None
    return replace(request, model=alias)


def refusal(policy: Policy, verdict: Verdict, other: str) -> PersonalDataFound:
    """other: which model may have it, in a clerk's words; empty where the town has none. So for the next two."""
    can_mask = policy.guard.masking and not verdict.is_masked and any(kind in MASKABLE for kind, _ in verdict.counts)
    match verdict.data_class:
        case DataClass.C3A:
            way_out = "秘密文書にあたる情報は、どこでもAIに送れません。"
        case DataClass.C3B:
            way_out = (
                "町の閉じた設備のモデルのほかでは扱えません。だれのことか分かる部分を"
                f"{'消すか、伏せて送って' if can_mask else '消して'}ください。"
            )
        case _ if other:
            way_out = f"その部分を消すか、{'伏せて送るか、' if can_mask else ''}{other}を選んでください。"
        case _:
            way_out = (
                "この町では、このまま送れません。その部分を"
                f"{'消すか、伏せて送って' if can_mask else '消して'}ください。"
            )
    return PersonalDataFound(f"{verdict.words}があります。{way_out}", data_class=verdict.data_class.value)


def detour_refusal(policy: Policy, verdict: Verdict, alias: str, closed: Problem) -> PersonalDataFound:
    """The town leads it to a model of which nobody spoke, and this caller may not use that one or asks what it cannot do."""
    can_mask = policy.guard.masking and not verdict.is_masked and any(kind in MASKABLE for kind, _ in verdict.counts)
    why, way_out = (
        ("頼まれた機能がありません", "その機能を使わずに送ってください")
        if isinstance(closed, NotSupported)
        else ("使うことが許されていません", "町の管理者に、使えるモデルに加えるよう依頼してください")
    )
    return PersonalDataFound(
        f"{verdict.words}があります。町の決まりではモデル「{alias}」に回しますが、{why}。"
        f"その部分を消すか、{'伏せて送るか、' if can_mask else ''}{way_out}。",
        data_class=verdict.data_class.value,
    )


def picture_refusal(verdict: Verdict, other: str) -> ZoneRefused:
    """Letters can be read in a picture, a face cannot: it stays personal data whatever was read."""
    way_out = f"画像を外すか、{other}を選んでください。" if other else "この町では送れません。画像を外してください。"
    return ZoneRefused(
        f"画像には顔や書類が写っていることがあるため、個人情報として扱います。{way_out}",
        data_class=verdict.data_class.value,
    )


def recording_refusal(verdict: Verdict, other: str) -> ZoneRefused:
    """A voice is a person's, whatever it says."""
    way_out = f"{other}を選んでください。" if other else "この町では送れません。必要なことを文字で書いてください。"
    return ZoneRefused(
        f"音声には声や名前が入るため、個人情報として扱います。{way_out}",
        data_class=verdict.data_class.value,
    )


def count(verdict: Verdict, action: str) -> None:
    for kind, number in verdict.counts:
        metrics.GUARD_FINDINGS.labels(kind.value, action).inc(number)
