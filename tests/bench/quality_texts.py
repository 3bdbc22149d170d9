#!/usr/bin/env python3
"""Writes two texts that share no file, for searching profiles and for judging them.

They are Python sources of the standard library that runs this script: the same on every machine
with the same version of it (docs/quality.md names version and SHA-256).

    tests/bench/quality_texts.py FOLDER     writes FOLDER/calibration.txt and FOLDER/evaluation.txt
"""

import hashlib
import os
import pathlib
import random
import sys

LIBRARY = pathlib.Path(os.__file__).parent
BYTES = 1_500_000  # of each text
LARGEST = 120_000  # of one file


def sources():
    """Files of the library and its packages, without tests and tables of encodings."""
    found = sorted(list(LIBRARY.glob("*.py")) + list(LIBRARY.glob("*/*.py")))
    kept = [
        f
        for f in found
        if not any(word in str(f.relative_to(LIBRARY)) for word in ("test", "encodings"))
        and "packages" not in str(f.relative_to(LIBRARY))
        and f.stat().st_size > 2000
    ]
    random.Random(5).shuffle(kept)
    return kept


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    files = sources()
    for name, chosen in (("calibration.txt", files[::2]), ("evaluation.txt", files[1::2])):
        text = b"\n\n".join(f.read_bytes()[:LARGEST] for f in chosen)[:BYTES]
        (folder / name).write_bytes(text)
        print(f"{hashlib.sha256(text).hexdigest()}  {folder / name}  {len(text)} bytes")


if __name__ == "__main__":
    main()
