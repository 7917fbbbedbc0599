"""TLS of the gRPC port: checks keys and certificates, and passes them to gRPC."""

from __future__ import annotations

import os
import ssl

import grpc

from serving.protos.server_config_pb2 import SSLConfig


def check(tls: SSLConfig) -> None:
    """Raises ValueError if keys or certificates can't be used; gRPC would not report why."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    memory_file = os.memfd_create("pem")  # ssl reads only files, and no disk may contain the key
    try:
        os.write(memory_file, f"{tls.server_key}\n{tls.server_cert}".encode())
        context.load_cert_chain(f"/proc/self/fd/{memory_file}", password="")
    except ssl.SSLError as error:
        raise ValueError(
            f"server_key and server_cert must be a key and its certificate as PEM texts: {error}"
        ) from None
    finally:
        os.close(memory_file)
    if tls.client_verify and not tls.custom_ca:
        raise ValueError("client_verify needs custom_ca, which verifies clients' certificates")
    if tls.custom_ca:
        try:
            context.load_verify_locations(cadata=tls.custom_ca)
        except ssl.SSLError as error:
            raise ValueError(f"custom_ca must be certificates as PEM text: {error}") from None


def credentials(tls: SSLConfig) -> grpc.ServerCredentials:
    """Returns gRPC's form of keys and certificates."""
    return grpc.ssl_server_credentials(
        [(tls.server_key.encode(), tls.server_cert.encode())],
        root_certificates=tls.custom_ca.encode() or None,
        require_client_auth=tls.client_verify,
    )
