"""A certificate authority of the tests' own, and the certificates that it signs for the local servers."""

from __future__ import annotations

import datetime as dt
import ipaddress
import ssl
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

DAY = dt.timedelta(days=1)
USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


@dataclass(frozen=True)
class Authority:
    """Signs certificates; nobody trusts it who was not told to."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def new(cls) -> Self:
        """An authority with a certificate signed by itself."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name("nbllm tests")
        return cls(key, _certificate(name, name, key, key, authority=True))

    @property
    def pem(self) -> bytes:
        """Its certificate, as `SSL_CERT_FILE` wants it in a file."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def server(self, host: str = "127.0.0.1", days: int = 1) -> ssl.SSLContext:
        """The context of a server with a certificate for `host`, valid for so many days; -1 has expired."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _certificate(
            _name(host), self.certificate.subject, key, self.key, authority=False, host=host, days=days
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with tempfile.TemporaryDirectory() as folder:  # Python loads a certificate from a file only
            file = Path(folder, "server.pem")
            file.write_bytes(
                key.private_bytes(
                    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
                )
                + certificate.public_bytes(serialization.Encoding.PEM)
            )
            context.load_cert_chain(file)
        return context


@cache
def authority() -> Authority:
    """The one authority of this process: making a key takes a while."""
    return Authority.new()


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    signer: ec.EllipticCurvePrivateKey,
    *,
    authority: bool,
    host: str = "",
    days: int = 1,
) -> x509.Certificate:
    now = dt.datetime.now(dt.UTC)
    usage = dict.fromkeys(USAGES, False) | {"digital_signature": True, "key_cert_sign": authority}
    # What OpenSSL's strict mode, the default from Python 3.13 on, wants to see in a certificate (RFC 5280).
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - 3 * DAY)
        .not_valid_after(now + days * DAY)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**usage), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if host:
        try:
            named: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
        except ValueError:
            named = x509.DNSName(host)
        builder = builder.add_extension(x509.SubjectAlternativeName([named]), critical=False)
    return builder.sign(signer, hashes.SHA256())
