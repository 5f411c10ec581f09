"""psql, ksql and shells in containers on lab hosts, as a person at a terminal and as a script uses them."""

import re
import subprocess

import pexpect
import pytest

from tests.lab.support import HOSTS, ROOT, VENICE, from_json, on, sql, venice, whole
from tests.waiting import PATIENCE, wait_until


def call(*arguments: str, stdin: str | None = None, timeout: float = PATIENCE) -> subprocess.CompletedProcess:
    """The command line without a terminal."""
    return subprocess.run([*VENICE, *arguments], cwd=ROOT, input=stdin, capture_output=True, text=True, timeout=timeout, check=False)


@pytest.fixture
def terminal():
    """Starts the command line on a terminal of 24 lines and 80 columns."""
    started = []

    def start(*arguments: str) -> pexpect.spawn:
        child = pexpect.spawn(VENICE[0], [*VENICE[1:], *arguments], cwd=str(ROOT), dimensions=(24, 80), timeout=PATIENCE, encoding="utf-8")
        started.append(child)
        return child

    yield start
    for child in started:
        child.close(force=True)


@pytest.fixture(scope="module")
def table(deployed):
    sql(deployed, "CREATE TABLE IF NOT EXISTS shells_test (n int PRIMARY KEY, name text)")
    yield
    sql(deployed, "DROP TABLE shells_test")


# ---- psql


def test_commands_of_one_call(deployed, table):
    done = call(
        "psql", "-i", "lab", "-c", "INSERT INTO shells_test VALUES (1, 'größer')", "-c", r"\d shells_test", "-c", "SELECT current_user"
    )
    assert done.returncode == 0, done.stderr
    assert "INSERT 0 1" in done.stdout
    assert '"shells_test_pkey" PRIMARY KEY' in done.stdout
    assert "postgres" in done.stdout
    assert call("psql", "-i", "lab", "-c", "SELECT name FROM shells_test", "--", "-At").stdout == "größer\n"


def test_pipe_and_file(deployed, table, tmp_path):
    assert call("psql", "-i", "lab", "--csv", stdin="select 1 as one;\nselect 'a,b' as two;\n").stdout == 'one\n1\ntwo\n"a,b"\n'
    file = tmp_path / "statements.sql"
    file.write_text("select 2;\n\nselect nothing;\nselect 3;\n")
    done = call("psql", "-i", "lab", "-f", str(file), "--", "-At")
    assert (done.returncode, done.stdout) == (1, "2\n")
    assert 'psql:<stdin>:3: ERROR:  column "nothing" does not exist' in done.stderr


def test_copy_reads_the_pipe(deployed, table):
    rows = "".join(f"{n},name {n}\n" for n in range(100, 5100))
    done = call("psql", "-i", "lab", "-c", "DELETE FROM shells_test", "-c", r"\copy shells_test FROM STDIN CSV", stdin=rows)
    assert "COPY 5000" in done.stdout, done.stderr
    assert call("psql", "-i", "lab", "-c", r"\copy (SELECT * FROM shells_test ORDER BY n) TO STDOUT CSV").stdout == rows


def test_a_command_is_done_as_a_whole_or_not_at_all(deployed, table):
    done = call("psql", "-i", "lab", "-c", "INSERT INTO shells_test VALUES (-1, 'half'); SELECT nothing")
    assert done.returncode == 1
    assert 'column "nothing" does not exist' in done.stderr
    assert sql(deployed, "SELECT count(*) FROM shells_test WHERE n = -1") == "0"


def test_rows_as_json(deployed):
    printed = call("psql", "-i", "lab", "--json", "-c", "SELECT 1 AS a; SELECT 1.5 AS b, NULL AS c, '' AS d, E'x\\ny' AS e").stdout
    assert from_json(printed, "psql") == [{"b": "1.5", "c": None, "d": "", "e": "x\ny"}]
    assert from_json(call("psql", "-i", "lab", "--json", "-c", "SELECT 1 AS a WHERE false").stdout, "psql") == []
    assert call("psql", "-i", "lab", "--json").returncode == 2


