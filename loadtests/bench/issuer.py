"""An identity provider for a bench: it tells its key, and signs tokens of people whose sign-in nobody asks about."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import uuid4

from joserfc import jwt
from joserfc.jwk import ECKey

# What an access token of ours may live at most.
LIFETIME_S = 15 * 60


@dataclass(frozen=True, slots=True)
class Issuer:
    """url: what its tokens name as their issuer; discovery and keys are below it."""

    url: str
    _key: ECKey = field(repr=False)

    def access_token(self, *, sub: str, organization_id: str, client_id: str, audience: str) -> str:
        """As Keycloak signs them for the portal: ES256, the one algorithm that the gateway takes."""
        now = int(time.time())
        claims: dict[str, Any] = {
            "iss": self.url, "sub": sub, "sid": str(uuid4()), "jti": str(uuid4()), "typ": "Bearer", "azp": client_id,
            "aud": audience, "iat": now, "exp": now + LIFETIME_S, "organization": {"town": {"id": organization_id}},
        }  # fmt: skip
        header = {"alg": "ES256", "typ": "at+jwt", "kid": self._key.kid}
        return jwt.encode(header, claims, self._key, algorithms=["ES256"])


@contextmanager
def issuing() -> Iterator[Issuer]:
    """On a free port of the loopback, in a thread: a gateway asks it once."""
    key = ECKey.generate_key("P-256", {"use": "sig", "alg": "ES256"}, auto_kid=True)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            document: dict[str, Any] = {
                "issuer": url, "authorization_endpoint": f"{url}/auth", "token_endpoint": f"{url}/token",
                "jwks_uri": f"{url}/certs", "end_session_endpoint": f"{url}/logout",
            }  # fmt: skip
            body = json.dumps({"keys": [key.as_dict(private=False)]} if self.path == "/certs" else document).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Its requests are nobody's figure."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield Issuer(url, key)
    finally:
        server.shutdown()
        server.server_close()
