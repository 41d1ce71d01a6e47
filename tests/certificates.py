"""Certificates for servers on loopback, made anew for each run."""

import datetime
import ipaddress
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def certificates(folder: Path) -> tuple[Path, ssl.SSLContext, ssl.SSLContext]:
    """An authority, and two servers it vouches for: one whose certificate is valid, one whose has run out."""
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    own = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "見本")])
    root = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(own.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now - 9 * day).not_valid_after(now + 9 * day)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(own, hashes.SHA256())
    )  # fmt: skip
    authority = folder / "authority.pem"
    authority.write_bytes(root.public_bytes(serialization.Encoding.PEM))

    def server(label: str, until: datetime.datetime) -> ssl.SSLContext:
        key = ec.generate_private_key(ec.SECP256R1())
        address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        called = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
        made = (
            x509.CertificateBuilder().subject_name(called).issuer_name(name).public_key(key.public_key())
            .serial_number(x509.random_serial_number()).not_valid_before(now - 8 * day).not_valid_after(until)
            .add_extension(x509.SubjectAlternativeName([address]), critical=False)
            .sign(own, hashes.SHA256())
        )  # fmt: skip
        chain = folder / f"{label}.pem"
        chain.write_bytes(
            made.public_bytes(serialization.Encoding.PEM)
            + key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chain)
        return context

    return authority, server("valid", now + day), server("expired", now - day)