def test_interactive(deployed, terminal):
    child = terminal("psql", "-i", "lab")
    child.expect("venice=# ")
    child.sendline("select 6 * 7 as answer;")
    child.expect("42")
    child.expect("venice=# ")
    child.sendline(r"\! stty size")
    child.expect("24 80")
    child.setwinsize(40, 120)

    def resized():
        child.sendline(r"\! stty size")
        return child.expect(["40 120", "24 80"]) == 0

    wait_until(resized, "psql knows the new size")
    child.sendline("select pg_sleep(6000);")
    wait_until(lambda: sql(deployed, "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'select pg_sleep(6000)%'") == "1", "it sleeps")
    child.sendcontrol("c")
    child.expect("canceling statement due to user request")
    child.expect("venice=# ")
    child.sendcontrol("p")  # the line before, at once: Docker would hold the key back
    child.expect(r"select pg_sleep\(6000\);")
    child.sendcontrol("c")
    child.sendline(r"\q")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_interrupted_statement_does_not_run_on(deployed):
    query = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(777)%' AND pid <> pg_backend_pid()"
    child = subprocess.Popen(
        [*VENICE, "psql", "-i", "lab", "-c", "select pg_sleep(777)"], cwd=ROOT, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
    )
    try:
        wait_until(lambda: sql(deployed, query) == "1", "it sleeps")
        child.send_signal(2)
        assert child.wait(PATIENCE) == 130
        wait_until(lambda: sql(deployed, query) == "0", "the statement has ended")
    finally:
        child.kill()


def test_no_password_and_no_statement_on_a_command_line(deployed):
    """`ps` here and on the host while psql works: neither the sink's password nor what was piped or read from a file."""
    secrets = (deployed.state_dir / "secrets.yml").read_text()
    password = re.search(r"postgres_password: (\S+)", secrets)[1]
    marker = "shells-secret-4711"
    child = subprocess.Popen([*VENICE, "psql", "-i", "lab"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        child.stdin.write(f"select '{marker}';\nselect pg_sleep(6000);\n")
        child.stdin.flush()
        sleeping = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'select pg_sleep(6000)%' AND application_name LIKE 'venice %'"
        wait_until(lambda: sql(deployed, sleeping) == "1", "psql works")
        lines = subprocess.run(["ps", "axww"], capture_output=True, text=True, check=True).stdout
        for host in HOSTS:
            lines += on(host, ["sudo", "ps", "axwwe"]).stdout
        assert "psql -U postgres" in lines
        assert password not in lines
        assert marker not in lines
    finally:
        child.send_signal(2)
        child.wait(PATIENCE)
    done = call("psql", "-i", "lab", "-c", f"select '{marker}', pg_sleep(0)", "--", "-At")
    assert marker in done.stdout


# ---- exec


def test_exec_exit_code_and_streams(deployed):
    done = call("exec", "-i", "lab", "postgres", "--", "sh", "-c", "cat; echo 'a  b' >&2; exit 7", stdin="in\n")
    assert (done.returncode, done.stdout, done.stderr) == (7, "in\n", "a  b\n")
    assert call("exec", "-i", "lab", "kafka@lab-2", "printenv", "HOSTNAME").returncode == 0
    several = call("exec", "-i", "lab", "kafka", "true")
    assert several.returncode == 2
    assert "kafka@lab-1, kafka@lab-2, kafka@lab-3" in several.stderr
    unknown = call("exec", "-i", "lab", "postgrse", "true")
    assert unknown.returncode == 2
    assert "did you mean postgres?" in unknown.stderr


def test_exec_opens_a_shell(deployed, terminal):
    child = terminal("exec", "-i", "lab", "kafka@lab-1")
    child.expect(r"\$ ")
    child.sendline("stty size; echo I am $(id -u)")
    child.expect("24 80")
    child.expect(r"I am \d+")
    child.sendline("exit 3")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 3


# ---- ksql


def test_without_ksqldb_it_names_sql(deployed):
    for arguments in ([], ["-e", "SHOW STREAMS;"]):
        done = call("ksql", "-i", "lab", *arguments)
        assert done.returncode == 2
        assert "nothing runs ksqlDB" in done.stderr
        assert "`venice sql`" in done.stderr


# ---- a host that goes away


def test_connection_lost_in_a_shell(deployed, terminal):
    child = terminal("exec", "-i", "lab", "kafka@lab-1")
    child.expect(r"\$ ")
    venice("lab", "cut", "lab-1")
    try:
        child.expect("lab-1: the SSH connection was lost")
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus == 3
        done = call("exec", "-i", "lab", "kafka@lab-1", "true")
        assert done.returncode == 3
        assert "lab-1" in done.stderr
    finally:
        venice("lab", "mend", "lab-1")
        wait_until(whole, "lab-1 is back")
