"""SHA-256 without OpenSSL, which importing `hashlib` loads: 3.6 MB of memory. CPython's `random` does the same."""

try:
    from _sha2 import sha256  # CPython 3.12 and later
except ImportError:
    try:
        from _sha256 import sha256  # CPython 3.11
    except ImportError:
        from hashlib import sha256

__all__ = ["sha256"]
