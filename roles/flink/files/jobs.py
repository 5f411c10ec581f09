"""Keeps Flink's declared jobs running: submits those that are missing, from their newest checkpoint.

A jobmanager without a coordination service forgets its jobs when it dies. Their checkpoints stay in the object store, and what
was declared stays here, so that nothing else is needed to bring them back.

    GET /health              200 when the jobmanager was asked within the last seconds
    GET /jobs                [{name, sha256, state, job_id, restored_from, error}]
    PUT /jobs/NAME           {"statements": [...], "sha256": "..."}: makes it so; answers when its tasks run, or 409 with the cause
    DELETE /jobs/NAME        cancels it and forgets it
"""

import json
import os
import re
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

JOBMANAGER = os.environ["JOBMANAGER"]
GATEWAY = os.environ["GATEWAY"]
DATA = Path("/data")
# the object store's bucket, as its own folder
STORE = Path("/store/flink")
STORE_URL = "s3://flink"
PROPERTIES = Path("/etc/flink/secrets.properties")
PORT = int(os.environ["PORT"])

LOOK_SECONDS = 2.0
# a jobmanager that is started again is away for less
SILENT_SECONDS = 30.0
RUN_SECONDS = 90.0
LONGEST_PAUSE = 60.0
ENDED = {"FAILED", "CANCELED", "FINISHED"}
_REFERENCE = re.compile(r"\$\{file:/etc/flink/secrets\.properties:([^}]+)\}")


class RefusedError(Exception):
    """What a person can mend: a wrong statement, state that does not fit, too few slots."""


def log(text: str) -> None:
    print(time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), text, flush=True)


def ask(method: str, url: str, body: object = None, timeout: float = 30) -> dict:
    """JSON of an answer; RefusedError with the service's own words for 4xx and 5xx, OSError when nobody answers."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)  # noqa: S310 (addresses from the role)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:  # noqa: S310
            return json.loads(answer.read() or b"{}")
    except urllib.error.HTTPError as error:
        text = error.read().decode(errors="replace")
        with suppress(ValueError, KeyError, TypeError):
            text = "\n".join(map(str, json.loads(text)["errors"]))
        raise RefusedError(root_cause(text)) from error


def root_cause(text: str) -> str:
    """The last `Caused by` of a Java stack trace, else its first line that says something."""
    causes = re.findall(r"^\s*Caused by: (.+)$", text, re.MULTILINE)
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith(("at ", "<", "..."))]
    found = causes[-1] if causes else (lines[0] if lines else text.strip())
    return re.sub(r"^(?:[a-z_][\w$]*\.)+([A-Z][\w$]*)(?=:|$)", r"\1", found)


class Job:
    """One declared job and what is known of it; kept in a file."""

    def __init__(self, name: str, kept: dict):
        self.name = name
        self.statements: list[str] = kept["statements"]
        self.sha256: str = kept["sha256"]
        self.ids: list[str] = kept.get("ids", [])
        # ended here in order to be changed: what becomes of the change, it has to be submitted again
        self.due: bool = kept.get("due", False)
        # how it ended, on purpose or by itself: a jobmanager that is started again knows nothing of it
        self.ended: str = kept.get("ended", "")
        self.state = "DECLARED"
        self.error = ""
        self.restored_from = ""
        self.failures = 0
        self.not_before = 0.0

    def keep(self) -> None:
        path = DATA / f"{self.name}.json"
        temporary = path.with_suffix(".new")
        # of earlier submissions only those that left something to go on from: any number of failed ones must not push that out
        self.ids = [job_id for job_id in self.ids[:-1] if states_of(job_id)][-5:] + self.ids[-1:]
        kept = {"statements": self.statements, "sha256": self.sha256, "ids": self.ids, "due": self.due, "ended": self.ended}
        temporary.write_text(json.dumps(kept))
        temporary.replace(path)

    def shown(self) -> dict:
        return {
            "name": self.name,
            "sha256": self.sha256,
            "state": self.state,
            "job_id": self.ids[-1] if self.ids else "",
            "restored_from": self.restored_from,
            "error": self.error,
        }

    def newest_state(self) -> str | None:
        """Where this job can go on: its newest complete checkpoint or savepoint.

        The listing is the store's own folder: what the jobmanager last reported could be one checkpoint behind, and going back
        behind a committed transaction would repeat records.
        """
        newest = max(((file.stat().st_mtime, file) for job_id in self.ids for file in states_of(job_id)), default=None)
        return newest and f"{STORE_URL}/{newest[1].parent.relative_to(STORE)}"


def alive(name: str, there: list[dict]) -> list[dict]:
    """Of Flink's jobs those of this name that have not ended."""
    return [job for job in there if job["name"] == name and job["state"] not in ENDED]


