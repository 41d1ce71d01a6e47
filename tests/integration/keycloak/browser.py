"""A person's browser without scripts: cookies, redirects and forms, across the portal and Keycloak's own pages."""

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from urllib.parse import urljoin, urlsplit

import httpx


@dataclass
class Form:
    action: str
    method: str
    fields: dict[str, str] = field(default_factory=dict)


@dataclass
class Page:
    """What the browser shows: an answer that was no redirect."""

    url: str
    status: int
    text: str
    forms: list[Form]

    def form(self, having: str) -> Form:
        """The form with a field of this name."""
        for form in self.forms:
            if having in form.fields:
                return form
        raise AssertionError(f"no form with {having} on {self.url}: {self.text[:600]}")


class _Forms(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[Form] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {k: v or "" for k, v in attrs}
        if tag == "form":
            self.found.append(Form(values.get("action", ""), values.get("method", "get").lower()))
        elif tag in ("input", "button") and self.found and values.get("name"):
            self.found[-1].fields[values["name"]] = values.get("value", "")


class Browser:
    """Cookies are kept per host, port and path, `Secure` ones too: a real browser treats loopback as secure."""

    def __init__(self, *, stop_before: str = "") -> None:
        self._http = httpx.Client(timeout=30, trust_env=False)
        self._cookies: dict[tuple[str, str], dict[str, str]] = {}
        self._stop_before = stop_before

    def close(self) -> None:
        self._http.close()

    def cookies(self, url: str, path: str = "/") -> dict[str, str]:
        """Those that were set for a path; changing them changes what is sent."""
        return self._cookies.setdefault((urlsplit(url).netloc, path.rstrip("/")), {})

    def _sent_to(self, url: str) -> dict[str, str]:
        parts = urlsplit(url)
        found: dict[str, str] = {}
        for (host, path), cookies in self._cookies.items():
            if host == parts.netloc and f"{parts.path}/".startswith(f"{path}/"):
                found |= cookies
        return found

    def get(self, url: str) -> Page:
        return self._go("GET", url, None, "")

    def submit(self, page: Page, having: str, **fields: str) -> Page:
        """Fills the form that has a field `having`, and sends it as a browser would."""
        form = page.form(having)
        target = urljoin(page.url, form.action or page.url)
        values = form.fields | fields
        if form.method == "get":
            return self._go("GET", str(httpx.URL(target, params=values)), None, "")
        return self._go("POST", target, values, page.url)

    def _go(self, method: str, url: str, data: dict[str, str] | None, origin: str) -> Page:
        for _ in range(20):
            headers = {"accept": "text/html", "accept-language": "ja"}
            if cookies := self._sent_to(url):
                headers["cookie"] = "; ".join(f"{k}={v}" for k, v in cookies.items())
            if method == "POST":
                headers["origin"] = "{0.scheme}://{0.netloc}".format(urlsplit(origin))
            answer = self._http.request(method, url, data=data, headers=headers)
            # Ours alone are sent.
            self._http.cookies.clear()
            for line in answer.headers.get_list("set-cookie"):
                name, _, value = line.split(";", 1)[0].partition("=")
                gone = "max-age=0" in line.lower() or not value or value == '""'
                told = re.search(r";\s*path=([^;]*)", line, re.IGNORECASE)
                kept = self.cookies(url, told[1] if told else "/")
                kept.pop(name, None) if gone else kept.update({name: value})
            if answer.status_code not in (301, 302, 303, 307):
                forms = _Forms()
                forms.feed(answer.text)
                return Page(url, answer.status_code, answer.text, forms.found)
            url, method, data = urljoin(url, answer.headers["location"]), "GET", None
            if self._stop_before and url.startswith(self._stop_before):
                return Page(url, answer.status_code, "", [])
        raise AssertionError(f"redirected without end: {url}")
