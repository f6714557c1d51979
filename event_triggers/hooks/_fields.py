"""What the connection forms have in common, as data: Airflow 3.3 reads them without importing a hook."""

from __future__ import annotations

from typing import Any

__all__ = ["TLS", "form_field"]


def form_field(label: str, description: str, type_: str = "string", **schema: Any) -> dict[str, Any]:
    """A field of a form, in the form of a provider's ``conn-fields``; it may be left empty.

    :param schema: what else its JSON schema says.
    """
    return {"label": label, "description": description, "schema": {"type": [type_, "null"], **schema}}


TLS: dict[str, dict[str, Any]] = {
    "tls": form_field("TLS", "Encrypt the connection and check the broker's certificate.", "boolean"),
    "ca_cert": form_field(
        "CA certificate (file)", "PEM file on the triggerer; without one the system's authorities are trusted."
    ),
    "ca_pem": form_field("CA certificate (text)", "The same as text, instead of a file.", format="multiline"),
    "client_cert": form_field("Client certificate (file)", "PEM file on the triggerer, for brokers that ask for one."),
    "private_key": form_field(
        "Private key (file)", "PEM file with the certificate's key, if the certificate's has none."
    ),
    "client_cert_pem": form_field(
        "Client certificate (text)", "The same as text, instead of a file.", format="multiline"
    ),
    "private_key_pem": form_field("Private key (text)", "The same as text, instead of a file.", format="multiline"),
    "private_key_password": form_field("Private key password", "If the private key is encrypted.", format="password"),
    "insecure": form_field(
        "Do not check the certificate", "For a test with a self-made certificate, and for nothing else.", "boolean"
    ),
}
"""The fields of a connection that may use TLS; the certificates are read by the triggerer."""
