"""What is made for a person bit by bit and goes on when the page that asked for it is gone."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, Generic, Protocol, TypeVar
from uuid import UUID

T = TypeVar("T")


class Live(Generic[T]):
    """One such piece of work: whoever follows it gets all it said, from the beginning on."""

    def __init__(self) -> None:
        self._said: list[T] = []
        self._followers: set[asyncio.Event] = set()
        self._is_over = False
        self.is_stopped = asyncio.Event()

    def tell(self, piece: T) -> None:
        self._said.append(piece)
        self._wake()

    @property
    def last(self) -> T | None:
        """What it said last."""
        return self._said[-1] if self._said else None

    def end(self) -> None:
        self._is_over = True
        self._wake()

    def stop(self) -> None:
        """Its person wants no more of it; what there is is kept, as its maker sees fit."""
        self.is_stopped.set()

    async def follow(self) -> AsyncGenerator[T, None]:
        news = asyncio.Event()
        self._followers.add(news)
        at = 0
        try:
            while True:
                while at < len(self._said):
                    at += 1
                    yield self._said[at - 1]
                if self._is_over:
                    return
                await news.wait()
                news.clear()
        finally:
            self._followers.discard(news)

    def _wake(self) -> None:
        for news in self._followers:
            news.set()


class AppLive(Protocol):
    """What is under way for this person in this app, in this process."""

    def start(self, key: UUID, pieces: AsyncGenerator[T, None]) -> Live[T]:
        """Lets `pieces` be made to their end, whoever listens. key: by which it is found again."""

    def find(self, key: UUID) -> Live[Any] | None:
        """None when it has ended, or is made by another process."""
