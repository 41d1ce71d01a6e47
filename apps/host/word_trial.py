"""Tries words on what a town's people sent to models lately, before the town forbids them. Counts leave, text does not."""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import partial
from itertools import islice
from typing import Final

import anyio

from apps.sdk.app import App
from apps.sdk.office import WordTrial
from gateway.guard.fold import Folded
from gateway.guard.ng_words import find_ng_words
from tenants.documents import AppDocuments

DAYS: Final = 30
# A page waits for it: half a second of work for questions as people write them.
MAX_TEXTS: Final = 2_000
MAX_CHARACTERS: Final = 2_000_000


async def try_words(
    apps: Sequence[App], documents: Callable[[str], AppDocuments], words: tuple[str, ...], *, now: datetime
) -> WordTrial:
    """documents: an app's own in the whole town, by its id. words: as `clean_words` keeps them."""
    texts = found = characters = 0
    for app in apps:
        if app.sent is None:
            continue
        async for batch in app.sent(documents(app.manifest.id), now - timedelta(days=DAYS)):
            for text in islice(batch, MAX_TEXTS - texts):
                texts += 1
                characters += len(text)
                found += await anyio.to_thread.run_sync(partial(_has_any, text, words))
                if characters >= MAX_CHARACTERS:
                    return WordTrial(texts, found, DAYS, is_cut=True)
            if texts >= MAX_TEXTS:
                return WordTrial(texts, found, DAYS, is_cut=True)
    return WordTrial(texts, found, DAYS, is_cut=False)


def _has_any(text: str, words: tuple[str, ...]) -> bool:
    return next(find_ng_words(Folded(text), words), None) is not None
