"""run-job.py SCRIPT: run a streaming job in this driver, and tell whether its queries make progress.

CHECKPOINT is the job's folder; the file `job` in it tells Venice on which host the job has its state.

`GET :8080/` answers 200 when the script has started queries and each of them waits for data, or has ended a batch since it was
started and within the last STUCK_SECONDS; else 503. The body says it of each query. The session that the script gets from
`SparkSession.builder.getOrCreate()` is the one made here, with the cluster and the resources that Venice chose.
"""

import contextlib
import json
import os
import runpy
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PORT = 8080
STUCK_SECONDS = 60.0


class Watch:
    """What the queries of a session do. A batch that does not end is seen by its number: nothing says since when it runs."""

    def __init__(self, session):
        self._session = session
        self._lock = threading.Lock()
        self._busy: dict[str, tuple[object, float]] = {}

    def queries(self):
        """The active queries: name, last batch, watermark, what it does now, and for how many seconds it has been at it."""
        with self._lock:
            found = [self._look(query) for query in self._session.streams.active]
            self._busy = {entry["id"]: self._busy[entry["id"]] for entry in found}
            return found

    def _look(self, query):
        status, last = query.status, query.lastProgress or {}
        batch, now = last.get("batchId"), time.monotonic()
        before, since = self._busy.get(query.id, (batch, now))
        if batch != before or not status["isTriggerActive"]:
            since = now
        self._busy[query.id] = (batch, since)
        return {
            "id": query.id,
            "name": query.name or "",
            "batch": batch,
            "watermark": last.get("eventTime", {}).get("watermark"),
            "state": status["message"],
            "busy": status["isTriggerActive"],
            "busy_seconds": round(now - since, 1),
        }


def judge(queries):
    """What is wrong, as one line; empty when nothing is."""
    if not queries:
        return "no query runs"
    wrong = []
    for query in queries:
        name, seconds = query["name"] or query["id"], query["busy_seconds"]
        if query["busy"] and query["batch"] is None:
            wrong.append(f"query {name}: its first batch has not ended: {query['state']}")
        elif seconds > STUCK_SECONDS:
            wrong.append(f"query {name}: no batch has ended for {seconds:.0f} s: {query['state']}")
    return ", ".join(wrong)


def serve(watch):
    """Answer health checks, in threads that end with the program."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            try:
                queries = watch.queries()
                wrong = judge(queries)
            except Exception as error:  # whatever the JVM does not answer
                queries, wrong = [], f"the driver's JVM does not answer: {error!r}"
            body = json.dumps({"wrong": wrong, "queries": queries} if wrong else {"queries": queries}).encode()
            with contextlib.suppress(ConnectionError):  # who asked has given up
                self.send_response(503 if wrong else 200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *_):
            """Health checks are no news."""

    threading.Thread(target=ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever, daemon=True).start()


def main():
    """Be the script, with a session and somebody to ask how its queries are."""
    from pyspark.sql import SparkSession  # so that what judges can be tested without Spark

    (Path(os.environ["CHECKPOINT"]) / "job").write_text(f"started={time.time():.0f}\n")
    serve(Watch(SparkSession.builder.getOrCreate()))
    script = sys.argv[1]
    sys.argv = sys.argv[1:]
    sys.path[0] = str(Path(script).parent)
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
