"""Images for the test of docker-compose.yml where none can be pulled, made once, kept by tag.

    python -m tests.processes.images

needs docker, debootstrap (as root) and the network that pip needs, and takes some minutes. A base
is made of Debian's packages; the Dockerfile is built on it; and the embedded server, which that
brings, stands in for TF Serving. Names begin with ``tfdp-test/``, so that nothing else uses them.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.running import ROOT

PREFIX = "tfdp-test"
_DEBIAN = "bookworm"
_PACKAGES = "ca-certificates,haproxy,prometheus,python3,python3-pip,python3-venv"
_TRUSTED = Path("/etc/ssl/certs/ca-certificates.crt")  # whom this machine trusts, proxies included

# As the images that docker-compose.yml names: the same user, entry point and folders.
_BASE = """
FROM tfdp-test/debian
COPY ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
RUN ln -sf python3 /usr/bin/python && rm -f /usr/lib/python3*/EXTERNALLY-MANAGED
"""
_SERVING = """
FROM tfdp-test/node
USER root
RUN mkdir -p /models
ENTRYPOINT ["python", "-m", "serving.server", "--host=0.0.0.0", "--port=8500", \
"--rest_api_port=8501"]
CMD []
"""
_HAPROXY = """
FROM tfdp-test/base
STOPSIGNAL SIGUSR1
USER 99:99
"""
_PROMETHEUS = """
FROM tfdp-test/base
RUN mkdir -p /prometheus && chown 65534:65534 /prometheus
USER 65534:65534
ENTRYPOINT ["prometheus"]
"""


def make() -> None:
    """Makes what is not there yet; the nodes' image, and what stands on it, always.

    Raises:
        subprocess.CalledProcessError: something failed; its output is on stderr.
    """
    if not _exists("base"):
        if not _exists("debian"):
            _bootstrap()
        _build("base", _BASE)
    # pip reaches its index as this machine does; what has not changed is in docker's cache.
    options = ["--network=host", f"--build-arg=BASE={PREFIX}/base"]
    _docker("build", "--quiet", *options, f"--tag={PREFIX}/node", str(ROOT))
    _build("serving", _SERVING)
    _build("haproxy", _HAPROXY)
    _build("prometheus", _PROMETHEUS)


def _bootstrap() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "root"
        command = ["debootstrap", "--variant=minbase", f"--include={_PACKAGES}", _DEBIAN, str(root)]
        subprocess.run(command, check=True, stdout=sys.stderr)
        for useless in ("var/cache/apt/archives", "var/lib/apt/lists"):
            shutil.rmtree(root / useless)
        archive = subprocess.Popen(["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE)
        _docker("import", "-", f"{PREFIX}/debian", stdin=archive.stdout)
        if archive.wait() != 0:
            raise subprocess.CalledProcessError(archive.returncode, "tar")


def _build(name: str, dockerfile: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "Dockerfile").write_text(dockerfile.strip())
        shutil.copy(_TRUSTED, folder)
        _docker("build", "--quiet", f"--tag={PREFIX}/{name}", folder)


def _exists(name: str) -> bool:
    command = ["docker", "image", "inspect", f"{PREFIX}/{name}"]
    return subprocess.run(command, capture_output=True).returncode == 0


def _docker(*arguments: str, **options: object) -> None:
    subprocess.run(["docker", *arguments], check=True, stdout=sys.stderr, **options)


if __name__ == "__main__":
    make()
