"""The test kit's certificates: an authority of its own, and whatever it has signed. Needs openssl."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

__all__ = ("Authority",)


class Authority:
    """Signs certificates, in a folder: `ca.pem`, and for each name the key and the certificate in one PEM file."""

    def __init__(self, folder: Path) -> None:
        if shutil.which("openssl") is None:
            pytest.skip("openssl is not installed")
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.ca = folder / "ca.pem"
        new = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test authority"]
        self._openssl(*new, "-keyout", "ca.key", "-out", "ca.pem")

    def sign(self, name: str, *, host: str = "IP:127.0.0.1", password: str = "") -> Path:
        """Return a PEM file with a key, encrypted where there is a password, and its certificate for `host`."""
        cipher = ["-passout", f"pass:{password}"] if password else ["-nodes"]
        request = ["req", "-new", "-newkey", "rsa:2048", "-subj", f"/CN={name}", *cipher]
        self._openssl(*request, "-keyout", f"{name}.key", "-out", f"{name}.csr")
        (self._folder / f"{name}.ext").write_text(f"subjectAltName={host}\n")
        signing = ["x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"]
        self._openssl(*signing, "-days", "2", "-extfile", f"{name}.ext", "-out", f"{name}.crt")
        both = self._folder / f"{name}.pem"
        both.write_text("".join((self._folder / f"{name}{part}").read_text() for part in (".key", ".crt")))
        return both

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self._folder, capture_output=True, timeout=60, check=True)
