"""connect-restarter: a worker's failed tasks are started again, and those whose state is lost; other workers' and healthy ones are not."""

import json
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from venice import paths

SCRIPT = paths.resource("images") / "connect" / "bin" / "connect-restarter"


class Connect(ThreadingHTTPServer):
    """As much of Connect's REST API as the script asks for."""

    def __init__(self):
        super().__init__(("localhost", 0), Answer)
        self.me = f"localhost:{self.server_port}"
        self.restarted: list[str] = []
        self.tasks = {
            "sink with space": [
                {"id": 0, "state": "RUNNING", "worker_id": self.me},
                {"id": 1, "state": "FAILED", "worker_id": self.me, "trace": '{"id":9'},
            ],
            "other": [{"id": 0, "state": "FAILED", "worker_id": "10.0.0.9:8083", "trace": "x"}],
            "lost": [{"id": 1, "state": "UNASSIGNED", "worker_id": "10.0.0.9:8083"}, {"id": 2, "state": "RUNNING", "worker_id": self.me}],
            "elsewhere": [],
        }
        # as their configurations have them
        self.counts = {"sink with space": 2, "other": 1, "lost": 3, "elsewhere": 1}


class Answer(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def _send(self, code: int, body: object = None):
        data = b"" if body is None else json.dumps(body, separators=(",", ":")).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        if self.path == "/connectors":
            return self._send(200, list(self.server.tasks))
        name = self.path.split("/")[2].replace("%20", " ")
        if self.path.endswith("/tasks"):
            return self._send(200, [{"id": {"connector": name, "task": n}, "config": {"k": "v"}} for n in range(self.server.counts[name])])
        worker = "10.0.0.9:8083" if name == "elsewhere" else self.server.me
        return self._send(200, {"name": name, "connector": {"state": "RUNNING", "worker_id": worker}, "tasks": self.server.tasks[name]})

    def do_POST(self):
        self.server.restarted.append(self.path)
        self._send(204)


def test_restarts_its_own_failed_and_lost_tasks_only():
    server = Connect()
    wanted = {f"/connectors/{task}/restart" for task in ("sink%20with%20space/tasks/1", "lost/tasks/0", "lost/tasks/1")}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    # the same program with shorter pauses (first, longest, between questions, until a state is lost; seconds)
    program = SCRIPT.read_text()
    assert "(15, 600, 5, 30)" in program
    with subprocess.Popen(["perl", "-", server.me], stdin=subprocess.PIPE, text=True) as script:
        script.stdin.write(program.replace("(15, 600, 5, 30)", "(1, 2, 1, 2)"))
        script.stdin.close()
        try:
            deadline = time.monotonic() + 30
            while min(server.restarted.count(task) for task in wanted) < 2:
                assert time.monotonic() < deadline, server.restarted
                time.sleep(0.1)
        finally:
            script.terminate()
    server.shutdown()
    assert set(server.restarted) == wanted
