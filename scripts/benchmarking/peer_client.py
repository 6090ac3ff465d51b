"""The driver's end of the peers' worker: one process in the peers' own virtual environment, asked by JSON lines.

Only one of the two processes works at a time. A worker that dies fails the contender it was at, and the next request
starts another one.
"""

from __future__ import annotations

import json
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

from rounds import ContenderError

WORKER = Path(__file__).with_name("peer_worker.py")


class PeerWorker:
    """The peers, as far as the driver sees them.

    Args:
        python: of the peers' virtual environment; None where there is none.
        job: what the worker reads at its start.
        folder: for the job and for what the worker says on stderr.
    """

    def __init__(self, python: Path | None, job: dict[str, Any], folder: Path) -> None:
        self.python, self.folder, self.job = python, folder, job
        self.versions: dict[str, str] = {}
        self.log = folder / "worker.log"
        self.job_file = folder / "job.json"
        self.job_file.write_text(json.dumps(job))
        self.process: subprocess.Popen[str] | None = None

    def seconds(self, name: str) -> float:
        """Return how long one go of the contender ``group/key`` took.

        Raises:
            ContenderError: it could not do its rows.
        """
        return float(self.ask({"run": name})["seconds"])

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a request.

        Raises:
            ContenderError: the answer says so, the worker died, or there are no peers here.
        """
        if self.python is None:
            raise ContenderError("not measured")
        process = self.process or self.start()
        answer = self.exchange(process, request)
        if "failed" in answer:
            raise ContenderError(f"failed: {answer['failed']}")
        return answer

    def start(self) -> subprocess.Popen[str]:
        """Start the worker and remember its versions."""
        command = [str(self.python), str(WORKER), str(self.job_file)]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, bufsize=1
            )
        self.versions = self.exchange(self.process, None)["versions"]
        return self.process

    def exchange(self, process: subprocess.Popen[str], request: dict[str, Any] | None) -> dict[str, Any]:
        """Send a request, unless there is none, and return the next line."""
        line = ""
        try:
            if request is not None and process.stdin is not None:
                process.stdin.write(json.dumps(request) + "\n")
            line = process.stdout.readline() if process.stdout is not None else ""
        except BrokenPipeError:
            pass
        if not line:
            self.process = None
            said = self.log.read_text(errors="replace").strip().splitlines()[-1:] or ["without a word"]
            raise ContenderError(f"failed: the worker ended with code {process.wait()}: {said[0][:160]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def forget(self) -> None:
        """Free the models of the last group, where a worker is running."""
        with suppress(ContenderError):  # a worker that dies of it has forgotten too
            if self.process is not None:
                self.ask({"forget": True})

    def close(self) -> None:
        """End the worker."""
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()
            self.process.wait()
            self.process = None
