"""Where each login of the database connects. Apart from `tenants.db`, so that settings are read without SQLAlchemy."""

from dataclasses import dataclass, field, replace
from pathlib import Path


@dataclass(frozen=True, slots=True)
class DatabaseUrls:
    """Where each login connects. For SQLite only `app` is given, as `sqlite:///…/kumiai.sqlite3`."""

    app: str
    platform: str = field(default="", repr=False)
    ledger: str = field(default="", repr=False)
    content: str = field(default="", repr=False)
    owner: str = field(default="", repr=False)

    @property
    def is_sqlite(self) -> bool:
        return self.app.startswith("sqlite")

    @property
    def sqlite_path(self) -> Path:
        """The platform file; its neighbour `…-content.sqlite3` holds the content schema."""
        from sqlalchemy.engine import make_url

        return Path(str(make_url(self.app).database))

    @property
    def sqlite_content_path(self) -> Path:
        path = self.sqlite_path
        return path.with_name(path.stem + "-content" + path.suffix)

    def filled(self) -> "DatabaseUrls":
        """With every missing login falling back to `app` on SQLite; on PostgreSQL a missing one is refused."""
        if self.is_sqlite:
            return DatabaseUrls(self.app, self.app, self.app, self.app, self.app)
        missing = [n for n in ("platform", "ledger", "content") if not getattr(self, n)]
        if missing:
            names = ", ".join(f"KUMIAI_{n.upper()}_DATABASE_URL" for n in missing)
            raise ValueError(f"PostgreSQL needs one login per duty; not set: {names}")
        return replace(self)
