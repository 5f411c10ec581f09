"""connect-restarter: a worker's failed tasks are started again, other workers' and healthy ones are not."""

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
        }


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
        return self._send(
            200, {"name": name, "connector": {"state": "RUNNING", "worker_id": self.server.me}, "tasks": self.server.tasks[name]}
        )

    def do_POST(self):
        self.server.restarted.append(self.path)
        self._send(204)


def test_restarts_its_own_failed_tasks_only():
    server = Connect()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    # the same program with shorter pauses (first, longest, between questions; seconds)
    program = SCRIPT.read_text()
    assert "(15, 600, 5)" in program
    with subprocess.Popen(["perl", "-", server.me], stdin=subprocess.PIPE, text=True) as script:
        script.stdin.write(program.replace("(15, 600, 5)", "(1, 2, 1)"))
        script.stdin.close()
        try:
            deadline = time.monotonic() + 30
            while len(server.restarted) < 2:
                assert time.monotonic() < deadline, server.restarted
                time.sleep(0.1)
        finally:
            script.terminate()
    server.shutdown()
    assert set(server.restarted) == {"/connectors/sink%20with%20space/tasks/1/restart"}
