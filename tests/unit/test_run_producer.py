"""The launcher of producers: waits for a broker and the registry, then becomes the program."""

import http.server
import importlib.machinery
import importlib.util
import socket
import subprocess
import sys
import threading

import pytest

from tests.waiting import PATIENCE
from venice import paths

LAUNCHER = paths.resource("images") / "producer" / "bin" / "run-producer"


@pytest.fixture
def launcher(monkeypatch, tmp_path):
    loader = importlib.machinery.SourceFileLoader("run_producer", str(LAUNCHER))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("run_producer", loader))
    loader.exec_module(module)
    monkeypatch.setattr(module, "STARTED", tmp_path / "started")
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.01)
    return module


@pytest.fixture
def broker():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def registry():
    class Handler(http.server.BaseHTTPRequestHandler):
        codes: list[int] = []  # noqa: RUF012 answers to come; 200 when none is left

        def do_GET(self):
            assert self.path == "/subjects"
            self.send_response(self.codes.pop(0) if self.codes else 200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        server.codes = Handler.codes
        server.url = f"http://127.0.0.1:{server.server_address[1]}"
        yield server
        server.shutdown()
        thread.join()
        Handler.codes.clear()


def closed() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def test_one_broker_of_several_is_enough(launcher, monkeypatch, broker, registry):
    monkeypatch.setenv("BOOTSTRAP_SERVERS", f"{closed()},{broker}")
    monkeypatch.setenv("SCHEMA_REGISTRY_URL", registry.url)
    assert launcher.missing() == ""


def test_what_does_not_answer_is_named(launcher, monkeypatch, broker):
    gone = closed()
    monkeypatch.setenv("BOOTSTRAP_SERVERS", gone)
    assert launcher.missing().startswith(f"brokers: {gone} (")
    monkeypatch.setenv("BOOTSTRAP_SERVERS", broker)
    monkeypatch.setenv("SCHEMA_REGISTRY_URL", f"http://{gone}")
    assert launcher.missing().startswith(f"schema registry: http://{gone} (")


def test_it_waits_and_says_so_once(launcher, monkeypatch, capsys, broker, registry):
    registry.codes += [503, 503, 503]
    monkeypatch.setenv("BOOTSTRAP_SERVERS", broker)
    monkeypatch.setenv("SCHEMA_REGISTRY_URL", registry.url)
    launcher.wait()
    waiting, answered = capsys.readouterr().out.splitlines()
    assert waiting.startswith("waiting for schema registry: ")
    assert "503" in waiting
    assert answered == "brokers and schema registry answer"
    assert registry.codes == []


def test_the_program_gets_its_arguments_its_folder_and_its_exit_code(tmp_path, broker, registry):
    (tmp_path / "beside.py").write_text("WORD = 'beside'")
    (tmp_path / "p.py").write_text("import sys, beside\nprint(__name__, sys.argv[1:], beside.WORD)\nsys.exit(3)\n")
    environment = {"BOOTSTRAP_SERVERS": broker, "SCHEMA_REGISTRY_URL": registry.url, "PATH": "/usr/bin:/bin"}
    argv = [sys.executable, str(LAUNCHER), str(tmp_path / "p.py"), "a", "b"]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stdout) == (3, "__main__ ['a', 'b'] beside\n"), done.stderr


def test_its_health_is_that_the_program_was_started(launcher, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run-producer", "--started"])
    for there, code in ((False, 1), (True, 0)):
        if there:
            launcher.STARTED.touch()
        with pytest.raises(SystemExit) as ended:
            launcher.main()
        assert ended.value.code == code
    assert "waiting" in capsys.readouterr().out
