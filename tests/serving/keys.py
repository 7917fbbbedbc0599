"""Certificates for tests of TLS, made by openssl."""

from __future__ import annotations

import subprocess
from pathlib import Path


def make_keys(folder: Path, **names: str) -> dict[str, bytes]:
    """Writes an authority's ``ca.pem``, and for each name a ``.key`` and a signed ``.pem``.

    Args:
        folder: where the files are written.
        names: each name's subject, for example ``DNS:server.test``.

    Returns:
        The files' contents by name.
    """
    new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-batch"]
    for name, subject in {"ca": "DNS:ca", **names}.items():
        signed = [] if name == "ca" else ["-CA", "ca.pem", "-CAkey", "ca.key"]
        files = ["-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}"]
        command = ["openssl", "req", "-x509", *new, *signed, *files]
        command += ["-addext", f"subjectAltName={subject}"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return {path.name: path.read_bytes() for path in folder.iterdir()}