def end(jobs: list[dict]) -> None:
    """Asks Flink to cancel jobs, each once."""
    for job in jobs:
        if job["state"] != "CANCELLING":
            ask("PATCH", f"{JOBMANAGER}/jobs/{job['jid']}?mode=cancel")


def states_of(job_id: str) -> list[Path]:
    """Checkpoints and savepoints of a job. One is complete when its _metadata is there."""
    # as Flink calls them
    return [*STORE.glob(f"checkpoints/{job_id}/chk-*/_metadata"), *STORE.glob(f"savepoints/savepoint-{job_id[:6]}-*/_metadata")]


class Jobs:
    """All declared jobs."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.asked = 0.0
        self.jobs = {path.stem: Job(path.stem, json.loads(path.read_text())) for path in sorted(DATA.glob("*.json"))}

    def watch(self) -> None:
        """Looks again and again; never ends."""
        while True:
            with self.lock:
                try:
                    self.look()
                except OSError as error:
                    log(f"the jobmanager does not answer: {error}")
                    self.doubt(error)
                except Exception as error:
                    log(f"unexpected: {error!r}")
            # Flink has nothing to subscribe to
            time.sleep(LOOK_SECONDS)

    def look(self) -> None:
        there = ask("GET", f"{JOBMANAGER}/jobs/overview", timeout=5)["jobs"]
        self.asked = time.monotonic()
        for job in self.jobs.values():
            self.judge(job, there)

    def doubt(self, error: OSError) -> None:
        """What ran when the jobmanager last answered need not run any more."""
        if time.monotonic() - self.asked > SILENT_SECONDS:
            for job in self.jobs.values():
                job.state, job.error = "UNKNOWN", f"the jobmanager does not answer: {error}"

    def judge(self, job: Job, there: list[dict]) -> None:
        """Notes the job's state; submits it when it is missing or has failed."""
        live = alive(job.name, there)
        if live and job.due and live[0]["jid"] not in job.ids:
            # of a change that failed, and could not be cancelled then; what it has written is not to be written again
            self.cancel(job)
            job.ids.append(live[0]["jid"])
            live = []
        if len(live) > 1:
            # Flink has accepted a submission after all whose answer did not come in time: two would write the same
            end([j for j in live if j["jid"] != job.ids[-1]])
            return
        if live:
            found = live[0]
            if found["jid"] not in job.ids:  # submitted, and then this process died before it could note it
                job.ids.append(found["jid"])
                job.keep()
            tasks = found["tasks"]
            whole = found["state"] == "RUNNING" and tasks["running"] + tasks["finished"] == tasks["total"]
            job.state = "RUNNING" if whole else "STARTING" if found["state"] in ("RUNNING", "CREATED", "INITIALIZING") else found["state"]
            if whole:
                job.error, job.failures = "", 0
            elif job.state == "RESTARTING":
                job.error = self.cause(found["jid"])
            return
        ended = next((j for j in there if job.ids and j["jid"] == job.ids[-1]), None)
        if ended and ended["state"] in ("CANCELED", "FINISHED") and not job.due:
            job.ended = ended["state"]
            job.keep()
        if job.ended and not job.due:
            # PUT begins it again
            job.state = job.ended
            return
        if ended and not job.due:
            job.state, job.error = "FAILED", self.cause(ended["jid"])
        else:
            job.state = "MISSING"
        if time.monotonic() < job.not_before:
            return
        try:
            self.submit(job)
        except (RefusedError, OSError) as error:
            job.error = str(error)
            log(f"{job.name}: could not be submitted: {error}")
        job.failures += 1
        job.not_before = time.monotonic() + min(LONGEST_PAUSE, LOOK_SECONDS * 2**job.failures)

    def cause(self, job_id: str) -> str:
        try:
            found = ask("GET", f"{JOBMANAGER}/jobs/{job_id}/exceptions?maxExceptions=1", timeout=5)
            entries = found.get("exceptionHistory", {}).get("entries", [])
            return root_cause(entries[0]["stacktrace"]) if entries else ""
        except (RefusedError, OSError):
            return ""

    def submit(self, job: Job) -> None:
        state = job.newest_state()
        settings = {"pipeline.name": job.name} | ({"execution.state-recovery.path": state} if state else {})
        session = ask("POST", f"{GATEWAY}/v1/sessions", {"properties": {}})["sessionHandle"]
        base = f"{GATEWAY}/v1/sessions/{session}"
        try:
            inserts = [s for s in job.statements if re.match(r"INSERT\b", s, re.IGNORECASE)]
            if not inserts:
                raise RefusedError("no INSERT among its statements: nothing would run")
            for statement in job.statements:
                if statement not in inserts:
                    self.execute(base, statement)
            # behind what the file itself sets: a job of another name would not be found, and be submitted again and again
            for key, value in settings.items():
                self.execute(base, f"SET '{key}' = '{value}'")
            if len(inserts) > 1:
                # of a set Flink does not say which statement is wrong
                for statement in inserts:
                    self.execute(base, statement, "EXPLAIN ")
            one = inserts[0] if len(inserts) == 1 else "EXECUTE STATEMENT SET BEGIN\n" + ";\n".join(inserts) + ";\nEND"
            job_id = self.execute(base, one).get("jobID")
            if not job_id:
                raise RefusedError("the gateway named no job")
            job.ids.append(job_id)
            job.restored_from = state or ""
            job.state, job.due, job.ended = "STARTING", False, ""
            job.keep()
            log(f"{job.name}: submitted as {job_id}{f' from {state}' if state else ''}")
        finally:
            with suppress(RefusedError, OSError):  # the gateway ends idle sessions by itself
                ask("DELETE", base, timeout=5)

    def execute(self, base: str, statement: str, before: str = "") -> dict:
        """Runs one statement (with a word before it) to its end; RefusedError with the root cause and the statement's beginning."""
        text = before + _REFERENCE.sub(lambda match: secret(match[1]).replace("'", "''"), statement)
        operation = ask("POST", f"{base}/statements", {"statement": text})["operationHandle"]
        deadline = time.monotonic() + RUN_SECONDS
        while ask("GET", f"{base}/operations/{operation}/status")["status"] in ("INITIALIZED", "PENDING", "RUNNING"):
            if time.monotonic() > deadline:
                raise RefusedError(f"{first_line(statement)}: not done after {RUN_SECONDS:.0f} s")
            time.sleep(0.2)
        try:
            return ask("GET", f"{base}/operations/{operation}/result/0?rowFormat=JSON")
        except RefusedError as error:
            raise RefusedError(f"{first_line(statement)}: {error}") from error

    # ---- what is asked from outside -----------------------------------------------------------------------------------

    def put(self, name: str, statements: list[str], sha256: str) -> dict:
        """Declares a job and waits until it runs. A change goes on from a savepoint; when that fails the old job is back."""
        with self.lock:
            before = self.jobs.get(name)
            if before and before.sha256 == sha256 and before.state not in ENDED | {"MISSING", "UNKNOWN"}:
                # after an outage Flink itself restarts its tasks
                return self.wait(before, restarting=True)
            job = Job(name, {"statements": statements, "sha256": sha256})
            if before:
                # whatever dies from here on, the old job comes back
                before.due = True
                before.keep()
                self.stop(before)
                job.ids = list(before.ids)
            self.jobs[name] = job
            try:
                self.submit(job)
                return self.wait(job)
            except (RefusedError, OSError) as error:
                if before is None:
                    self.cancel(job)
                    del self.jobs[name]
                    (DATA / f"{name}.json").unlink(missing_ok=True)
                    raise
                self.jobs[name] = before
                # a service that is away does not make the statements wrong
                kind = RefusedError if isinstance(error, RefusedError) else OSError
                raise kind(f"{error} ({self.back(before)})") from error

    def back(self, job: Job) -> str:
        """Undoes a change that failed; what became of the job as it was, in words."""
        if job.ended:
            job.due = False
            job.keep()
            self.cancel(job)
            return f"the job is {job.ended}, as it was"
        job.keep()
        try:
            self.cancel(job)
            self.submit(job)
        except (RefusedError, OSError) as error:
            return f"the job as it was does not begin either, and is tried again: {error}"
        return "the job runs on as it was"

    def wait(self, job: Job, restarting: bool = False) -> dict:
        """Returns once all of its tasks run. RefusedError with the cause when it fails, or does not after RUN_SECONDS.

        `restarting`: whether tasks that failed may come back; a new job whose tasks fail is wrong.
        """
        deadline = time.monotonic() + RUN_SECONDS
        while True:
            found = ask("GET", f"{JOBMANAGER}/jobs/{job.ids[-1]}", timeout=5)
            states = [vertex["status"] for vertex in found["vertices"]]
            if found["state"] == "RUNNING" and all(state in ("RUNNING", "FINISHED") for state in states):
                job.state, job.error = "RUNNING", ""
                return job.shown()
            again = found["state"] == "RESTARTING"
            if found["state"] in ENDED or (again and not (restarting and time.monotonic() < deadline)):
                raise RefusedError(self.cause(job.ids[-1]) or f"the job is {found['state']}")
            if time.monotonic() > deadline:
                free = ask("GET", f"{JOBMANAGER}/overview", timeout=5)
                raise RefusedError(
                    f"its tasks do not run after {RUN_SECONDS:.0f} s ({', '.join(sorted(set(states)))}); "
                    f"{free['slots-available']} of {free['slots-total']} slots are free"
                )
            time.sleep(0.5)

    def stop(self, job: Job) -> None:
        """Ends a job with a savepoint. One that can't take one is cancelled, and goes on from its newest checkpoint."""
        for found in alive(job.name, ask("GET", f"{JOBMANAGER}/jobs/overview")["jobs"]):
            base = f"{JOBMANAGER}/jobs/{found['jid']}"
            try:
                trigger = ask("POST", f"{base}/stop", {"drain": False})["request-id"]
                deadline = time.monotonic() + RUN_SECONDS
                while (answer := ask("GET", f"{base}/savepoints/{trigger}"))["status"]["id"] != "COMPLETED":
                    if time.monotonic() > deadline:
                        raise RefusedError("no savepoint in time")
                    time.sleep(0.2)
                if answer["operation"].get("location"):
                    return
            except RefusedError as error:
                log(f"{job.name}: no savepoint ({error}), cancelled instead")
            self.cancel(job)

    def cancel(self, job: Job) -> None:
        """Ends every live job of this name, and returns when they are gone."""
        deadline = time.monotonic() + RUN_SECONDS
        while live := alive(job.name, ask("GET", f"{JOBMANAGER}/jobs/overview")["jobs"]):
            end(live)
            if time.monotonic() > deadline:
                raise RefusedError("could not be cancelled")
            time.sleep(0.2)

    def delete(self, name: str) -> None:
        with self.lock:
            # first: forgotten, but running, nobody could end it any more
            self.cancel(self.jobs[name])
            del self.jobs[name]
            (DATA / f"{name}.json").unlink(missing_ok=True)


