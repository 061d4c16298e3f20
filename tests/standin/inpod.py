"""The program in a pod that has a token: `python -P inpod.py FOLDER ARGUMENTS`.

Clients have the path of the token built in, and a process here has no file system of its own. So
the official client is told another folder before the program begins; it reads, trusts and reads
anew what lies there as it does in a pod.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from kubernetes.config import incluster_config


def main() -> None:
    folder = Path(sys.argv[1])
    incluster_config.SERVICE_TOKEN_FILENAME = str(folder / "token")
    incluster_config.SERVICE_CERT_FILENAME = str(folder / "ca.crt")
    del sys.argv[1]
    runpy.run_module("fractal_k8s", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
