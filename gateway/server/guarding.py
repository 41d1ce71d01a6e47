"""The guard in a call's path: looks at every text of a request before a deployment is chosen."""

from collections.abc import Mapping
from dataclasses import replace
from http import HTTPStatus
from typing import Final

import anyio.to_thread

from gateway.contracts import ModelRequest
from gateway.guard.decision import Verdict, decide, wants_names
from gateway.guard.findings import Finding, Kind
from gateway.guard.inspection import inspect
from gateway.guard.texts import BETWEEN, pieces_of, texts_of
from gateway.server.providers.base import Deployment
from observability import metrics
from observability.problems import Problem
from tenants.context import DataClass
from tenants.policy import Policy

# A look at this much takes a millisecond or two; more goes to a thread, lest other streams wait for it.
_AT_ONCE: Final = 4_000


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


async def look(policy: Policy, request: ModelRequest, declared: DataClass) -> Verdict:
    """Finds what is in a request and weighs it. Raises `MyNumberFound` or `NgWordFound`; then nothing is sent."""
    guard = policy.guard
    names = wants_names(guard)
    text = BETWEEN.join(texts_of(request.body))
    if len(text) <= _AT_ONCE and not names:
        found = inspect(text, ng_words=guard.ng_words, public=guard.public, names=False)
        if not found:
            return Verdict(declared, declared)
    else:
        found = tuple(await anyio.to_thread.run_sync(_inspect_pieces, text, policy, names))
    verdict = decide(guard, declared, found)
    if verdict.banned is Kind.MY_NUMBER:
        count(verdict, "block")
        raise MyNumberFound("12桁の番号を消してから、もう一度送ってください。どの場所でも、AIには送れません。")
    if verdict.banned is not None:
        count(verdict, "block")
        raise NgWordFound("その言葉を消すか言い換えてください。分からないときは、町の管理者に聞いてください。")
    return verdict


def _inspect_pieces(text: str, policy: Policy, names: bool) -> list[Finding]:
    """As `inspect`, a piece at a time: between two pieces other threads get their turn."""
    guard = policy.guard
    found: dict[tuple[Kind, int, int], Finding] = {}
    for start, piece in pieces_of(text):
        for f in inspect(piece, ng_words=guard.ng_words, public=guard.public, names=names):
            found.setdefault((f.kind, start + f.start, start + f.end), f)
    return list(found.values())


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


def refusal(verdict: Verdict) -> PersonalDataFound:
    match verdict.data_class:
        case DataClass.C3A:
            way_out = "秘密文書にあたる情報（機密性3A）は、どこでもAIに送れません。"
        case DataClass.C3B:
            way_out = "町の閉じた設備のモデルのほかでは扱えません。その部分を消してから送ってください。"
        case _:
            way_out = "その部分を消すか、庁内専用のモデルを選んでください。"
    return PersonalDataFound(f"{verdict.words}があります。{way_out}", data_class=verdict.data_class.value)


def count(verdict: Verdict, action: str) -> None:
    for kind, number in verdict.counts:
        metrics.GUARD_FINDINGS.labels(kind.value, action).inc(number)
