"""Services of this process that give answers again that were recorded from ksqlDB 7.9.0 and Schema Registry 7.9.0."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

HERE = Path(__file__).parent


def recording(number):
    [file] = (HERE / "ksqldb").glob(f"{number}-*.json")
    return json.loads(file.read_text())


def statement(number):
    body = recording(number)["request"]["body"]
    return body.get("ksql") or body.get("sql")


@contextmanager
def server(*numbers, silent=False, broken=False):
    """Gives these recordings' answers, one after the other, the last again and again: its URL and the requests that came.

    `numbers`: of recordings, or recordings that a test has changed. `silent` never answers; `broken` ends the connection amid the answer.
    """
    answers, asked, release = [(n if isinstance(n, dict) else recording(n))["response"] for n in numbers], [], threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            asked.append(SimpleNamespace(method=self.command, path=unquote(self.path), body=body, headers=self.headers))
            if silent:
                release.wait(20)
                return
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
            lines = answer.get("body_lines")
            content = ("\n".join(lines) if lines is not None else json.dumps(answer["body"])).encode()
            self.send_response(answer["status"])
            for name, value in answer["headers"].items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content) + (100 if broken else 0)))
            self.end_headers()
            self.wfile.write(content)
            self.close_connection = broken

        do_POST = do_GET  # noqa: N815 (the name that the base class calls)

        def log_message(self, *_):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{httpd.server_address[1]}", asked
    finally:
        release.set()
        httpd.shutdown()
        httpd.server_close()


def closed_port():
    with server("005") as (url, _):
        pass
    return url
