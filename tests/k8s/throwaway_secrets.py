"""Certificates, keys and tokens for an hour, as the Secrets of the production overlay hold them."""

import base64
import hashlib
import hmac
import json
import secrets
import subprocess
import time

HOST = "fourierkv-server"


def _openssl(*arguments):
    subprocess.run(["openssl", *map(str, arguments)], capture_output=True, check=True)


def _base64url(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _token(key, claims):
    parts = [{"alg": "HS256", "typ": "JWT", "kid": "test"}, claims]
    signed = ".".join(_base64url(json.dumps(part).encode()) for part in parts)
    return f"{signed}.{_base64url(hmac.digest(key, signed.encode(), hashlib.sha256))}"


def make(folder):
    """Writes tls.crt, tls.key, ca.crt, keys.json, token, password and disk.keys: one certificate of HOST and one token serve all."""
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    ca, ca_key, key, request = (folder / name for name in ("ca.crt", "ca.key", "tls.key", "request"))
    _openssl("req", "-x509", *new_key, "-keyout", ca_key, "-out", ca, "-days", 1, "-subj", "/CN=test authority")
    _openssl("req", *new_key, "-keyout", key, "-out", request, "-subj", "/CN=test")
    (folder / "extensions").write_text(f"subjectAltName=DNS:{HOST}\n")
    _openssl("x509", "-req", "-in", request, "-CA", ca, "-CAkey", ca_key, "-days", 1,
             "-extfile", folder / "extensions", "-out", folder / "tls.crt")  # fmt: skip

    key = secrets.token_bytes(32)
    keys = [{"kty": "oct", "alg": "HS256", "kid": "test", "k": _base64url(key)}]
    (folder / "keys.json").write_text(json.dumps({"keys": keys}))
    claims = {"aud": "fourierkv", "tenant": "test", "roles": ["read", "write"], "exp": int(time.time()) + 3600}
    (folder / "token").write_text(_token(key, claims))
    (folder / "password").write_text("of Redis\n")
    (folder / "disk.keys").write_text(secrets.token_hex(32) + "\n")
    (folder / "disk.keys").chmod(0o440)
