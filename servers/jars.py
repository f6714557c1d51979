"""Servers that are written for the Java virtual machine: their jars, by Maven, once, into a cache folder.

What a server needs is named in ``servers/maven/<name>/pom.xml``. The folder of its jars carries a digest of that file:
a changed version is fetched, and an unchanged one never again.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from servers.process import ServerFailed

__all__ = ["cache_folder", "class_path", "java"]

_POMS = Path(__file__).parent / "maven"


def cache_folder() -> Path:
    """Where fetched things are kept: ``$EVENT_TRIGGERS_CACHE``, else ``~/.cache/event_triggers``."""
    configured = os.environ.get("EVENT_TRIGGERS_CACHE")
    return Path(configured) if configured else Path.home() / ".cache" / "event_triggers"


def java() -> str:
    """The program ``java``: the one of ``$JAVA_HOME``, else the one on ``PATH``.

    :raises ServerFailed: when there is none.
    """
    home = os.environ.get("JAVA_HOME")
    found = shutil.which("java", path=str(Path(home) / "bin")) if home else shutil.which("java")
    if found is None:
        raise ServerFailed("Java is not installed: no java on PATH; on Debian: apt-get install openjdk-17-jre-headless")
    return found


def class_path(name: str, *, timeout: float = 300) -> str:
    """The class path of the server ``name``, for ``java -cp``; fetched first when it is not cached.

    :raises ServerFailed: when Maven is not installed, or cannot fetch the jars.
    """
    pom = _POMS / name / "pom.xml"
    folder = cache_folder() / "jars" / f"{name}-{hashlib.sha256(pom.read_bytes()).hexdigest()[:12]}"
    if not folder.exists():
        _fetch(pom, folder, timeout)
    return f"{folder}{os.sep}*"


def _fetch(pom: Path, folder: Path, timeout: float) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise ServerFailed("Maven is not installed: no mvn on PATH; on Debian: apt-get install maven")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        jars = Path(scratch) / "jars"
        command = [maven, "-q", "-B", "-f", str(pom), "dependency:copy-dependencies"]
        command += ["-DincludeScope=runtime", f"-DoutputDirectory={jars}"]
        # What an earlier run resolved is enough; only when it is not, the network is asked.
        for attempt in ([*command, "-o"], command):
            done = subprocess.run(attempt, capture_output=True, text=True, timeout=timeout, check=False)
            if done.returncode == 0:
                break
            shutil.rmtree(jars, ignore_errors=True)
        else:
            raise ServerFailed(f"Maven could not fetch the jars of {pom.parent.name}:\n{done.stdout[-2000:]}")
        try:
            jars.rename(folder)
        except OSError:
            if not folder.exists():  # else another process was faster
                raise
