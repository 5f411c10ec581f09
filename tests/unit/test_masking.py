"""No secret gets past the mask, in whatever form it is written; what is none stays readable."""

import base64
import json

import pytest

from venice.masking import MASK, Masker, is_secret, mentions, secrets_in

SECRET = "p\"a/s's wörd+1"


@pytest.mark.parametrize(
    "text",
    [
        f"bad password {SECRET} given",
        json.dumps({"detail": SECRET}),
        "dsn p%22a%2Fs%27s%20w%C3%B6rd%2B1 refused",
        "ALTER ROLE x PASSWORD 'p\"a/s''s wörd+1'",
        f"Basic {base64.b64encode(SECRET.encode()).decode()}",
    ],
)
def test_a_known_value_is_masked_in_every_form(text):
    shown = Masker([SECRET]).text(text)
    assert MASK in shown
    assert "rd+1" not in shown
    assert "rd%2B1" not in shown
    assert base64.b64encode(SECRET.encode()).decode().rstrip("=") not in shown


@pytest.mark.parametrize(
    "text",
    [
        "connecting to postgresql://venice:hunter22@db:5432/venice",
        "jdbc:postgresql://db/venice?user=venice&password=hunter22&ssl=true",
        "sasl.jaas.config = x required username='a' password='hunter22';",
        'INFO {"api_key": "hunter22", "name": "x"}',
        "ssl.truststore.password=hunter22",
        "AUTH_TOKEN: hunter22",
        "Authorization: Bearer hunter22",
        "-----BEGIN PRIVATE KEY-----\nhunter22\n-----END PRIVATE KEY-----",
    ],
)
def test_unknown_values_are_masked_by_their_names(text):
    shown = Masker([]).text(text)
    assert "hunter22" not in shown
    assert MASK in shown


@pytest.mark.parametrize(
    "text",
    [
        "key.converter=org.apache.kafka.connect.storage.StringConverter",
        "connection.password=${file:/etc/kafka/secrets.properties:postgres_password}",
        "ssl.keystore.password = null",
        "password authentication failed for user venice",
        "RequestHeader(apiKey=METADATA, apiVersion=12)",
        "http://192.0.2.1:8081/subjects",
    ],
)
def test_what_is_no_secret_stays(text):
    assert Masker(["another"]).text(text) == text


def test_a_short_secret_is_masked_as_a_word_only():
    assert Masker(["lab"]).text("lab: label of slab, lab-1") == f"{MASK}: label of slab, {MASK}-1"


def test_of_a_secret_file_only_names_are_left():
    shown = Masker([]).secret_file("# made by hand\nuser=venice\npassword = x y z\n\nALTER ROLE venice PASSWORD 'x';\n")
    assert shown == f"{MASK}\nuser={MASK}\npassword ={MASK}\n\n{MASK}\n"


def test_nested_data():
    data = {"config": {"connection.password": "x1", "tasks.max": "1", "aws.secret.access.key": ["y1"]}, "trace": "token=z1", "n": 5}
    shown = Masker([]).data(data)
    assert shown == {
        "config": {"connection.password": MASK, "tasks.max": "1", "aws.secret.access.key": [MASK]},
        "trace": f"token={MASK}",
        "n": 5,
    }
    assert secrets_in(data) == {"x1", "y1"}
    assert mentions(data)
    assert not mentions({"a": [{"b": 1}]})


def test_references_and_nothing_are_no_secrets():
    assert not is_secret("password", "${file:/a:b}")
    assert not is_secret("password", "")
    assert not is_secret("password", None)
    assert not is_secret("password", "{{ lookup('venice_secret', 'x') }}")
    assert not is_secret("password_required", True)
    assert is_secret("connect_PASSWORD", "x")


@pytest.mark.parametrize(
    "part", ["token", "password ", "://a:", "-----BEGIN PRIVATE KEY-----", "${", "x=", "secret.", "authorization: basic "]
)
def test_masking_takes_time_in_proportion_to_the_text(part):
    """Half a megabyte of anything; a pattern that backtracks would take minutes."""
    Masker(["a" * 32]).text(part * (500_000 // len(part)))


def test_a_record_s_key_is_no_secret():
    """Nor is a line of a program's text that begins with the word."""
    assert not is_secret("Key", "the vehicle's id")
    assert is_secret("api_key", "hunter2hunter2")