def secret(name: str) -> str:
    lines = (line.split("=", 1) for line in PROPERTIES.read_text().splitlines() if "=" in line)
    found = {key.strip(): value.strip() for key, value in lines}
    if name not in found:
        raise RefusedError(f"{PROPERTIES} has no {name}: it has what the inventory's PostgreSQL needs")
    return found[name]


def first_line(statement: str) -> str:
    return statement.strip().splitlines()[0][:80]


class Handler(BaseHTTPRequestHandler):
    jobs: Jobs

    def answer(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def guarded(self, act) -> None:
        try:
            self.answer(*act())
        except RefusedError as error:
            self.answer(409, {"message": str(error)})
        except OSError as error:
            self.answer(503, {"message": f"Flink does not answer: {error}"})
        except KeyError as error:
            self.answer(404, {"message": f"no job {error}"})

    def do_GET(self) -> None:
        if self.path == "/health":
            fresh = time.monotonic() - self.jobs.asked < RUN_SECONDS + 10
            self.answer(200 if self.jobs.asked and fresh else 503, {"healthy": bool(self.jobs.asked and fresh)})
        elif self.path == "/jobs":
            self.answer(200, [job.shown() for job in list(self.jobs.jobs.values())])
        else:
            self.answer(404, {"message": "there is /health and /jobs"})

    def do_PUT(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))
        self.guarded(lambda: (200, self.jobs.put(self.name(), body["statements"], body["sha256"])))

    def do_DELETE(self) -> None:
        self.guarded(lambda: (200, self.jobs.delete(self.name()) or {}))

    def name(self) -> str:
        match = re.fullmatch(r"/jobs/([A-Za-z0-9_.-]+)", self.path)
        if not match:
            raise KeyError(self.path)
        return match[1]

    def log_message(self, *_: object) -> None:
        """Health checks ask every few seconds: no access log."""


def main() -> int:
    jobs = Jobs()
    Handler.jobs = jobs
    threading.Thread(target=jobs.watch, daemon=True).start()
    log(f"{len(jobs.jobs)} declared jobs; serving on port {PORT}")
    ThreadingHTTPServer(("0.0.0.0", PORT), Handler).serve_forever()  # noqa: S104 the operator asks it from outside
    return 0


if __name__ == "__main__":
    sys.exit(main())
